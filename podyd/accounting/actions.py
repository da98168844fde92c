"""The log of what members change, for admins to read."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from podyd.accounting.clock import REAL, Clock, Steadiness
from podyd.base.errors import PodydError
from podyd.store.actions import KEPT_SECONDS, Action, ActionStore, Which, share

# Held in memory until they are written, while the database cannot be used; of those who have most
# of them, the oldest go first.
MAX_HELD = 1000
RETRY_SECONDS = 60.0


class Actions:
    """Records actions."""

    def __init__(self, store: ActionStore, clock: Clock = REAL) -> None:
        self._store = store
        self._clock = clock
        self._steadiness = Steadiness(clock)
        self._held: list[Action] = []
        self._recorded = asyncio.Event()
        # How many have been recorded since podyd's start.
        self.count = 0

    def record(self, *, user: str, operation: str, pod: str, status: int, code: str) -> None:
        """Record an action, which is written soon: no request waits for the disk."""
        self._held.append(Action(self._clock.wall(), user, operation, pod, status, code))
        if len(self._held) > MAX_HELD:
            self._held = _shortened(self._held)
        self.count += 1
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
        actions, self._held = self._held, []
        is_steady = self._steadiness.is_steady()
        try:
            await self._store.add(
                actions, since=self._clock.wall() - KEPT_SECONDS if is_steady else None
            )
        except PodydError:
            self._held = _shortened([*actions, *self._held])
            self._recorded.set()
            raise

    async def of(self, which: Which, *, most: int) -> list[Action]:
        """The last actions, the newest first, as `ActionStore.of`. Raises Unavailable."""
        await self.flush()
        return await self._store.of(which, most=most)


def _shortened(actions: Iterable[Action]) -> list[Action]:
    """These without the oldest ones of who has too many."""
    of_user: defaultdict[str, list[int]] = defaultdict(list)
    kept = dict(enumerate(actions))
    for number, action in kept.items():
        of_user[action.user].append(number)
    fair = share(map(len, of_user.values()), MAX_HELD)
    for numbers in of_user.values():
        for number in numbers[: max(0, len(numbers) - fair)]:
            del kept[number]
    return list(kept.values())
