"""Usage: CPU seconds, GPU seconds and hours of a month, by the owner of the pods.

GPU seconds count while a process of one of the owner's pods is on a card, once per card, whether it
computes or not. The amounts come from the monotonic clock and from the engine's counters; the wall
clock, which may jump, only dates them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from podyd.accounting.clock import REAL, Clock, Steadiness
from podyd.accounting.pending import Pending
from podyd.base.errors import EngineRefused, PodydError, Unavailable
from podyd.config.current import Settings
from podyd.contract.stats import GpuHours
from podyd.engine.types import CpuTime, Instance
from podyd.gpus.attribution import Attributed
from podyd.model.pod import pods_of
from podyd.store.usage import COARSE_SECONDS, FINE_SECONDS, Bucket, Counter, Kind, UsageStore

log = logging.getLogger(__name__)

DAY_SECONDS = 86400
FINE_KEPT_SECONDS = 2 * DAY_SECONDS
YEAR_SECONDS = 366 * DAY_SECONDS
# Thirteen months and the present one.
KEPT_SECONDS = 430 * DAY_SECONDS
# The time between two samples that are further apart is not counted.
GAP_SECONDS = 5.0
# What is kept in memory while the engine does not tell the owners.
MAX_SIGHTINGS = 600


@dataclass(frozen=True)
class _Sighting:
    """The pods on each card that was in use, for `seconds` up to `end` (seconds since 1970)."""

    end: float
    seconds: float
    cards: tuple[frozenset[str], ...]


class Usage:
    """Counts usage and reports it.

    `instances` and `cpu_times` are the engine's.
    """

    def __init__(
        self,
        *,
        store: UsageStore,
        instances: Callable[[], Awaitable[Sequence[Instance]]],
        cpu_times: Callable[[], Awaitable[Sequence[CpuTime]]],
        settings: Settings,
        clock: Clock = REAL,
    ) -> None:
        self._store = store
        self._instances = instances
        self._cpu_times = cpu_times
        self._settings = settings
        self._clock = clock
        self._sampled_at: float | None = None
        self._sightings: deque[_Sighting] = deque(maxlen=MAX_SIGHTINGS)
        self._sighted = asyncio.Event()
        self._owners: Mapping[str, str] | None = None
        self._pending = Pending(store)
        self._cpu_sampled_at: float | None = None
        self._steadiness = Steadiness(clock)

    async def seconds(
        self, kind: Kind, owners: Sequence[str] | None, window: float | None
    ) -> dict[str, float]:
        """Seconds of usage by owner in the last `window` seconds (None: in a year), of
        these owners or of all who have any. Raises Unavailable."""
        now = self._clock.wall()
        since = now - (YEAR_SECONDS if window is None else window)
        totals = await self._store.totals(kind, since, now)
        rounded = {owner: round(totals[owner], 3) for owner in sorted(totals)}
        if owners is None:
            return {owner: seconds for owner, seconds in rounded.items() if seconds}
        return {owner: rounded.get(owner, 0.0) for owner in owners}

    async def month(self, first: datetime | None) -> list[GpuHours]:
        """GPU hours of everybody who has any in the month that begins then, or in the present one.
        Raises Unavailable."""
        now = datetime.fromtimestamp(self._clock.wall(), timezone.utc)
        first = first or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        following = (first + timedelta(days=31)).replace(day=1)
        since, until = first.timestamp(), following.timestamp()
        used = await self._store.totals("gpu", since, until)
        leased = await self._store.totals("lease", since, until)
        return [
            GpuHours(owner, _hours(used.get(owner, 0.0)), _hours(leased.get(owner, 0.0)))
            for owner in sorted({*used, *leased})
        ]

    # --- GPUs ------------------------------------------------------------------------------------

    def sampled(self, attributed: Attributed) -> None:
        """Count the pods on each card for the time since the sample before."""
        sample, origins = attributed.sample, attributed.origins
        before, self._sampled_at = self._sampled_at, sample.taken
        if before is None:
            return
        # The owners are looked up later, as that may take the engine a while.
        cards = (
            frozenset(
                origins[process.pid].instance
                for process in gpu.processes
                if origins[process.pid].is_pod
            )
            for gpu in sample.gpus
        )
        held = tuple(filter(None, cards))
        if held:
            age = self._clock.monotonic() - sample.taken
            seconds = min(sample.taken - before, GAP_SECONDS)
            self._sightings.append(_Sighting(self._clock.wall() - age, seconds, held))
            self._sighted.set()

    async def follow_gpus(self) -> None:
        """Write each sample as it comes, until cancelled."""
        while True:
            await self._sighted.wait()
            self._sighted.clear()
            await self.write()

    async def write(self) -> None:
        """Ask the engine for the pods' owners, and write what is counted."""
        # While the engine does not answer, the pods' last known owners count.
        with contextlib.suppress(PodydError):
            self._owners = _owners(await self._instances())
        await self.flush()

    async def flush(self) -> None:
        """Write what is counted; what cannot be written is kept for the next time."""
        if self._owners is not None:
            while self._sightings:
                self._count(self._sightings.popleft(), self._owners)
        with contextlib.suppress(Unavailable):  # The database has logged it.
            await self._pending.write()

    def _count(self, sighting: _Sighting, owners: Mapping[str, str]) -> None:
        begin = sighting.end - sighting.seconds
        for card in sighting.cards:
            for owner in {owners[pod] for pod in card if pod in owners}:
                for bucket, part in spread("gpu", owner, begin, sighting.end, sighting.seconds):
                    self._pending.add(bucket, part)

    # --- CPU -------------------------------------------------------------------------------------

    async def follow_cpu(self) -> None:
        """Read the engine's counters at intervals, until cancelled."""
        while True:
            try:
                await self.sample_cpu()
                await self.tidy()
            except Unavailable:
                pass  # It is logged by the database, or by what follows the engine's events.
            except EngineRefused as error:
                log.warning("CPU time is not counted this time: %s", error)
            await asyncio.sleep(self._settings.current.usage.interval)

    async def sample_cpu(self) -> None:
        """Count what the engine's counters have gained since they were last read, even before
        podyd's start. Raises Unavailable or EngineRefused."""
        previous = await self._store.counters()
        times = await self._cpu_times()
        now, monotonic = self._clock.wall(), self._clock.monotonic()
        before = self._cpu_sampled_at
        owners = _owners(item.instance for item in times)
        counters: dict[str, Counter] = {}
        amounts: dict[Bucket, float] = defaultdict(float)
        for item in times:
            uuid, owner = item.instance.uuid, owners.get(item.instance.name)
            last = previous.get(uuid)
            if not uuid or item.nanoseconds is None:
                if last is not None:
                    counters[uuid] = last
                continue
            counters[uuid] = Counter(item.nanoseconds, now)
            gained = _gained(item.nanoseconds, last) / 1e9
            if owner is None or not gained:
                continue
            if last is None:
                begin = item.instance.started.timestamp() if item.instance.started else now
            else:
                begin = last.taken if before is None else now - (monotonic - before)
            begin = max(begin, now - KEPT_SECONDS)
            for bucket, part in spread("cpu", owner, begin, now, gained):
                amounts[bucket] += part
        await self._store.add(amounts, counters)
        self._cpu_sampled_at = monotonic

    async def tidy(self) -> None:
        """Roll up and drop what is old, unless the clock has just jumped. Raises Unavailable."""
        if self._steadiness.is_steady():
            wall = self._clock.wall()
            await self._store.tidy(fine_since=wall - FINE_KEPT_SECONDS, since=wall - KEPT_SECONDS)


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 3)


def _owners(instances: Iterable[Instance]) -> dict[str, str]:
    """The owners of the pods among these instances, by the engine's name."""
    return {pod.name: pod.owner for pod in pods_of(instances)}


def _gained(nanoseconds: int, last: Counter | None) -> int:
    """The gain of a counter; one that is less than before began at 0 when the pod restarted."""
    if last is None or last.nanoseconds > nanoseconds:
        return nanoseconds
    return nanoseconds - last.nanoseconds


def spread(
    kind: Kind, owner: str, begin: float, end: float, seconds: float
) -> Iterator[tuple[Bucket, float]]:
    """Seconds of even usage between two times, by bucket; coarse buckets for a long time.

    If the clock was set back meanwhile, all of it counts at its end.
    """
    begin = min(begin, end)
    span = FINE_SECONDS if end - begin <= COARSE_SECONDS else COARSE_SECONDS
    first, last = math.floor(begin / span), math.ceil(end / span) - 1
    for number in range(first, max(first, last) + 1):
        start = number * span
        inside = min(start + span, end) - max(start, begin)
        share = inside / (end - begin) if begin < end else 1.0
        yield Bucket(kind, span, start, owner), seconds * share
