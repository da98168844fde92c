"""The requests under way: how many there may be, and what happens to them at shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from podyd.base.errors import TooMany
from podyd.base.fair_semaphore import FairSemaphore, QueueFull
from podyd.board.works import Works
from podyd.contract.operation import GET, AnyOperation
from podyd.model.member import Member

# Requests of one member that read, and as many that change; further ones are queued.
MAX_OF_ONE = 16
# Of all members together, and how many may be queued.
MAX_UNDER_WAY = 1024
MAX_WAITING = 1024


class Requests:
    """The requests under way, so that a shutdown can wait for them, and how many there may be."""

    def __init__(self) -> None:
        self._looks = FairSemaphore(width=MAX_UNDER_WAY, length=MAX_WAITING)
        self._changes = FairSemaphore(width=MAX_UNDER_WAY, length=MAX_WAITING)
        self.under_way: set[asyncio.Task[Any]] = set()
        self.works = Works()
        self._not_waited_for: set[asyncio.Task[Any]] = set()
        self.ending = False
        self.ended = False

    def add(self, task: asyncio.Task[Any], *, waited_for: bool = True) -> None:
        """Count a task until it is done."""
        for tasks in (self.under_way,) if waited_for else (self.under_way, self._not_waited_for):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    @contextlib.asynccontextmanager
    async def turn(self, member: Member, operation: AnyOperation) -> AsyncIterator[None]:
        """Wait until the member has fewer requests under way than `MAX_OF_ONE`. Raises TooMany.

        The engine, the lock on the GPUs and the database serve requests in order, whoever's they
        are: so each member may have a few there, however many connections they open.
        """
        if not operation.takes_turns:
            yield
            return
        turns = self._looks if operation.methods == GET else self._changes
        try:
            async with turns.turn(member.name, share=MAX_OF_ONE):
                yield
        except QueueFull:
            raise TooMany(
                "Too many requests of yours are under way.",
                advice="Wait until some are answered.",
                retry_after=1,
                code="too_many_requests",
            ) from None

    async def finish(self, timeout: float) -> None:
        """Wait `timeout` seconds at most for the requests under way, then cancel them."""
        deadline = time.monotonic() + timeout
        for task in self._not_waited_for:
            task.cancel()
        # More requests may arrive meanwhile, on connections that are kept alive.
        while self.under_way and (seconds := deadline - time.monotonic()) > 0:
            await asyncio.wait(self.under_way, timeout=seconds)
        self.ended = True
        for task in self.under_way:
            task.cancel()
        if self.under_way:
            await asyncio.wait(self.under_way, timeout=2)
