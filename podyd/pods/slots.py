"""Places for what goes on for long in a pod: so many for each member, and so many in all."""

from __future__ import annotations

from collections import Counter

from podyd.base.errors import TooMany
from podyd.model.member import Member
from podyd.model.pod import Pod
from podyd.pods.lifecycle import Pods, not_running


class Places:
    """Gives them to members, in pods of theirs; `what` says what they are for."""

    def __init__(self, pods: Pods, *, own: int, all: int, what: str, code: str) -> None:
        self._pods = pods
        self._own = own
        self._all = all
        self._what = what
        self._code = code
        self._taken: Counter[str] = Counter()

    async def enter(self, member: Member, ins: str, *, also_stopped: bool = False) -> Pod:
        """Take one. Raises NotFound, Conflict (the pod does not run) or TooMany."""
        pod = await self._pods.find(member, ins)
        if pod.status != "running" and not (also_stopped and pod.status == "stopped"):
            raise not_running(ins, pod.status)
        own = self._taken[member.name]
        if own >= self._own or self._taken.total() >= self._all:
            raise TooMany(f"{own} {self._what}.", retry_after=1, code=self._code)
        self._taken[member.name] += 1
        return pod

    def leave(self, pod: Pod) -> None:
        """The place in this pod is free again."""
        self._taken[pod.owner] -= 1
        if not self._taken[pod.owner]:
            del self._taken[pod.owner]
