"""What /proc says of a process."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from podyd.procs import MAX_CMD_BYTES, look_up, payload_in, payload_of


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
    payload = payload_in(text)
    assert (payload[1] if payload else "") == pod


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
    assert payload_of(7, tmp_path) == place
    assert payload_of(8, tmp_path) is None, "it has ended"


def test_ourselves() -> None:
    process = look_up(os.getpid())
    assert process is not None
    assert (process.uid, process.payload) == (os.geteuid(), None)
    words = Path("/proc/self/cmdline").read_bytes()[:MAX_CMD_BYTES]
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
        process = look_up(child.pid)
        assert process is not None
        assert (process.cmd, process.memory_used) == ("[sleep] <defunct>", 0)
        child.wait()
        assert look_up(child.pid) is None


def test_a_long_command_line_is_cut_and_odd_bytes_do_no_harm() -> None:
    words = [b"sh", b"-c", b"read x", b"\xff" + b"x" * 90_000]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as child:
        # For a moment a process that begins has no command line.
        end = time.monotonic() + 10
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
            assert time.monotonic() < end
        process = look_up(child.pid)
        child.kill()
    assert process is not None
    assert process.cmd.startswith("sh -c read x \ufffdxxx")
    assert len(process.cmd) == MAX_CMD_BYTES


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
