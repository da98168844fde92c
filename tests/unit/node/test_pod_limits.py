"""What the kernel holds a pod to, on cgroups that a test has made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from podyd.node.pod_limits import PodLimits, pod_limits


def cpus(count: int) -> frozenset[int]:
    return frozenset(range(count))


class Host:
    def __init__(self, directory: Path) -> None:
        self.proc, self.sysfs = directory / "proc", directory / "sys"

    def put(self, path: Path | str, text: str) -> None:
        file = self.sysfs / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def limits(self, cgroup: str) -> PodLimits | None:
        self.put(self.proc / "7/cgroup", cgroup)
        return pod_limits(7, self.proc, self.sysfs)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("held", "isolated", "swap", "limits"),
    [
        ("0-3", "", "max", PodLimits(4, cpus(16))),
        ("0-3,8,10-11", "", "0", PodLimits(7, cpus(16), is_unswappable=True)),
        ("0", "14-15", "1048576", PodLimits(1, cpus(14))),
        ("1", "", None, PodLimits(1, cpus(16))),
    ],
)
def test_cgroup2(host: Host, held: str, isolated: str, swap: str | None, limits: PodLimits) -> None:
    host.put("fs/cgroup/cpuset.cpus.effective", "0-15")
    host.put("devices/system/cpu/isolated", isolated)
    host.put("fs/cgroup/lxc.payload.p_a-x/cpuset.cpus.effective", held)
    if swap is not None:
        host.put("fs/cgroup/lxc.payload.p_a-x/memory.swap.max", swap)
    # What is in the pod is its root's to write.
    inner = "lxc.payload.p_a-x/lxc.payload.y"
    host.put(f"fs/cgroup/{inner}/cpuset.cpus.effective", "0-15")
    assert host.limits(f"0::/{inner}/init.scope") == limits
    assert host.limits("0::/lxc.payload.p_a-x") == limits


V1 = "9:pids:/{0}\n3:cpuset,x:/core/{0}\n0::/{0}"


@pytest.mark.parametrize(
    ("held", "limits"),
    [("0-1", PodLimits(2, cpus(4))), ("2", PodLimits(1, cpus(4))), ("", PodLimits(0, cpus(4)))],
)
def test_cgroup_v1(host: Host, held: str, limits: PodLimits) -> None:
    host.put("fs/cgroup/cpuset/core/cpuset.effective_cpus", "0-3")
    host.put("fs/cgroup/cpuset/core/lxc.payload.a-x/cpuset.cpus", held)
    assert host.limits(V1.format("lxc.payload.a-x/x")) == limits


@pytest.mark.parametrize(
    "cgroup", ["0::/system.slice/ssh.service", "0::/lxc.monitor.p_a", "0::/lxc.payload.p_a", ""]
)
def test_who_is_in_no_pod_or_in_one_without_controllers(host: Host, cgroup: str) -> None:
    assert host.limits(cgroup) is None


def test_a_cgroup_that_is_gone(host: Host) -> None:
    with pytest.raises(FileNotFoundError):
        host.limits("3:cpuset:/lxc.payload.p_a")
