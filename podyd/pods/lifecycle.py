"""Pods: what may happen to them and when."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Literal

from podyd.base.clock import iso
from podyd.base.errors import (
    Busy,
    Conflict,
    DidNotShutDown,
    DiskFull,
    Forbidden,
    Gone,
    LxdRefused,
    Missing,
    NameTaken,
    NotFound,
    PodydError,
    Running,
    Slipped,
    TimedOut,
    lxd_could_not,
)
from podyd.base.quantities import UNLIMITED, parse_size
from podyd.base.tasks import Tasks, came
from podyd.contract.pods import PodInfo, PodSummary
from podyd.engine.bound import uuid_of
from podyd.engine.interface import Files, Instances, Profiles, SnapshotStore
from podyd.engine.types import (
    CopyOf,
    Devices,
    FromImage,
    Instance,
    NewInstance,
    Profile,
    Source,
    State,
    named,
)
from podyd.gpus.inventory import Inventory, cards_in, needs_nvidia
from podyd.gpus.scheduler import Scheduler
from podyd.model.gpu import CardChoice
from podyd.model.member import Member
from podyd.model.naming import instance_name
from podyd.model.pod import (
    IMAGE,
    INS,
    MADE_AS,
    TEMPLATE,
    Pod,
    is_half_made,
    no_such_snapshot,
    owner_keys,
    pods_of,
)
from podyd.network.ports import Ports
from podyd.node.facts import Facts
from podyd.pods.catalogue import Catalogue
from podyd.pods.deidentify import forget_identity
from podyd.pods.disks import Disks, full, fullness
from podyd.pods.mounts import Mounts

log = logging.getLogger(__name__)

# Where pods do not share blocks (a pool of kind dir), LXD copies the whole disk.
CREATE_TIMEOUT = 1800.0
START_TIMEOUT = 120.0
STOP_TIMEOUT = 30
# An init that has just been started is deaf to the signal to shut down, so it is sent some more.
DEAF_TIMEOUTS = (1, 3)
DEAF_AGE = timedelta(seconds=10)
DELETE_TIMEOUT = 120.0
REMOVE_TIMEOUT = 10.0
# What LXD does not let go of is tried again after so many seconds at first, and at last.
REMOVE_SECONDS, REMOVE_SECONDS_MAX = 0.5, 60.0
SWEEP_MARGIN = timedelta(seconds=10)


class StartFailed(PodydError):
    """LXD could not start a pod; `detail` has the reason from LXC's own log."""

    status = 502
    default_code = "pod_start_failed"


class Foreign(Conflict):
    """LXD has something of a new pod's name that is not of this podyd's making."""

    default_code = "name_taken"


