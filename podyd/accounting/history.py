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

from podyd.accounting.clock import REAL, Clock, Steadiness
from podyd.base.clock import iso_of
from podyd.base.errors import PodydError, Unavailable
from podyd.contract.history import SPANS, GpuCurves, GpuHistory, PodHistory
from podyd.engine.types import Instance
from podyd.gpus.inventory import Card
from podyd.node.samples import Gpu, Sample
from podyd.pods.loads import Load, Loads
from podyd.store.history import LEVELS, Curve, HistoryStore, Level, Mean

# The minute that goes on is written too, so that what podyd does not live to write is no more.
WRITE_SECONDS = 20.0
# So often what is old, too much, or of pods that are no more is deleted.
TIDY_SECONDS = 1800.0
# Of how many minutes what cannot be written is kept.
MAX_MINUTES = 30
_MINUTE = LEVELS[0].step
_LEVELS: Mapping[str, Level] = dict(zip(SPANS, LEVELS, strict=True))
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
_Of = tuple[str, str]


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

    `instances` are the engine's, `cards` the host's.
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
        self._minutes: defaultdict[int, defaultdict[_Of, _Sum]] = defaultdict(
            lambda: defaultdict(_Sum)
        )
        self._uuids: Mapping[str, str] = {}
        # Whether the engine has said at the last look which pods there are.
        self._are_known = False
        self._tidied = -math.inf

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
            for start in whole:
                del self._minutes[start]
            await self._tidy()
        while len(self._minutes) > MAX_MINUTES:
            del self._minutes[next(iter(self._minutes))]

    async def _tidy(self) -> None:
        is_steady, now = self._steadiness.is_steady(), self._clock.monotonic()
        if now - self._tidied >= TIDY_SECONDS:
            wall = self._clock.wall() if is_steady else None
            # Nobody can ask for the curves of a pod that is no more, and a member can make many.
            pods = set(self._uuids.values()) if self._are_known else None
            await self._store.tidy(wall, pods)
            self._tidied = now

    async def _look_at_pods(self) -> None:
        self._are_known = False
        loads = await self._loads.read()
        # While the engine does not answer, those that it named last count.
        with contextlib.suppress(PodydError):
            self._uuids = {item.name: item.uuid for item in await self._instances()}
            self._are_known = True
        for name, load in loads.items():
            if uuid := self._uuids.get(name):
                self._count(uuid, ((figure, of(load)) for figure, of in _OF_POD.items()))

    # --- Reporting -------------------------------------------------------------------------------

    async def gpus(self, span: str) -> GpuHistory:
        """The curves of all cards. Raises Unavailable."""
        cards = await self._cards()
        level = _LEVELS[span]
        start = self._start(level)
        stored = await self._store.curves(tuple(_OF_GPU), level, start)
        return GpuHistory(
            start=iso_of(start),
            step=level.step,
            gpus={str(card.index): _gpu(_of_card(card, stored), level) for card in cards},
        )

    async def pod(self, uuid: str, span: str) -> PodHistory:
        """The curves of a pod, by the uuid of its instance. Raises Unavailable."""
        level = _LEVELS[span]
        start = self._start(level)
        stored = await self._store.curves(tuple(_OF_POD), level, start, uuid)
        curves = stored.get(uuid, {})
        return PodHistory(
            start=iso_of(start),
            step=level.step,
            cpu=curves.get("pod cpu") or _nothing(level),
            memory_used=_whole(curves.get("pod memory_used") or _nothing(level)),
        )

    def _start(self, level: Level) -> int:
        """The beginning of curves that end with the present step."""
        return _floor(self._clock.wall(), level.step) - (level.shown - 1) * level.step


def _of_card(card: Card, stored: Mapping[str, Mapping[str, Curve]]) -> Mapping[str, Curve]:
    """A card's curves, also of when its UUID was not known."""
    keys = sorted((key for key in stored if card.is_written(key)), key=lambda key: key == card.pci)
    merged: dict[str, Curve] = {}
    for key in keys:
        for figure, curve in stored[key].items():
            known = merged.get(figure, curve)
            merged[figure] = [
                other if value is None else value for value, other in zip(known, curve, strict=True)
            ]
    return merged


def _gpu(curves: Mapping[str, Curve], level: Level) -> GpuCurves:
    return GpuCurves(
        utilisation=curves.get("gpu utilisation") or _nothing(level),
        memory_used=_whole(curves.get("gpu memory_used") or _nothing(level)),
        power=curves.get("gpu power") or _nothing(level),
        temperature=curves.get("gpu temperature") or _nothing(level),
    )


def _nothing(level: Level) -> Curve:
    return [None] * level.shown


def _whole(values: Iterable[float | None]) -> list[int | None]:
    return [None if value is None else int(value) for value in values]


def _floor(moment: float, step: int) -> int:
    return math.floor(moment / step) * step
