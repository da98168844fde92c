"""Pods: what may happen to them and when.

LXD is the database. A pod is an instance with the key `user.podyd.owner`; the other keys below
say what LXD does not know. An instance without an owner is nobody's and is never shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podyd.config import UNLIMITED, parse_size
from podyd.errors import (
    Conflict,
    Forbidden,
    LxdRefused,
    NotFound,
    PodydError,
    TimedOut,
    TooMany,
)
from podyd.gpus import Card, Gpus, cards_of, gpu_devices, needs_nvidia
from podyd.images import Images
from podyd.lxd.client import LxdClient, instance_path
from podyd.lxd.execution import Executor
from podyd.lxd.instances import Instance, Instances
from podyd.naming import instance_name
from podyd.settings import Settings
from podyd.spec import ExecResult, PodInfo, PodStatus, PodSummary, iso
from podyd.tasks import Tasks
from podyd.users import Member

log = logging.getLogger(__name__)

OWNER = "user.podyd.owner"
INS = "user.podyd.ins"
IMAGE = "user.podyd.image"
# The instance's own name, written when podyd begins to make it and taken away when it runs. An
# instance that has it and was never started was left half-made by a podyd that was killed; it will
# be deleted, so no whole pod may keep it: a copy that an admin renamed was never started either.
MADE_AS = "user.podyd.made_as"

CREATE_TIMEOUT = 600.0
START_TIMEOUT = 120.0
STOP_TIMEOUT = 30
DELETE_TIMEOUT = 120.0
REMOVE_TIMEOUT = 10.0
REMOVE_TRIES = 120
LOG_LINES = 3
MAX_EXECS = 256
MAX_EXECS_PER_MEMBER = 32
# LXD may still be busy with a half-made pod, or not yet list it, when podyd starts.
SWEEP_AFTER = (0.0, 60.0)

_STATUS: dict[str, PodStatus] = {"Running": "running", "Stopped": "stopped", "Frozen": "frozen"}


class StartFailed(PodydError):
    """LXD could not start a pod; `detail` has the reason from LXC's own log."""

    default_code = "pod_start_failed"


@dataclass(frozen=True)
class Pod:
    """An instance with an owner, under the name that the owner uses."""

    owner: str
    ins: str
    instance: Instance

    @property
    def name(self) -> str:
        return self.instance.name

    @property
    def status(self) -> PodStatus:
        return _STATUS.get(self.instance.status, "error")

    @property
    def image(self) -> str:
        config = self.instance.config
        return config.get(IMAGE) or config.get("image.description", "")


@dataclass(frozen=True)
class _Making:
    """A pod that is being made: its name in LXD, and how many cards it gets."""

    name: str
    cards: int


def pods_of(instances: Iterable[Instance]) -> list[Pod]:
    """The pods among these instances, without the half-made ones, by owner and name.

    An admin's `lxc copy` copies the keys too: of two with the same name the older one keeps it,
    the other goes by its name in LXD.
    """
    pods: dict[tuple[str, str], Pod] = {}
    for instance in sorted(instances, key=lambda item: (item.created, item.name)):
        owner = instance.config.get(OWNER)
        if not owner or is_half_made(instance):
            continue
        ins = instance.config.get(INS) or instance.name.removeprefix(f"{owner}-")
        if (owner, ins) in pods:
            ins = instance.name
        pods[owner, ins] = Pod(owner, ins, instance)
    return [pods[key] for key in sorted(pods)]


def is_half_made(instance: Instance) -> bool:
    """Whether podyd began to make this instance and it has never run."""
    return instance.config.get(MADE_AS) == instance.name and instance.started is None


