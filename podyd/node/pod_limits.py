"""The limits that the kernel holds a pod to now, as the files of its cgroup say.

Every account may read them, and no process in the pod may change them: they are those of the pod's
own cgroup, which belongs to the host's root.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from podyd.base.quantities import numbers_of

# The outermost one is the pod's, see procs.py.
POD_CGROUPS = re.compile(
    r"^\d+:(?P<controllers>[^:]*):(?P<path>/(?:.*?/)??lxc\.payload\.[^/\s]+)", re.M
)


@dataclass(frozen=True)
class PodLimits:
    """How many CPUs a pod has, and which ones the engine may give it; `is_unswappable` if none of
    its memory may be swapped out."""

    cpus: int
    usable: frozenset[int]
    is_unswappable: bool = False


def pod_limits(
    pid: int, proc: Path = Path("/proc"), sysfs: Path = Path("/sys")
) -> PodLimits | None:
    """The limits of the pod that a process is in; None if it is in none, or without controllers.

    Raises OSError.
    """
    text = (proc / str(pid) / "cgroup").read_text(errors="replace")
    mounted = sysfs / "fs/cgroup"
    for line in POD_CGROUPS.finditer(text):
        if not line["controllers"]:
            cgroup = mounted / line["path"][1:]
            if (cgroup / "cpuset.cpus.effective").exists():
                return _unified(cgroup, sysfs)
        elif "cpuset" in line["controllers"].split(","):
            cgroup = mounted / "cpuset" / line["path"][1:]
            return PodLimits(
                len(_set(cgroup / "cpuset.cpus")),
                _usable(cgroup.parent / "cpuset.effective_cpus", sysfs),
            )
    return None


def _unified(cgroup: Path, sysfs: Path) -> PodLimits:
    swap = cgroup / "memory.swap.max"
    return PodLimits(
        len(_set(cgroup / "cpuset.cpus.effective")),
        _usable(cgroup.parent / "cpuset.cpus.effective", sysfs),
        swap.exists() and swap.read_text().strip() == "0",
    )


def _usable(path: Path, sysfs: Path) -> frozenset[int]:
    # The engine gives no isolated ones to pods (devices.go, deviceTaskBalance).
    isolated = sysfs / "devices/system/cpu/isolated"
    return _set(path) - (_set(isolated) if isolated.exists() else frozenset())


def _set(path: Path) -> frozenset[int]:
    return numbers_of(path.read_text().strip())
