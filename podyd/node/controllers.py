"""The kernel's cgroup controllers that the pods of an engine can have, for the doctor.

The engine sets the limits of the controllers that it sees in its own cgroup, and ignores the
others. The cgroups of pods are made by liblxc below that of the engine's PID 1 (cgroups/cgfsng.c),
which on cgroup2 passes all of its controllers on, or starts no pod: the kernel does not pass on
those of a cgroup with processes in it, unless it is the root (cgroups(7), "no internal processes").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from podyd.node.host_files import ProcessFiles

# Of cgroup v1, by their names of cgroup2; that of the CPU is two.
_NAMES_OF_V1 = {
    "memory": {"memory"},
    "cpuset": {"cpuset"},
    "pids": {"pids"},
    "cpu": {"cpu", "cpuacct"},
    "io": {"blkio"},
}
ALL = frozenset(_NAMES_OF_V1)


@dataclass(frozen=True)
class Controllers:
    """The controllers that the engine sees (`seen`) and those that its pods have (`passed`).

    With cgroup2, `engine_cgroup` is the engine's own and `parent` that of pods' cgroups, as paths
    below the mount; with cgroup v1 both are "".
    """

    seen: frozenset[str]
    passed: frozenset[str]
    engine_cgroup: str = ""
    parent: str = ""
    # The parent has more than it can pass on, as there are processes in it.
    is_full: bool = False
    # The parent is the kernel's own root, and no cgroup of a container or of a service.
    is_root: bool = False

    @property
    def is_unified(self) -> bool:
        return bool(self.parent)


def controllers(engine: ProcessFiles, init: ProcessFiles) -> Controllers:
    """The controllers for the pods of an engine; `init` is its PID 1. Raises OSError."""
    mounted = engine.root / "sys/fs/cgroup"
    if (mounted / "cgroup.controllers").exists():
        return _unified(mounted, engine.cgroups()[""], init.cgroups()[""])
    return _legacy(engine)


def _unified(mounted: Path, cgroup: str, inits: str) -> Controllers:
    parent = inits.removesuffix("/init.scope") or "/"
    directory = mounted / parent.lstrip("/")
    available, passed = _words(directory / "cgroup.controllers"), None
    # The root has no type.
    is_root = not (directory / "cgroup.type").exists()
    if not is_root and (directory / "cgroup.procs").read_text().strip():
        passed = _words(directory / "cgroup.subtree_control")
    return Controllers(
        seen=_words(mounted / cgroup.lstrip("/") / "cgroup.controllers"),
        passed=available if passed is None else available & passed,
        engine_cgroup=cgroup,
        parent=parent,
        is_full=passed is not None and bool(available - passed),
        is_root=is_root,
    )


def _words(path: Path) -> frozenset[str]:
    return frozenset(path.read_text().split()) & ALL


def _legacy(engine: ProcessFiles) -> Controllers:
    # liblxc looks there alone; a hierarchy's controllers are among the options of its mount.
    options = [
        item.options
        for item in engine.mounts()
        if item.kind == "cgroup" and item.path.parent == Path("/sys/fs/cgroup")
    ]
    seen = {name for names in engine.cgroups() for name in names.split(",")}
    return Controllers(seen=_of_v1(frozenset(seen)), passed=_of_v1(frozenset().union(*options)))


def _of_v1(names: frozenset[str]) -> frozenset[str]:
    return frozenset(name for name, olds in _NAMES_OF_V1.items() if olds <= names)
