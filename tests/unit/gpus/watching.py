"""A podyd that shares cards out and watches them, on an engine, a helper and a clock of a test's
own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from podyd.base.tasks import Tasks
from podyd.config.current import Settings
from podyd.config.schema import Config, LeaseConfig
from podyd.engine.streams import Streams
from podyd.engine.types import Instance
from podyd.gpus import scheduler, watch
from podyd.gpus.access import Access
from podyd.gpus.activity import Activity
from podyd.gpus.attribution import Attribution
from podyd.gpus.ending import Ender
from podyd.gpus.inventory import Card, Inventory
from podyd.gpus.presence import Presences
from podyd.gpus.scheduler import Scheduler
from podyd.gpus.terminals import Terminals
from podyd.gpus.watch import Watch
from podyd.model.pod import Pod
from podyd.node.card_access import Holder
from podyd.node.procs import Process
from podyd.node.samples import Gpu, ProcessSample, Sample
from tests.unit.engine.fake_executor import FakeExecutor
from tests.unit.gpus.test_scheduler import CARDS, Lxd, Remembering, choice, member
from tests.unit.node.fake import FakeNode

BEGIN = datetime(2026, 11, 28, tzinfo=timezone.utc)
GRACE = 5.0
STEP = 0.25


class World:
    """Time goes on by `go` alone. `ran` has the commands in pods, `notices` the notices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *instances: Instance, **ends: Any) -> None:
        self.seconds = 1000.0
        self.lxd = Lxd(*instances)
        # A pod may go on for a moment with what another one has leased, which the helper prevents.
        self.node = FakeNode()
        self.helper = self.lxd.helper = self.node.card_accesses
        self.settings = Settings(Config(lease=LeaseConfig(**{"grace": GRACE, **ends})))
        self.ran: list[tuple[str, Sequence[str]]] = []
        self.notices: list[tuple[str | None, str, str]] = []
        self.stopped: list[str] = []
        self.on_nvml: dict[int, tuple[str, Card]] = {}
        for module in (scheduler, watch):
            monkeypatch.setattr(module, "now", self.now)

    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=self.seconds)

    # --- podyd -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def podyd(self) -> AsyncIterator[None]:
        """A podyd that runs; a second one after it is one that was started anew."""
        clock = lambda: self.seconds  # noqa: E731
        engine = self.lxd.engine
        self.access = Access(self.helper, aliases=dict, clock=clock)
        self.attribution = Attribution(
            self.node.samples, project="podyd", instance_of=lambda cgroup: cgroup
        )
        self.activity = Activity(self.attribution, clock=clock)
        self.scheduler = Scheduler(
            instances=engine.instances,
            profiles=engine.profiles,
            inventory=Inventory(engine.server, self.node.samples, Remembering()),
            samples=self.node.samples,
            activity=self.activity,
            access=self.access,
            notify=self._notify,
            settings=self.settings,
        )
        executor = FakeExecutor(dict.fromkeys(self.lxd.stored, "running"), self._run)
        self.tasks = Tasks()
        presences = Presences(
            access=self.access,
            attribution=self.attribution,
            activity=self.activity,
            samples=self.node.samples,
            processes=self.node.processes,
            clock=clock,
        )
        self.watch = Watch(
            access=self.access,
            attribution=self.attribution,
            presences=presences,
            ender=Ender(
                access=self.access,
                processes=self.node.processes,
                executor=executor,
                stop=self._stop,
            ),
            terminals=Terminals(executor),
            notify=self._notify,
            withdrawn=self.scheduler.withdrawn,
            tasks=self.tasks,
            settings=self.settings,
            clock=clock,
        )
        keeping = asyncio.ensure_future(self.access.run())
        try:
            self.sample()
            await self.go(0)
            yield
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})
            await self.tasks.cancel()

    async def _run(self, words: Sequence[str], streams: Streams) -> int:
        self.ran.append(("", words))
        return 0

    async def _stop(self, name: str) -> None:
        self.stopped.append(str(name))
        self.lxd.stored[name].status = "stopped"
        self.helper.held = [item for item in self.helper.held if item.cgroup != name]
        self.on_nvml = {pid: on for pid, on in self.on_nvml.items() if on[0] != name}

    def _notify(self, account: str | None, text: str, *, pod: str = "") -> None:
        self.notices.append((account, text, pod))

    async def go(self, seconds: float) -> None:
        """Let time pass, in which podyd does what is due."""
        end = self.seconds + seconds
        while True:
            await self.scheduler._reconcile({})
            ended = {holder.pid for holder, _ in self.helper.ended}
            for pid in ended - {holder.pid for holder in self.helper.held}:
                self.gone(pid)
            await self.watch.look()
            for _ in range(15):
                await asyncio.sleep(0)
            await self.scheduler._reconcile({})
            if self.seconds >= end:
                return
            self.seconds = min(end, self.seconds + STEP)
            if self.seconds % 1 == 0:
                self.sample()

    # --- Who is on the cards ---------------------------------------------------------------------

    def sample(self) -> None:
        gpus = tuple(
            Gpu(
                card.uuid,
                card.pci,
                "A100",
                processes=tuple(
                    ProcessSample(pid, None, 0, ("podyd", name))
                    for pid, (name, on) in self.on_nvml.items()
                    if on == card
                ),
            )
            for card in CARDS
        )
        self.node.samples.sampled(Sample(self.seconds, "535", "12.2", gpus))

    def open(self, pod: str, pid: int, *cards: int, started: int = 7, init: bool = False) -> Holder:
        """A process of a pod that has cards open."""
        numbers = frozenset[str]().union(*(CARDS[index].numbers for index in cards))
        holder = Holder(pod, pid, started, numbers, init)
        self.helper.held.append(holder)
        return holder

    def compute(self, pod: str, pid: int, card: int, *, started: int = 7, inner: int = 9) -> None:
        """A process of a pod that NVML shows, from the next sample on."""
        self.on_nvml[pid] = pod, CARDS[card]
        self.node.processes.known[pid] = Process(0, "train", 1e9, 1, started)
        self.node.processes.inner[pid] = inner

    def gone(self, pid: int) -> None:
        self.on_nvml.pop(pid, None)
        self.node.processes.known.pop(pid, None)
        self.helper.held = [item for item in self.helper.held if item.pid != pid]

    def signals(self) -> list[tuple[int, bool]]:
        """The pids that the helper was told to end, and whether to kill them."""
        return [(holder.pid, kill) for holder, kill in self.helper.ended]

    # --- What members do -------------------------------------------------------------------------

    def pod(self, name: str) -> Pod:
        return self.lxd.pod(name)

    async def lease(self, name: str, gpus: str, seconds: float, *, wait: bool = False) -> int:
        return await self.scheduler.lease(
            member(name), self.pod(name), choice(gpus), seconds / 3600, wait=wait
        )

    def config(self, name: str) -> Mapping[str, str]:
        return self.lxd.stored[name].config
