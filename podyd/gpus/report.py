"""The host: its versions, its GPUs and the processes on them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from podyd import __version__
from podyd.base.clock import iso
from podyd.base.errors import BadRequest, Unavailable
from podyd.contract.host import CardHolder, GpuInfo, GpuProcess, HostSpec
from podyd.engine.interface import Server
from podyd.gpus.activity import Activity
from podyd.gpus.attribution import Attributed, Attribution, Origin
from podyd.gpus.decisions import View
from podyd.gpus.idle import held_for
from podyd.gpus.inventory import Card
from podyd.gpus.leases import Lease
from podyd.gpus.scheduler import Scheduler
from podyd.gpus.watch import Watch
from podyd.model.pod import Pod
from podyd.node.interface import FIRST_SAMPLE_SECONDS, Node
from podyd.node.procs import Process
from podyd.node.samples import Gpu, ProcessSample

Running = tuple[ProcessSample, Process]
# By the card's index.
OnCards = Mapping[int, Sequence[Running]]


@dataclass(frozen=True)
class Processes:
    """The processes on each card, by its index. What people run on the host itself is shown to
    admins; members see whose it is."""

    for_admins: Mapping[int, list[GpuProcess]]
    for_members: Mapping[int, list[GpuProcess]]


class Report:
    """Answers from the last sample of NVML, from /proc and from the engine."""

    def __init__(
        self,
        *,
        server: Server,
        node: Node,
        activity: Activity,
        attribution: Attribution,
        scheduler: Scheduler,
        watch: Watch,
    ) -> None:
        self._server = server
        self._activity = activity
        self._attribution = attribution
        self._scheduler = scheduler
        self._watch = watch
        self._node = node
        self._samples = node.samples

    async def spec(self) -> HostSpec:
        """Versions; null for what is not there."""
        await self._samples.first(FIRST_SAMPLE_SECONDS)
        sample = self._samples.latest
        return HostSpec(
            podyd=__version__,
            engine=self._server.kind,
            lxd=await self._server.version(),
            kernel=self._node.facts.kernel,
            nvidia_driver=sample.driver if sample else None,
            cuda=sample.cuda if sample else None,
        )

    async def gpu_processes(
        self, wanted: Sequence[int] | None, *, viewer: str, sees_all: bool
    ) -> tuple[dict[str, list[GpuProcess]], float]:
        """Per card, the processes on it, and the age of that in seconds.

        No cards at all where there is no NVIDIA driver. What other people run on the host itself
        is shown to who `sees_all`; others see only the user.
        """
        attributed = await self._attributed()
        count = len(attributed.sample.gpus) if attributed else 0
        _check_indices(wanted, count)
        if attributed is None:
            return {}, 0.0
        on_cards = await self._on_cards(attributed, range(count) if wanted is None else wanted)
        users = None if sees_all else await self._users(attributed, on_cards)
        rows = self._rows(attributed, on_cards, viewer, users)
        return {str(index): processes for index, processes in rows.items()}, attributed.sample.age

    async def processes(self) -> Processes:
        """What is on the cards, for whom; nothing where NVML does not answer."""
        attributed = self._attribution.current
        if attributed is None:
            return Processes({}, {})
        on_cards = await self._on_cards(attributed, range(len(attributed.sample.gpus)))
        users = await self._users(attributed, on_cards)
        return Processes(
            self._rows(attributed, on_cards, "", None),
            self._rows(attributed, on_cards, "", users),
        )

    async def _on_cards(self, attributed: Attributed, indices: Iterable[int]) -> OnCards:
        sample = attributed.sample
        cards = {index: sample.gpus[index] for index in indices}
        pids = {on_it.pid for gpu in cards.values() for on_it in gpu.processes}
        running = await self._node.processes.processes(pids) if pids else {}
        return {index: alive(gpu, running, sample.age) for index, gpu in cards.items()}

    def _rows(
        self,
        attributed: Attributed,
        on_cards: OnCards,
        viewer: str,
        users: Mapping[int, str] | None,
    ) -> dict[int, list[GpuProcess]]:
        return {
            index: [
                _row(
                    on_it,
                    process,
                    attributed.origins[on_it.pid],
                    viewer,
                    users,
                    self._activity.process_idle(attributed.sample.gpus[index].pci, on_it.pid),
                )
                for on_it, process in on_card
            ]
            for index, on_card in on_cards.items()
        }

    async def _attributed(self) -> Attributed | None:
        """The last sample, with the instances of its processes; None without an NVIDIA driver.

        Raises Unavailable, with the cause, if NVML has not answered for too long.
        """
        await self._samples.first(FIRST_SAMPLE_SECONDS)
        attributed = self._attribution.current
        if attributed is None and not self._samples.absent:
            raise Unavailable(
                f"NVML gives no data: {self._samples.problem or 'it has not answered yet'}.",
                code="nvml_failed",
            )
        return attributed

    async def _users(self, attributed: Attributed, on_cards: OnCards) -> dict[int, str]:
        """The users of the host's own processes; asked together, so that an LDAP that hangs is
        waited for once."""
        uids = list(
            {
                process.uid
                for on_card in on_cards.values()
                for on_it, process in on_card
                if not attributed.origins[on_it.pid].instance and process.uid is not None
            }
        )
        names = await asyncio.gather(*(self._node.accounts.name_of(uid) for uid in uids))
        return dict(zip(uids, names, strict=True))

    async def gpus(self) -> list[GpuInfo]:
        """The cards, also where NVML does not answer: then without what only it knows."""
        return self.gpus_of(await self._scheduler.view())

    def gpus_of(self, view: View) -> list[GpuInfo]:
        """The same, of a view that may be some seconds old."""
        sample = self._samples.current
        figures = {gpu.pci: gpu for gpu in sample.gpus} if sample else {}
        return [
            self._gpu(view, card, figures.get(card.pci), sample.driver if sample else None)
            for card in view.cards
        ]

    def _gpu(self, view: View, card: Card, gpu: Gpu | None, driver: str | None) -> GpuInfo:
        problem = gpu.problem if gpu else self._samples.problem or "NVML does not show this card"
        if self._samples.absent:
            problem = None
        gpu = gpu or Gpu(card.uuid, card.pci, card.name)
        lease = view.leases.get(card.key)
        return GpuInfo(
            index=card.index,
            uuid=card.uuid,
            pci=card.pci,
            name=gpu.name,
            driver=driver,
            memory_total=gpu.memory_total,
            memory_used=gpu.memory_used,
            utilisation=gpu.utilisation,
            temperature=gpu.temperature,
            power=gpu.power,
            power_limit=gpu.power_limit,
            idle=_rounded(self._idle(view, card, lease)),
            problem=problem,
            pods=self._pods(view, card),
            intruders=self._watch.intruders(card),
        )

    def _pods(self, view: View, card: Card) -> list[CardHolder]:
        on_it = self._activity.pods(card.pci) | self._watch.pods_on(card)
        holders = []
        for pod in view.pods:
            lease, is_attached = view.lease_of(pod, card), card in view.present(pod)
            if lease is not None or is_attached or pod.name in on_it:
                holders.append(_holder(pod, lease, is_attached=is_attached))
        return holders

    def _idle(self, view: View, card: Card, lease: Lease | None) -> float | None:
        """Seconds since the lessee or, without a lease, any process on the card has used it."""
        if lease is not None:
            return self._activity.pod_idle(card.pci, lease.pod.name, held_for(lease))
        on_it = self._activity.pids_on(card.pci)
        idle = [self._activity.process_idle(card.pci, pid) for pid in on_it]
        known = [seconds for seconds in idle if seconds is not None]
        return min(known) if known and len(known) == len(idle) else None


def _holder(pod: Pod, lease: Lease | None, *, is_attached: bool) -> CardHolder:
    return CardHolder(
        pod=pod.name,
        owner=pod.owner,
        attached=is_attached,
        exclusive=lease is not None,
        since=iso(lease.since) if lease else None,
        until=iso(lease.until) if lease else None,
    )


def alive(gpu: Gpu, known: Mapping[int, Process], age: float) -> list[Running]:
    """The processes of a sample that still run, without those that were started in the `age`
    seconds since it was taken."""
    return [
        (on_it, process)
        for on_it in gpu.processes
        if (process := known.get(on_it.pid)) is not None
        # A younger process has reused the pid.
        and (process.uptime is None or process.uptime >= age)
    ]


def _row(
    on_it: ProcessSample,
    process: Process,
    origin: Origin,
    viewer: str,
    users: Mapping[int, str] | None,
    idle: float | None,
) -> GpuProcess:
    """`users` is None for who sees what all of them run on the host."""
    cmd = process.cmd
    if users is not None and not origin.instance and process.uid is not None:
        user = users[process.uid]
        cmd = cmd if user == viewer else user
    return GpuProcess(
        pid=on_it.pid,
        pod=origin.name,
        cmd=cmd,
        uptime=process.uptime,
        memory_used=process.memory_used,
        gpu_memory_used=on_it.memory_used,
        idle=_rounded(idle),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _check_indices(wanted: Sequence[int] | None, count: int) -> None:
    for index in wanted or ():
        if index >= count:
            existing = f"there are {count}, from 0 to {count - 1}" if count else "there is none"
            raise BadRequest(
                f"Parameter 'id' names GPU {index}, but {existing}.",
                code="no_such_gpu",
                count=count,
            )
