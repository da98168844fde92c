"""The plan of a new pod, which is complete before anything is created."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from podyd.base.engine_words import ENGINE
from podyd.base.errors import Conflict, Forbidden, PodydError
from podyd.base.quantities import UNLIMITED
from podyd.engine.interface import Instances
from podyd.engine.types import NewInstance, Profile, Source
from podyd.gpus.inventory import needs_nvidia
from podyd.gpus.scheduler import Picture, Scheduler
from podyd.model.gpu import CardChoice
from podyd.model.member import Member
from podyd.model.naming import instance_name
from podyd.model.pod import INS, MADE_AS, owner_keys, pods_of
from podyd.network.ports import Ports
from podyd.pods.disks import Disks
from podyd.pods.half_made import HalfMade
from podyd.pods.mounts import Mounts
from podyd.pods.quota import limits


@dataclass(frozen=True)
class NewPod:
    """A member's request for a pod.

    Without `gpus`, it has those of its profiles. `disk_bytes` is the limit of its disk; without it,
    or with -1, that of profiles and quota applies. `keys` are added to podyd's own keys.
    """

    ins: str
    source: Source
    keys: Mapping[str, str]
    gpus: CardChoice | None
    disk_bytes: int | None


class Planner:
    """Plans new pods within their owners' quotas, and reserves name, cards, ports and disk space
    until they exist."""

    def __init__(
        self,
        *,
        instances: Instances,
        scheduler: Scheduler,
        ports: Ports,
        mounts: Mounts,
        disks: Disks,
        half_made: HalfMade,
    ) -> None:
        self._instances = instances
        self._scheduler = scheduler
        self._ports = ports
        self._mounts = mounts
        self._disks = disks
        self._half_made = half_made
        self._locks: dict[str, asyncio.Lock] = {}
        # The instances' names of pods that are being created, by owner and pod name.
        self._making: dict[tuple[str, str], str] = {}

    @contextlib.asynccontextmanager
    async def plan(self, member: Member, new: NewPod) -> AsyncIterator[NewInstance]:
        """The instance for a new pod; its resources are reserved while the context lasts.

        Cards and profiles are read once; the list of instances follows the engine's events, so each
        step reads it again under its lock. Raises Conflict (name taken, GPU leased, no port free),
        Forbidden (over quota).
        """
        picture = await self._scheduler.picture()
        profiles = _profiles_of(member, picture)
        mounted = await self._mounts.new(member, profiles)
        async with (
            self._named(member, new.ins) as name,
            self._disks.new(member, name, profiles, new.disk_bytes) as disk,
            self._scheduler.new(member, name, profiles, new.gpus, picture) as cards,
            self._ports.new(member, new.ins) as ports,
        ):
            yield NewInstance(
                name,
                new.source,
                tuple(profile.name for profile in profiles),
                {
                    **owner_keys(member),
                    INS: new.ins,
                    MADE_AS: name,
                    **limits(member, profiles),
                    **{key: value for key, value in mounted.config.items() if value is not None},
                    **cards.config,
                    **ports,
                    **new.keys,
                },
                {**cards.devices, **mounted.devices, **disk},
            )

    @contextlib.asynccontextmanager
    async def _named(self, member: Member, ins: str) -> AsyncIterator[str]:
        """Reserve a pod within the owner's quota, and a name in the engine."""
        lock = self._locks.setdefault(member.name, asyncio.Lock())
        async with lock:
            instances = await self._instances.all()
            mine = {pod.ins for pod in pods_of(instances) if pod.is_of(member)}
            self._check_room(member, ins, mine)
            taken = {instance.name for instance in instances} | set(self._making.values())
            name = instance_name(member.name, ins, {other.lower() for other in taken})
            self._making[member.name, ins] = name
            self._half_made.begin(name)
        try:
            yield name
        finally:
            # Under the lock, so that no other plan has read the engine's list before the pod was in
            # it and reads this dictionary after its removal.
            async with lock:
                del self._making[member.name, ins]
                self._half_made.end(name)

    def _check_room(self, member: Member, ins: str, existing: set[str]) -> None:
        used = existing | {name for owner, name in self._making if owner == member.name}
        if ins in used:
            raise Conflict(f"You have a pod {ins!r} already.", code="name_taken", ins=ins)
        limit = member.quota.max_pods
        if limit != UNLIMITED and len(used) >= limit:
            raise Forbidden(
                f"Your quota is {limit} pods, and you have {len(used)}.",
                advice="Delete one first.",
                code="quota_exceeded",
                limit=limit,
                used=len(used),
            )


def _profiles_of(member: Member, picture: Picture) -> list[Profile]:
    """The profiles of a member's new pods, without those that do not apply to this host."""
    missing = [name for name in member.profiles if name not in picture.profiles]
    if missing:
        raise PodydError(
            f"{ENGINE} has no profile {missing[0]!r}.",
            advice=(
                "Your admin can add it with 'podyd profiles apply', or remove it from podyd.yaml."
            ),
            code="profile_missing",
        )
    profiles = [picture.profiles[name] for name in member.profiles]
    return [profile for profile in profiles if picture.cards or not needs_nvidia(profile)]
