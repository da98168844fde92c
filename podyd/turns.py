"""A bounded number at a time; the others wait in line."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class LineFull(Exception):
    """As many wait already as may."""


class Turns:
    """`width` at a time, `length` in line, in the order in which they came; the favoured first."""

    def __init__(self, *, width: int, length: int) -> None:
        self._free = width
        self._length = length
        self._favoured: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def turn(self, *, favoured: bool = False) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises LineFull."""
        # While somebody waits no turn is free, so nobody is overtaken here.
        if self._free:
            self._free -= 1
        else:
            await self._wait(self._favoured if favoured else self._others)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, line: deque[asyncio.Future[None]]) -> None:
        if len(self._favoured) + len(self._others) >= self._length:
            raise LineFull
        place = asyncio.get_running_loop().create_future()
        line.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # The turn had come at the same moment.
                self._pass_on()
            elif place in line:
                line.remove(place)
            raise

    def _pass_on(self) -> None:
        for line in (self._favoured, self._others):
            while line:
                place = line.popleft()
                if not place.done():
                    place.set_result(None)
                    return
        self._free += 1
