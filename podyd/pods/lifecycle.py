"""Creation, copy and deletion of pods, each complete or not at all."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from podyd.base.engine_words import ENGINE
from podyd.base.errors import (
    Conflict,
    DiskFull,
    Missing,
    NameTaken,
    PodydError,
    Slipped,
    TimedOut,
    engine_could_not,
)
from podyd.base.quantities import UNLIMITED
from podyd.contract.pods import PodInfo
from podyd.engine.interface import Files, Instances, SnapshotStore
from podyd.engine.types import CopyOf, FromImage, NewInstance
from podyd.model.gpu import CardChoice
from podyd.model.member import Member
from podyd.model.pod import IMAGE, MADE_AS, Pod, no_such_snapshot
from podyd.pods.catalogue import Catalogue
from podyd.pods.deidentify import forget_identity
from podyd.pods.disks import Disks
from podyd.pods.half_made import HalfMade, delete
from podyd.pods.info import Info
from podyd.pods.owned import Owned
from podyd.pods.planner import NewPod, Planner
from podyd.pods.power import Power
from podyd.pods.stages import Stage, Stages

log = logging.getLogger(__name__)

# Without shared blocks (a pool with the driver dir), the engine copies the whole disk.
CREATE_TIMEOUT = 1800.0


class Foreign(Conflict):
    """The engine has an instance with a new pod's name that this podyd has not created."""

    default_code = "name_taken"


class Lifecycle:
    """Creates and deletes members' pods."""

    def __init__(
        self,
        *,
        owned: Owned,
        instances: Instances,
        snapshots: SnapshotStore,
        files: Files,
        images: Catalogue,
        planner: Planner,
        disks: Disks,
        power: Power,
        half_made: HalfMade,
        info: Info,
        stages: Stages,
    ) -> None:
        self._owned = owned
        self._instances = instances
        self._snapshots = snapshots
        self._files = files
        self._images = images
        self._planner = planner
        self._disks = disks
        self._power = power
        self._half_made = half_made
        self._info = info
        self._stages = stages

    async def create(
        self,
        member: Member,
        ins: str,
        image_name: str,
        gpus: CardChoice | None,
        disk_bytes: int | None,
    ) -> PodInfo:
        """Create a pod from an image and start it; without `gpus`, with those of its profiles.

        `disk_bytes` is the limit of its disk; without it, or with -1, that of profiles and quota.

        Raises Conflict (name taken, GPU leased, no port free), Forbidden (over quota, image not
        offered), NotFound (no such image), StartFailed. If anything fails, the pod is removed.
        """
        with self._stages.of(member, ins, "unpacking") as stage:
            alias, image = await self._images.offered(member, image_name)
            new = NewPod(ins, FromImage(image.fingerprint), {IMAGE: alias}, gpus, disk_bytes)
            return await self._make(member, new, stage)

    async def copy(
        self,
        member: Member,
        ins: str,
        to: str,
        snapshot: str | None,
        gpus: CardChoice | None,
        disk_bytes: int | None,
    ) -> PodInfo:
        """Create a pod `to` from another one, or from a snapshot of it, and start it.

        It has its own ssh host keys, machine-id and name, and the profiles, limits and cards of a
        new pod. Raises what `create` does.
        """
        with self._stages.of(member, to, "copying") as stage:
            pod = await self._owned.find(member, ins)
            if snapshot is not None:
                await self._check_snapshot(pod, snapshot)
            self._instances.check_free(pod.name)
            source = CopyOf(pod.name, snapshot)
            new = NewPod(to, source, {IMAGE: pod.image}, gpus, disk_bytes)
            return await self._make(member, new, stage)

    async def _check_snapshot(self, pod: Pod, name: str) -> None:
        try:
            await self._snapshots.one(pod.name, name)
        except Missing as error:
            raise no_such_snapshot(pod, name) from error

    async def _make(self, member: Member, pod: NewPod, stage: Stage) -> PodInfo:
        async with self._planner.plan(member, pod) as new:
            with engine_could_not("make the pod", code="pod_create_failed"):
                try:
                    await twice_if_engine_slips(
                        lambda: self._make_whole(new, pod.disk_bytes, stage),
                        lambda: self._half_made.remove(new.name),
                    )
                except DiskFull as error:
                    raise self._disks.too_small(new.name) from error
                except TimedOut as error:
                    # The engine's own sentence is that it continues.
                    raise TimedOut(
                        f"{ENGINE} has not made and started the pod in time, and podyd removes it.",
                        advice="Try again when the host is less busy; if it stays so, tell your"
                        " admin.",
                        code="lxd_timed_out",
                    ) from error
            log.info("%s made pod %s", member.name, new.name)
            return await self._info.of(member, pod.ins)

    async def _make_whole(self, new: NewInstance, disk_bytes: int | None, stage: Stage) -> None:
        disk = self._disks.device(new.name)
        if isinstance(new.source, CopyOf):
            stage.go_on("copying")
            await self._begin_pod(replace(new, devices={**disk, **new.devices}), stage)
            await self._instances.reset(new.name, new.config, new.devices)
            await forget_identity(self._files, new.name)
        else:
            stage.go_on("unpacking")
            await self._begin_pod(new, stage)
        if disk_bytes not in (None, UNLIMITED):
            await self._disks.check_held(new.name, disk)
        stage.go_on("starting")
        await self._power.start_instance(new.name)
        await self._instances.remove_key(new.name, MADE_AS)

    async def _begin_pod(self, new: NewInstance, stage: Stage) -> None:
        try:
            await self._instances.create(new, timeout=CREATE_TIMEOUT, began=stage.began)
        except NameTaken as error:
            # It is newer than the list of instances: of an admin's `lxc launch`, or the engine was
            # slow.
            raise Foreign(
                f"Something in {ENGINE} has got the name {new.name} at this moment.",
                advice="Try again.",
            ) from error

    async def delete(self, member: Member, ins: str) -> str:
        """Delete a pod, running or not, with all its files. Returns what was done."""
        pod = await self._owned.find(member, ins)
        await delete(self._instances, pod.name)
        log.info("%s deleted pod %s", member.name, pod.name)
        return f"Pod {ins} and everything in it is deleted."


async def twice_if_engine_slips(
    make: Callable[[], Awaitable[None]], undo: Callable[[], Awaitable[bool]]
) -> None:
    """Call `make`, and after a failure `undo`; after Slipped, call `make` once more.

    After Foreign nothing is undone.
    """
    try:
        await make()
    except Foreign:
        raise
    except PodydError as error:
        is_undone = await undo()
        if not is_undone or not isinstance(error, Slipped):
            raise
        log.warning("trying once more: %s", error)
    else:
        return
    try:
        await make()
    except Foreign:
        raise
    except PodydError:
        await undo()
        raise