class Pods:
    """What members do with their pods, and what admins see of all of them."""

    def __init__(
        self,
        *,
        client: LxdClient,
        instances: Instances,
        executor: Executor,
        images: Images,
        gpus: Gpus,
        settings: Settings,
        tasks: Tasks,
    ) -> None:
        self._client = client
        self._instances = instances
        self._executor = executor
        self._images = images
        self._gpus = gpus
        self._settings = settings
        self._tasks = tasks
        self._locks: dict[str, asyncio.Lock] = {}
        # The pods that are being made, by owner and name.
        self._making: dict[tuple[str, str], _Making] = {}
        self._execs: Counter[str] = Counter()

    # --- Looking ---------------------------------------------------------------------------------

    async def names(self, member: Member) -> list[str]:
        """The names of a member's pods, sorted."""
        return [pod.ins for pod in await self._all() if pod.owner == member.name]

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
        pod = await self._find(member, ins)
        config = pod.instance.expanded_config
        running = pod.status == "running"
        started = pod.instance.started
        return PodInfo(
            name=pod.name,
            ins=pod.ins,
            owner=pod.owner,
            status=pod.status,
            image=pod.image,
            created=iso(pod.instance.created),
            addresses=await self._addresses(pod) if running else [],
            port_mapping=port_mapping(pod.instance.devices),
            gpu_ids=cards_of(pod.instance.devices, await self._gpus.cards()),
            memory_limit=memory_limit(config),
            cpu_limit=cpu_limit(config),
            profiles=list(pod.instance.profiles),
            uptime=round(time.time() - started.timestamp(), 3) if running and started else None,
        )

    async def _all(self) -> list[Pod]:
        return pods_of(await self._instances.all())

    async def _find(self, member: Member, ins: str) -> Pod:
        for pod in await self._all():
            if (pod.owner, pod.ins) == (member.name, ins):
                return pod
        raise NotFound(f"You have no pod {ins!r}; see /pod/list.", code="no_such_pod")

    async def _addresses(self, pod: Pod) -> list[str]:
        try:
            state = await self._client.get(instance_path(pod.name, "state"))
        except LxdRefused:
            return []  # It stopped or went away this moment.
        found = [
            (address["family"], address["address"])
            for device, network in (state["network"] or {}).items()
            if device != "lo"
            for address in network["addresses"]
            if address["scope"] == "global"
        ]
        return [address for _, address in sorted(found)]

    # --- Making and deleting ---------------------------------------------------------------------

    async def create(self, member: Member, ins: str, image_name: str) -> PodInfo:
        """Make a pod from an image and start it.

        Raises Conflict (name taken), Forbidden (over quota, image not offered), NotFound (no such
        image), StartFailed. If anything fails, nothing of the pod is left.
        """
        alias, image = await self._images.offered(image_name)
        async with self._reserved(member, ins) as body:
            name = body["name"]
            body["source"] = {"type": "image", "fingerprint": image.fingerprint}
            body["config"][IMAGE] = alias
            try:
                await self._client.change("POST", "/1.0/instances", body, timeout=CREATE_TIMEOUT)
                await self._start(name)
                await self._is_whole(name)
            except PodydError as error:
                removing = self._tasks.spawn(self._remove(name), f"removing half-made pod {name}")
                await asyncio.wait({removing}, timeout=REMOVE_TIMEOUT)
                if isinstance(error, LxdRefused):
                    raise PodydError(
                        f"LXD could not make the pod: {error.detail}.", code="pod_create_failed"
                    ) from error
                raise
            finally:
                self._instances.invalidate()
            log.info("%s made pod %s", member.name, name)
            return await self.info(member, ins)

    async def _is_whole(self, name: str) -> None:
        """Take away the mark of a pod that is being made."""
        # To LXD, a key without a value is none.
        await self._client.change("PATCH", instance_path(name), {"config": {MADE_AS: ""}})

    @contextlib.asynccontextmanager
    async def _reserved(self, member: Member, ins: str) -> AsyncIterator[dict[str, Any]]:
        """Hold a place for a pod within its owner's quota; gives what LXD needs to make it."""
        cards = await self._gpus.cards()
        profiles = await self._profiles(member)
        lock = self._locks.setdefault(member.name, asyncio.Lock())
        key = member.name, ins
        async with lock:
            instances = await self._instances.all()
            mine = [pod for pod in pods_of(instances) if pod.owner == member.name]
            self._check_room(member, ins, {pod.ins for pod in mine})
            chosen = self._choose_cards(member, mine, instances, cards)
            taken = {instance.name for instance in instances}
            taken |= {making.name for making in self._making.values()}
            name = instance_name(member.name, ins, {other.lower() for other in taken})
            self._making[key] = _Making(name, len(chosen))
        if not chosen:
            profiles = [profile for profile in profiles if not needs_nvidia(profile)]
        limited = member.quota.gpu_count != UNLIMITED
        try:
            yield {
                "name": name,
                "profiles": [profile["name"] for profile in profiles],
                "config": {OWNER: member.name, INS: ins, MADE_AS: name, **limits(member, profiles)},
                "devices": gpu_devices(profiles, chosen) if limited else {},
            }
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
                f"Your quota is {limit} pods, and you have {len(used)}; delete one first.",
                code="quota_exceeded",
                limit=limit,
                used=len(used),
            )

    def _choose_cards(
        self,
        member: Member,
        mine: Sequence[Pod],
        instances: Sequence[Instance],
        cards: Sequence[Card],
    ) -> list[Card]:
        """The cards of a new pod: all, or as many as the quota leaves, the least shared first."""
        limit = member.quota.gpu_count
        if limit == UNLIMITED:
            return list(cards)
        used = sum(len(cards_of(pod.instance.devices, cards)) for pod in mine)
        used += sum(
            making.cards for (owner, _), making in self._making.items() if owner == member.name
        )
        holders = Counter(
            index for instance in instances for index in cards_of(instance.devices, cards)
        )
        ordered = sorted(cards, key=lambda card: (holders[card.index], card.index))
        return ordered[: max(0, limit - used)]

    async def _profiles(self, member: Member) -> list[Mapping[str, Any]]:
        known = {
            profile["name"]: profile
            for profile in await self._client.get("/1.0/profiles", recursion=1)
        }
        missing = [name for name in member.profiles if name not in known]
        if missing:
            raise PodydError(
                f"LXD has no profile {missing[0]!r}; your admin can put it there with"
                " 'podyd profiles apply', or take it out of podyd.yaml.",
                code="profile_missing",
            )
        return [known[name] for name in member.profiles]

    async def delete(self, member: Member, ins: str) -> str:
        """Delete a pod, running or not, with all that is in it. Returns what was done."""
        pod = await self._find(member, ins)
        await self._delete(pod.name)
        log.info("%s deleted pod %s", member.name, pod.name)
        return f"Pod {ins} and everything in it is deleted."

    async def _delete(self, name: str) -> None:
        path = instance_path(name)
        try:
            # Stopping what has stopped is an error that does not matter here.
            with contextlib.suppress(LxdRefused):
                await self._set_state(name, "stop", timeout=STOP_TIMEOUT, force=True)
            await self._client.change("DELETE", path, timeout=DELETE_TIMEOUT)
        except LxdRefused as error:
            if error.lxd_status != 404:
                raise busy_or(error, f"LXD could not delete the pod: {error.detail}.") from error
        finally:
            self._instances.invalidate()

    async def _remove(self, name: str) -> None:
        """Delete what is half-made, as soon as LXD has come to an end with it."""
        for _ in range(REMOVE_TRIES):
            try:
                await self._delete(name)
                return
            except (Conflict, TimedOut):
                await asyncio.sleep(1)

    async def sweep(self) -> None:
        """Delete the pods that a podyd which was killed has left half-made."""
        for delay in SWEEP_AFTER:
            await asyncio.sleep(delay)
            being_made = {making.name for making in self._making.values()}
            for instance in await self._instances.all():
                if instance.name in being_made or instance.config.get(MADE_AS) != instance.name:
                    continue
                if is_half_made(instance):
                    log.warning("removing half-made pod %s", instance.name)
                    await self._remove(instance.name)
                else:
                    await self._is_whole(instance.name)

    # --- Starting and stopping -------------------------------------------------------------------

    async def start(self, member: Member, ins: str) -> str:
        """Start a pod. Returns what was done."""
        pod = await self._find(member, ins)
        if pod.status == "running":
            return f"Pod {ins} is running already."
        action = "unfreeze" if pod.status == "frozen" else "start"
        await self._start(pod.name, action)
        return f"Pod {ins} is running."

    async def stop(self, member: Member, ins: str) -> str:
        """Stop a pod, by force if it does not shut down in time. Returns what was done."""
        pod = await self._find(member, ins)
        if pod.status == "stopped":
            return f"Pod {ins} is stopped already."
        return f"Pod {ins} has stopped{await self._stop(pod)}."

    async def restart(self, member: Member, ins: str) -> str:
        """Stop a pod and start it again. Returns what was done."""
        pod = await self._find(member, ins)
        how = "" if pod.status == "stopped" else await self._stop(pod)
        await self._start(pod.name)
        return f"Pod {ins} has stopped{how}, and is running again."

    async def _start(self, name: str, action: str = "start") -> None:
        try:
            await self._set_state(name, action, timeout=START_TIMEOUT)
        except LxdRefused as error:
            if "already running" in error.detail:
                return
            reason = await self._why_not_started(name)
            raise busy_or(
                error,
                f"The pod could not be started: {reason or error.detail}.",
                StartFailed,
            ) from error

    async def _why_not_started(self, name: str) -> str:
        """The last errors of LXC's log; LXD itself says only that forkstart failed."""
        try:
            text = await self._client.text(instance_path(name, "logs", "lxc.log"))
        except PodydError:
            return ""
        errors = [line.split(" ERROR ", 1)[1] for line in text.splitlines() if " ERROR " in line]
        messages = [re.sub(r"^\s*\S+ - \S+:\S+:\d+ - ", "", line).strip() for line in errors]
        return "; ".join(dict.fromkeys(messages[-LOG_LINES:]))

    async def _stop(self, pod: Pod) -> str:
        """Stop a pod; returns how, if not in the ordinary way."""
        # A frozen pod cannot shut down by itself.
        if pod.status == "running":
            try:
                await self._set_state(pod.name, "stop", timeout=STOP_TIMEOUT)
                return ""
            except (LxdRefused, TimedOut) as error:
                log.info("%s does not shut down: %s", pod.name, error.detail)
        try:
            await self._set_state(pod.name, "stop", timeout=STOP_TIMEOUT, force=True)
        except LxdRefused as error:
            if "already stopped" not in error.detail:
                raise busy_or(error, f"LXD could not stop the pod: {error.detail}.") from error
        return ", by force, as it did not shut down in time" if pod.status == "running" else ""

    async def _set_state(
        self, name: str, action: str, *, timeout: float, force: bool = False
    ) -> None:
        body = {"action": action, "timeout": int(timeout), "force": force}
        try:
            # LXD itself gives up after `timeout`; podyd waits a little longer to hear so.
            await self._client.change(
                "PUT", instance_path(name, "state"), body, timeout=timeout + 5
            )
        finally:
            self._instances.invalidate()

    # --- Commands --------------------------------------------------------------------------------

    async def exec(
        self, member: Member, ins: str, command: str, timeout: float | None
    ) -> ExecResult:
        """Run a command in a running pod; `timeout` in seconds, within podyd.yaml's maximum."""
        config = self._settings.current.pods
        timeout = config.exec_timeout if timeout is None else timeout
        if timeout > config.exec_timeout_max:
            raise Forbidden(
                f"Parameter 'timeout' may be {config.exec_timeout_max:g} seconds at most.",
                code="timeout_too_long",
                limit=config.exec_timeout_max,
            )
        pod = await self._find(member, ins)
        if pod.status != "running":
            raise _not_running(ins, pod.status)
        with self._one_exec(member):
            started = time.monotonic()
            try:
                done = await self._executor.run(
                    pod.name, command, timeout=timeout, limit=config.exec_output_max
                )
            except LxdRefused as error:
                if error.lxd_status == 400 and "not running" in error.detail:
                    raise _not_running(ins, "stopped") from error
                raise
            return ExecResult(
                exit_code=-1 if done.exit_code is None else done.exit_code,
                log=done.log,
                stdout=done.stdout,
                stderr=done.stderr,
                timed_out=done.exit_code is None,
                truncated=done.truncated,
                seconds=round(time.monotonic() - started, 3),
            )

    @contextlib.contextmanager
    def _one_exec(self, member: Member) -> Iterator[None]:
        own = self._execs[member.name]
        if own >= MAX_EXECS_PER_MEMBER or self._execs.total() >= MAX_EXECS:
            raise TooMany(
                f"{own} of your commands are running; wait until one has ended.",
                retry_after=1,
                code="too_many_execs",
            )
        self._execs[member.name] += 1
        try:
            yield
        finally:
            self._execs[member.name] -= 1
            if not self._execs[member.name]:
                del self._execs[member.name]


