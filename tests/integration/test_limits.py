"""Memory and CPUs of a pod, changed while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from podyd.node.pod_limits import pod_limits
from tests.integration.harness import IMAGE, Client, Node, process_in
from tests.integration.talking import ended, shell, streamed
from tests.integration.test_client import Pody, as_user

MIB, GIB = 1024**2, 1024**3


@pytest.fixture(scope="module")
def limited(node: Node) -> Iterator[Client]:
    """A member with a quota for each pod, and a pod `main`."""
    user = node.accounts.user()
    quota = {"users": {user: {"memory_limit": "4GiB", "cpu_limit": 2}}}
    server = node.serve({"quota": quota, "pods": {"user_profiles": {user: ["podyd-base"]}}})
    client = server.client(user)
    client.post("/pod/create", ins="main", image=IMAGE).ok
    yield client
    client.post("/pod/delete", ins="main").ok
    assert server.stop() == 0


def limits_of(client: Client) -> tuple[int, int]:
    info = client.get("/pod/info", ins="main").ok
    return info["memory_limit"], info["cpu_limit"]


def in_the_kernel(pid: int) -> int:
    """The memory limit of the pod that a process is in, in bytes."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        payload = next((part for part in path.split("/") if part.startswith("lxc.payload.")), None)
        if payload and controllers == "memory":
            return int(Path("/sys/fs/cgroup/memory", payload, "memory.limit_in_bytes").read_text())
        if payload and not controllers:
            limit = Path("/sys/fs/cgroup", payload, "memory.max")
            if limit.exists():
                return int(limit.read_text())
    raise AssertionError(lines)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1GiB", GIB),
        ("1G", GIB),
        ("512MiB", 512 * MIB),
        ("1073741824", GIB),
        ("1.5g", 3 * GIB // 2),
    ],
)
@pytest.mark.controllers("memory")
def test_memory_changes_under_a_living_process(limited: Client, text: str, value: int) -> None:
    with process_in(limited, "main") as process:
        info = limited.post("/pod/limits", ins="main", memory=text).ok
        assert (info["memory_limit"], info["cpu_limit"]) == (value, 2)
        assert in_the_kernel(process.pid) == value
        assert Path(f"/proc/{process.pid}").exists()


@pytest.mark.controllers("cpuset")
def test_cpus_are_there_when_it_answers(limited: Client) -> None:
    """LXD sets them after its answer, and now and then (5.0.2) not at all."""
    with process_in(limited, "main") as process:
        for cpus in (1, 2) * 5:
            limited.post("/pod/limits", ins="main", cpu=str(cpus)).ok
            there = pod_limits(process.pid)
            assert there is not None
            assert there.cpus == min(cpus, len(there.usable))
        assert limits_of(limited)[1] == 2


@pytest.mark.controllers("cpuset", "memory")
def test_a_frozen_pod_has_them_too_when_it_answers(limited: Client, node: Node) -> None:
    name = node.instance_of(limited.user, "main")["name"]
    with process_in(limited, "main") as process:
        node.lxc("pause", name)
        try:
            for cpus in (1, 2):
                limited.post("/pod/limits", ins="main", memory=f"{cpus}GiB", cpu=str(cpus)).ok
                there = pod_limits(process.pid)
                assert there is not None
                assert there.cpus == min(cpus, len(there.usable))
                assert in_the_kernel(process.pid) == cpus * GIB
        finally:
            node.lxc("start", name)


def test_none_is_what_a_new_pod_has(limited: Client, node: Node) -> None:
    limited.post("/pod/limits", ins="main", memory="1GiB", cpu="1").ok
    assert limits_of(limited) == (GIB, 1)
    limited.post("/pod/limits", ins="main", memory="none").ok
    assert limits_of(limited) == (4 * GIB, 1)
    limited.post("/pod/limits", ins="main", cpu="none").ok
    assert limits_of(limited) == (4 * GIB, 2)
    config = node.instance_of(limited.user, "main")["config"]
    assert (config["limits.memory"], config["limits.cpu"]) == (str(4 * GIB), "2")


def test_nobody_is_above_the_quota(limited: Client) -> None:
    before = limits_of(limited)
    body = limited.post("/pod/limits", ins="main", memory="5GiB").refused(403, "quota_exceeded")
    assert (body["limit"], body["asked"], body["parameter"]) == (4 * GIB, 5 * GIB, "memory")
    assert body["detail"] == "Your quota is 4 GiB of memory for each pod, and 5 GiB is more."
    body = limited.post("/pod/limits", ins="main", memory="1GiB", cpu="3").refused(403)
    assert (body["limit"], body["asked"], body["parameter"]) == (2, 3, "cpu")
    assert body["detail"] == "Your quota is 2 CPUs for each pod, and 3 is more."
    assert limits_of(limited) == before


