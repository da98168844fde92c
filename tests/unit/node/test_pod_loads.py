"""What the kernel counts of a pod, on cgroups that a test has made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from podyd.node.pod_loads import PodLoad, pod_load

MIB = 1024**2
POD = "lxc.payload.podyd_alice-x"
WHOSE = ("podyd", "alice-x")
STAT = f"anon {60 * MIB}\ninactive_anon 7\ninactive_file {30 * MIB}\nactive_file {10 * MIB}"


class Host:
    def __init__(self, directory: Path) -> None:
        self.proc, self.sysfs = directory / "proc", directory / "sys"

    def put(self, path: Path | str, text: object) -> None:
        file = self.sysfs / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def load(self, cgroup: str) -> PodLoad | None:
        self.put(self.proc / "7/cgroup", cgroup)
        return pod_load(7, self.proc, self.sysfs)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_cgroup2_counts_the_whole_pod_and_no_files_that_can_be_dropped(host: Host) -> None:
    pod = f"fs/cgroup/core/{POD}"
    host.put(f"{pod}/cpu.stat", "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000")
    host.put(f"{pod}/memory.current", 100 * MIB)
    host.put(f"{pod}/memory.stat", STAT)
    # What is in the pod is its root's to name.
    host.put(f"{pod}/lxc.payload.y/cpu.stat", "usage_usec 1")
    for inside in ("", "/init.scope", "/lxc.payload.y/init.scope"):
        assert host.load(f"0::/core/{POD}{inside}") == PodLoad(WHOSE, 2.5, 70 * MIB)


def test_cgroup_v1(host: Host) -> None:
    host.put(f"fs/cgroup/cpuacct/{POD}/cpuacct.usage", 1_250_000_000)
    host.put(f"fs/cgroup/memory/a/{POD}/memory.usage_in_bytes", 100 * MIB)
    host.put(f"fs/cgroup/memory/a/{POD}/memory.stat", f"{STAT}\ntotal_inactive_file {40 * MIB}")
    text = f"4:memory:/a/{POD}\n2:cpu,cpuacct:/{POD}\n0::/{POD}"
    assert host.load(text) == PodLoad(WHOSE, 1.25, 60 * MIB)


def test_a_controller_that_is_not_there_is_not_known(host: Host) -> None:
    assert host.load(f"0::/{POD}") == PodLoad(WHOSE, None, None)
    host.put(f"fs/cgroup/{POD}/cpu.stat", "usage_usec 1000000")
    assert host.load(f"0::/{POD}") == PodLoad(WHOSE, 1.0, None)


def test_who_is_in_no_pod(host: Host) -> None:
    assert host.load("0::/system.slice/ssh.service") is None
    assert host.load("") is None


def test_a_cgroup_that_is_gone(host: Host) -> None:
    with pytest.raises(FileNotFoundError):
        host.load(f"2:cpuacct:/{POD}")