class Pods:
    """What members do with their pods, and what admins see of all of them."""

    def __init__(
        self,
        *,
        instances: Instances,
        profiles: Profiles,
        snapshots: SnapshotStore,
        files: Files,
        images: Catalogue,
        inventory: Inventory,
        scheduler: Scheduler,
        ports: Ports,
        mounts: Mounts,
        disks: Disks,
        tasks: Tasks,
    ) -> None:
        self._instances = instances
        self._profiles = profiles
        self._snapshots = snapshots
        self._files = files
        self._images = images
        self._inventory = inventory
        self._scheduler = scheduler
        self._ports = ports
        self._mounts = mounts
        self._disks = disks
        self._began = datetime.now(timezone.utc)
        # What is being deleted, and the sign that it may go now.
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._again = asyncio.Event()
        self._tasks = tasks
        self._locks: dict[str, asyncio.Lock] = {}
        # The pods that are being made: by owner and name, their names in LXD.
        self._making: dict[tuple[str, str], str] = {}
        # What images are being made of.
        self.templates: set[str] = set()

    # --- Looking ---------------------------------------------------------------------------------

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

    async def info(self, member: Member, ins: str) -> PodInfo:
        """All about a member's pod. Raises NotFound."""
        pod = await self.find(member, ins)
        config = pod.instance.expanded_config
        running = pod.status == "running"
        started = pod.instance.started
        state = await self._state(pod)
        disk = await self._disks.of(pod, state)
        return PodInfo(
            name=pod.name,
            ins=pod.ins,
            owner=pod.owner,
            status=pod.status,
            image=pod.image,
            created=iso(pod.instance.created),
            addresses=_addresses(state),
            port_mapping=sorted(
                [
                    *port_mapping(pod.instance.devices),
                    *(f"{host}:{inner}" for host, inner in (await self._ports.of(pod)).items()),
                ]
            ),
            gpu_ids=sorted(
                card.index for card in cards_in(pod.instance.devices, await self._inventory.cards())
            ),
            memory_limit=memory_limit(config),
            cpu_limit=cpu_limit(config),
            disk_used=disk.used,
            disk_limit=disk.limit,
            profiles=list(pod.instance.profiles),
            uptime=round(time.time() - started.timestamp(), 3) if running and started else None,
        )

    async def _all(self) -> list[Pod]:
        return pods_of(await self._instances.all())

    async def find(self, member: Member, ins: str) -> Pod:
        """A member's pod. Raises NotFound, also for somebody else's."""
        for pod in await self._all():
            if pod.ins == ins and pod.is_of(member):
                return pod
        raise NotFound(
            f"You have no pod {ins!r}.",
            advice="See /pod/list.",
            code="no_such_pod",
        )

    async def find_running(self, member: Member, ins: str) -> Pod:
        """A member's pod that runs. Raises NotFound, or Conflict (it does not run)."""
        pod = await self.find(member, ins)
        if pod.status != "running":
            raise not_running(ins, pod.status)
        return pod

    async def _state(self, pod: Pod) -> State | None:
        try:
            return await self._instances.state(pod.name)
        except LxdRefused:
            return None  # It stopped or went away this moment.

    # --- Making and deleting ---------------------------------------------------------------------

    async def create(
        self,
        member: Member,
        ins: str,
        image_name: str,
        gpus: CardChoice | None,
        disk_bytes: int | None,
    ) -> PodInfo:
        """Make a pod from an image and start it; without `gpus` with those of its profiles.

        `disk_bytes` is the limit of its disk; without it, or with -1, that of profiles and quota.

        Raises Conflict (name taken, GPU leased, no port free), Forbidden (over quota, image not
        offered), NotFound (no such image), StartFailed. If anything fails, nothing of the pod is
        left.
        """
        alias, image = await self._images.offered(member, image_name)
        source = FromImage(image.fingerprint)
        return await self._make(member, ins, gpus, disk_bytes, source, {IMAGE: alias})

    async def copy(
        self,
        member: Member,
        ins: str,
        to: str,
        snapshot: str | None,
        gpus: CardChoice | None,
        disk_bytes: int | None,
    ) -> PodInfo:
        """Make a pod `to` from another one, or from a snapshot of it, and start it.

        It has its own ssh host keys, machine-id and name, and the profiles, limits and cards of a
        new pod. Raises what `create` does.
        """
        pod = await self.find(member, ins)
        if snapshot is not None:
            await self._check_snapshot(pod, snapshot)
        source = CopyOf(pod.name, snapshot)
        self._instances.check_free(pod.name)
        return await self._make(member, to, gpus, disk_bytes, source, {IMAGE: pod.image})

    async def _check_snapshot(self, pod: Pod, name: str) -> None:
        try:
            await self._snapshots.one(pod.name, name)
        except Missing as error:
            raise no_such_snapshot(pod, name) from error

    async def _make(
        self,
        member: Member,
        ins: str,
        gpus: CardChoice | None,
        disk_bytes: int | None,
        source: Source,
        config: Mapping[str, str],
    ) -> PodInfo:
        async with self._reserved(member, ins, gpus, disk_bytes, source, config) as new:
            name = new.name
            with lxd_could_not("make the pod", code="pod_create_failed"):
                try:
                    await twice_if_lxd_slips(
                        lambda: self._make_whole(new, disk_bytes),
                        lambda: self._remove_half_made(name),
                    )
                except DiskFull as error:
                    raise self._disks.too_small(name) from error
            log.info("%s made pod %s", member.name, name)
            return await self.info(member, ins)

    async def _make_whole(self, new: NewInstance, disk_bytes: int | None) -> None:
        disk = self._disks.device(new.name)
        if isinstance(new.source, CopyOf):
            await self._begin_pod(replace(new, devices={**disk, **new.devices}))
            await self._instances.reset(new.name, new.config, new.devices)
            await forget_identity(self._files, new.name)
        else:
            await self._begin_pod(new)
        if disk_bytes not in (None, UNLIMITED):
            await self._disks.check_held(new.name, disk)
        await self._start(new.name)
        await self._instances.remove_key(new.name, MADE_AS)

    async def _begin_pod(self, new: NewInstance) -> None:
        try:
            await self._instances.create(new, timeout=CREATE_TIMEOUT)
        except NameTaken as error:
            # Since the look at what there is: an admin has typed `lxc launch`, or LXD was slow.
            raise Foreign(
                f"Something in LXD has got the name {new.name} at this moment.",
                advice="Try again.",
            ) from error

    async def _remove_half_made(self, name: str) -> bool:
        """Whether it is gone; if not, it goes in the background."""
        removing = self.remove(name)
        gone, _ = await asyncio.wait({removing}, timeout=REMOVE_TIMEOUT)
        return bool(gone) and not removing.cancelled() and removing.exception() is None

    @contextlib.asynccontextmanager
    async def _reserved(
        self,
        member: Member,
        ins: str,
        gpus: CardChoice | None,
        disk_bytes: int | None,
        source: Source,
        config: Mapping[str, str],
    ) -> AsyncIterator[NewInstance]:
        """Hold a place for a pod within its owner's quota; gives what LXD needs to make it."""
        cards = await self._inventory.cards()
        profiles = await self._profiles_of(member)
        if not cards:
            profiles = [profile for profile in profiles if not needs_nvidia(profile)]
        mounted = await self._mounts.new(member, profiles)
        lock = self._locks.setdefault(member.name, asyncio.Lock())
        key = member.name, ins
        async with lock:
            instances = await self._instances.all()
            mine = {pod.ins for pod in pods_of(instances) if pod.is_of(member)}
            self._check_room(member, ins, mine)
            taken = {instance.name for instance in instances} | set(self._making.values())
            name = instance_name(member.name, ins, {other.lower() for other in taken})
            self._making[key] = name
        keys = {**owner_keys(member), INS: ins, MADE_AS: name, **limits(member, profiles)}
        keys |= {key: value for key, value in mounted.config.items() if value is not None}
        try:
            async with (
                self._disks.new(member, name, profiles, disk_bytes) as disk,
                self._scheduler.new(member, name, profiles, gpus) as plan,
                self._ports.new(member, ins) as ports,
            ):
                yield NewInstance(
                    name,
                    source,
                    tuple(profile.name for profile in profiles),
                    {**keys, **plan.config, **ports, **config},
                    {**plan.devices, **mounted.devices, **disk},
                )
        finally:
            # Under the lock: nobody may have read LXD's list before the pod was in it and look
            # here after it is gone.
            async with lock:
                del self._making[key]

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

    async def _profiles_of(self, member: Member) -> list[Profile]:
        known = await self._profiles.all()
        missing = [name for name in member.profiles if name not in known]
        if missing:
            raise PodydError(
                f"LXD has no profile {missing[0]!r}.",
                advice=(
                    "Your admin can put it there with 'podyd profiles apply', or take it out of"
                    " podyd.yaml."
                ),
                code="profile_missing",
            )
        return [known[name] for name in member.profiles]

    async def delete(self, member: Member, ins: str) -> str:
        """Delete a pod, running or not, with all that is in it. Returns what was done."""
        pod = await self.find(member, ins)
        await self._delete(pod.name)
        log.info("%s deleted pod %s", member.name, pod.name)
        return f"Pod {ins} and everything in it is deleted."

    async def _delete(self, name: str) -> None:
        # Stopping what has stopped is an error that does not matter here.
        with contextlib.suppress(LxdRefused):
            await self._instances.set_status(name, "stop", timeout=STOP_TIMEOUT, force=True)
        with lxd_could_not("delete the pod"), contextlib.suppress(Gone):
            await self._instances.delete(name, timeout=DELETE_TIMEOUT)

    def remove(self, name: str) -> asyncio.Task[None]:
        """Delete what is half-made, in the background, however long LXD does not let go of it."""
        if name not in self._removing:
            self._removing[name] = self._tasks.spawn(
                self._remove(name), f"removing half-made pod {name}"
            )
        return self._removing[name]

    async def _meant(self, name: str) -> str:
        """A name, for that instance alone that has it now, if one does."""
        found = named(await self._instances.all(), name)
        return found.name if found else name

    async def _remove(self, name: str) -> None:
        pause, said, meant = REMOVE_SECONDS, "", name
        try:
            while True:
                try:
                    # The name may be another's by the time of a later try.
                    meant = meant if uuid_of(meant) else await self._meant(name)
                    return await self._delete(meant)
                except PodydError as error:
                    before, said = said, error.detail
                    # LXD may be making it yet.
                    if said != before and not isinstance(error, Busy):
                        log.warning("half-made pod %s is still there: %s", name, said)
                await came(self._again, pause)
                pause = min(2 * pause, REMOVE_SECONDS_MAX)
        finally:
            del self._removing[name]

    async def sweep(self) -> None:
        """Delete the pods that a podyd which was killed has left half-made.

        What could not be deleted so far is tried again now, too.
        """
        self._again.set()
        self._again.clear()
        in_hand = {*self._making.values(), *self._removing, *self.templates}
        for instance in await self._instances.all():
            is_marked = instance.config.get(MADE_AS) == instance.name
            # What is younger, this podyd is making, or somebody beside it.
            is_old = instance.created < self._began + SWEEP_MARGIN
            if is_marked and is_old and instance.name not in in_hand:
                try:
                    await self._sweep_one(instance)
                except LxdRefused as error:
                    log.warning("%s is left as it is: %s", instance.name, error.reason)

    async def _sweep_one(self, instance: Instance) -> None:
        if not is_half_made(instance):
            await self._instances.remove_key(instance.name, MADE_AS)
            return
        log.warning("removing half-made pod %s", instance.name)
        if instance.name.startswith(TEMPLATE):
            await self._files.end_packing(instance.name)
        self.remove(instance.name)

    # --- Starting and stopping -------------------------------------------------------------------

    async def start(self, member: Member, ins: str) -> str:
        """Start a pod. Returns what was done."""
        pod = await self.find(member, ins)
        if pod.status == "running":
            return f"Pod {ins} is running already."
        if pod.status == "frozen":
            await self._start(pod.name, "unfreeze")
        else:
            await self._mounts.apply(pod, await self._mounts.due(member, pod))
            return f"Pod {ins} is running{await self._start_in_room(pod)}"
        return f"Pod {ins} is running."

    async def stop(self, member: Member, ins: str) -> str:
        """Stop a pod, by force if it does not shut down in time. Returns what was done."""
        pod = await self.find(member, ins)
        if pod.status == "stopped":
            return f"Pod {ins} is stopped already."
        has_room = pod.status != "running" or await self._instances.has_room(pod.name)
        how = await self._stop(pod)
        return f"Pod {ins} has stopped{how}{'.' if has_room else _full_now(pod)}"

    async def restart(self, member: Member, ins: str) -> str:
        """Stop a pod and start it again. Returns what was done.

        Raises Conflict, before it is stopped, if its disk is too full for it to start again.
        """
        pod = await self.find(member, ins)
        due = await self._mounts.due(member, pod)
        if pod.status != "stopped":
            await self._disks.check_restart(pod)
        how = "" if pod.status == "stopped" else await self._stop(pod)
        await self._mounts.apply(pod, due)
        return f"Pod {ins} has stopped{how}, and is running again{await self._start_in_room(pod)}"

    async def _start_in_room(self, pod: Pod) -> str:
        """Start a pod, in a little more room if its disk is full; returns the end of a sentence."""
        with contextlib.suppress(DiskFull):
            # Where LXD finds no room, it does not clean up after the start that has failed.
            if await self._instances.has_room(pod.name):
                await self._start(pod.name)
                return "."
        await self._disks.lend(pod)
        try:
            await self._start(pod.name)
        except DiskFull as error:
            raise full(pod) from error
        return _full_now(pod)

    async def _start(self, name: str, action: Literal["start", "unfreeze"] = "start") -> None:
        try:
            await self._instances.set_status(name, action, timeout=START_TIMEOUT)
        except Running:
            return
        except Slipped as error:
            # It cannot change a file's owner on a full disk either. On ZFS nothing else is said of
            # one: liblxc does not write its file, and LXD still writes its own.
            has_room = await self._instances.has_room(name)
            if has_room and not await self._disks.is_at_limit(name):
                raise
            raise DiskFull(error.reason) from error
        except LxdRefused as error:
            if error.is_telling:
                raise
            reason = await self.why_not_started(name) or error.reason
            raise StartFailed(f"The pod could not be started: {reason}.") from error

    async def why_not_started(self, name: str) -> str:
        """What the last start of a pod failed for, in LXC's own words; "" if nobody can tell."""
        with contextlib.suppress(PodydError):
            return await self._instances.why_not_started(name)
        return ""

    async def _stop(self, pod: Pod) -> str:
        """Stop a pod; returns how, if not in the ordinary way."""
        for timeout in _stop_timeouts(pod):
            try:
                await self._tell_to_stop(pod.name, timeout)
                return ""
            except (DidNotShutDown, TimedOut) as error:
                log.info("%s does not shut down: %s", pod.name, error)
        await self._tell_to_stop(pod.name, STOP_TIMEOUT, force=True)
        return ", by force, as it did not shut down in time" if pod.status == "running" else ""

    async def _tell_to_stop(self, name: str, timeout: float, *, force: bool = False) -> None:
        """Have LXD stop a pod; where it has stopped, LXD's refusal is none, be it of the cleaning.

        It may also have done so before it was told, or just when its time was over.
        """
        try:
            with lxd_could_not("stop the pod"):
                await self._instances.set_status(name, "stop", timeout=timeout, force=force)
        except LxdRefused as error:
            if not await self._has_stopped(name):
                raise
            log.info("%s has stopped, although LXD says: %s", name, error.reason)

    async def _has_stopped(self, name: str) -> bool:
        instance = named(await self._instances.all(), name)
        return instance is not None and instance.status == "stopped"


