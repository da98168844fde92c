"""The disk of a pod: how large it may become, and what of it is used.

The limit is the `size` of the instance's root disk device. How it is counted is the storage's
matter. On btrfs (tried on LXD 5.0.2) a limit counts all that is in the pod, also what it shares
with its image, its snapshots and copies; what it says is used is without that. On ZFS both are
the same: what the pod has for itself, with its snapshots; with zfs.use_refquota, all that is in it.
What is written counts some seconds later there, and the last of a limit is slow to fill. A pool of
kind dir takes a size and does not hold it, unless its filesystem has project quotas; then what
is used is not known either.

The engine keeps a file of its own on the same disk, which it writes at each start. A pod whose root
has filled the disk therefore gets RESERVE_BYTES more, once, so that it starts; the key DISK then
has its limit. The reserve is removed when the pod has deleted enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

from podyd.base.errors import Conflict, DiskFull, EngineRefused, Forbidden, NotRunning, PodydError
from podyd.base.quantities import UNLIMITED, parse_size, shown_size
from podyd.contract.pods import MIN_DISK_BYTES
from podyd.engine.collected import Collected
from podyd.engine.interface import Instances, Pools, Profiles
from podyd.engine.streams import Executor, bash
from podyd.engine.types import (
    Devices,
    Instance,
    PoolUse,
    Profile,
    State,
    devices_of,
    named,
    root_of,
)
from podyd.model.member import Member
from podyd.model.pod import DISK, Pod, pods_of

log = logging.getLogger(__name__)

# For `du` over a pod's disk.
LOOK_SECONDS = 20.0
RESERVE_BYTES = 16 * 1024**2
# Between two checks whether the reserve of a full disk can be removed again.
RESERVED_SECONDS = 60.0
PROBE_SECONDS = 10.0
# A pool may be made anew under its name, of another kind.
DRIVER_SECONDS = 10.0
# The engine's own file, and what btrfs keeps free for itself.
SLACK_BYTES = 1024**2
# Writes so many bytes into a file without a name, to see whether there is room.
_PROBE = """\
name=/.podyd-{nonce}
exec 3>"$name" && rm "$name" && head -c {count} /dev/zero >&3
"""
_SNAPSHOTS_COUNT = "on ZFS, its snapshots may count too"
# Kinds of pools.
BTRFS, DIR, ZFS = "btrfs", "dir", "zfs"


@dataclass(frozen=True)
class Disk:
    """Bytes used, and their limit (-1: none); None if the pool does not report or support it."""

    used: int | None
    limit: int | None


@dataclass(frozen=True)
class _Making:
    """A pod that is being made: its owner, the limit of its disk and the device, by its name."""

    owner: str
    size: int
    device: Devices


class Disks:
    """Decides on the limits of pods' disks, and reports how much of them is used."""

    def __init__(
        self,
        *,
        instances: Instances,
        profiles: Profiles,
        pools: Pools,
        executor: Executor,
    ) -> None:
        self._instances = instances
        self._profiles = profiles
        self._pools = pools
        self._executor = executor
        # By member: two requests at once could both use the last bytes of the quota.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # The pods that are being made, by their instances' names.
        self._making: dict[str, _Making] = {}
        # The kinds of pools, by their names, and when the engine was asked.
        self._drivers: dict[str, tuple[float, str]] = {}

    @contextlib.asynccontextmanager
    async def new(
        self,
        member: Member,
        name: str,
        profiles: Sequence[Profile],
        asked_bytes: int | None,
    ) -> AsyncIterator[Devices]:
        """Reserve the disk of a pod that is being made; yields the own devices of its instance.

        Without `asked_bytes`, or with -1: as its profiles say, and within the quota. Raises
        Forbidden (quota).
        """
        given = devices_of(profiles)
        lock = self._lock(member.name)
        async with lock:
            size = _size(member, given, asked_bytes, await self._others(member, name))
            self._making[name] = _Making(member.name, size, _with_size(root_of(given), size))
        try:
            yield _resized({}, given, size)
        finally:
            # Under the lock: no request may read the engine's list before the pod is in it, and
            # this after it has been removed here.
            async with lock:
                del self._making[name]

    @contextlib.asynccontextmanager
    async def resized(
        self,
        member: Member,
        pod: Pod,
        profiles: Sequence[Profile],
        asked_bytes: int | None,
    ) -> AsyncIterator[Callable[[Devices], Devices]]:
        """Reserve a new limit for a pod; yields the change of its devices. None changes nothing.

        -1 is the limit of a new pod. Raises Forbidden (quota), Conflict (it uses more, that is not
        known, or its pool supports no limit).
        """
        if asked_bytes is None:
            yield dict
            return
        given = devices_of(profiles)
        async with self._lock(member.name):
            others = await self._others(member, pod.name)
            instance = await self._now(pod)
            # A disk may always be made smaller, even if the other pods exceed the quota.
            room = None if _is_below(asked_bytes, limit_of(instance)) else others
            size = _size(member, given, asked_bytes, room)
            if asked_bytes != UNLIMITED:
                await self.check_held(pod.name, pod.instance.devices)
            if _is_below(size, _held(instance.devices)):
                await self._check_use(pod, size)
            try:
                yield lambda devices: _resized(devices, given, size)
            except DiskFull as error:
                await self._set_again(instance)
                if _is_below(size, _held(instance.devices)):
                    raise _in_use(pod, size) from error
                raise

    async def of(self, pod: Pod, state: State | None) -> Disk:
        """The usage and the limit of a pod's disk, by the engine's state of it."""
        used = used_bytes(pod.instance.devices, state)
        holds = used is not None or await self._driver(pod.instance.devices) != DIR
        return Disk(used, limit_of(pod.instance) if holds else None)

    def device(self, name: str) -> Devices:
        """The disk of a new pod, also where its profiles have it, while `new` holds that.

        A copy for which none is given gets that of its source, with its limit.
        """
        return self._making[name].device

    def too_small(self, name: str) -> Conflict:
        """The error for a new pod that does not fit on its disk, while `new` reserves it."""
        limit = self._making[name].size
        if limit == UNLIMITED:
            return Conflict(
                "The storage of all pods is full.",
                advice="Tell your admin.",
                code="disk_full",
            )
        return Conflict(
            f"It does not fit on a disk of {shown_size(limit)}.",
            advice="Ask for more with 'disk', within your quota.",
            code="disk_full",
            parameter="disk",
            limit=limit,
        )

    def last_used(self, pod: Pod) -> int | None:
        """Bytes used, as the engine reported when it was last asked for all pods; None if it did
        not."""
        return used_bytes(pod.instance.devices, self._instances.last_states.get(pod.name))

    async def used(self, name: str, devices: Devices) -> int | None:
        """Bytes used of an instance's disk, as the engine reports now; None if it does not."""
        return used_bytes(devices, await self._instances.state(name))

    async def is_at_limit(self, name: str) -> bool:
        """Whether an instance uses its whole disk, as the engine reports."""
        instance = named(await self._instances.all(), name)
        if instance is None or (limit := _held(instance.devices)) == UNLIMITED:
            return False
        return (await self.used(name, instance.devices) or 0) > limit - SLACK_BYTES

    async def pools(self, holders: Iterable[Devices]) -> list[PoolUse]:
        """The pools of these devices' root disks. Raises EngineRefused, Unavailable."""
        names = {root_of(devices)[1].get("pool") for devices in holders}
        return [await self._pools.use(name) for name in sorted(filter(None, names))]

    async def check_held(self, name: str, devices: Devices) -> None:
        """Raises Conflict if the pool of an existing instance supports no limit."""
        if await self._driver(devices) != DIR:
            return
        if await self.used(name, devices) is None:
            raise Conflict(
                "The storage pool cannot limit a pod's disk (it is of kind dir, on a filesystem"
                " without project quotas).",
                advice="Leave out 'disk', or ask your admin for another pool.",
                code="disk_not_limited",
            )

    # --- Quotas -----------------------------------------------------------------------------------

    def _lock(self, owner: str) -> asyncio.Lock:
        return self._locks.setdefault(owner, asyncio.Lock())

    async def _others(self, member: Member, name: str) -> dict[str, int]:
        """The limits of a member's pods in bytes, without one of them; by their names."""
        pods = [pod for pod in pods_of(await self._instances.all()) if pod.is_of(member)]
        limits = {pod.name: limit_of(pod.instance) for pod in pods}
        limits |= {
            key: making.size for key, making in self._making.items() if making.owner == member.name
        }
        limits.pop(name, None)
        return limits

    async def _now(self, pod: Pod) -> Instance:
        """A pod's instance as it is now."""
        return named(await self._instances.all(), pod.name) or pod.instance

    # --- A reserve, so that a full disk can be started --------------------------------------------

    async def add_reserve(self, pod: Pod) -> None:
        """Add the reserve to a full disk for a start. Raises Conflict if it has that already.

        A key of the instance records it, so that it is removed after a restart of podyd too.
        """
        async with self._lock(pod.owner):
            instance = await self._now(pod)
            limit = limit_of(instance)
            if limit == UNLIMITED or DISK in instance.config:
                raise full(pod)
            await self._set(instance, {DISK: str(limit)}, limit + RESERVE_BYTES)
        log.info("%s is full, and has %d bytes more to be started in", pod.name, RESERVE_BYTES)

    async def remove_reserve(self, pod: Pod) -> bool:
        """Remove a running pod's reserve, if it is not in use; returns whether it has none now.

        Whether it is in use can only be tested in the pod: the engine does not report what btrfs
        counts, and a limit below that could not be raised any more.
        """
        async with self._lock(pod.owner):
            instance = await self._now(pod)
            if DISK not in instance.config:
                return True
            reserve = _held(instance.devices) - limit_of(instance)
            if reserve > 0 and not await self._has_room(pod.name, reserve + SLACK_BYTES):
                return False
            await self._set(instance, {DISK: None}, limit_of(instance))
        log.info("%s has its own limit of its disk again", pod.name)
        return True

    async def check_restart(self, pod: Pod) -> None:
        """Raises Conflict if a pod, once it has stopped, could not be started again."""
        has_limit = limit_of(pod.instance) != UNLIMITED
        is_settled = await self._is_settled(pod)
        if not is_settled or not (has_limit or await self._instances.has_room(pod.name)):
            raise full(pod)

    async def _is_settled(self, pod: Pod) -> bool:
        """Whether a pod needs no reserve any more."""
        if pod.status == "running":
            with contextlib.suppress(NotRunning):  # It has just been frozen.
                return await self.remove_reserve(pod)
        # In one that is frozen nobody can look.
        return DISK not in pod.instance.config or await self._instances.has_room(pod.name)

    async def run(self) -> None:
        """Remove reserves that are not in use any more, until cancelled."""
        while True:
            pods: Sequence[Pod] = ()
            # If the engine does not answer, that is logged elsewhere.
            with contextlib.suppress(PodydError):
                pods = pods_of(await self._instances.all())
            for pod in pods:
                if DISK in pod.instance.config and pod.status == "running":
                    try:
                        await self.remove_reserve(pod)
                    except PodydError as error:
                        log.warning("%s keeps its reserve of disk: %s", pod.name, error)
            await asyncio.sleep(RESERVED_SECONDS)

    async def _set(self, instance: Instance, config: Mapping[str, str | None], size: int) -> None:
        given = devices_of(await self._profiles.of(instance))
        try:
            await self._instances.edit(
                instance.name, config=config, devices=lambda own: _resized(own, given, size)
            )
        except DiskFull:
            await self._set_again(instance)
            raise

    async def _set_again(self, instance: Instance) -> None:
        """Have the engine set the limit that a pod's disk had, after it has refused another one.

        On ZFS, LXD 5.0.2 removes the old limit before it sets the new one, and where ZFS refuses
        that, as more is used, there is none. An engine sets only what differs from what it had.
        """
        held = _held(instance.devices)
        if held == UNLIMITED or await self._driver(instance.devices) != ZFS:
            return
        given = devices_of(await self._profiles.of(instance))
        for size in (held + 1, held):
            try:
                await self._instances.edit(
                    instance.name, config={}, devices=partial(_resized, given=given, size=size)
                )
            except PodydError as error:
                log.warning(
                    "%s has no limit of its disk until the next /pod/limits: %s",
                    instance.name,
                    error,
                )
                return

    async def _has_room(self, name: str, count: int) -> bool:
        """Whether `count` bytes more fit onto a running pod's disk."""
        command = _PROBE.format(nonce=secrets.token_hex(8), count=count)
        done = await self._executor.run(name, bash(command), Collected(1024), timeout=PROBE_SECONDS)
        return done.code == 0

    # --- Usage ------------------------------------------------------------------------------------

    async def _driver(self, devices: Devices) -> str:
        pool = root_of(devices)[1].get("pool", "")
        now = time.monotonic()
        asked, driver = self._drivers.get(pool, (now - DRIVER_SECONDS, ""))
        if now - asked >= DRIVER_SECONDS:
            try:
                driver = await self._pools.driver(pool)
            except EngineRefused:
                return ""
            self._drivers[pool] = now, driver
        return driver

    async def _check_use(self, pod: Pod, asked: int) -> None:
        """Raises Conflict if a limit is below what is used: the engine would set it, and then could
        not raise it again."""
        used = await self.used(pod.name, pod.instance.devices) or 0
        if asked >= used and await self._driver(pod.instance.devices) == BTRFS:
            used = max(used, await self._look(pod))
        if asked < used:
            raise _in_use(pod, asked, used)

    async def _look(self, pod: Pod) -> int:
        """The bytes of all files of a running pod, as `du` counts them in it."""
        if pod.status != "running":
            raise Conflict(
                f"How much pod {pod.ins!r} uses of its disk is known only while it runs.",
                advice="Start it with /pod/start before its disk is made smaller.",
                code="pod_not_running",
                status=pod.status,
            )
        output = Collected(1024)
        await self._executor.run(pod.name, bash("du -skx /"), output, timeout=LOOK_SECONDS)
        kib = str(output.stdout).partition("\t")[0]
        # du's own errors are about files that were deleted meanwhile.
        if not (kib.isascii() and kib.isdecimal()):
            raise Conflict(
                f"How much pod {pod.ins!r} uses of its disk could not be measured within"
                f" {LOOK_SECONDS:.0f} s (with 'du -skx /' in it).",
                advice="Try again.",
                code="disk_in_use",
                parameter="disk",
            )
        return int(kib) * 1024


