"""Where the values on the board come from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from podyd import __version__
from podyd.board.board import ADMINS, ALL, GUESTS, MEMBERS, Place, oneself, owner_of
from podyd.board.works import Works
from podyd.contract.events import (
    MAX_COMMAND,
    MAX_PROCESSES,
    AdminNow,
    CardNow,
    CardUse,
    HostNow,
    MeNow,
    PodLoadNow,
)
from podyd.contract.gpus import Waiting
from podyd.contract.host import NOT_FOR_ALL, GpuInfo, GpuProcess
from podyd.contract.pods import PodNow
from podyd.engine.interface import Server
from podyd.gpus.decisions import View
from podyd.gpus.report import Report
from podyd.gpus.scheduler import Scheduler, waiting
from podyd.model.member import Member
from podyd.model.pod import account_key
from podyd.node.interface import Node
from podyd.people.notices import Notices
from podyd.pods.info import Info
from podyd.pods.loads import Loads

Values = dict[Place, object]


@dataclass(frozen=True)
class Picture:
    """What the engine said when it was last asked."""

    version: str | None
    view: View
    queue: list[Waiting]
    pods: Mapping[str, PodNow]
    # The account of each pod's owner, by the engine's name of the pod.
    owners: Mapping[str, str]


class Sources:
    """Asks the engine, NVML's last sample, and the kernel; nothing of it counts as use of a pod."""

    def __init__(
        self,
        *,
        server: Server,
        node: Node,
        scheduler: Scheduler,
        report: Report,
        info: Info,
        works: Works,
        notices: Notices,
        login_changes: Callable[[str], int],
        news: Callable[[], Awaitable[AdminNow]],
        loads: Callable[[], Loads],
    ) -> None:
        self._server = server
        self._node = node
        self._scheduler = scheduler
        self._report = report
        self._info = info
        self._works = works
        self._notices = notices
        self._login_changes = login_changes
        self._news = news
        self._new_loads = loads
        self.forget()

    def forget(self) -> None:
        """Nobody has asked for a while: what a pod has used since then is no figure of now."""
        self._loads = self._new_loads()
        self._seen: frozenset[str] = frozenset()
        self._works.forget()

    async def picture(self) -> Picture:
        """What the engine says now. Raises Unavailable, EngineRefused."""
        view = await self._scheduler.view()
        return Picture(
            version=await self._server.version(),
            view=view,
            queue=waiting(view),
            pods=await self._info.now(view),
            owners={pod.name: pod.account for pod in view.pods},
        )

    def host(self, picture: Picture | None, problem: str | None) -> Values:
        """The host, and what is the matter with the engine."""
        sample, facts = self._node.samples.latest, self._node.facts
        shown = HostNow(
            name=facts.name,
            podyd=__version__,
            engine=self._server.kind,
            lxd=picture.version if picture else None,
            kernel=facts.kernel,
            nvidia_driver=sample.driver if sample else None,
            cuda=sample.cuda if sample else None,
            problem=problem,
            ends_sharers=picture.view.ends_sharers if picture else None,
        )
        for_guests = replace(shown, problem=problem and NOT_FOR_ALL)
        return {
            (ADMINS, "host"): shown,
            (MEMBERS, "host"): shown,
            (GUESTS, "host"): for_guests,
        }

    def pods(self, picture: Picture) -> Values:
        """Pods for their owners and for admins, and the queue for all."""
        shown = self._for_owners("pod", picture.pods, picture.owners)
        return {(ALL, "queue"): picture.queue, **shown}

    async def cards(self, picture: Picture) -> Values:
        """The cards for all, and how they are used."""
        values: Values = {}
        rows = await self._report.processes()
        for gpu in self._report.gpus_of(picture.view):
            values[ALL, f"gpu/{gpu.index}"] = _now(gpu)
            for_members = rows.for_members.get(gpu.index, [])
            for audience, processes in (
                (ADMINS, rows.for_admins.get(gpu.index, [])),
                (MEMBERS, for_members),
                (GUESTS, [replace(row, cmd="") for row in for_members]),
            ):
                values[audience, f"use/{gpu.index}"] = _use(gpu, processes)
        return values

    async def loads(self, picture: Picture) -> Values:
        """What pods use; of a pod that has just come, how many CPUs is not known yet."""
        loads = await self._loads.read()
        shown = {
            name: PodLoadNow(load.memory_used, load.cpu)
            for name, load in loads.items()
            if name in self._seen
        }
        self._seen = frozenset(loads)
        return self._for_owners("load", shown, picture.owners)

    def works(self, picture: Picture | None) -> Values:
        """What is being done to pods, also to one that is being made: by its owner, whose it is
        then, or by an admin."""
        works = self._works.look()
        known = picture.owners if picture is not None else {}
        owners = {
            pod: (known.get(pod) if work.caller.is_admin else None)
            or account_key(work.caller.name, work.caller.uid)
            for pod, work in works.items()
        }
        return self._for_owners("work", {pod: work.shown for pod, work in works.items()}, owners)

    def people(self, members: Iterable[Member]) -> Values:
        """Who these are, for each of them alone."""
        return {
            (oneself(member), "me"): MeNow(
                member.name,
                member.is_admin,
                self._notices.unread(member),
                self._login_changes(member.name),
            )
            for member in members
        }

    async def admin(self) -> Values:
        """What is new for admins."""
        return {(ADMINS, "admin"): await self._news()}

    @staticmethod
    def _for_owners(kind: str, shown: Mapping[str, object], owners: Mapping[str, str]) -> Values:
        values: Values = {}
        for name, value in shown.items():
            if name in owners:
                values[ADMINS, f"{kind}/{name}"] = value
                values[owner_of(owners[name]), f"{kind}/{name}"] = value
        return values


def _shown(process: GpuProcess) -> GpuProcess:
    head = process.cmd[:MAX_COMMAND]
    return replace(process, cmd="".join(char if char.isprintable() else "?" for char in head))


def _now(gpu: GpuInfo) -> CardNow:
    return CardNow(
        index=gpu.index,
        uuid=gpu.uuid,
        pci=gpu.pci,
        name=gpu.name,
        memory_total=gpu.memory_total,
        power_limit=gpu.power_limit,
        problem=gpu.problem,
        pods=gpu.pods,
        intruders=gpu.intruders[:MAX_PROCESSES],
    )


def _use(gpu: GpuInfo, processes: list[GpuProcess]) -> CardUse:
    return CardUse(
        memory_used=gpu.memory_used,
        utilisation=gpu.utilisation,
        temperature=gpu.temperature,
        power=gpu.power,
        idle=gpu.idle,
        processes=[_shown(process) for process in processes[:MAX_PROCESSES]],
    )
