"""What running pods use of the host's CPUs and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from podyd.node.cgroups import Cgroups
from podyd.node.interface import Loads as Counters


@dataclass(frozen=True)
class Load:
    """`cpu`: how many CPUs a pod has kept busy, on average since the last reading, None at its
    first one; `memory_used` in bytes. None is also what the kernel does not count."""

    cpu: float | None
    memory_used: int | None


@dataclass(frozen=True)
class _Reading:
    """CPU seconds of the pod whose first process has this pid, at a monotonic time."""

    pid: int
    cpu_seconds: float
    taken: float


class Loads:
    """Reads the loads of all running pods at once; each reader with its own interval has its own
    object."""

    def __init__(
        self,
        *,
        cgroups: Cgroups,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cgroups = cgroups
        self._counters = counters
        self._clock = clock
        self._before: Mapping[str, _Reading] = {}

    async def read(self) -> dict[str, Load]:
        """The loads of the pods that run, by the engine's names of them."""
        pids = self._cgroups.first_processes
        counted = await self._counters.of(pids.values())
        now, readings, loads = self._clock(), dict[str, _Reading](), dict[str, Load]()
        for name, pid in pids.items():
            count = counted.get(pid)
            # The pod may have ended, and the pid be that of a process in another one.
            instance = self._cgroups.instance_of(count.cgroup) if count is not None else None
            if count is None or instance is None or instance[1] != name:
                continue
            cpu, before = None, self._before.get(name)
            if count.cpu_seconds is not None:
                readings[name] = _Reading(pid, count.cpu_seconds, now)
                if before is not None and before.pid == pid and now > before.taken:
                    gained = count.cpu_seconds - before.cpu_seconds
                    cpu = round(max(0.0, gained / (now - before.taken)), 2)
            loads[name] = Load(cpu, count.memory_used)
        self._before = readings
        return loads