def limit_of(instance: Instance) -> int:
    """The limit of a pod's disk in bytes, without the reserve; -1 if it has none."""
    held = _held(instance.devices)
    stored = instance.config.get(DISK, "")
    # An admin may have set another one meanwhile.
    has_reserve = stored.isdecimal() and int(stored) == held - RESERVE_BYTES
    return int(stored) if has_reserve else held


def _in_use(pod: Pod, asked: int, used: int | None = None) -> Conflict:
    """The error for a limit below what is used, where known in bytes."""
    of = "of its disk"
    uses = f"{shown_size(used)} {of}, which is more than" if used else f"more {of} than"
    return Conflict(
        f"Pod {pod.ins!r} uses {uses} {shown_size(asked)}.",
        advice=f"Delete files in it first, or ask for more; {_SNAPSHOTS_COUNT}.",
        code="disk_in_use",
        parameter="disk",
        asked=asked,
        **({"used": used} if used else {}),
    )


def full(pod: Pod) -> Conflict:
    """The error for a pod whose disk is full."""
    is_full, advice = fullness(pod)
    return Conflict(
        f"Pod {pod.ins!r}: {is_full}.",
        advice=advice,
        code="disk_full",
        limit=limit_of(pod.instance),
    )


def fullness(pod: Pod) -> tuple[str, str]:
    """That a disk is full, and a sentence on what to do about it."""
    limit = limit_of(pod.instance)
    if limit == UNLIMITED:
        return "the storage of all pods is full", "Tell your admin."
    return (
        f"its disk is full (its limit is {shown_size(limit)})",
        "Delete files in it (/pod/file-delete works also while it is stopped), or raise 'disk' with"
        f" /pod/limits; {_SNAPSHOTS_COUNT}.",
    )


