"""Removal of half-made pods and images of a podyd that was killed, once the engine has finished
them."""

from __future__ import annotations

import asyncio
import logging

from podyd.base.errors import PodydError
from podyd.base.tasks import came
from podyd.engine.interface import Operations
from podyd.pods.commits import Commits
from podyd.pods.half_made import HalfMade

log = logging.getLogger(__name__)

# The pause between two reads of the engine's operations, in seconds: the first, and the longest.
LOOK_SECONDS, LOOK_SECONDS_MAX = 0.25, 5.0
# The pause, in seconds, after the engine did not answer.
AGAIN_SECONDS = 60.0


class Sweep:
    """Sweeps after each connection to the engine, as the engine's end may also have ended an
    earlier podyd."""

    def __init__(self, *, operations: Operations, half_made: HalfMade, commits: Commits) -> None:
        self._operations = operations
        self._half_made = half_made
        self._commits = commits
        self._begun = asyncio.Event()

    def begin(self) -> None:
        """The engine is connected: start a sweep."""
        self._begun.set()

    async def run(self) -> None:
        """Sweep after each `begin`, until cancelled."""
        timeout: float | None = None
        while True:
            await came(self._begun, timeout)
            self._begun.clear()
            try:
                await self.sweep()
                timeout = None
            except PodydError as error:
                log.warning("half-made pods and images could not be removed: %s", error)
                timeout = AGAIN_SECONDS

    async def sweep(self) -> None:
        """Remove half-made pods and images, until all current operations of the engine have ended.

        Those that the engine is still creating are not listed yet. Raises PodydError.
        """
        operations = await self._under_way()
        pause = LOOK_SECONDS
        while True:
            await self._half_made.sweep()
            # The copy that an image is made from exists until the engine has finished the image.
            await self._commits.sweep()
            if not operations:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS_MAX)
            operations &= await self._under_way()

    async def _under_way(self) -> set[str]:
        return {item.id for item in await self._operations.under_way()}