def limits(member: Member, profiles: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The LXD keys that hold a pod within its owner's quota, where its profiles allow more."""
    config: dict[str, str] = {}
    for profile in profiles:
        config |= profile["config"]
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
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * int(text[:-1]) // 100
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


def port_mapping(devices: Mapping[str, Mapping[str, str]]) -> list[str]:
    """`HOST:POD` for each port that an LXD proxy device on the host leads into the pod."""
    found = []
    for device in devices.values():
        if device.get("type") == "proxy" and device.get("bind", "host") == "host":
            outside, inside = (device[end].rpartition(":")[2] for end in ("listen", "connect"))
            found.append(f"{outside}:{inside}")
    return sorted(found)


def busy_or(error: LxdRefused, detail: str, kind: type[PodydError] = PodydError) -> PodydError:
    """Conflict if LXD is at work on the instance already, else an error with this detail."""
    if "busy" in error.detail.lower():
        return Conflict(
            "The pod is being started, stopped or changed already; try again shortly.",
            code="pod_busy",
        )
    return kind(detail, code="lxd_error" if kind is PodydError else None)


def _not_running(ins: str, status: str) -> Conflict:
    return Conflict(
        f"Pod {ins!r} is {status}; start it with /pod/start.", code="pod_not_running", status=status
    )
