"""The limits that the kernel holds a pod to now, as the files of its cgroup say.

Every account may read them, and no process in the pod may change them: they are those of the pod's
own cgroup, which belongs to the host's root.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The outermost one is the pod's, see procs.py.
_POD = re.compile(r"^\d+:(?P<controllers>[^:]*):(?P<path>/(?:.*?/)??lxc\.payload\.[^/\s]+)", re.M)


@dataclass(frozen=True)
class PodLimits:
    """How many CPUs a pod has, of how many that it could have; `is_unswappable` if none of its
    memory may be swapped out."""

    cpus: int
    cpus_there: int
    is_unswappable: bool = False


def pod_limits(
    pid: int, proc: Path = Path("/proc"), sysfs: Path = Path("/sys")
) -> PodLimits | None:
    """The limits of the pod that a process is in; None if it is in none, or without controllers.

    Raises OSError.
    """
    text = (proc / str(pid) / "cgroup").read_text(errors="replace")
    mounted = sysfs / "fs/cgroup"
    for found in _POD.finditer(text):
        if not found["controllers"]:
            cgroup = mounted / found["path"][1:]
            if (cgroup / "cpuset.cpus.effective").exists():
                return _unified(cgroup, sysfs)
        elif "cpuset" in found["controllers"].split(","):
            cgroup = mounted / "cpuset" / found["path"][1:]
            return PodLimits(
                len(_set(cgroup / "cpuset.cpus")),
                len(_usable(cgroup.parent / "cpuset.effective_cpus", sysfs)),
            )
    return None


def _unified(cgroup: Path, sysfs: Path) -> PodLimits:
    swap = cgroup / "memory.swap.max"
    return PodLimits(
        len(_set(cgroup / "cpuset.cpus.effective")),
        len(_usable(cgroup.parent / "cpuset.cpus.effective", sysfs)),
        swap.exists() and swap.read_text().strip() == "0",
    )


def _usable(path: Path, sysfs: Path) -> set[int]:
    # LXD gives none of these to pods (devices.go, deviceTaskBalance).
    isolated = sysfs / "devices/system/cpu/isolated"
    return _set(path) - (_set(isolated) if isolated.exists() else set())


def _set(path: Path) -> set[int]:
    """The numbers of a set such as 0-3,8."""
    ends = [part.partition("-") for part in path.read_text().strip().split(",") if part]
    return {cpu for low, _, high in ends for cpu in range(int(low), int(high or low) + 1)}
