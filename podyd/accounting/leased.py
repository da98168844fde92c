"""For how long cards are leased, by the owner of the pod that has leased them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from podyd.accounting.clock import REAL, Clock
from podyd.accounting.pending import Pending
from podyd.accounting.usage import spread
from podyd.base.errors import PodydError, Unavailable
from podyd.base.tasks import came
from podyd.engine.types import Instance
from podyd.gpus.leases import leases_of
from podyd.model.pod import pods_of
from podyd.store.usage import Bucket, UsageStore

# So often what goes on is written.
COUNT_SECONDS = 60.0
# More than this since the last look is not counted, as after the host has slept.
GAP_SECONDS = 300.0


@dataclass(frozen=True)
class _Held:
    """A lease of a card, by its key; times in seconds since 1970."""

    owner: str
    pod: str
    card: str
    since: float
    until: float


class LeaseTime:
    """Counts leases while podyd runs; `instances` are the engine's."""

    def __init__(
        self,
        *,
        store: UsageStore,
        instances: Callable[[], Awaitable[Iterable[Instance]]],
        clock: Clock = REAL,
    ) -> None:
        self._pending = Pending(store)
        self._instances = instances
        self._clock = clock
        self._changed = asyncio.Event()
        # Those of the last look, and when that was, on the monotonic clock.
        self._held: frozenset[_Held] = frozenset()
        self._looked: float | None = None

    def changed(self) -> None:
        """A lease may have begun or ended."""
        self._changed.set()

    async def run(self) -> None:
        """Count at each change and at intervals, until cancelled."""
        while True:
            self._changed.clear()
            await self.count()
            await came(self._changed, COUNT_SECONDS)

    async def count(self) -> None:
        """Count the leases since the last look, if any has changed or that is a while ago."""
        held = self._held
        # While the engine does not answer, they go on.
        with contextlib.suppress(PodydError):
            held = _leases(await self._instances())
        now, looked = self._clock.monotonic(), self._looked
        if looked is None or held != self._held or now - looked >= COUNT_SECONDS:
            await self._write(held)

    async def flush(self) -> None:
        """Write what goes on up to now, as podyd stops."""
        await self._write(self._held)

    async def _write(self, held: frozenset[_Held]) -> None:
        now, wall = self._clock.monotonic(), self._clock.wall()
        looked = now if self._looked is None else self._looked
        for bucket, seconds in _amounts(self._held, wall - min(now - looked, GAP_SECONDS), wall):
            self._pending.add(bucket, seconds)
        self._held, self._looked = held, now
        with contextlib.suppress(Unavailable):  # The database has logged it.
            await self._pending.write()


def _leases(instances: Iterable[Instance]) -> frozenset[_Held]:
    # A card has the same key as long as the lease.
    return frozenset(
        _Held(
            lease.pod.owner,
            lease.pod.name,
            lease.key,
            lease.since.timestamp(),
            lease.until.timestamp(),
        )
        for lease in leases_of(pods_of(instances), ()).values()
    )


def _amounts(held: Iterable[_Held], begin: float, end: float) -> Iterator[tuple[Bucket, float]]:
    for lease in held:
        first, last = max(begin, lease.since), min(end, lease.until)
        if first < last:
            yield from spread("lease", lease.owner, first, last, last - first)
