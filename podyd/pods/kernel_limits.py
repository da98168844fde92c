"""Limits that the engine has in its configuration and does not set, or does not remove, in the
kernel.

LXD (5.0.2) sets the CPUs of a pod in a task of its own, after its answer. The task reads LXD's
database, into which the new number is written only after the task is due; and it skips a pod that
is still starting. So it may set the old number, or none, until another instance starts, stops or is
changed (lxd/devices.go, deviceTaskBalance; fixed in later versions of 5.0). And when the limit of
memory is removed from a pod, swapping stays forbidden, as it is for a pod with a limit
(driver_lxc.go; fixed in 5.0.3).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping

from podyd.base.engine_words import ENGINE
from podyd.base.errors import PodydError
from podyd.base.quantities import UNLIMITED, numbers_of
from podyd.engine.interface import Instances
from podyd.engine.types import Instance, Keys, NewKeys, named
from podyd.model.pod import CPU_BEFORE, SWAP
from podyd.node.interface import Processes
from podyd.node.pod_limits import PodLimits
from podyd.pods.quota import CPU, MEMORY, cpu_limit

log = logging.getLogger(__name__)

MEMORY_SWAP = "limits.memory.swap"
# CPU_BEFORE of an instance that had no limit of its own; to the engine an empty value is none.
NONE = "none"
# So long a pod's CPUs are waited for.
CPU_SECONDS = 5.0
# After so long the request is repeated. Unless the engine has missed a change, it takes
# milliseconds, or as long as the engine is busy with other pods.
MISSED_SECONDS = 0.3
_FIRST_SECONDS, _LAST_SECONDS = 0.004, 0.05


class KernelLimits:
    """Makes sure that the kernel enforces the limits of running pods."""

    def __init__(self, *, instances: Instances, processes: Processes) -> None:
        self._instances = instances
        self._processes = processes

    async def cpus_set(self, name: str) -> bool:
        """Wait until an instance that runs has its CPUs; False if it has not within CPU_SECONDS.

        True also where the number is not known. Raises Gone.
        """
        pid = await self._instances.first_process(name)
        begin = last_request = time.monotonic()
        wait = _FIRST_SECONDS
        while True:
            instance = named(await self._instances.all(), name)
            now = await self._processes.pod_limits(pid)
            if instance is None or now is None or now.cpus == _due(instance, now):
                return True
            if time.monotonic() > begin + CPU_SECONDS:
                log.warning("%s has %s CPUs, and %s are due", name, now.cpus, _due(instance, now))
                return False
            if time.monotonic() > last_request + MISSED_SECONDS:
                await self._request_again(instance, now)
                last_request = time.monotonic()
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LAST_SECONDS)

    async def _request_again(self, instance: Instance, now: PodLimits) -> None:
        """Make the engine set the CPUs of its instances again, by a change without effect."""
        before = instance.config.get(CPU)
        # To the engine another text is another limit, and a zero in front leaves a number what it
        # is.
        text = f"0{instance.expanded_config.get(CPU) or len(now.usable)}"

        def changed(config: Mapping[str, str]) -> Keys:
            if config.get(CPU) != before:
                return {}  # Another limit has been set, which makes the engine set the CPUs.
            return {CPU: text, CPU_BEFORE: config.get(CPU_BEFORE, before or NONE)}

        log.info("%s has not set the CPUs of %s: requesting it again", ENGINE, instance.name)
        try:
            await self._set(instance.name, changed)
            await self._set(instance.name, own_cpus)
        except PodydError as error:
            log.warning("the CPUs of %s cannot be requested again: %s", instance.name, error)

    async def allow_swap(self, name: str) -> None:
        """Let the memory of an instance that runs be swapped out again, if it has no limit any
        more. Raises Gone."""
        instance = named(await self._instances.all(), name)
        if instance is None or {MEMORY, MEMORY_SWAP} & set(instance.expanded_config):
            return
        now = await self._processes.pod_limits(await self._instances.first_process(name))
        if now is not None and now.is_unswappable:
            try:
                await self._set(name, _swap_allowed)
            except PodydError as error:
                log.warning("%s may not swap until it is started anew: %s", name, error)

    async def before_start(self, instance: Instance) -> None:
        """Take away what the kernel needs no more once an instance has stopped. Raises Busy."""
        if {SWAP, CPU_BEFORE} & set(instance.config):
            await self._set(instance.name, lambda now: own_swap(now) | own_cpus(now))

    async def after_start(self, name: str) -> None:
        """Wait until the kernel has set the CPUs of an instance that has just started, if it has a
        limit, for CPU_SECONDS at most."""
        instance = named(await self._instances.all(), name)
        if instance is not None and CPU in instance.expanded_config:
            await self.cpus_set(name)

    async def _set(self, name: str, keys: NewKeys) -> None:
        await self._instances.edit(name, config=keys, devices=lambda own: own)


def beside_own(changes: Keys) -> Callable[[Mapping[str, str]], Keys]:
    """These changes of limits, and the removal of podyd's own keys for the same limits."""

    def keys(config: Mapping[str, str]) -> Keys:
        own = own_swap(config) if MEMORY in changes else {}
        own |= own_cpus(config) if CPU in changes else {}
        return {**own, **changes}

    return keys


def _swap_allowed(config: Mapping[str, str]) -> Keys:
    # With this the engine takes the limit away and sets no other; that it sets one where there is
    # none is the mistake. SWAP says that the key is to go with the next start or limit.
    if {MEMORY, MEMORY_SWAP} & set(config):
        return {}  # It has got one meanwhile.
    return {MEMORY_SWAP: "false", SWAP: "true"}


def own_swap(config: Mapping[str, str]) -> dict[str, str | None]:
    """The change that takes away what `allow_swap` has set."""
    return {MEMORY_SWAP: None, SWAP: None} if SWAP in config else {}


def own_cpus(config: Mapping[str, str]) -> dict[str, str | None]:
    """The change that takes away what `_request_again` has set, also if podyd was killed then."""
    before = config.get(CPU_BEFORE)
    keys: dict[str, str | None] = {}
    if before is not None:
        keys[CPU_BEFORE] = None
        # Without the zero it is what an admin has set since then.
        if re.match(r"0\d", config.get(CPU, "")):
            keys[CPU] = None if before == NONE else before
    return keys


def _due(instance: Instance, now: PodLimits) -> int:
    text = instance.expanded_config.get(CPU, "")
    if text and not text.isdecimal():
        # Of a set the engine gives a pod those that are there.
        return len(numbers_of(text) & now.usable)
    limit = cpu_limit(instance.expanded_config)
    return len(now.usable) if limit == UNLIMITED else min(limit, len(now.usable))
