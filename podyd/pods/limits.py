"""Memory, CPUs and disk of a pod, changed while it runs, within its owner's quota."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from podyd.base.engine_words import ENGINE
from podyd.base.errors import BadRequest, Conflict, Forbidden, TimedOut, engine_could_not
from podyd.base.quantities import UNLIMITED, shown_size
from podyd.contract.pods import PodInfo
from podyd.engine.interface import Instances, Profiles
from podyd.engine.types import Profile, config_of
from podyd.model.member import Member
from podyd.model.pod import DISK, Pod
from podyd.pods.disks import Disks
from podyd.pods.info import Info
from podyd.pods.kernel_limits import KernelLimits, beside_own
from podyd.pods.owned import Owned
from podyd.pods.quota import CPU, MEMORY, limits, memory_limit

log = logging.getLogger(__name__)


class Limits:
    """Sets limits on the instance, which override its profiles'; quotas apply to each pod alone."""

    def __init__(
        self,
        *,
        instances: Instances,
        profiles: Profiles,
        owned: Owned,
        disks: Disks,
        info: Info,
        kernel: KernelLimits,
    ) -> None:
        self._instances = instances
        self._profiles = profiles
        self._owned = owned
        self._info = info
        self._disks = disks
        self._kernel = kernel

    async def change(
        self,
        member: Member,
        ins: str,
        memory_bytes: int | None,
        cpus: int | None,
        disk_bytes: int | None,
    ) -> PodInfo:
        """Set the limits that are not None, in bytes and in CPUs; -1 resets one to a new pod's.

        Raises BadRequest (nothing is given), Forbidden (quota), Conflict (the pod uses more memory
        than that: the kernel would kill its processes; or more of its disk), TimedOut (they are
        set, and the kernel does not have the CPUs yet).
        """
        if memory_bytes is None and cpus is None and disk_bytes is None:
            raise BadRequest(
                "Say what to limit: memory, cpu, disk or several of them.",
                code="missing_parameter",
            )
        pod = await self._owned.find(member, ins)
        quota = member.quota
        _check("memory", memory_bytes, quota.memory_limit, " of memory", shown_size)
        _check("cpu", cpus, quota.cpu_limit, " CPUs", str)
        profiles = await self._profiles.of(pod.instance)
        capped = limits(member, profiles)
        changes: dict[str, str | None] = {}
        for key, asked in ((MEMORY, memory_bytes), (CPU, cpus)):
            if asked is not None:
                changes[key] = capped.get(key) if asked == UNLIMITED else str(asked)
        if disk_bytes is not None:
            changes[DISK] = None
        if MEMORY in changes:
            await self._check_use(pod, _memory(profiles, changes[MEMORY]))
        async with self._disks.resized(member, pod, profiles, disk_bytes) as devices:
            with engine_could_not("set the limits"):
                await self._instances.edit(pod.name, config=beside_own(changes), devices=devices)
        if pod.status in ("running", "frozen"):
            await self._follow(pod, changes)
        log.info("%s limited pod %s: %s, disk %s", member.name, pod.name, changes, disk_bytes)
        return await self._info.of(member, ins)

    async def _follow(self, pod: Pod, changes: Mapping[str, str | None]) -> None:
        """Wait until the kernel has the limits of a pod that runs or is frozen. Raises TimedOut."""
        if MEMORY in changes:
            await self._kernel.allow_swap(pod.name)
        if CPU in changes and not await self._kernel.cpus_set(pod.name):
            raise TimedOut(
                f"The limits are set, but {ENGINE} has not given pod {pod.ins!r} its new number"
                " of CPUs in time.",
                advice="Restart the pod, or tell your admin.",
                code="limits_pending",
            )

    async def _check_use(self, pod: Pod, asked: int) -> None:
        if asked == UNLIMITED or pod.status not in ("running", "frozen"):
            return
        used = (await self._instances.state(pod.name)).memory_bytes
        if asked < used:
            raise Conflict(
                f"Pod {pod.ins!r} uses {shown_size(used)} of memory now, files that it has read"
                f" included, and {shown_size(asked)} would end its processes.",
                advice="Ask for more, or stop it first.",
                code="memory_in_use",
                parameter="memory",
                used=used,
                asked=asked,
            )


def _check(
    parameter: str, asked: int | None, limit: int, what: str, shown: Callable[[int], str]
) -> None:
    if asked is not None and limit != UNLIMITED and asked > limit:
        raise Forbidden(
            f"Your quota is {shown(limit)}{what} for each pod, and {shown(asked)} is more.",
            code="quota_exceeded",
            parameter=parameter,
            limit=limit,
            asked=asked,
        )


def _memory(profiles: list[Profile], limit: str | None) -> int:
    return memory_limit(config_of(profiles) if limit is None else {MEMORY: limit})
