"""NVML through the real binding: who holds which card, and what a sick driver does to podyd."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from podyd.node.interface import FIRST_SAMPLE_SECONDS
from tests.integration.harness import (
    DEFAULT,
    IMAGE,
    SMALL,
    Client,
    Json,
    Node,
    Server,
    children,
    pids,
    process_in,
    wait_until,
)
from tests.lab.cluster import hierarchies
from tests.lab.nvml import GIB, FakeDriver, FakeGpu, FakeNvml, FakeProcess, build

OTHER_DRIVER = "550.54.15"
MIB = 1024**2


def rows_of(client: Client, *wanted: int) -> dict[int, Json]:
    """The processes on all cards by their pids, once exactly these are there."""

    def rows() -> dict[int, Json]:
        answer: Mapping[str, list[Json]] = client.get("/host/gpu-ps").ok
        return {row["pid"]: row for on_card in answer.values() for row in on_card}

    wait_until(lambda: sorted(rows()) == sorted(wanted), f"{wanted}")
    return rows()


@contextlib.contextmanager
def process_of(user: str) -> Iterator[tuple[int, str]]:
    """The pid and the command line of a process that a member runs on the host itself."""
    cmd = f"sleep {secrets.randbelow(10**9) + 10**9}"
    with subprocess.Popen(cmd.split(), user=pwd.getpwnam(user).pw_uid) as process:
        try:
            yield process.pid, cmd
        finally:
            process.kill()


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


# --- Who is on a card ---------------------------------------------------------------------------


def test_a_process_in_a_pod_is_shown_to_everybody(
    node: Node, gpu_server: Server, nvml: FakeDriver, alice: Client, bob: Client, pod: str
) -> None:
    with process_in(alice, pod) as running:
        nvml.write(FakeNvml().holding(1, FakeProcess(running.pid, memory=3 * GIB)))
        row = rows_of(gpu_server.client(bob.user), running.pid)[running.pid]
        assert row["pod"] == node.instance_of(alice.user, pod)["name"]
        assert (row["cmd"], row["gpu_memory_used"]) == (running.cmd, 3 * GIB)
        assert 0 < row["uptime"] < 60
        pages = int(Path(f"/proc/{running.pid}/statm").read_text().split()[1])
        # proc(5): the kernel does not count them exactly.
        assert abs(row["memory_used"] - pages * os.sysconf("SC_PAGE_SIZE")) < MIB
        assert row["memory_used"] > 0


def test_a_pod_whose_cgroup_liblxc_had_to_number(
    node: Node, gpu_server: Server, nvml: FakeDriver, alice: Client, ins: str
) -> None:
    alice.post("/pod/create", ins=ins, image=SMALL).ok
    name = node.instance_of(alice.user, ins)["name"]
    with process_in(alice, ins) as running:
        place = Path(f"/proc/{running.pid}/cgroup").read_text()
    plain = f"lxc.payload.{node.project}_{name}"
    assert f"/{plain}" in place
    alice.post("/pod/stop", ins=ins).ok
    # What LXD leaves that was killed with its pods.
    left = [top / plain for top in hierarchies()]
    for cgroup in left:
        cgroup.mkdir(exist_ok=True)
    try:
        alice.post("/pod/start", ins=ins).ok
        with process_in(alice, ins) as running:
            assert f"/{plain}-1" in Path(f"/proc/{running.pid}/cgroup").read_text()
            nvml.write(FakeNvml().holding(0, FakeProcess(running.pid)))
            client = gpu_server.client(alice.user)
            wait_until(
                lambda: rows_of(client, running.pid)[running.pid]["pod"] == name, "the pod's name"
            )
        alice.post("/pod/delete", ins=ins).ok
    finally:
        for cgroup in left:
            cgroup.rmdir()


def test_compute_graphics_and_memory_that_is_not_told(
    gpu_server: Server, nvml: FakeDriver, alice: Client, pod: str
) -> None:
    with process_in(alice, pod) as one, process_in(alice, pod) as two:
        state = FakeNvml().holding(
            0, FakeProcess(one.pid, GIB), FakeProcess(two.pid, None, kind="graphics")
        )
        nvml.write(state.holding(1, FakeProcess(one.pid, 2 * GIB, kind="graphics")))
        client = gpu_server.client(alice.user)
        rows_of(client, one.pid, two.pid)
        answer = client.get("/host/gpu-ps").ok
        used = {
            index: {row["pid"]: row["gpu_memory_used"] for row in rows}
            for index, rows in answer.items()
        }
        assert used == {"0": {one.pid: GIB, two.pid: None}, "1": {one.pid: 2 * GIB}}


def test_what_members_run_on_the_host_is_theirs_and_the_admins_to_see(
    gpu_server: Server, nvml: FakeDriver, alice: Client, bob: Client, admin: Client
) -> None:
    with process_of(bob.user) as (pid, cmd):
        nvml.write(FakeNvml().holding(0, FakeProcess(pid)))
        shown = {
            user: rows_of(gpu_server.client(user), pid)[pid]
            for user in (alice.user, bob.user, admin.user)
        }
    assert {row["pod"] for row in shown.values()} == {""}
    assert [shown[user]["cmd"] for user in shown] == [bob.user, cmd, cmd]


def test_a_process_of_an_id_without_a_name(
    gpu_server: Server, nvml: FakeDriver, alice: Client
) -> None:
    with subprocess.Popen(["sleep", "60"], user=987_654) as process:
        nvml.write(FakeNvml().holding(0, FakeProcess(process.pid)))
        row = rows_of(gpu_server.client(alice.user), process.pid)[process.pid]
        process.kill()
    assert (row["pod"], row["cmd"]) == ("", "uid 987654")


def test_a_process_that_has_ended_is_not_shown(
    gpu_server: Server, nvml: FakeDriver, alice: Client, pod: str
) -> None:
    client = gpu_server.client(alice.user)
    with process_in(alice, pod) as running:
        nvml.write(FakeNvml().holding(0, FakeProcess(running.pid)))
        rows_of(client, running.pid)
    # Until its parent has asked what became of it, it is a zombie.
    wait_until(
        lambda: client.get("/host/gpu-ps").ok == {"0": [], "1": []}, "it to be shown no more"
    )


def test_a_zombie_is_shown_as_one(
    node: Node, gpu_server: Server, nvml: FakeDriver, alice: Client, pod: str
) -> None:
    name = f"sleep {secrets.randbelow(10**9) + 10**9}"
    # Its parent has become a program that does not ask what became of it.
    alice.exec(pod, f"setsid bash -c 'sleep 0.1 & exec {name}' >/dev/null 2>&1 &")
    wait_until(lambda: len(pids(name)) == 1, name)
    (parent,) = pids(name)
    try:
        (zombie,) = children(parent)
        stat = Path(f"/proc/{zombie}/stat")
        wait_until(lambda: ") Z " in stat.read_text(), "the zombie")
        nvml.write(FakeNvml().holding(0, FakeProcess(zombie)))
        row = rows_of(gpu_server.client(alice.user), zombie)[zombie]
        assert (row["cmd"], row["memory_used"]) == ("[sleep] <defunct>", 0)
        assert row["pod"] == node.instance_of(alice.user, pod)["name"]
    finally:
        os.kill(parent, signal.SIGKILL)


@pytest.fixture
def outside(node: Node) -> Iterator[str]:
    """A running instance in LXD's default project, as an admin makes it for himself."""
    name = f"podyd-test-{secrets.token_hex(3)}"
    pool = node.lxd.get("/1.0/storage-pools?recursion=1")[0]["name"]
    try:
        node.lxc("launch", IMAGE, name, "--no-profiles", "-s", pool, project=DEFAULT)
        yield name
    finally:
        node.lxc("delete", "-f", name, project=DEFAULT)


