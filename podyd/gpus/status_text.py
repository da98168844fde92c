"""The cards and the queue as plain text, for a display on a wall and for curl."""

from __future__ import annotations

import asyncio
import time
import unicodedata
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime

from podyd.base.tasks import seen
from podyd.contract.gpus import Waiting
from podyd.contract.host import GpuInfo

WIDTH = 80
KEPT_SECONDS = 1.0
GIB = 1024**3
_UNKNOWN = "-"
_HOLDERS = 20
# How wide each column is, to the right if it is negative.
_CARD = (-3, 15, -5, -10, -4, _HOLDERS, 11)
_WAITING = (-3, 30, 14, -7, 16)


class StatusText:
    """What `make` returns, made once for all who ask within `KEPT_SECONDS`: anybody may ask, at any
    rate. `clock` returns monotonic seconds."""

    def __init__(
        self, make: Callable[[], Awaitable[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._clock = clock
        self._making: asyncio.Future[str] | None = None
        self._began = 0.0

    async def now(self) -> str:
        """The text. Raises what `make` does."""
        making = self._making
        if making is None or (making.done() and self._clock() >= self._began + KEPT_SECONDS):
            self._began = self._clock()
            self._making = making = asyncio.ensure_future(self._make())
            making.add_done_callback(seen)
        # A caller that is cancelled must not cancel it for the others.
        return await asyncio.shield(making)


def status_text(
    host: str, now: datetime, cards: Sequence[GpuInfo], queue: Sequence[Waiting]
) -> str:
    """A table of the cards and one of the queue, each line `WIDTH` wide at most; times in UTC."""
    return "".join(f"{_line(line)}\n" for line in _lines(host, now, cards, queue))


def _lines(
    host: str, now: datetime, cards: Sequence[GpuInfo], queue: Sequence[Waiting]
) -> Iterator[str]:
    time = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    yield _row((WIDTH - len(time) - 2, len(time)), host, time)
    yield ""
    if not cards:
        yield "This host has no GPUs."
        return
    yield _row(_CARD, "GPU", "NAME", "USE", "MEMORY", "TEMP", "HELD BY", "UNTIL")
    for card in cards:
        yield from _card(card)
    yield ""
    if not queue:
        yield "Nobody waits for a GPU."
        return
    yield _row(_WAITING, "", "WAITING", "GPUS", "FOR", "SINCE")
    for item in queue:
        yield _row(
            _WAITING,
            str(item.place),
            item.pod,
            item.gpus,
            f"{item.hours:g} h",
            _minute(item.since),
        )


def _card(card: GpuInfo) -> Iterator[str]:
    memory = (
        _UNKNOWN
        if card.memory_used is None or card.memory_total is None
        else f"{card.memory_used / GIB:.1f}/{card.memory_total / GIB:.0f}G"
    )
    lease = next((pod for pod in card.pods if pod.exclusive), None)
    yield _row(
        _CARD,
        str(card.index),
        card.name.removeprefix("NVIDIA "),
        _UNKNOWN if card.utilisation is None else f"{card.utilisation} %",
        memory,
        _UNKNOWN if card.temperature is None else f"{card.temperature} C",
        lease.pod if lease else _shared(card),
        _minute(lease.until)[5:] if lease and lease.until else "",
    )
    if card.problem is not None:
        yield f"     {card.problem}"


def _shared(card: GpuInfo) -> str:
    """Whose pods share a card, as far as there is room."""
    owners = list(dict.fromkeys(pod.owner for pod in card.pods))
    if not owners:
        return "nobody"
    shown = [", ".join(owners)] + [
        f"{', '.join(owners[:count])} +{len(owners) - count}"
        for count in range(min(len(owners) - 1, _HOLDERS // 2), 0, -1)
    ]
    return next((text for text in shown if _columns(text) <= _HOLDERS), shown[-1])


def _minute(moment: str) -> str:
    """A time of the API, to the minute."""
    return moment[:16].replace("T", " ")


def _row(widths: Sequence[int], *cells: str) -> str:
    """Cells below each other, also where characters are twice as wide as others."""
    padded = []
    for width, cell in zip(widths, map(_printable, cells), strict=True):
        text = _cut(cell, abs(width))
        space = " " * (abs(width) - _columns(text))
        padded.append(space + text if width < 0 else text + space)
    return "  ".join(padded)


def _cut(text: str, width: int) -> str:
    if _columns(text) <= width:
        return text
    while _columns(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def _columns(text: str) -> int:
    """How wide a terminal shows it."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _printable(text: str) -> str:
    """Names may hold anything, such as the codes of a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _line(text: str) -> str:
    """What is shown of a line."""
    return _cut(_printable(text), WIDTH).rstrip()
