"""Counts failures in a sliding window, and says when there were too many."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence

# What an attacker can make podyd remember.
MAX_KEYS = 10_000


class Throttle:
    """Failures per key; `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def wait(self, key: Hashable, limit: int, window: float) -> float:
        """Seconds until `key` may try again; 0 if it may now."""
        times = self._recent(key, window)
        return 0.0 if len(times) < limit else times[-limit] + window - self._clock()

    def number(self, key: Hashable, window: float) -> int:
        """How many failures there were within `window` seconds."""
        return len(self._recent(key, window))

    def _recent(self, key: Hashable, window: float) -> Sequence[float]:
        times = self._failures.get(key)
        if times is None:
            return ()
        begin = self._clock() - window
        while times and times[0] <= begin:
            times.popleft()
        if not times:
            del self._failures[key]
        return times

    def count(self, key: Hashable) -> float:
        """Count a failure now; the result is for `forgive`."""
        now = self._clock()
        self._failures.setdefault(key, deque()).append(now)
        self._failures.move_to_end(key)
        while len(self._failures) > MAX_KEYS:
            self._failures.popitem(last=False)
        return now

    def forgive(self, key: Hashable, counted: float) -> None:
        """Take one count back."""
        times = self._failures.get(key)
        if times is not None and counted in times:
            times.remove(counted)
