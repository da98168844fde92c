"""Snapshots of pods: a pod's disk as it was."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote
from weakref import WeakValueDictionary

from podyd.config import UNLIMITED
from podyd.errors import (
    Conflict,
    Forbidden,
    LxdRefused,
    TimedOut,
    Unavailable,
    lxd_could_not,
)
from podyd.leases import now
from podyd.lxd.client import LxdClient, instance_path
from podyd.lxd.instances import Instances, parse_time
from podyd.pod import Pod, no_such_snapshot
from podyd.pods import Pods
from podyd.spec import SnapshotInfo, iso
from podyd.tasks import Tasks
from podyd.users import Member

log = logging.getLogger(__name__)

# Where pods do not share blocks (a pool of kind dir), LXD copies the whole disk.
DISK_TIMEOUT = 1800.0
SETTLE_SECONDS = 1.0


class Snapshots:
    """Takes, lists, restores and deletes them."""

    def __init__(
        self, *, client: LxdClient, instances: Instances, pods: Pods, tasks: Tasks
    ) -> None:
        self._client = client
        self._instances = instances
        self._pods = pods
        self._tasks = tasks
        # What comes later is settled by who restores.
        self._left = instances.unsettled
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def all(self, member: Member, ins: str) -> list[SnapshotInfo]:
        """A pod's snapshots, the oldest first."""
        return await self._of(await self._pods.find(member, ins))

    async def take(self, member: Member, ins: str, name: str | None) -> SnapshotInfo:
        """Keep a pod's disk; without a name under the time. Raises Conflict, Forbidden (quota)."""
        pod = await self._pods.find(member, ins)
        name = name or now().strftime("%Y%m%dT%H%M%SZ")
        # Two at once could both see the last free place.
        async with self._locks.setdefault(pod.name, asyncio.Lock()):
            _check_room(member, name, [item.name for item in await self._of(pod)])
            path = instance_path(pod.name, "snapshots")
            with lxd_could_not("take the snapshot"):
                await self._client.change("POST", path, {"name": name}, timeout=DISK_TIMEOUT)
            return await self._one(pod, name)

    async def delete(self, member: Member, ins: str, name: str) -> str:
        """Delete a snapshot. Returns what was done."""
        pod = await self._pods.find(member, ins)
        await self._one(pod, name)
        with lxd_could_not("delete the snapshot"):
            await self._client.change("DELETE", _path(pod, name), timeout=DISK_TIMEOUT)
        return f"Snapshot {name} of pod {ins} is deleted."

    async def restore(self, member: Member, ins: str, name: str) -> str:
        """Make a pod's disk as it was at a snapshot. Returns what was done.

        Its owner, its cards and their leases are those of now. If it ran, it runs again.
        """
        pod = await self._pods.find(member, ins)
        await self._one(pod, name)
        if pod.status != "stopped":
            await self._pods.stop(member, ins)
        try:
            with lxd_could_not("restore the snapshot"):
                await self._instances.restore(pod.name, name, timeout=DISK_TIMEOUT)
        finally:
            settling = self._tasks.spawn(self._settle(pod.name), f"settling {pod.name}")
            await asyncio.wait({settling})
        log.info("%s restored snapshot %s of pod %s", member.name, name, pod.name)
        done = f"Pod {ins} is as it was at snapshot {name}"
        if pod.status == "stopped":
            return f"{done}."
        await self._pods.start(member, ins)
        return f"{done}; it was stopped for that, and is running again."

    async def settle(self) -> None:
        """Finish what a podyd that was killed has left in the middle of a restore."""
        while self._left:
            name = self._left.pop()
            log.warning("%s: bringing its settings back after a restore", name)
            await self._settle(name)

    async def _settle(self, name: str) -> None:
        while True:
            try:
                await self._instances.settle(name)
                return
            except (LxdRefused, TimedOut, Unavailable) as error:
                log.warning("%s: its settings are not yet back: %s", name, error.detail)
            await asyncio.sleep(SETTLE_SECONDS)

    async def _of(self, pod: Pod) -> list[SnapshotInfo]:
        data = await self._client.get(instance_path(pod.name, "snapshots"), recursion=1)
        found = sorted(data or [], key=lambda item: (parse_time(item["created_at"]), item["name"]))
        return [_info(item) for item in found]

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
            f"Your quota is {limit} snapshots of a pod, and this one has {len(existing)}; delete"
            " one first.",
            code="quota_exceeded",
            limit=limit,
            used=len(existing),
        )


def _path(pod: Pod, name: str) -> str:
    return instance_path(pod.name, "snapshots", quote(name, safe=""))


def _info(data: Mapping[str, Any]) -> SnapshotInfo:
    size = data.get("size", -1)
    return SnapshotInfo(
        name=data["name"].rpartition("/")[2],
        created=iso(parse_time(data["created_at"])),
        size=size if size >= 0 else None,
    )