def test_an_instance_of_the_default_project(
    node: Node, gpu_server: Server, nvml: FakeDriver, alice: Client, outside: str
) -> None:
    cmd = f"sleep {secrets.randbelow(10**9) + 10**9}"
    script = f"setsid {cmd} >/dev/null 2>&1 &"
    node.lxc("exec", outside, "--", "sh", "-c", script, project=DEFAULT)
    wait_until(lambda: len(pids(cmd)) == 1, cmd)
    (pid,) = pids(cmd)
    nvml.write(FakeNvml().holding(0, FakeProcess(pid)))
    row = rows_of(gpu_server.client(alice.user), pid)[pid]
    assert (row["pod"], row["cmd"]) == (f"default/{outside}", cmd)


def test_some_of_the_cards(gpu_server: Server, nvml: FakeDriver, alice: Client) -> None:
    client = gpu_server.client(alice.user)
    # The sample may still be that of the test before.
    wait_until(lambda: client.get("/host/gpu-ps").ok == {"0": [], "1": []}, "idle cards")
    assert client.get("/host/gpu-ps", id="1").ok == {"1": []}
    assert list(client.get("/host/gpu-ps", **{"gpu-id": "1,0"}).ok) == ["1", "0"]
    body = client.get("/host/gpu-ps", id="7").refused(400, "no_such_gpu")
    assert "GPU 7" in body["detail"]
    assert body["count"] == 2
    for wrong in ("x", "-1", "", "0,", "0x1"):
        assert "'id'" in client.get("/host/gpu-ps", id=wrong).refused(400)["detail"]


