"""How far something has come, on a terminal."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from podyd.client import output, show

EVERY_SECONDS = 0.2
TELL_SECONDS = 0.5
# Of a call that says how far another one is, every other time will do.
ASK_EVERY = 2
BAR = 20


class Progress:
    """One line, anew with each `add`; `total` in bytes, None where nobody knows."""

    def __init__(self, name: str, total: int | None) -> None:
        self._name = show.harmless(name)
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._shown = self._began
        self._is_seen = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_seen and self._shown > self._began:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def add(self, count: int) -> None:
        """So many bytes more have come."""
        self._done += count
        now = time.monotonic()
        if self._is_seen and now - self._shown >= EVERY_SECONDS:
            self._shown = now
            print(f"\r\x1b[K{self.line(now)}", end="", file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """What is shown at a time of the monotonic clock."""
        rate = self._done / max(now - self._began, 1e-6)
        parts = [self._name, show.size(self._done), f"{show.size(rate)}/s"]
        if self._total:
            part = min(1.0, self._done / self._total)
            bar = ("#" * round(part * BAR)).ljust(BAR)
            left = (self._total - self._done) / rate if rate else 0.0
            parts[1:2] = [f"[{bar}] {part:4.0%}", f"{show.size(self._done)}"]
            parts.append(f"{show.duration(round(max(left, 0)))} left")
        return "  ".join(parts)


@contextlib.contextmanager
def waiting(what: str, how_far: Callable[[], str] | None = None) -> Iterator[None]:
    """Show for how long it has been waited, and what `how_far` says, which a thread calls."""
    began = time.monotonic()
    over = False
    writing = threading.Lock()

    def tell() -> None:
        far = ""
        for turn in itertools.count():
            time.sleep(TELL_SECONDS)
            if how_far is not None and turn % ASK_EVERY == 0:
                far = how_far()
            with writing:
                if over:
                    return
                state = ", ".join([*([far] if far else []), f"{time.monotonic() - began:.0f} s"])
                line = show.cut(show.harmless(f"{what} … {state}"), output.columns() - 1)
                print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    if sys.stderr.isatty():
        teller.start()
    try:
        yield
    finally:
        # Nobody waits for the thread, which may itself be waiting for podyd.
        with writing:
            over = True
            if teller.is_alive():
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