@pytest.mark.controllers("memory")
def test_less_than_it_uses_kills_nothing(limited: Client) -> None:
    limited.post("/pod/limits", ins="main", memory="1GiB").ok
    limited.exec("main", "head -c 100M /dev/zero > /dev/shm/held")
    with process_in(limited, "main") as process:
        body = limited.post("/pod/limits", ins="main", memory="64MiB").refused(409, "memory_in_use")
        assert (body["asked"], body["parameter"]) == (64 * MIB, "memory")
        assert "64 MiB" in body["detail"]
        assert 100 * MIB <= body["used"] <= GIB
        assert in_the_kernel(process.pid) == GIB
        assert Path(f"/proc/{process.pid}").exists()
    limited.exec("main", "rm /dev/shm/held")


def test_a_pod_without_a_quota_goes_back_to_its_profiles(alice: Client, pod: str) -> None:
    assert alice.post("/pod/limits", ins=pod, memory="2GiB").ok["memory_limit"] == 2 * GIB
    assert alice.post("/pod/limits", ins=pod, memory="none").ok["memory_limit"] == -1


@pytest.mark.parametrize(
    "params",
    [
        {"memory": "8 gigs"},
        {"memory": "1MiB"},
        {"memory": "-1"},
        {"memory": "99999999TiB"},
        {"memory": "50%"},
        {"cpu": "0"},
        {"cpu": "0-3"},
        {"cpu": "1.5"},
        {"cpu": "\uff11"},
        {},
    ],
)
def test_what_is_no_limit(limited: Client, params: dict[str, str]) -> None:
    detail = limited.post("/pod/limits", ins="main", **params).refused(400)["detail"]
    assert "must be none, or" in detail or "memory, cpu, disk" in detail


def test_somebody_elses_pod(bob: Client, pod: str) -> None:
    bob.post("/pod/limits", ins=pod, memory="1GiB").refused(404, "no_such_pod")


def test_pody_shows_and_changes_them(limited: Client) -> None:
    pody = Pody(f"http://127.0.0.1:{limited.port}", limited.user)
    limited.post("/pod/limits", ins="main", memory="none", cpu="none").ok
    assert json.loads(pody("limits", "main").ok) == {
        "memory_limit": 4 * GIB,
        "cpu_limit": 2,
        "disk_limit": -1,
    }
    shown = pody.shown("limits", "main", "--memory", "3G", "--cpu", "1")
    assert shown == "memory_limit: 3 GiB\ncpu_limit: 1\ndisk_limit: no limit\n"
    assert "quota" in pody("limits", "main", "--memory", "5GiB").failed(1)


# --- What the kernel kills for memory -------------------------------------------------------------

TOO_MUCH = "python3 -c 'bytearray(2**29)'"
LIMITED = pytest.mark.controllers("memory")


@pytest.fixture(scope="module")
def tight(limited: Client) -> Iterator[Client]:
    """The same member, whose pod has less than TOO_MUCH wants."""
    limited.post("/pod/limits", ins="main", memory="256MiB").ok
    yield limited
    limited.post("/pod/limits", ins="main", memory="none").ok


@pytest.mark.parametrize(
    ("command", "code", "limit"),
    [
        pytest.param(TOO_MUCH, 137, 256 * MIB, marks=LIMITED),
        pytest.param(f"{TOO_MUCH}; exit 5", 5, 256 * MIB, marks=LIMITED),
        # Who kills it is not the kernel.
        ("kill -9 $$", 137, None),
        ("sleep 60 & kill -9 $!; wait $!; exit 5", 5, None),
    ],
)
def test_who_was_killed_for_memory_is_told_so(
    tight: Client, command: str, code: int, limit: int | None
) -> None:
    done = tight.exec("main", command, timeout=30)
    expected = (code, limit is not None, limit)
    assert (done["exit_code"], done["oom_killed"], done["memory_limit"]) == expected
    with streamed(tight, "main", command, timeout=30) as talk:
        fields = {"oom_killed": limit is not None, "memory_limit": limit}
        assert talk.end() == {**ended(code), **fields}


@pytest.mark.controllers("memory")
def test_a_shell_is_told_so_too(tight: Client) -> None:
    with shell(tight, "main", cmd=TOO_MUCH) as talk:
        end = talk.end()
    assert (end["exit_code"], end["oom_killed"], end["memory_limit"]) == (137, True, 256 * MIB)


@pytest.mark.controllers("memory")
def test_pody_exec_says_so(tight: Client) -> None:
    done = as_user(tight)("exec", "main", "--", TOO_MUCH)
    assert done.status == 137
    assert "memory limit of 256 MiB was reached" in done.err
    assert "pody limits main --memory" in done.err
    assert "memory" not in as_user(tight)("exec", "main", "--", "kill -9 $$").err