def _held(devices: Devices) -> int:
    """The `size` of an instance's root disk in bytes, or -1."""
    return parse_size(root_of(devices)[1].get("size") or UNLIMITED) or UNLIMITED


def used_bytes(devices: Devices, state: State | None) -> int | None:
    """Bytes used of the root disk, by the engine's state of an instance; None if it is not
    known."""
    return (state and state.disk_bytes.get(root_of(devices)[0])) or None


def _is_below(size: int, other: int) -> bool:
    return size != UNLIMITED and (other == UNLIMITED or size < other)


def _least(*sizes: int) -> int:
    return min((size for size in sizes if size != UNLIMITED), default=UNLIMITED)


def _size(
    member: Member, given: Devices, asked: int | None, others: Mapping[str, int] | None
) -> int:
    """The limit of a pod in bytes; without `others`, the quota of all pods together is ignored."""
    quota = member.quota
    room = UNLIMITED if others is None else _room(member, others)
    if asked not in (None, UNLIMITED):
        _check(asked, quota.disk_limit, "of disk for each pod")
        _check(asked, room, "of disk that your other pods leave you")
        return asked
    size = _held(given)
    if size == UNLIMITED and room != UNLIMITED and quota.max_pods > 0:
        size = quota.disk_total // quota.max_pods
    size = _least(size, quota.disk_limit, room)
    if UNLIMITED < quota.disk_limit < MIN_DISK_BYTES:
        # The engine would take a 0 for no limit.
        _check(MIN_DISK_BYTES, quota.disk_limit, "of disk for each pod")
    if room != UNLIMITED and size < MIN_DISK_BYTES:
        raise Forbidden(
            f"Your quota is {shown_size(quota.disk_total)} of disk for all your pods, and they"
            f" leave {shown_size(room)}.",
            advice="Delete one, or make its disk smaller with /pod/limits.",
            code="quota_exceeded",
            limit=quota.disk_total,
            left=room,
        )
    return size


