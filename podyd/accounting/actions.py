"""The log of what members change, for admins to read."""

from __future__ import annotations

import asyncio
from collections import deque

from podyd.accounting.clock import REAL, Clock, Steadiness
from podyd.base.errors import PodydError
from podyd.store.actions import KEPT_SECONDS, Action, ActionStore

# Held in memory until they are written, while the database cannot be used; the oldest go first.
MAX_HELD = 1000
RETRY_SECONDS = 60.0


class Actions:
    """Records actions."""

    def __init__(self, store: ActionStore, clock: Clock = REAL) -> None:
        self._store = store
        self._clock = clock
        self._steadiness = Steadiness(clock)
        self._held: deque[Action] = deque(maxlen=MAX_HELD)
        self._recorded = asyncio.Event()

    def record(self, *, user: str, operation: str, pod: str, status: int, code: str) -> None:
        """Record an action, which is written soon: no request waits for the disk."""
        self._held.append(Action(self._clock.wall(), user, operation, pod, status, code))
        self._recorded.set()

    async def run(self) -> None:
        """Write what is recorded, until cancelled."""
        while True:
            await self._recorded.wait()
            try:
                await self.flush()
            except PodydError:
                await asyncio.sleep(RETRY_SECONDS)  # The database has logged it.

    async def flush(self) -> None:
        """Write what is recorded. Raises Unavailable; it is then kept for the next time."""
        self._recorded.clear()
        actions = list(self._held)
        self._held.clear()
        is_steady = self._steadiness.is_steady()
        try:
            await self._store.add(
                actions, since=self._clock.wall() - KEPT_SECONDS if is_steady else None
            )
        except PodydError:
            # As many as there is room for beside what has come meanwhile.
            room = MAX_HELD - len(self._held)
            self._held.extendleft(reversed(actions[-room:] if room else []))
            self._recorded.set()
            raise

    async def of(
        self, *, since: float, user: str | None, pod: str | None, most: int
    ) -> list[Action]:
        """The last actions, the newest first, as `ActionStore.of`. Raises Unavailable."""
        await self.flush()
        return await self._store.of(since=since, user=user, pod=pod, most=most)