def _full_now(pod: Pod) -> str:
    is_full, advice = fullness(pod)
    return f"; {is_full}. {advice}"


def _addresses(state: State | None) -> list[str]:
    found = [
        (item.family, item.address)
        for item in (state.addresses if state else ())
        if item.interface != "lo"
    ]
    return [address for _, address in sorted(found)]


def _stop_timeouts(pod: Pod) -> tuple[int, ...]:
    """How many seconds a pod gets to shut down by itself, each time that it is told to."""
    if pod.status != "running":
        return ()  # A frozen one cannot.
    started = pod.instance.started
    is_young = started is not None and datetime.now(timezone.utc) - started < DEAF_AGE
    return (*DEAF_TIMEOUTS, STOP_TIMEOUT) if is_young else (STOP_TIMEOUT,)


async def twice_if_lxd_slips(
    make: Callable[[], Awaitable[None]], undo: Callable[[], Awaitable[bool]]
) -> None:
    """Make something; what has failed is undone, and made once more if LXD alone is to blame.

    Nothing is undone where it is another's.
    """
    try:
        await make()
    except Foreign:
        raise
    except PodydError as error:
        is_undone = await undo()
        if not is_undone or not isinstance(error, Slipped):
            raise
        log.warning("LXD has slipped, so it is asked once more: %s", error)
    else:
        return
    try:
        await make()
    except Foreign:
        raise
    except PodydError:
        await undo()
        raise


