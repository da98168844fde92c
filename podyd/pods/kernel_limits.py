"""Limits that LXD has been told of and does not set, or does not take away, by itself.

LXD (5.0.2) sets how many CPUs a pod has in a task of its own, after its answer. The task reads
LXD's database, into which the new number is written only after the task is due; and it passes over
a pod that is still starting. So it may set the old number, or none, until anything else starts,
stops or is changed (lxd/devices.go, deviceTaskBalance; mended in later ones of 5.0). And of a pod
that has no limit of memory any more it leaves swapping forbidden, as it is for one with a limit
(driver_lxc.go; mended in 5.0.3).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from podyd.base.errors import PodydError
from podyd.base.quantities import UNLIMITED
from podyd.engine.interface import Instances
from podyd.engine.types import Instance, named
from podyd.model.pod import SWAP
from podyd.node.interface import Processes
from podyd.node.pod_limits import PodLimits
from podyd.pods.quota import CPU, MEMORY, cpu_limit

log = logging.getLogger(__name__)

MEMORY_SWAP = "limits.memory.swap"
# So long a pod's CPUs are waited for.
CPU_SECONDS = 5.0
# After so long LXD is told once more. Where it has not missed a change it takes milliseconds, or as
# long as it is busy with other pods.
MISSED_SECONDS = 0.3
_FIRST_SECONDS, _LAST_SECONDS = 0.004, 0.05


class KernelLimits:
    """Sees to it that the kernel holds running pods to their limits."""

    def __init__(self, *, instances: Instances, processes: Processes) -> None:
        self._instances = instances
        self._processes = processes

    async def cpus_set(self, name: str) -> bool:
        """Wait until an instance that runs has its CPUs; False if it has not within CPU_SECONDS.

        True also where nobody knows. Raises Gone.
        """
        pid = await self._instances.first_process(name)
        begin = told = time.monotonic()
        wait = _FIRST_SECONDS
        while True:
            instance = named(await self._instances.all(), name)
            now = await self._processes.pod_limits(pid)
            if instance is None or now is None or now.cpus == _due(instance, now):
                return True
            if time.monotonic() > begin + CPU_SECONDS:
                log.warning("%s has %s CPUs, and %s are due", name, now.cpus, _due(instance, now))
                return False
            if time.monotonic() > told + MISSED_SECONDS:
                await self._tell_again(instance, now)
                told = time.monotonic()
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LAST_SECONDS)

    async def _tell_again(self, instance: Instance, now: PodLimits) -> None:
        """Have LXD set the CPUs of its instances anew, by a change that changes nothing."""
        own = instance.config.get(CPU)
        # To LXD another text is another limit, and a zero in front leaves a number what it is.
        text = f"0{instance.expanded_config.get(CPU) or now.cpus_there}"
        log.info("LXD has missed the CPUs of %s: telling it again", instance.name)
        try:
            await self._set(instance.name, {CPU: text})
            changed = named(await self._instances.all(), instance.name)
            if changed is not None and changed.config.get(CPU) == text:
                await self._set(instance.name, {CPU: own})
        except PodydError as error:
            log.warning("LXD is not told again of the CPUs of %s: %s", instance.name, error)

    async def allow_swap(self, name: str) -> None:
        """Let the memory of an instance that runs be swapped out again, if it has no limit any
        more. Raises Gone."""
        instance = named(await self._instances.all(), name)
        if instance is None or {MEMORY, MEMORY_SWAP} & set(instance.expanded_config):
            return
        now = await self._processes.pod_limits(await self._instances.first_process(name))
        if now is not None and now.is_unswappable:
            # With this LXD takes the limit away and sets no other; that it sets one where there is
            # none is the mistake. SWAP says that the key is to go with the next start or limit.
            try:
                await self._set(name, {MEMORY_SWAP: "false", SWAP: "true"})
            except PodydError as error:
                log.warning("%s may not swap until it is started anew: %s", name, error)

    async def before_start(self, instance: Instance) -> None:
        """Take away what the kernel needs no more once an instance has stopped. Raises Busy."""
        if keys := own_swap(instance):
            await self._set(instance.name, keys)

    async def after_start(self, name: str) -> None:
        """Wait until the kernel has the CPUs of an instance that has just started, if that has a
        limit, and not for ever."""
        instance = named(await self._instances.all(), name)
        if instance is not None and CPU in instance.expanded_config:
            await self.cpus_set(name)

    async def _set(self, name: str, keys: Mapping[str, str | None]) -> None:
        await self._instances.edit(name, config=keys, devices=lambda own: own)


def own_swap(instance: Instance) -> dict[str, str | None]:
    """The change that takes away what `allow_swap` has set."""
    return {MEMORY_SWAP: None, SWAP: None} if SWAP in instance.config else {}


def _due(instance: Instance, now: PodLimits) -> int:
    limit = cpu_limit(instance.expanded_config)
    return now.cpus_there if limit == UNLIMITED else min(limit, now.cpus_there)
