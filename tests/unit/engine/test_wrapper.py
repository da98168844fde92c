"""How the end of a command is told from its output."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from podyd.engine import wrapper
from podyd.engine.wrapper import MarkedStream


def test_what_is_held_is_given_once() -> None:
    marked = MarkedStream("n")
    assert marked.feed(b"a\0") == b"a"
    assert marked.is_holding
    assert marked.rest() == b"\0"
    assert not marked.is_holding
    assert marked.rest() == b""
    assert marked.feed(b"b\0") == b"b"
    assert marked.rest() == b"\0"


def test_a_mark_that_comes_late_is_one_all_the_same() -> None:
    marked = MarkedStream("n")
    assert marked.feed(b"a\0pod") == b"a"
    assert marked.rest() == b"\0pod"
    assert marked.feed(b"yd-n:3") == b""
    assert marked.feed(b";") == b""
    assert marked.exit_code == 3


def fed(marked: MarkedStream, *pieces: bytes) -> bytes:
    return b"".join(marked.feed(piece) for piece in pieces)


MARK = b"\0podyd-n:"


@pytest.mark.parametrize("forged", [MARK, MARK + b"12", MARK + b"1234", MARK + b"x7;", MARK + b";"])
def test_what_only_begins_like_the_mark_is_output(forged: bytes) -> None:
    marked = MarkedStream("n")
    more = b"x" * 100_000
    assert fed(marked, forged, more, more) == forged + more + more
    assert not marked.is_holding
    assert fed(marked, MARK + b"3;") == b""
    assert marked.exit_code == 3


def test_no_more_is_held_than_the_mark_is_long() -> None:
    marked = MarkedStream("n")
    came = (MARK + b"123" + MARK[:-1] + b"\0\0") * 50
    given = b""
    for number in range(len(came)):
        given += marked.feed(came[number : number + 1])
        assert len(came[: number + 1]) - len(given) <= len(MARK) + 20
    assert given + marked.rest() == came


def test_the_mark_behind_forged_ones_is_found() -> None:
    marked = MarkedStream("n")
    assert fed(marked, MARK + MARK + b"1", MARK, b"4", b"2;behind") == MARK + MARK + b"1"
    assert marked.exit_code == 42


# --- Killed for memory ----------------------------------------------------------------------------

# Where the kernel counts: in the command's own box, in the pod as a whole, with cgroup v1.
COUNTERS = ("podyd-n/memory.events", "memory.events", "memory/init.scope/memory.oom_control")
EVENTS = "oom 7\noom_kill {}\noom_group_kill 9\n"


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """What a pod has of cgroups, as files; and a mkdir that makes a box with its files."""
    (tmp_path / "bin").mkdir()
    mkdir = tmp_path / "bin/mkdir"
    mkdir.write_text(
        f"#!/bin/sh\n/bin/mkdir $1\n[ ! -e {tmp_path}/box ] || cp {tmp_path}/box/* $1\n"
    )
    mkdir.chmod(0o755)
    (tmp_path / "cgroup/memory/init.scope").mkdir(parents=True)
    (tmp_path / "self").write_text("4:pids:/\n0::/podyd-n\n")
    return tmp_path


def script_in(pod: Path) -> str:
    script = wrapper._RUN.replace("/sys/fs/cgroup", f"{pod}/cgroup")
    return script.replace("/proc/self/cgroup", f"{pod}/self")


def run(pod: Path, command: str) -> int:
    """Run a command as in a pod; the code in its mark."""
    done = subprocess.run(
        ["/bin/sh", "-c", script_in(pod), "podyd", "n", "/bin/sh", "-c", command],
        env={"PATH": f"{pod}/bin:{os.environ['PATH']}"},
        cwd=pod / "cgroup",
        capture_output=True,
        check=False,
    )
    marked = MarkedStream("n")
    marked.feed(done.stdout)
    assert marked.exit_code is not None, done
    return marked.exit_code


@pytest.mark.parametrize("counter", COUNTERS)
def test_what_the_kernel_has_killed_for_memory_is_counted(pod: Path, counter: str) -> None:
    before = 0 if "podyd" in counter else 3
    place = pod / "box/memory.events" if "podyd" in counter else pod / "cgroup" / counter
    place.parent.mkdir(exist_ok=True)
    place.write_text(EVENTS.format(before))
    if "oom_control" in counter:
        (pod / "self").write_text("4:pids:/\n3:memory:/init.scope\n0::/podyd-n\n")
    write = f"echo '{EVENTS}' >{counter}; exit 5"
    assert run(pod, write.format(before)) == 5
    # The box is another one for each command.
    subprocess.run(["rm", "-rf", str(pod / "cgroup/podyd-n")], check=True)
    assert run(pod, write.format(before + 1)) == 5 + wrapper.OOM_KILLED


def test_where_nothing_is_counted_nothing_is_said(pod: Path) -> None:
    assert run(pod, "exit 5") == 5


# --- A stream that is full ------------------------------------------------------------------------

# What many programs do to the pipe of their stdout, which is their parent's too.
FILL = """import os
os.set_blocking(1, False)
try:
    while True:
        os.write(1, bytes(4096))
except BlockingIOError:
    pass
"""


@pytest.mark.parametrize("shell", [["/bin/sh"], ["bash"], ["busybox", "sh"]])
def test_the_mark_waits_for_room_in_a_stream_that_does_not_block(
    pod: Path, shell: list[str]
) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]}")
    words = ["-c", script_in(pod), "podyd", "n", sys.executable, "-c", FILL]
    # The fixture's box is made of files, in which nobody can be put.
    words[1] = words[1].replace("mkdir $box", "false")
    with subprocess.Popen(
        [*shell, *words], cwd=pod / "cgroup", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        # Nobody reads before the command has ended.
        assert not select.select([started.stderr], [], [], 0.5)[0]
        marked = {item: MarkedStream("n") for item in (started.stdout, started.stderr)}
        for stream, its in marked.items():
            its.feed(stream.read())
    assert {its.exit_code for its in marked.values()} == {0}
