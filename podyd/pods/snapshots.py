"""Snapshots of the disks of pods."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from weakref import WeakValueDictionary

from podyd.base.clock import iso, now
from podyd.base.errors import (
    Busy,
    Conflict,
    DiskFull,
    Forbidden,
    HalfRestored,
    Missing,
    PodydError,
    engine_could_not,
)
from podyd.base.quantities import UNLIMITED
from podyd.base.tasks import Tasks, came
from podyd.contract.pods import SnapshotInfo
from podyd.engine.interface import Instances, SnapshotStore
from podyd.engine.types import Snapshot
from podyd.model.member import Member
from podyd.model.pod import Pod, no_such_snapshot
from podyd.pods.disks import full
from podyd.pods.owned import Owned
from podyd.pods.power import Power
from podyd.pods.stages import Stages

log = logging.getLogger(__name__)

# Where pods do not share blocks (a pool of kind dir), the engine copies the whole disk.
DISK_TIMEOUT = 1800.0
# How long a restore waits until its pod's settings are written back, unless the engine is busy with
# it; and the intervals of retries, at first and at most.
SETTLE_TIMEOUT = 5.0
SETTLE_SECONDS, LOOK_SECONDS = 0.5, 60.0


class Snapshots:
    """Takes, lists, restores and deletes snapshots."""

    def __init__(
        self,
        *,
        instances: Instances,
        snapshots: SnapshotStore,
        owned: Owned,
        power: Power,
        stages: Stages,
        tasks: Tasks,
    ) -> None:
        self._instances = instances
        self._snapshots = snapshots
        self._owned = owned
        self._power = power
        self._stages = stages
        self._tasks = tasks
        self._poke = asyncio.Event()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def all(self, member: Member, ins: str) -> list[SnapshotInfo]:
        """A pod's snapshots, the oldest first."""
        return await self._of(await self._owned.find(member, ins))

    async def take(self, member: Member, ins: str, name: str | None) -> SnapshotInfo:
        """Take a snapshot; the default name is the time. Raises Conflict, Forbidden (quota)."""
        pod = await self._owned.find(member, ins)
        name = name or now().strftime("%Y%m%dT%H%M%SZ")
        # Two at once could both see that there is room for one more.
        async with self._locks.setdefault(pod.name, asyncio.Lock()):
            _check_room(member, name, [item.name for item in await self._of(pod)])
            # Where the engine finds no room half way, it leaves what nobody can delete, nor the pod
            # then.
            if not await self._instances.has_room(pod.name):
                raise full(pod)
            try:
                with engine_could_not("take the snapshot"):
                    await self._snapshots.take(pod.name, name, timeout=DISK_TIMEOUT)
            except DiskFull as error:
                raise full(pod) from error
            return await self._one(pod, name)

    async def delete(self, member: Member, ins: str, name: str) -> str:
        """Delete a snapshot. Returns what was done."""
        pod = await self._owned.find(member, ins)
        await self._one(pod, name)
        try:
            with engine_could_not("delete the snapshot"), contextlib.suppress(Missing):
                await self._snapshots.delete(pod.name, name, timeout=DISK_TIMEOUT)
        except DiskFull as error:
            # The engine deletes it, and then finds no room for its own list of them.
            if name in [item.name for item in await self._of(pod)]:
                raise full(pod) from error
        return f"Snapshot {name} of pod {ins} is deleted."

    async def restore(self, member: Member, ins: str, name: str) -> str:
        """Restore a pod's disk from a snapshot. Returns what was done.

        Its owner, cards and leases stay as they are now. If it ran, it is started again, even if
        the restore failed; but not with a disk that is half restored.
        """
        pod = await self._owned.find(member, ins)
        await self._one(pod, name)
        done = f"Pod {ins} is as it was at snapshot {name}"
        if pod.status == "stopped":
            with self._stages.of(member, ins, "restoring"):
                await self._restore(member, pod, name)
            return f"{done}."
        with self._stages.of(member, ins, "stopping") as stage:
            await self._power.stop(member, ins)
            stage.go_on("restoring")
            try:
                await self._restore(member, pod, name)
            except HalfRestored:
                raise
            except PodydError:
                stage.go_on("starting")
                with contextlib.suppress(PodydError):
                    await self._power.start(member, ins)
                raise
            stage.go_on("starting")
            await self._power.start(member, ins)
        return f"{done}; it was stopped for that, and is running again."

    async def _restore(self, member: Member, pod: Pod, name: str) -> None:
        await self._instances.begin_restore(pod.name)
        try:
            with engine_could_not("restore the snapshot"):
                await self._instances.restore(pod.name, name, timeout=DISK_TIMEOUT)
        finally:
            settling = self._tasks.spawn(self._settle(pod.name), f"settling {pod.name}")
            await asyncio.wait({settling})
        if problem := settling.result():
            raise problem
        log.info("%s restored snapshot %s of pod %s", member.name, name, pod.name)

    async def _settle(self, name: str) -> PodydError | None:
        """Write a pod's settings back after a restore; returns the error if that fails long, and
        `run` has to try again."""
        began = time.monotonic()
        pause = SETTLE_SECONDS
        try:
            while True:
                try:
                    await self._instances.settle(name)
                    return None
                except PodydError as error:
                    # The engine may still be at a restore that podyd no longer waits for.
                    limit = DISK_TIMEOUT if isinstance(error, Busy) else SETTLE_TIMEOUT
                    if time.monotonic() - began > limit:
                        return error
                await asyncio.sleep(pause)
                pause = min(2 * pause, SETTLE_TIMEOUT)
        finally:
            self._instances.end_restore(name)
            self.poke()

    def poke(self) -> None:
        """Try again now: something has changed."""
        self._poke.set()

    async def run(self) -> None:
        """Retry writing settings back, until cancelled; each error is logged once."""
        problems: dict[str, str] = {}
        while True:
            self._poke.clear()
            known, problems = problems, {}
            for name in self._instances.unsettled:
                try:
                    await self._instances.settle(name)
                    log.info("%s has its settings of before a restore again", name)
                except PodydError as error:
                    problems[name] = str(error)
                    if problems[name] != known.get(name):
                        log.warning("%s: %s", name, error)
            await came(self._poke, LOOK_SECONDS if problems else None)
            await asyncio.sleep(SETTLE_SECONDS)

    async def _of(self, pod: Pod) -> list[SnapshotInfo]:
        return [_info(item) for item in await self._snapshots.all(pod.name)]

    async def _one(self, pod: Pod, name: str) -> SnapshotInfo:
        for item in await self._of(pod):
            if item.name == name:
                return item
        raise no_such_snapshot(pod, name)


def _check_room(member: Member, name: str, existing: list[str]) -> None:
    if name in existing:
        raise Conflict(f"The pod has a snapshot {name!r} already.", code="name_taken", name=name)
    limit = member.quota.max_snapshots
    if limit != UNLIMITED and len(existing) >= limit:
        raise Forbidden(
            f"Your quota is {limit} snapshots of a pod, and this one has {len(existing)}.",
            advice="Delete one first.",
            code="quota_exceeded",
            limit=limit,
            used=len(existing),
        )


def _info(snapshot: Snapshot) -> SnapshotInfo:
    return SnapshotInfo(name=snapshot.name, created=iso(snapshot.created), size=snapshot.size)