def _room(member: Member, others: Mapping[str, int]) -> int:
    """The bytes that a member's other pods leave of the quota of all together."""
    total = member.quota.disk_total
    if total == UNLIMITED:
        return UNLIMITED
    for name, size in others.items():
        if size == UNLIMITED:
            raise Forbidden(
                f"Your quota is {shown_size(total)} of disk for all your pods, and {name} has no"
                " limit.",
                advice="Give it one first, with 'disk' of /pod/limits.",
                code="quota_exceeded",
                limit=total,
                pod=name,
            )
    return max(0, total - sum(others.values()))


def _check(asked: int, limit: int, what: str) -> None:
    if limit != UNLIMITED and asked > limit:
        raise Forbidden(
            f"Your quota is {shown_size(limit)} {what}, and {shown_size(asked)} is more.",
            code="quota_exceeded",
            parameter="disk",
            limit=limit,
            asked=asked,
        )


def without_limit(devices: Devices) -> Devices:
    """The disk of an instance, by its name, as it would be without a limit."""
    return _with_size(root_of(devices), UNLIMITED)


def _with_size(root: tuple[str, Mapping[str, str]], size: int) -> Devices:
    name, device = root
    keys = {key: value for key, value in device.items() if key != "size"}
    return {name: keys if size == UNLIMITED else {**keys, "size": str(size)}}


def _resized(own: Devices, given: Devices, size: int) -> Devices:
    """An instance's own devices with this limit of its disk; nothing where its profiles say so."""
    ((name, wanted),) = _with_size(root_of({**given, **own}), size).items()
    devices = {key: device for key, device in own.items() if key != name}
    is_given = name in given and {**given[name], "size": ""} == {**wanted, "size": ""}
    if is_given and _held(given) == size:
        return devices
    return {**devices, name: wanted}
