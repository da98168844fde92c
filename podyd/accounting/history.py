"""History: curves of what each card and each pod used, for a year.

A minute's figures come from the samples of NVML, which are taken each second, and from the kernel's
counters of the pods. The wall clock only dates them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone

from podyd.accounting.clock import REAL, Clock, Steadiness
from podyd.base.clock import iso
from podyd.base.errors import PodydError, Unavailable
from podyd.contract.history import SPANS, GpuCurves, GpuHistory, PodHistory
from podyd.engine.types import Instance
from podyd.gpus.inventory import Card
from podyd.node.samples import Gpu, Sample
from podyd.pods.loads import Load, Loads
from podyd.store.history import DAY_SECONDS, HOUR_SECONDS, LEVELS, HistoryStore, Level, Mean

# The minute that goes on is written too, so that what podyd does not live to write is no more.
WRITE_SECONDS = 20.0
# Of how many minutes what cannot be written is kept.
MAX_MINUTES = 30
_MINUTE = LEVELS[0].step
_LENGTHS = (HOUR_SECONDS, DAY_SECONDS, 7 * DAY_SECONDS, 31 * DAY_SECONDS, 366 * DAY_SECONDS)
# How long each span is, in seconds, and the steps of its curves.
_SPANS: Mapping[str, tuple[int, Level]] = {
    span: (length, level) for span, length, level in zip(SPANS, _LENGTHS, LEVELS, strict=True)
}
_OF_GPU: Mapping[str, Callable[[Gpu], float | None]] = {
    "gpu utilisation": lambda gpu: gpu.utilisation,
    "gpu memory_used": lambda gpu: gpu.memory_used,
    "gpu power": lambda gpu: gpu.power,
    "gpu temperature": lambda gpu: gpu.temperature,
}
_OF_POD: Mapping[str, Callable[[Load], float | None]] = {
    "pod cpu": lambda load: load.cpu,
    "pod memory_used": lambda load: load.memory_used,
}
# A figure, and the card or the pod whose it is.
_Curve = tuple[str, str]


class _Sum:
    """The values of a figure in a minute."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._total += value
        self._count += 1

    @property
    def mean(self) -> float:
        return self._total / self._count


class History:
    """Writes what cards and pods use, and reports it.

    `instances` are LXD's, `cards` the host's.
    """

    def __init__(
        self,
        *,
        store: HistoryStore,
        loads: Loads,
        instances: Callable[[], Awaitable[Iterable[Instance]]],
        cards: Callable[[], Awaitable[Sequence[Card]]],
        clock: Clock = REAL,
    ) -> None:
        self._store = store
        self._loads = loads
        self._instances = instances
        self._cards = cards
        self._clock = clock
        self._steadiness = Steadiness(clock)
        # What is not written yet as a whole, by the beginning of the minute.
        self._minutes: defaultdict[int, defaultdict[_Curve, _Sum]] = defaultdict(
            lambda: defaultdict(_Sum)
        )
        self._uuids: Mapping[str, str] = {}

    # --- Writing ---------------------------------------------------------------------------------

    def sampled(self, sample: Sample) -> None:
        """Take a sample of the cards into account."""
        for gpu in sample.gpus:
            if gpu.problem is None:
                self._count(gpu.uuid or gpu.pci, ((name, of(gpu)) for name, of in _OF_GPU.items()))

    def _count(self, whose: str, figures: Iterable[tuple[str, float | None]]) -> None:
        minute = self._minutes[_floor(self._clock.wall(), _MINUTE)]
        for figure, value in figures:
            if value is not None:
                minute[figure, whose].add(value)

    async def run(self) -> None:
        """Write at intervals, until cancelled."""
        while True:
            await self.write()
            await asyncio.sleep(WRITE_SECONDS)

    async def write(self) -> None:
        """Read what the pods use, and write what is known; what cannot be written is kept for the
        next time."""
        await self._look_at_pods()
        present = _floor(self._clock.wall(), _MINUTE)
        whole = [start for start in self._minutes if start != present]
        means = [
            Mean(figure, start, whose, values.mean)
            for start, curves in self._minutes.items()
            for (figure, whose), values in curves.items()
        ]
        with contextlib.suppress(Unavailable):  # The database has logged it.
            await self._store.add(means, whole=whole)
            if self._steadiness.is_steady() and whole:
                await self._store.tidy(self._clock.wall())
            for start in whole:
                del self._minutes[start]
        while len(self._minutes) > MAX_MINUTES:
            del self._minutes[next(iter(self._minutes))]

    async def _look_at_pods(self) -> None:
        loads = await self._loads.read()
        # While LXD does not answer, those that it named last count.
        with contextlib.suppress(PodydError):
            self._uuids = {item.name: item.uuid for item in await self._instances()}
        for name, load in loads.items():
            if uuid := self._uuids.get(name):
                self._count(uuid, ((figure, of(load)) for figure, of in _OF_POD.items()))

    # --- Reporting -------------------------------------------------------------------------------

    async def gpus(self, span: str) -> GpuHistory:
        """The curves of all cards. Raises Unavailable."""
        cards = await self._cards()
        start, level, count = self._steps(span)
        found = await self._store.means(tuple(_OF_GPU), level, start)
        curves = {
            str(card.index): _curves(
                (item for item in found if card.is_written(item.whose)), start, level, count
            )
            for card in cards
        }
        return GpuHistory(
            start=_iso(start),
            step=level.step,
            gpus={
                index: GpuCurves(
                    utilisation=values["gpu utilisation"],
                    memory_used=_whole(values["gpu memory_used"]),
                    power=values["gpu power"],
                    temperature=values["gpu temperature"],
                )
                for index, values in curves.items()
            },
        )

    async def pod(self, uuid: str, span: str) -> PodHistory:
        """The curves of a pod, by the uuid of its instance. Raises Unavailable."""
        start, level, count = self._steps(span)
        found = await self._store.means(tuple(_OF_POD), level, start, uuid)
        values = _curves(found, start, level, count)
        return PodHistory(
            start=_iso(start),
            step=level.step,
            cpu=values["pod cpu"],
            memory_used=_whole(values["pod memory_used"]),
        )

    def _steps(self, span: str) -> tuple[int, Level, int]:
        """The beginning of a span that ends with the present step, its steps and their number."""
        length, level = _SPANS[span]
        count = length // level.step
        return _floor(self._clock.wall(), level.step) - (count - 1) * level.step, level, count


def _curves(
    means: Iterable[Mean], start: int, level: Level, count: int
) -> defaultdict[str, list[float | None]]:
    """The values by figure, with None for each step of which nothing is known."""
    values: defaultdict[str, list[float | None]] = defaultdict(lambda: [None] * count)
    for item in means:
        at = (item.start - start) // level.step
        # A clock that was ahead has dated what comes later.
        if at < count:
            values[item.figure][at] = item.value
    return values


def _whole(values: Iterable[float | None]) -> list[int | None]:
    return [None if value is None else int(value) for value in values]


def _floor(moment: float, step: int) -> int:
    return math.floor(moment / step) * step


def _iso(moment: int) -> str:
    return iso(datetime.fromtimestamp(moment, timezone.utc))
