"""The cards and the queue as plain text, for a display on a wall and for curl."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from podyd.contract.gpus import Waiting
from podyd.contract.host import GpuInfo

WIDTH = 100
GIB = 1024**3
_UNKNOWN = "-"
_HOLDERS = 22
_CARD = f"{{:>3}}  {{:<22}}  {{:>5}}  {{:>15}}  {{:>5}}  {{:<{_HOLDERS}}}  {{}}"
_WAITING = "{:>3}  {:<32}  {:<16}  {:>8}  {}"


def status_text(
    host: str, now: datetime, cards: Sequence[GpuInfo], queue: Sequence[Waiting]
) -> str:
    """A table of the cards and one of the queue, each line `WIDTH` wide at most; times in UTC."""
    return "".join(f"{_line(line)}\n" for line in _lines(host, now, cards, queue))


def _lines(
    host: str, now: datetime, cards: Sequence[GpuInfo], queue: Sequence[Waiting]
) -> Iterator[str]:
    time = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    yield f"{host[: WIDTH - len(time) - 2]:<{WIDTH - len(time)}}{time}"
    yield ""
    if not cards:
        yield "This host has no GPUs."
        return
    yield _CARD.format("GPU", "NAME", "USE", "MEMORY", "TEMP", "HELD BY", "UNTIL")
    for card in cards:
        yield from _card(card)
    yield ""
    if not queue:
        yield "Nobody waits for a GPU."
        return
    yield _WAITING.format("", "WAITING", "GPUS", "FOR", "SINCE")
    for item in queue:
        yield _WAITING.format(
            item.place,
            _cut(item.pod, 32),
            _cut(item.gpus, 16),
            f"{item.hours:g} h",
            _minute(item.since),
        )


def _card(card: GpuInfo) -> Iterator[str]:
    memory = (
        _UNKNOWN
        if card.memory_used is None or card.memory_total is None
        else f"{card.memory_used / GIB:.1f} / {card.memory_total / GIB:.1f} G"
    )
    lease = next((pod for pod in card.pods if pod.exclusive), None)
    yield _CARD.format(
        card.index,
        _cut(card.name.removeprefix("NVIDIA "), 22),
        _UNKNOWN if card.utilisation is None else f"{card.utilisation} %",
        memory,
        _UNKNOWN if card.temperature is None else f"{card.temperature} C",
        _cut(lease.pod, _HOLDERS) if lease else _shared(card),
        _minute(lease.until) if lease and lease.until else "",
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
    return next((text for text in shown if len(text) <= _HOLDERS), _cut(shown[-1], _HOLDERS))


def _minute(moment: str) -> str:
    """A time of the API, to the minute."""
    return moment[:16].replace("T", " ")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _line(text: str) -> str:
    """What is shown of a line: names may hold anything, such as the codes of a terminal."""
    return _cut("".join(char if char.isprintable() else "?" for char in text), WIDTH).rstrip()
