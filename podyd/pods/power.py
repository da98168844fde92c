"""Start and stop of pods, also during other operations of the engine."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime, timedelta, timezone
from typing import Literal

from podyd.base.engine_words import ENGINE
from podyd.base.errors import (
    DidNotShutDown,
    DiskFull,
    EngineRefused,
    NotRunning,
    PodydError,
    Running,
    Slipped,
    TimedOut,
    engine_could_not,
)
from podyd.engine.interface import Instances
from podyd.engine.types import named
from podyd.model.member import Member
from podyd.model.pod import Pod
from podyd.pods.disks import Disks, full, fullness
from podyd.pods.kernel_limits import KernelLimits
from podyd.pods.mounts import Mounts
from podyd.pods.owned import Owned

log = logging.getLogger(__name__)

START_TIMEOUT = 120.0
STOP_TIMEOUT = 30
# An init that was just started ignores the signal to shut down, so it is sent again after these
# seconds.
DEAF_TIMEOUTS = (1, 3)
DEAF_AGE = timedelta(seconds=10)


class StartFailed(PodydError):
    """The engine could not start a pod; `detail` has the reason from LXC's log."""

    status = 502
    default_code = "pod_start_failed"


class Power:
    """Starts and stops members' pods."""

    def __init__(
        self,
        *,
        owned: Owned,
        instances: Instances,
        disks: Disks,
        mounts: Mounts,
        kernel: KernelLimits,
    ) -> None:
        self._owned = owned
        self._instances = instances
        self._disks = disks
        self._mounts = mounts
        self._kernel = kernel

    async def start(self, member: Member, ins: str) -> str:
        """Start a pod. Returns what was done."""
        pod = await self._owned.find(member, ins)
        if pod.status == "running":
            return f"Pod {ins} is running already."
        if pod.status == "frozen":
            await self.start_instance(pod.name, "unfreeze")
        else:
            await self._mounts.apply(pod, await self._mounts.due(member, pod))
            return f"Pod {ins} is running{await self._start_in_room(pod)}"
        return f"Pod {ins} is running."

    async def stop(self, member: Member, ins: str) -> str:
        """Stop a pod, by force if it does not shut down in time. Returns what was done."""
        pod = await self._owned.find(member, ins)
        if pod.status == "stopped":
            return f"Pod {ins} is stopped already."
        has_room = pod.status != "running" or await self._instances.has_room(pod.name)
        how = await self._stop(pod)
        return f"Pod {ins} has stopped{how}{'.' if has_room else _full_now(pod)}"

    async def restart(self, member: Member, ins: str) -> str:
        """Stop a pod and start it again. Returns what was done.

        Raises Conflict, before it is stopped, if its disk is too full for it to start again.
        """
        pod = await self._owned.find(member, ins)
        due = await self._mounts.due(member, pod)
        if pod.status != "stopped":
            await self._disks.check_restart(pod)
        how = "" if pod.status == "stopped" else await self._stop(pod)
        await self._mounts.apply(pod, due)
        return f"Pod {ins} has stopped{how}, and is running again{await self._start_in_room(pod)}"

    async def _start_in_room(self, pod: Pod) -> str:
        """Start a pod, with a reserve if its disk is full; returns the end of a sentence."""
        with contextlib.suppress(DiskFull):
            # If the disk is full, the engine does not clean up after a failed start.
            if await self._instances.has_room(pod.name):
                await self._kernel.before_start(pod.instance)
                await self.start_instance(pod.name)
                return "."
        await self._disks.add_reserve(pod)
        try:
            await self.start_instance(pod.name)
        except DiskFull as error:
            raise full(pod) from error
        return _full_now(pod)

    async def start_instance(
        self, name: str, action: Literal["start", "unfreeze"] = "start"
    ) -> None:
        """Start an instance of any owner. Raises DiskFull, StartFailed."""
        try:
            await self._instances.set_status(name, action, timeout=START_TIMEOUT)
        except Running:
            return
        except Slipped as error:
            # The engine cannot change a file's owner on a full disk either. On ZFS this is the only
            # sign: liblxc cannot write its file, and the engine can still write its own.
            has_room = await self._instances.has_room(name)
            if has_room and not await self._disks.is_at_limit(name):
                raise
            raise DiskFull(error.reason) from error
        except EngineRefused as error:
            if error.is_telling:
                raise
            reason = await why_not_started(self._instances, name) or error.reason
            raise StartFailed(f"The pod could not be started: {reason}.") from error
        if action == "start":
            await self._kernel.after_start(name)

    async def _stop(self, pod: Pod) -> str:
        """Stop a pod; returns how, unless it has shut down by itself."""
        for timeout in _stop_timeouts(pod):
            try:
                await self._tell_to_stop(pod.name, timeout)
                return ""
            except (DidNotShutDown, TimedOut) as error:
                log.info("%s does not shut down: %s", pod.name, error)
        await self._tell_to_stop(pod.name, STOP_TIMEOUT, force=True)
        return ", by force, as it did not shut down in time" if pod.status == "running" else ""

    async def _tell_to_stop(self, name: str, timeout: float, *, force: bool = False) -> None:
        """Have the engine stop a pod; errors are ignored if it has stopped, also those of the
        clean-up.

        It may also have stopped before the request, or just at the timeout.
        """
        try:
            with engine_could_not("stop the pod"):
                await self._instances.set_status(name, "stop", timeout=timeout, force=force)
        except EngineRefused as error:
            await self._instances.clean_up(name, has_ended=isinstance(error, NotRunning))
            if not await self._has_stopped(name):
                raise
            log.info("%s has stopped, although %s says: %s", name, ENGINE, error.reason)

    async def _has_stopped(self, name: str) -> bool:
        instance = named(await self._instances.all(), name)
        return instance is not None and instance.status == "stopped"


async def why_not_started(instances: Instances, name: str) -> str:
    """Why the last start of a pod failed, in LXC's words; "" if that is not known."""
    with contextlib.suppress(PodydError):
        return await instances.why_not_started(name)
    return ""


def _full_now(pod: Pod) -> str:
    is_full, advice = fullness(pod)
    return f"; {is_full}. {advice}"


def _stop_timeouts(pod: Pod) -> tuple[int, ...]:
    """The timeouts in seconds of each signal to a pod to shut down by itself."""
    if pod.status != "running":
        return ()  # A frozen one cannot.
    started = pod.instance.started
    is_young = started is not None and datetime.now(timezone.utc) - started < DEAF_AGE
    return (*DEAF_TIMEOUTS, STOP_TIMEOUT) if is_young else (STOP_TIMEOUT,)
