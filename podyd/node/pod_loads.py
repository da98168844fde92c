"""What a pod uses of the host now, as the kernel counts it in the files of its cgroup.

Nothing in the pod is asked, and every account may read them (see pod_limits.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from podyd.node.pod_limits import POD_CGROUPS
from podyd.node.procs import InstanceCgroup, cgroup_in


@dataclass(frozen=True)
class PodLoad:
    """The CPU time of all that ever ran in a pod since it started, in seconds, and its memory in
    bytes, without files that the kernel would drop first; None where there is no such controller.

    `cgroup` is the pod's.
    """

    cgroup: InstanceCgroup
    cpu_seconds: float | None = None
    memory_used: int | None = None


def pod_load(pid: int, proc: Path = Path("/proc"), sysfs: Path = Path("/sys")) -> PodLoad | None:
    """What the pod uses that a process is in; None if it is in none. Raises OSError."""
    text = (proc / str(pid) / "cgroup").read_text(errors="replace")
    instance = cgroup_in(text)
    if instance is None:
        return None
    mounted = sysfs / "fs/cgroup"
    cpu: float | None = None
    memory: int | None = None
    for line in POD_CGROUPS.finditer(text):
        names, path = line["controllers"].split(","), line["path"][1:]
        if names == [""]:
            cgroup = mounted / path
            if (cgroup / "cpu.stat").exists():
                cpu = _line(cgroup / "cpu.stat", "usage_usec") / 1e6
            if (cgroup / "memory.current").exists():
                memory = _memory(cgroup / "memory.current", "inactive_file")
        if "cpuacct" in names:
            cpu = int((mounted / "cpuacct" / path / "cpuacct.usage").read_text()) / 1e9
        if "memory" in names:
            memory = _memory(
                mounted / "memory" / path / "memory.usage_in_bytes", "total_inactive_file"
            )
    return PodLoad(instance, cpu, memory)


def _memory(used: Path, droppable: str) -> int:
    # The two are not read at one moment.
    return max(0, int(used.read_text()) - _line(used.with_name("memory.stat"), droppable))


def _line(path: Path, name: str) -> int:
    """A figure of a file with a name and a figure in each line; 0 if it is not there."""
    figures = (line.split() for line in path.read_text().splitlines())
    return next((int(figure) for key, figure in figures if key == name), 0)
