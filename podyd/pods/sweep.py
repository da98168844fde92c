"""What a podyd that was killed has left half-made, removed once LXD has come to an end with it."""

from __future__ import annotations

import asyncio
import logging

from podyd.base.errors import PodydError
from podyd.base.tasks import came
from podyd.engine.interface import Operations
from podyd.pods.commits import Commits
from podyd.pods.half_made import HalfMade

log = logging.getLogger(__name__)

# Between two looks at what LXD is doing, at first and at last.
LOOK_SECONDS, LOOK_SECONDS_MAX = 0.25, 5.0
# Where LXD could not be asked.
AGAIN_SECONDS = 60.0


class Sweep:
    """Looks whenever LXD is there (again), which may have been what ended the podyd before."""

    def __init__(self, *, operations: Operations, half_made: HalfMade, commits: Commits) -> None:
        self._operations = operations
        self._half_made = half_made
        self._commits = commits
        self._there = asyncio.Event()

    def begin(self) -> None:
        """LXD is there."""
        self._there.set()

    async def run(self) -> None:
        """Sweep, for good."""
        timeout: float | None = None
        while True:
            await came(self._there, timeout)
            self._there.clear()
            try:
                await self.sweep()
                timeout = None
            except PodydError as error:
                log.warning("nobody could look for what is half-made: %s", error)
                timeout = AGAIN_SECONDS

    async def sweep(self) -> None:
        """Remove what is half-made now, and until all has ended that LXD is doing now.

        A pod that LXD is still making, or an image, is not listed yet. Raises PodydError.
        """
        left = await self._under_way()
        pause = LOOK_SECONDS
        while True:
            await self._half_made.sweep()
            # What an image was being made of is there until LXD has finished the image.
            await self._commits.sweep()
            if not left:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS_MAX)
            left &= await self._under_way()

    async def _under_way(self) -> set[str]:
        return {item.id for item in await self._operations.under_way()}