def test_versions(gpu_server: Server, alice: Client) -> None:
    spec = gpu_server.client(alice.user).get("/host/spec").ok
    assert (spec["nvidia_driver"], spec["cuda"]) == ("535.183.01", "12.2")


@pytest.mark.alone
def test_two_hundred_processes_on_eight_cards(
    gpu_server: Server, nvml: FakeDriver, alice: Client, bob: Client, pod: str
) -> None:
    cmd = f"sleep {secrets.randbelow(10**9) + 10**9}"
    script = f"for i in $(seq 200); do setsid {cmd} & done >/dev/null 2>&1"
    alice.exec(pod, script)
    try:
        wait_until(lambda: len(pids(cmd)) == 200, "all to run")
        pids_shown = sorted(pids(cmd))
        gpus = tuple(
            FakeGpu(
                f"GPU-{index}",
                f"0000:{index:02x}:00.0",
                index,
                processes=tuple(FakeProcess(pid) for pid in pids_shown[index::8]),
            )
            for index in range(8)
        )
        nvml.write(FakeNvml(gpus))
        client = gpu_server.client(bob.user)
        rows = rows_of(client, *pids_shown)
        assert {row["cmd"] for row in rows.values()} == {cmd}
        assert len({row["pod"] for row in rows.values()}) == 1
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(client.get, "/host/gpu-ps") for _ in range(20)]
            slowest = max(client.get("/version").seconds for _ in range(20))
            assert {future.result().status for future in asked} == {200}
        assert slowest < 0.5
    finally:
        for pid in pids(cmd):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not pids(cmd), "all to end")


# --- A sick driver ------------------------------------------------------------------------------


@pytest.fixture
def sick(node: Node) -> FakeDriver:
    """A driver of a test's own."""
    return FakeDriver(node.directory / f"nvidia-{secrets.token_hex(3)}")


def age(client: Client) -> int:
    """How old what /host/gpu-ps says is, in seconds."""
    answer = client.get("/host/gpu-ps")
    answer.ok
    assert answer.seconds < 5, "it waits for no sample"
    return int(answer.headers["Age"])


@pytest.mark.alone
def test_a_hang_slows_nobody_and_the_last_sample_tells_its_age(
    gpu_server: Server, nvml: FakeDriver, alice: Client
) -> None:
    client = gpu_server.client(alice.user)
    wait_until(lambda: age(client) <= 1, "a sample")
    nvml.write(FakeNvml(hangs=True))
    wait_until(lambda: age(client) >= 3, "the sample to grow old")
    for path in ("/version", "/user/info", "/pod/list", "/host/spec"):
        assert client.get(path).seconds < 0.5
    nvml.write(FakeNvml())
    wait_until(lambda: age(client) <= 1, "a new sample")


