"""Which controllers the pods of an LXD can have, on cgroups that a test has made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from podyd.node.controllers import ALL, Controllers, controllers
from podyd.node.host_files import ProcessFiles

EVERY = "cpuset cpu io memory hugetlb pids rdma misc"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


class Host:
    """LXD, pid 7, and its pid 1, which share their mounts."""

    def __init__(self, directory: Path) -> None:
        self.cgroups = directory / "7/root/sys/fs/cgroup"
        self.lxd, self.init = ProcessFiles(directory / "7"), ProcessFiles(directory / "1")

    def are_in(self, lxd: str, init: str) -> None:
        put(self.lxd.directory / "cgroup", lxd)
        put(self.init.directory / "cgroup", init)

    def cgroup(self, path: str, available: str, *, passed: str = "", procs: str = "") -> None:
        """One of cgroup2."""
        directory = self.cgroups / path.lstrip("/")
        put(directory / "cgroup.controllers", available)
        put(directory / "cgroup.subtree_control", passed)
        put(directory / "cgroup.procs", procs)
        put(directory / "cgroup.type", "domain")

    def root(self, available: str) -> None:
        """The kernel's own, with the kernel's threads in it."""
        self.cgroup("/", available, procs="2\n3")
        (self.cgroups / "cgroup.type").unlink()

    def found(self) -> Controllers:
        return controllers(self.lxd, self.init)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_server_with_systemd_has_all_of_them(host: Host) -> None:
    host.are_in("0::/system.slice/lxd.service", "0::/init.scope")
    host.root(EVERY)
    host.cgroup("/system.slice/lxd.service", EVERY, procs="7")
    controllers = host.found()
    assert (controllers.seen, controllers.passed, controllers.parent) == (ALL, ALL, "/")
    assert (controllers.is_unified, controllers.is_full, controllers.is_root) == (True, False, True)


def test_a_service_without_delegation_sees_less_than_pods_have(host: Host) -> None:
    host.are_in("0::/system.slice/lxd.service", "0::/init.scope")
    host.root(EVERY)
    host.cgroup("/system.slice/lxd.service", "memory pids", procs="7")
    assert host.found().seen == {"memory", "pids"}
    assert host.found().passed == ALL


@pytest.mark.parametrize(
    ("procs", "subtree", "passed", "is_full"),
    [
        # As of a container without an init that would move its processes away.
        ("1\n7", "", set(), True),
        ("1\n7", "pids", {"pids"}, True),
        # liblxc has it pass on what it has.
        ("", "", {"memory", "pids"}, False),
    ],
)
def test_a_cgroup_with_processes_passes_nothing_on(
    host: Host, procs: str, subtree: str, passed: set[str], is_full: bool
) -> None:
    host.are_in("0::/core", "0::/core")
    host.cgroup("/core", "memory pids", passed=subtree, procs=procs)
    host.cgroup("/", "memory pids")
    controllers = host.found()
    assert controllers.seen == {"memory", "pids"}
    assert controllers.passed == passed
    assert (controllers.parent, controllers.is_full, controllers.is_root) == (
        "/core",
        is_full,
        False,
    )


V1 = "4:memory:/lxd\n3:cpuset:/\n2:cpu,cpuacct:/\n5:blkio:/\n8:pids:/\n1:name=systemd:/\n0::/"


def mounted(*hierarchies: str) -> str:
    lines = ["30 25 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755"]
    for name in hierarchies:
        lines.append(f"31 30 0:29 / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}")
    lines.append("40 30 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("hierarchies", "missing"),
    [
        (("memory", "cpuset", "cpu,cpuacct", "blkio", "pids"), set()),
        (("memory", "cpuset", "cpu", "cpuacct", "blkio", "pids"), set()),
        (("cpuset", "cpu", "blkio"), {"memory", "pids", "cpu"}),
        ((), ALL),
    ],
)
def test_of_cgroup_v1_those_that_are_mounted_count(
    host: Host, hierarchies: tuple[str, ...], missing: set[str]
) -> None:
    host.are_in(V1, V1)
    put(host.cgroups / "unified/cgroup.controllers", "hugetlb")
    put(host.lxd.directory / "mountinfo", mounted(*hierarchies))
    controllers = host.found()
    assert controllers.seen == ALL
    assert ALL - controllers.passed == missing
    assert not controllers.is_unified


def test_a_hierarchy_elsewhere_is_none(host: Host) -> None:
    """liblxc does not look there."""
    host.are_in(V1, V1)
    put(host.lxd.directory / "mountinfo", mounted("memory").replace("/sys/fs/cgroup/m", "/mnt/m"))
    assert host.found().passed == set()
