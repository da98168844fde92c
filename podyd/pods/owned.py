"""Pods by their owners."""

from __future__ import annotations

from podyd.base.clock import iso
from podyd.base.errors import Conflict, NotFound
from podyd.contract.pods import PodSummary
from podyd.engine.interface import Instances
from podyd.model.member import Member
from podyd.model.pod import Pod, pods_of


class Owned:
    """The engine's pods, by owner and name."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    async def names(self, member: Member) -> list[str]:
        """The names of a member's pods, sorted."""
        return [pod.ins for pod in await self._all() if pod.is_of(member)]

    async def summaries(self) -> list[PodSummary]:
        """Every pod of every owner."""
        return [
            PodSummary(
                name=pod.name,
                ins=pod.ins,
                owner=pod.owner,
                status=pod.status,
                image=pod.image,
                created=iso(pod.instance.created),
            )
            for pod in await self._all()
        ]

    async def _all(self) -> list[Pod]:
        return pods_of(await self._instances.all())

    async def find(self, member: Member, ins: str) -> Pod:
        """A member's pod. Raises NotFound, also for another member's."""
        for pod in await self._all():
            if pod.ins == ins and pod.is_of(member):
                return pod
        raise NotFound(
            f"You have no pod {ins!r}.",
            advice="See /pod/list.",
            code="no_such_pod",
        )

    async def named(self, name: str) -> Pod:
        """The pod, of any owner, whose instance has this name in the engine. Raises NotFound."""
        for pod in await self._all():
            if pod.name == name:
                return pod
        raise NotFound(f"There is no pod {name!r}.", advice="See /pod/listall.", code="no_such_pod")

    async def find_running(self, member: Member, ins: str) -> Pod:
        """A member's pod that runs. Raises NotFound, or Conflict (it does not run)."""
        pod = await self.find(member, ins)
        if pod.status != "running":
            raise not_running(ins, pod.status)
        return pod


def not_running(ins: str, status: str) -> Conflict:
    """The error for a command in a pod that does not run."""
    return Conflict(
        f"Pod {ins!r} is {status}.",
        advice="Start it with /pod/start.",
        code="pod_not_running",
        status=status,
    )
