"""The client of the older pody, exactly as PyPI has it (0.4.1), pointed at podyd."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.harness import (
    IMAGE,
    PASSWORD,
    ROOT,
    Client,
    wait_until,
)
from tests.integration.test_client import Done

PROGRAMS = ROOT / ".pody04" / "bin"


@dataclass(frozen=True)
class Old:
    """Its programs, with the environment of one user."""

    base: str
    user: str
    home: Path
    password: str = PASSWORD
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, stdin: str = "", program: str = "pody") -> Done:
        done = subprocess.run(
            [str(PROGRAMS / program), *words],
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(self.home),
                "LC_ALL": "C.UTF-8",
                "COLUMNS": "200",
                "PODY_API_BASE": self.base,
                "PODY_USERNAME": self.user,
                "PODY_PASSWORD": self.password,
                **self.environment,
            },
            input=stdin,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def raw(self, *words: str, stdin: str = "") -> object:
        """What podyd answered."""
        return json.loads(self(*words, "--raw", stdin=stdin).ok)


@pytest.fixture(scope="module")
def old(alice: Client, tmp_path_factory: pytest.TempPathFactory) -> Old:
    assert PROGRAMS.is_dir(), "'sudo make test' puts it there"
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    file = str(home / ".ssh" / "id_ed25519")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
    return Old(f"http://127.0.0.1:{alice.port}", alice.user, home)


# --- Calls --------------------------------------------------------------------------------------


def test_it_is_the_one_of_pypi(old: Old) -> None:
    assert "Client version: 0.4.1\nServer version: 0.1.0\n" in old("version").ok


def test_get_post_and_fetch(old: Old, alice: Client, pod: str) -> None:
    info = alice.get("/user/info").ok
    assert old.raw("get", "user/info") == info
    assert old.raw("fetch", "/user/info") == info
    assert f"'name': '{alice.user}'" in old("get", "user/info").ok
    assert pod in json.loads(old("pod/list", "--raw", program="podx").ok)
    assert IMAGE in old("fetch", "host/images").ok
    assert old.raw("fetch", "image/list") == alice.get("/image/list").ok
    inspected = old.raw("get", "pod/inspect", f"ins:{pod}")
    assert isinstance(inspected, dict)
    assert inspected.keys() == alice.get("/pod/info", ins=pod).ok.keys()
    # It shows bytes and seconds of its own accord.
    assert "uptime" in old("get", "pod/inspect", f"ins={pod}").ok
    started = old.raw("post", "/pod/start", f"ins:{pod}")
    assert started == {"log": f"Pod {pod} is running already."}


def test_a_pods_life(new_user: Callable[[], Client], old: Old, ins: str) -> None:
    mine = dataclasses.replace(old, user=new_user().user)
    made = mine.raw("fetch", "pod/create", f"ins:{ins}", f"image:{IMAGE}")
    assert isinstance(made, dict)
    assert (made["ins"], made["owner"]) == (ins, mine.user)
    done = mine.raw("fetch", "pod/exec", f"ins:{ins}", "cmd:", stdin="echo a:b=c >&2; exit 3\n")
    assert isinstance(done, dict)
    assert (done["exit_code"], done["log"]) == (3, "a:b=c\n")
    assert "time" in str(mine.raw("fetch", "pod/exec", f"ins:{ins}", "cmd:sleep 9", "timeout:0.2"))
    assert f"Pod {ins} has stopped" in mine("fetch", "pod/stop", f"ins:{ins}").ok
    assert "deleted" in mine("fetch", "pod/delete", f"ins:{ins}").ok
    assert mine.raw("fetch", "pod/list") == []


def test_a_new_password(new_user: Callable[[], Client], old: Old) -> None:
    mine = dataclasses.replace(old, user=new_user().user)
    mine("fetch", "user/ch-passwd", "passwd:", stdin="Next-Horse:8\n").ok
    assert "password" in mine("fetch", "user/info").out
    dataclasses.replace(mine, password="Next-Horse:8")("fetch", "user/info").ok


def test_every_route_has_one_method(old: Old, alice: Client) -> None:
    routes = alice.get("/help").ok
    shown = old("help").ok
    for route in routes:
        assert len(route["methods"]) == 1, route
        assert alice.get("/help", path=route["path"]).ok == [route]
        assert f" {route['path']} " in shown
    below = old("help", "pod/").ok
    assert "/pod/exec-stream" in below
    assert "/host/images" not in below
    assert below == old("fetch", "pod/").ok
    assert "timeout?" in old("help", "pod/exec").ok


# --- Refusals -----------------------------------------------------------------------------------


def test_what_is_refused(old: Old, pod: str) -> None:
    wrong = dataclasses.replace(old, password="wrong")
    cases: list[tuple[Old, tuple[str, ...], int, str]] = [
        (wrong, ("get", "user/info"), 401, "password"),
        (old, ("fetch", "pod/lst"), 404, "There is no route '/pod/lst'"),
        (old, ("get", "pod/info", "ins:none"), 404, "You have no pod 'none'"),
        (old, ("get", "pod/info"), 400, "'ins' is missing"),
        (old, ("get", "pod/listall"), 403, "admins"),
        (old, ("get", "pod/create", "ins:x", "image:y"), 405, "POST"),
        (old, ("fetch", "pod/shell", f"ins:{pod}"), 426, "WebSocket"),
    ]
    for client, words, status, output in cases:
        raw = client(*words, "--raw")
        error = json.loads(raw.out)
        assert (raw.status, error["error_code"]) == (1, status), error
        assert output in error["message"], error
    plain = old("fetch", "pod/shell", f"ins:{pod}")
    assert (plain.status, plain.err) == (1, "")
    assert plain.out.startswith("Error - /pod/shell is a WebSocket.")


# --- ssh ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reachable(alice: Client, pod: str) -> int:
    """The port of this machine that leads to the pod's sshd."""
    mapped = alice.get("/pod/info", ins=pod).ok["port_mapping"]
    port = next(int(pair[:-3]) for pair in mapped if pair.endswith(":22"))

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as item:
            return item.recv(4) == b"SSH-"
        return False

    wait_until(answers, "sshd in the pod", 30)
    return port


def test_connect_runs_ssh(old: Old, reachable: int, pod: str, tmp_path: Path) -> None:
    stand_in = tmp_path / "ssh"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    calling = dataclasses.replace(old, environment={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    key = str(old.home / ".ssh" / "id_ed25519")
    words = ["-i", key, "root@127.0.0.1", "-p", str(reachable)]
    assert calling("connect", pod).ok.splitlines()[-5:] == words
    missing = calling("connect", pod, "--port", "23")
    assert missing.status == 1
    assert "port mapping" in missing.out


@pytest.mark.usefixtures("reachable")
def test_its_key_opens_the_pod(old: Old, pod: str) -> None:
    old("copy-id", f"ins:{pod}").ok
    done = old("connect", "--tmp", pod, stdin="id -un; exit 5\n")
    assert done.status == 5
    assert done.out.splitlines()[-1] == "root"


# --- Usage --------------------------------------------------------------------------------------


def test_stat(old: Old) -> None:
    for what in ("cputime", "gputime"):
        assert f"{what} statistics" in old("stat", what, "1w").ok
    assert old("stat", "cputime", "soon").status == 1
