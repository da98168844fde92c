"""The clocks of what is counted, and whether the one that dates it can be trusted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# A clock that is set forward by mistake and back again must not cost a year's history: old entries
# are deleted only after the clock has been steady for a while.
JUMP_SECONDS = 60.0
STEADY_SECONDS = 600.0


@dataclass(frozen=True)
class Clock:
    """The wall clock, in seconds since 1970, and a monotonic one, in seconds."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


REAL = Clock()


class Steadiness:
    """Compares the wall clock with the monotonic one at each look."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The wall clock less the monotonic one, and since when it has been so.
        self._offset, self._since = math.inf, 0.0

    def is_steady(self) -> bool:
        """Whether the wall clock has not been set for `STEADY_SECONDS`, as far as was looked."""
        wall, monotonic = self._clock.wall(), self._clock.monotonic()
        if abs(wall - monotonic - self._offset) > JUMP_SECONDS:
            self._offset, self._since = wall - monotonic, monotonic
        return monotonic - self._since >= STEADY_SECONDS