def test_hanging_from_the_start_is_a_503_until_nvml_answers(
    node: Node, sick: FakeDriver, alice: Client
) -> None:
    sick.write(FakeNvml(hangs=True))
    server = node.serve(environment=sick.environment)
    client = server.client(alice.user)
    body = client.get("/host/gpu-ps").refused(503, "nvml_failed")
    assert "has not answered yet" in body["detail"]
    client.get("/user/info").ok
    line = "no GPU data: NVML hangs"
    assert line not in server.log_text(), "nobody has waited so long"
    server.wait_for_log(line, 60)
    answer = client.get("/host/gpu-ps")
    assert "NVML hangs" in answer.refused(503, "nvml_failed")["detail"]
    assert answer.seconds < FIRST_SAMPLE_SECONDS, "what is known is not waited for"
    sick.write(FakeNvml())
    wait_until(lambda: client.get("/host/gpu-ps").status == 200, "a sample")
    assert server.stop() == 0


def test_init_fails_until_it_does_not(node: Node, sick: FakeDriver, alice: Client) -> None:
    sick.write(FakeNvml(init_fails=999))
    server = node.serve(environment=sick.environment)
    client = server.client(alice.user)
    body = client.get("/host/gpu-ps").refused(503, "nvml_failed")
    assert "Unknown Error" in body["detail"]
    sick.write(FakeNvml())
    wait_until(lambda: client.get("/host/gpu-ps").status == 200, "a sample")
    assert server.stop() == 0


def test_an_update_of_the_driver_under_podyd_mends_itself(
    node: Node, sick: FakeDriver, alice: Client
) -> None:
    server = node.serve(environment=sick.environment)
    client = server.client(alice.user)
    assert client.get("/host/spec").ok["nvidia_driver"] == "535.183.01"
    sick.write(FakeNvml(driver=OTHER_DRIVER))
    server.wait_for_log("driver/library version mismatch")
    assert age(client) < 30
    build(sick.directory, OTHER_DRIVER)

    def new() -> bool:
        answer: bool = client.get("/host/spec").ok["nvidia_driver"] == OTHER_DRIVER
        return answer

    wait_until(new, "the new driver")
    assert age(client) <= 1
    assert server.stop() == 0


def test_a_lost_card_is_empty_and_the_other_goes_on(
    gpu_server: Server, nvml: FakeDriver, alice: Client, pod: str
) -> None:
    with process_in(alice, pod) as running:
        state = FakeNvml().holding(0, FakeProcess(running.pid)).holding(1, FakeProcess(running.pid))
        nvml.write(state.with_gpu(0, lost=True))
        client = gpu_server.client(alice.user)
        rows_of(client, running.pid)
        answer = client.get("/host/gpu-ps").ok
        assert {index: len(rows) for index, rows in answer.items()} == {"0": 0, "1": 1}


def asking(server: Server) -> int:
    """The process in which podyd asks NVML, once it does."""
    statuses: list[int] = []

    def there() -> bool:
        statuses[:] = [
            pid
            for pid in children(server.process.pid)
            if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0podyd\0nvml\0")
        ]
        return len(statuses) == 1

    wait_until(there, "podyd nvml")
    return statuses[0]


def loaded(pid: int, driver: FakeDriver) -> bool:
    """Whether a process has come as far as NVML."""
    return str(driver.directory) in Path(f"/proc/{pid}/maps").read_text()


def test_one_that_crashes_is_replaced(node: Node, sick: FakeDriver, alice: Client) -> None:
    server = node.serve(environment=sick.environment)
    client = server.client(alice.user)
    client.get("/host/gpu-ps").ok
    first = asking(server)
    os.kill(first, signal.SIGSEGV)
    server.wait_for_log("the process that asks NVML has died")
    assert age(client) < 30
    server.wait_for_log("NVML answers again")
    assert asking(server) != first
    assert server.stop() == 0


def test_killed_while_nvml_hangs_leaves_nobody_behind(node: Node, sick: FakeDriver) -> None:
    sick.write(FakeNvml(hangs=True))
    server = node.serve(environment=sick.environment)
    pid = asking(server)
    wait_until(lambda: loaded(pid, sick), "it to ask")
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not is_there(pid), "podyd nvml to end")


def test_stopping_while_nvml_hangs_is_at_once(node: Node, sick: FakeDriver) -> None:
    sick.write(FakeNvml(hangs=True))
    server = node.serve(environment=sick.environment)
    pid = asking(server)
    wait_until(lambda: loaded(pid, sick), "it to ask")
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 8, "what is under way would have ten seconds"
    assert not is_there(pid)
    assert "Traceback" not in server.log_text()
