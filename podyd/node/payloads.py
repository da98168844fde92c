"""The cgroups of podyd's pods in a hierarchy.

Pods and members can make cgroups of any name below their own. So only directories count whose
parent only root can write, and nothing is searched below an instance's cgroup.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from podyd.node.procs import cgroup_in

# The engine has its cgroups at the root, or in the cgroup in which the machine itself is, as a
# container.
MAX_DEPTH = 4
MAX_DIRECTORIES = 4096
_NAMES_OF_LIBLXC = "lxc."


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy; `controller` is "" for cgroup v2, as in /proc/PID/cgroup."""

    root: Path
    controller: str

    def path_in(self, text: str) -> str | None:
        """The cgroup that /proc/PID/cgroup names in this hierarchy."""
        for line in text.splitlines():
            _, controllers, path = line.split(":", 2)
            if self.controller in controllers.split(","):
                return path
        return None


def hierarchies(mountinfo: str) -> dict[str, Hierarchy]:
    """Those in which devices may be refused, by controller, from proc_pid_mountinfo(5)."""
    by_controller: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root = Path(left.split()[4])
        if kind == "cgroup2":
            by_controller.setdefault("", Hierarchy(root, ""))
        elif kind == "cgroup" and "devices" in options.split(","):
            by_controller.setdefault("devices", Hierarchy(root, "devices"))
    return by_controller


@dataclass(frozen=True)
class Payload:
    """A pod's cgroup: its directory, its inode, which no later one has, and the pod's name."""

    path: Path
    inode: int
    cgroup: str


def payload_at(path: Path, project: str) -> Payload | None:
    """The pod's cgroup at a path whose parent only root can write; None if there is none."""
    instance = cgroup_in(f"/{path.name}") if path.name.startswith("lxc.payload.") else None
    if instance is None or instance[0] != project:
        return None
    with contextlib.suppress(OSError):
        return Payload(path, path.stat().st_ino, instance[1])
    return None


def places(top: Path) -> Iterator[Path]:
    """The directories from `top` on in which an engine may have its cgroups."""
    left = deque([(top, 0)])
    count = 0
    while left and count < MAX_DIRECTORIES:
        directory, depth = left.popleft()
        count += 1
        yield directory
        if depth < MAX_DEPTH:
            left.extend((path, depth + 1) for path in below(directory) if is_place(path))


def below(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def is_place(path: Path) -> bool:
    """Whether only root can write a directory, and it is no instance's cgroup."""
    if path.name.startswith(_NAMES_OF_LIBLXC):
        return False
    with contextlib.suppress(OSError):
        status = path.lstat()
        writers = 0o002 if status.st_gid == 0 else 0o022
        return status.st_uid == 0 and not status.st_mode & writers
    return False
