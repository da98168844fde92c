"""What /proc says of a process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from podyd.node.procs import (
    MAX_HEAD_BYTES,
    MAX_STUCK,
    Process,
    Reader,
    cgroup_in,
    cgroup_of,
    look_up,
)


@pytest.mark.parametrize(
    ("text", "pod"),
    [
        ("0::/lxc.payload.alice-main/system.slice/cron.service\n", "alice-main"),
        ("0::/lxc.payload.podyd_alice-main/init.scope\n", "alice-main"),
        # What LXD has started itself stands at the top; other lines follow.
        ("9:pids:/lxc.payload.podyd_alice-main\n8:memory:/x/y\n", "alice-main"),
        ("0::/lxc.payload.podyd_alice-main (deleted)\n", "alice-main"),
        # A container in a pod, whatever it is called.
        ("0::/lxc.payload.podyd_alice-main/lxc.payload.bob-main/init.scope\n", "alice-main"),
        # podyd itself may be below the pods, or beside them.
        ("0::/../lxc.payload.x\n", "x"),
        ("0::/user.slice/user-0.slice/lxc.payload.x/y\n", "x"),
        ("1:name=systemd:/\n0::/lxc.payload.p_x\n", "x"),
        ("0::/lxc.monitor.p_x\n", ""),
        ("0::/system.slice/ssh.service\n", ""),
        ("", ""),
    ],
)
def test_pod_of_cgroup(text: str, pod: str) -> None:
    cgroup = cgroup_in(text)
    assert (cgroup[1] if cgroup else "") == pod


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"0::/lxc.payload.podyd_alice-main/init.scope\n", ("podyd", "alice-main")),
        (b"0::/lxc.payload.alice-main\n", ("default", "alice-main")),
        (b"3:cpu:/x/lxc.payload.p-1_a/lxc.payload.q_b\n1:pids:/\n", ("p-1", "a")),
        (b"0::/lxc.payload.podyd_alice-main/\xff\n", ("podyd", "alice-main")),
        (b"0::/lxc.monitor.podyd_alice-main\n", None),
    ],
)
def test_project_and_instance(text: bytes, place: tuple[str, str] | None, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_bytes(text)
    assert cgroup_of(7, tmp_path) == place
    assert cgroup_of(8, tmp_path) is None, "it has ended"


def known(pid: int) -> Process | None:
    """What a reader of its own says of a process."""
    return asyncio.run(Reader().processes([pid])).get(pid)


def test_ourselves() -> None:
    process = known(os.getpid())
    assert process is not None
    assert (process.uid, cgroup_of(os.getpid())) == (os.geteuid(), None)
    words = Path("/proc/self/cmdline").read_bytes()[:MAX_HEAD_BYTES]
    assert process.cmd == words.replace(b"\0", b" ").decode().strip()
    assert process.uptime is not None
    assert process.memory_used is not None
    assert 1_000_000 < process.memory_used < 4_000_000_000


def test_uptime_is_since_its_start() -> None:
    began = time.monotonic()
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            process = look_up(child.pid)
            assert process is not None
            assert process.uptime is not None
            assert process.uptime <= time.monotonic() - began + 0.02
        finally:
            child.kill()


def test_a_zombie_is_shown_as_ps_does_and_then_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        process = known(child.pid)
        assert process is not None
        assert (process.cmd, process.memory_used) == ("[sleep] <defunct>", 0)
        child.wait()
        assert known(child.pid) is None


def test_a_long_command_line_is_cut_and_odd_bytes_do_no_harm() -> None:
    words = [b"sh", b"-c", b"read x", b"\xff" + b"x" * 90_000]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as child:
        # For a moment a process that begins has no command line.
        end = time.monotonic() + 10
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
            assert time.monotonic() < end
        process = known(child.pid)
        child.kill()
    assert process is not None
    assert process.cmd.startswith("sh -c read x \ufffdxxx")
    assert len(process.cmd) == MAX_HEAD_BYTES


def test_the_pid_in_the_pod_is_that_of_one_namespace_further_in(tmp_path: Path) -> None:
    # The third number is that of a container in the pod.
    for pid, numbers in ((7, "7"), (8, "8\t21"), (9, "9\t22\t3")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(f"Name:\tx\nNSpid:\t{numbers}\nVmRSS:\t1\n")
    output = asyncio.run(Reader(tmp_path).pids_in_pod([7, 8, 9, 10]))
    assert output == {8: 21, 9: 22}


def test_a_name_with_parentheses(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "60"]) as child:
        try:
            process = look_up(child.pid)
            assert process is not None
            assert process.uid == os.geteuid()
            assert process.uptime is not None
            assert process.uptime < 60
        finally:
            child.kill()


# --- What hangs ---------------------------------------------------------------------------------


class Hanging:
    """A /proc of processes with command lines, some of which cannot be read to their end."""

    def __init__(self, proc: Path, pids: Iterable[int], hanging: Iterable[int]) -> None:
        self.proc = proc
        self._hanging = set(hanging)
        stat = Path("/proc/self/stat").read_text()
        for pid in pids:
            (proc / str(pid)).mkdir()
            (proc / str(pid) / "stat").write_text(stat)
            if pid in self._hanging:
                os.mkfifo(proc / str(pid) / "cmdline")
            else:
                (proc / str(pid) / "cmdline").write_bytes(b"sleep\0%d\0" % pid)

    def release(self) -> None:
        """Let everybody read on who waits, and from now on at once."""
        for pid in self._hanging:
            path = self.proc / str(pid) / "cmdline"
            path.rename(path.with_name("before"))
            path.write_bytes(b"late\0")
            try:
                file = os.open(path.with_name("before"), os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue  # Nobody waits.
            os.close(file)
        wait_for_threads(0)


def wait_for_threads(wanted: int) -> None:
    """Until so many threads read; one that is done takes a moment to end."""
    end = time.monotonic() + 10
    while sum(thread.name == "procs" for thread in threading.enumerate()) != wanted:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _nobody_reads_on() -> Iterator[None]:
    yield
    wait_for_threads(0)


def test_one_that_hangs_delays_nobody_and_is_told_without_its_command_line(tmp_path: Path) -> None:
    pids = range(1000, 1200)
    host = Hanging(tmp_path, pids, [1100])
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    async def whole() -> None:
        reader = Reader(tmp_path, patience=0.5)
        ticking = asyncio.ensure_future(tick())
        first = await reader.processes(pids)
        # The loop goes on while it is waited for.
        assert ticks > 20
        for processes in (first, await reader.processes(pids)):
            assert sorted(processes) == list(pids)
            assert {processes[pid].cmd for pid in pids} == {
                *(f"sleep {pid}" for pid in pids if pid != 1100),
                processes[1100].cmd,
            }
            assert processes[1100].cmd.startswith("["), "as ps shows it"
            assert processes[1100].memory_used
        many = await asyncio.gather(*(reader.processes(pids) for _ in range(20)))
        assert {processes[1100].cmd for processes in many} == {first[1100].cmd}
        wait_for_threads(1)  # Nothing asks again where it hangs.
        host.release()
        await asyncio.sleep(0)
        assert (await reader.processes(pids))[1100].cmd == "late"
        ticking.cancel()

    asyncio.run(whole())


def test_threads_that_hang_are_bounded(tmp_path: Path) -> None:
    pids = range(1000, 1000 + MAX_STUCK + 9)
    host = Hanging(tmp_path, pids, pids)

    async def whole() -> None:
        reader = Reader(tmp_path, patience=0.005)
        for _ in range(3):
            assert sorted(await reader.processes(pids)) == list(pids)
        wait_for_threads(MAX_STUCK)
        host.release()
        await asyncio.sleep(0)
        processes = await Reader(tmp_path).processes(pids)
        assert {process.cmd for process in processes.values()} == {"late"}

    asyncio.run(whole())


def test_who_does_not_wait_any_more_leaves_a_thread_that_ends(tmp_path: Path) -> None:
    host = Hanging(tmp_path, [1000], [1000])

    async def whole() -> None:
        asked = asyncio.ensure_future(Reader(tmp_path, patience=60).processes([1000]))
        await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.wait({asked})
        host.release()

    asyncio.run(whole())
