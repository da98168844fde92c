"""`pody exec`, `pody shell` and the words of daily life, as members type them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.harness import IMAGE, ROOT, SMALL, Client, Node, started, wait_until
from tests.integration.test_client import Pody, Terminal, as_user, completed

MEGABYTE = 1024**2


@pytest.fixture(scope="module")
def pody(alice: Client) -> Pody:
    return as_user(alice)


@pytest.fixture(scope="module", autouse=True)
def silent(pody: Pody, pod: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that says nothing for longer than podyd waits with a ping, beside the tests."""
    words = [*pody.command, "exec", pod, "--", "sleep 22; echo done"]
    with subprocess.Popen(
        words, env=pody.whole_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


# --- exec ---------------------------------------------------------------------------------------


def test_exec_has_both_streams_and_the_exit_status(pody: Pody, pod: str) -> None:
    done = pody("exec", pod, "--", "echo out; echo err >&2; exit 3")
    assert (done.status, done.out, done.err) == (3, "out\n", "err\n")


def test_several_words_are_a_command_as_it_is(pody: Pody, pod: str) -> None:
    assert pody("exec", pod, "--", "printf", "%s|", "a b", "$HOME", "--", "-x").ok == (
        "a b|$HOME|--|-x|"
    )
    assert pody("exec", pod, "id", "--", "-un").ok == "root\n"
    assert pody("exec", pod, "hostname").ok.strip()


def test_exec_passes_a_pipe_on(pody: Pody, pod: str) -> None:
    data = "grüß\n" * 200_000
    assert pody("exec", pod, "--", "cat", stdin=data.encode()).ok == data
    assert pody("exec", pod, "--", "head -c 4", stdin=data.encode()).ok == "grü"


def test_exec_ends_when_time_is_up(pody: Pody, pod: str) -> None:
    assert pody("exec", pod, "--timeout", "0.5", "--", "sleep 97101").status == 124
    assert started("sleep 97101") == 0


@contextlib.contextmanager
def running(pody: Pody, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Pody, beside the test."""
    with subprocess.Popen(
        [*pody.command, *words],
        env=pody.whole_environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_ends_the_command_in_the_pod(pody: Pody, pod: str) -> None:
    with running(pody, "exec", pod, "--", "sleep 97102; echo not so") as process:
        wait_until(lambda: started("sleep 97102") == 1, "the command")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == (b"", b"")
        assert process.returncode == 130
    wait_until(lambda: started("sleep 97102") == 0, "its end")


def test_a_second_ctrl_c_ends_what_ignores_the_first(pody: Pody, pod: str) -> None:
    command = "trap 'echo heard' INT; setsid sleep 97103 & while :; do sleep 0.1; done"
    with running(pody, "exec", pod, "--", command) as process:
        wait_until(lambda: started("sleep 97103") == 1, "the command")
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == b"heard\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    wait_until(lambda: started("sleep 97103") == 0, "the end of all")


def test_a_client_that_is_killed_leaves_nothing(pody: Pody, pod: str) -> None:
    with running(pody, "exec", pod, "--", "setsid sleep 97104 & sleep 97104") as process:
        wait_until(lambda: started("sleep 97104") == 2, "the command")
        process.kill()
    wait_until(lambda: started("sleep 97104") == 0, "its end")


def test_a_slow_reader_gets_all_of_it(pody: Pody, pod: str) -> None:
    with running(pody, "exec", pod, "--", f"head -c {30 * MEGABYTE} /dev/zero") as process:
        time.sleep(1)
        assert process.stdout is not None
        assert len(process.stdout.read()) == 30 * MEGABYTE
        assert process.wait(10) == 0


def test_what_is_refused_before_it_begins(pody: Pody, pod: str) -> None:
    assert "no pod 'none'" in pody("exec", "none", "--", "true").failed(255)
    assert "POD -- COMMAND" in pody("exec", pod).failed(255)
    wrong = Pody(pody.base, pody.user, "wrong")
    assert "wrong" in wrong("exec", pod, "--", "true").failed(255)
    away = Pody("http://127.0.0.1:9", pody.user)
    assert "refused" in away("exec", pod, "--", "true").failed(255)


def test_no_proxy_is_asked(alice: Client, pod: str) -> None:
    proxied = as_user(alice, http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    assert proxied("exec", pod, "--", "echo here").ok == "here\n"


# --- shell --------------------------------------------------------------------------------------


def resize(terminal: Terminal, rows: int, cols: int) -> None:
    size = struct.pack("HHHH", rows, cols, 0, 0)
    fcntl.ioctl(terminal._descriptor, termios.TIOCSWINSZ, size)
    os.kill(terminal._process.pid, signal.SIGWINCH)


def test_a_shell_at_a_terminal(pody: Pody, pod: str) -> None:
    with pody.at_terminal("shell", pod) as terminal:
        before = termios.tcgetattr(terminal._descriptor)
        terminal.wait_for("#")
        resize(terminal, 41, 123)
        terminal.type("sleep 0.3; stty size\r")
        terminal.wait_for("41 123\n")
        terminal.type("sleep 97110\r")
        wait_until(lambda: started("sleep 97110") == 1, "the command")
        terminal.type("\3")
        terminal.type("echo status=$?\r")
        terminal.wait_for("status=130")
        terminal.type("top -d 1\r")
        terminal.wait_for("load average")
        # As it ends, top drops what was typed before.
        terminal.type("q")
        time.sleep(0.5)
        terminal.type("exit 5\r")
        assert terminal.end() == 5
        assert before[3] & termios.ECHO


def test_the_terminal_is_as_it_was(pody: Pody, pod: str) -> None:
    call = shlex.join([*pody.command, "shell", pod])
    script = f"{call}; echo status=$?; stty -a | tr ' ' '\\n' | grep -x -e echo -e icanon"
    for kill in (False, True):
        wrapped = Script(pody.base, pody.user, script=script)
        with wrapped.at_terminal() as terminal:
            terminal.wait_for("#")
            if kill:
                (pid,) = pids_of_shells(pod)
                os.kill(pid, signal.SIGTERM)
            else:
                terminal.type("exit 6\r")
            terminal.wait_for("status=143" if kill else "status=6")
            terminal.wait_for("icanon\necho\n")
            terminal.end()


class Script(Pody):
    """A line of sh instead of pody alone."""

    @property
    def command(self) -> list[str]:
        return ["sh", "-c", self.script]


def pids_of_shells(pod: str) -> list[int]:
    done = subprocess.run(
        ["pgrep", "-f", f"^[^ ]*python[^ ]* -c import sys.* shell {pod}$"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(word) for word in done.stdout.split()]


def test_another_command_at_a_terminal(pody: Pody, pod: str) -> None:
    with pody.at_terminal("shell", pod, "--", "tty", "&&", "true") as terminal:
        assert terminal.end() != 0, "several words are no line for bash"
    assert "/dev/pts/" in pody.shown("shell", pod, "--", "tty")


def test_a_shell_needs_a_terminal(pody: Pody, pod: str) -> None:
    assert "needs a terminal" in pody("shell", pod).failed(255)
    assert "needs a terminal" in pody("top").failed(2)


# --- Words --------------------------------------------------------------------------------------


def test_a_pods_life_in_words(new_user: Callable[[], Client], ins: str) -> None:
    pody = as_user(new_user())
    made = json.loads(pody("new", ins, "--image", IMAGE).ok)
    assert (made["ins"], made["status"]) == (ins, "running")
    assert [row["ins"] for row in json.loads(pody("ls").ok)] == [ins]
    shown = pody.shown("ls")
    expected = ["pod", "status", "image", "disk", "GPUs", "address"]
    assert shown.splitlines()[0].split() == expected
    assert shown.splitlines()[1].split()[:3] == [ins, "running", IMAGE]
    assert "is running" in json.loads(pody("restart", ins).ok)["log"]
    assert "stopped" in json.loads(pody("stop", ins).ok)["log"]
    assert "running" in json.loads(pody("start", ins).ok)["log"]
    assert json.loads(pody("info", ins).ok)["owner"] == pody.user
    assert "--yes" in pody("rm", ins).failed(2)
    with pody.at_terminal("rm", ins) as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("n\r")
        assert terminal.end() == 2
    with pody.at_terminal("rm", ins) as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("y\r")
        assert terminal.end() == 0
    assert json.loads(pody("ls").ok) == []
    assert "no pod" in pody("rm", ins, "--yes").failed(1)


@pytest.fixture
def member(new_user: Callable[[], Client]) -> Iterator[Pody]:
    """A member whose pods and images go in the end."""
    client = new_user()
    yield as_user(client)
    for name in client.get("/pod/list").ok:
        client.post("/pod/delete", ins=name).ok
    for name in client.get("/host/images").ok:
        if name.startswith(client.user):
            client.post("/image/delete", image=name).ok


@pytest.fixture
def own(member: Pody, ins: str) -> Pody:
    """A member with one pod, which is small."""
    member("new", ins, "--image", SMALL).ok
    return member


def test_snapshots_and_copies_in_words(own: Pody, ins: str) -> None:
    assert json.loads(own("snapshot", ins, "before").ok)["name"] == "before"
    timed = json.loads(own("snapshot", ins).ok)["name"]
    assert [row["name"] for row in json.loads(own("snapshots", ins).ok)] == ["before", timed]
    title, first, *_ = own.shown("snapshots", ins).splitlines()
    assert title.split() == ["name", "created", "size"]
    assert first.split()[0] == "before"
    own("snapshot-rm", ins, timed, "--yes").ok
    assert "no snapshot" in own("restore", ins, timed, "--yes").failed(1)

    own("exec", ins, "--", "echo new > /root/file; sync").ok
    for word in ("restore", "snapshot-rm"):
        assert "--yes" in own(word, ins, "before").failed(2)
        with own.at_terminal(word, ins, "before") as terminal:
            terminal.wait_for("'before'")
            terminal.type("n\r")
            assert terminal.end() == 2
    made = json.loads(own("copy", f"{ins}/before", "then", "--gpus", "none").ok)
    assert (made["ins"], made["status"], made["gpu_ids"]) == ("then", "running", [])
    assert own("exec", "then", "--", "ls /root").ok == ""
    assert "'snapshot'" in own("copy", f"{ins}/", "now").failed(1)
    own("copy", ins, "now").ok
    assert own("exec", "now", "--", "ls /root").ok == "file\n"
    with own.at_terminal("restore", ins, "before") as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("y\r")
        assert terminal.end() == 0
        assert f"Restoring pod {ins} … " in terminal.text
    assert own("exec", ins, "--", "ls /root").ok == ""
    for line in (f"pody restore {ins} bef", f"pody snapshot-rm {ins} b"):
        assert completed(own, line) == "before"


def test_commit_shows_how_far_it_is(own: Pody, ins: str) -> None:
    own("exec", ins, "--", f"head -c {300 * MEGABYTE} /dev/urandom > /root/file; sync").ok
    with own.at_terminal("commit", ins, "torch", "-m", "with torch") as terminal:
        # LXD may make another image first.
        terminal.wait_for("image_name: ", limit=180)
        assert terminal.end() == 0
        match = re.findall(r"\[KMaking image torch of pod \S+ … (.*?)\r", terminal.text)
    packing = re.compile(r"packing \d+ % \([\d.]+ [KMG]?i?B/s\), \d+ s")
    assert any(packing.fullmatch(line) for line in match), match
    name = f"{own.user}-torch"
    assert f"image_name: {name}" in terminal.text
    about = json.loads(own("get", "image/inspect", f"image:{name}").ok)
    assert about["description"] == "with torch"
    # No terminal, no progress.
    assert own("commit", ins, "torch").err == ""


def test_ports_in_words(member: Pody, ins: str) -> None:
    own = member
    own("new", ins, "--image", IMAGE).ok

    def rows(*words: str) -> dict[int, tuple[str | None, int | None]]:
        data = json.loads(own("ports", ins, *words).ok)
        return {row["port"]: (row["address"], row["host_port"]) for row in data}

    (ssh,) = json.loads(own("info", ins).ok)["port_mapping"]
    host = int(ssh.partition(":")[0])
    made = json.loads(own("port", ins, "8888").ok)
    added = {
        inner: int(port) for port, _, inner in (w.partition(":") for w in made["port_mapping"])
    }
    wait_until(lambda: rows().get(22, ("", 0))[0] is not None, "sshd")
    assert rows()[22][1] == host
    assert rows()[8888] == (None, added["8888"])
    shown = own.shown("ports", ins)
    assert shown.splitlines()[0].split() == ["port", "protocol", "address", "host_port"]
    assert ["8888", "tcp", "-", str(added["8888"])] in [line.split() for line in shown.splitlines()]
    assert f"pody forward {ins} PORT" in shown
    assert completed(own, f"pody port {ins} 2") == "22"
    own("stop", ins).ok
    assert rows("--raw") == {22: (None, host), 8888: (None, added["8888"])}
    own("port-rm", ins, "8888").ok
    assert list(rows()) == [22]
    assert "port 8888" in own("port-rm", ins, "8888").failed(1)


def test_new_shows_for_how_long_it_waits(new_user: Callable[[], Client], ins: str) -> None:
    pody = as_user(new_user())
    # One that boots takes longer than nothing is shown for.
    assert f"Making pod {ins}" in pody.shown("new", ins, "--image", IMAGE)
    pody("rm", ins, "--yes").ok


def test_which_image_is_asked_if_there_are_several(node: Node, pody: Pody, ins: str) -> None:
    message = pody("new", ins).failed(2)
    assert IMAGE in message
    assert SMALL in message
    server = node.serve({"images": {"offer": [SMALL]}})
    one = as_user(server.client(pody.user))
    assert json.loads(one("new", ins).ok)["image"] == SMALL
    one("rm", ins, "--yes").ok
    assert server.stop() == 0


def test_everybodys_pods(admin: Client, pody: Pody, pod: str) -> None:
    assert pod in [row["ins"] for row in json.loads(as_user(admin)("ls", "-a").ok)]
    assert "admins" in pody("ls", "-a").failed(1)


@pytest.mark.parametrize(("word", "route"), [("gpus", "host/gpus"), ("ps", "host/gpu-ps")])
def test_gpus_and_their_processes(pody: Pody, word: str, route: str) -> None:
    plain, called = pody(word), pody("get", route)
    assert (plain.status, plain.out) == (called.status, called.out)


def test_images(pody: Pody) -> None:
    assert IMAGE in json.loads(pody("images").ok)


def test_top_is_live_and_ends_with_q(gpu_server: object, alice: Client) -> None:
    port = gpu_server.port  # type: ignore[attr-defined]
    pody = Pody(f"http://127.0.0.1:{port}", alice.user)
    with pody.at_terminal("top") as terminal:
        for pictures in (1, 2):
            terminal.wait_for("q: end", times=pictures)
        terminal.wait_for("utilisation")
        terminal.type("q")
        assert terminal.end() == 0
    with pody.at_terminal("top") as terminal:
        terminal.wait_for("q: end")
        terminal.type("\3")
        assert terminal.end() == 130


# --- At last ------------------------------------------------------------------------------------


def test_a_command_may_say_nothing_for_long(silent: subprocess.Popen[bytes]) -> None:
    assert silent.communicate(timeout=60) == (b"done\n", b"")
    assert silent.returncode == 0