def config_of(profiles: Iterable[Profile]) -> dict[str, str]:
    """The LXD keys of several profiles, of which the last one counts."""
    config: dict[str, str] = {}
    for profile in profiles:
        config |= profile.config
    return config


def limits(member: Member, profiles: Sequence[Profile]) -> dict[str, str]:
    """The LXD keys that hold a pod within its owner's quota, where its profiles allow more."""
    config = config_of(profiles)
    found = {}
    quota = member.quota
    if quota.memory_limit != UNLIMITED and not 0 <= memory_limit(config) <= quota.memory_limit:
        found["limits.memory"] = str(quota.memory_limit)
    if quota.cpu_limit != UNLIMITED and not 0 <= cpu_limit(config) <= quota.cpu_limit:
        found["limits.cpu"] = str(quota.cpu_limit)
    return found


def memory_limit(config: Mapping[str, str]) -> int:
    """`limits.memory` in bytes, or -1; a percentage is one of the host's memory."""
    text = config.get("limits.memory", "")
    if text.endswith("%"):
        return Facts.of_this_host().memory_bytes * int(text[:-1]) // 100
    return parse_size(text) if text else UNLIMITED


def cpu_limit(config: Mapping[str, str]) -> int:
    """The number of CPUs that `limits.cpu` gives (a count, or a set such as 0-3,8), or -1."""
    text = config.get("limits.cpu", "")
    if not text:
        return UNLIMITED
    if text.isdecimal():
        return int(text)
    ranges = [part.partition("-") for part in text.split(",")]
    return len({cpu for low, _, high in ranges for cpu in range(int(low), int(high or low) + 1)})


def port_mapping(devices: Devices) -> list[str]:
    """`HOST:POD` for each port that an LXD proxy device on the host leads into the pod."""
    found = []
    for device in devices.values():
        if device.get("type") == "proxy" and device.get("bind", "host") == "host":
            outside, inside = (device[end].rpartition(":")[2] for end in ("listen", "connect"))
            found.append(f"{outside}:{inside}")
    return sorted(found)


def not_running(ins: str, status: str) -> Conflict:
    """Why nothing can be run in a pod."""
    return Conflict(
        f"Pod {ins!r} is {status}.",
        advice="Start it with /pod/start.",
        code="pod_not_running",
        status=status,
    )
