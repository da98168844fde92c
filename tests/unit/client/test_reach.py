"""How pody reaches into pods: what a relay does, what ssh is told, and what a public key is."""

from __future__ import annotations

import base64
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from podyd.client import hostkeys, publickeys, relay, ssh, usage
from podyd.client.base import Base
from podyd.client.failure import Failure, Usage
from podyd.client.forward import Ports
from podyd.client.relay import Lead
from podyd.client.server import Answer, Server
from podyd.client.stream import STDERR, STDOUT

BLOB = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()
KEY = f"ssh-ed25519 {BLOB}"


def server(stdout: str = "", exit_code: int = 0) -> Server:
    """A podyd where each command has this output."""
    done = {"stdout": stdout, "log": stdout, "exit_code": exit_code}
    fake = SimpleNamespace(
        base=Base.of("https://gpu1.lab:8799/Pods"),
        user="alice",
        post=lambda route, pairs: Answer(b"", done),
    )
    return cast(Server, fake)


# --- Relays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpreter", ["perl", "python3"])
def test_a_relay_leads_both_directions_to_their_ends(interpreter: str, tmp_path: Path) -> None:
    path = shutil.which(interpreter, path="/usr/bin:/bin")
    assert path is not None
    (tmp_path / interpreter).symlink_to(path)
    sent, heard = secrets.token_bytes(300_000), bytearray()

    def serve(listener: socket.socket) -> None:
        near, _ = listener.accept()
        with near:
            near.sendall(b"hello")
            near.shutdown(socket.SHUT_WR)
            while data := near.recv(65536):
                heard.extend(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        serving = threading.Thread(target=serve, args=(listener,))
        serving.start()
        done = run(relay.command(port), sent, tmp_path)
        serving.join()
    assert (done.returncode, done.stdout) == (0, b"hello")
    assert done.stderr == b"podyd-end 5\n"
    assert heard == sent
    assert run(relay.command(port), b"", tmp_path).returncode == relay.NOTHING_LISTENS


def test_a_pod_with_no_interpreter(tmp_path: Path) -> None:
    assert run(relay.command(22), b"", tmp_path).returncode == relay.NO_INTERPRETER


def run(line: str, data: bytes, path: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/bin/bash", "-c", line], input=data, capture_output=True, env={"PATH": str(path)}
    )


def test_the_end_is_told_after_all_that_was_sent_before() -> None:
    done: list[bytes | str] = []
    lead = Lead(lambda: b"", done.append, lambda: done.append("end"))
    lead.write(STDERR, b"perl: warning: Setting locale failed.\npodyd-e")
    lead.write(STDOUT, b"a")
    lead.write(STDERR, b"nd 3\n")
    lead.write(STDOUT, b"bc")
    assert done == [b"a", b"bc", "end"]


@pytest.mark.parametrize(
    ("text", "ports"),
    [("8888", (8888, 8888)), ("80:22", (80, 22)), ("0:22", (0, 22)), ("65535", (65535, 65535))],
)
def test_ports(text: str, ports: tuple[int, int]) -> None:
    assert Ports.of(text) == Ports(*ports)


@pytest.mark.parametrize(
    "text", ["", "0", "x", "1:0", "65536", "65536:1", "1:2:3", "-1", "²", "1 "]
)
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(Usage, match="LOCAL:PORT"):
        Ports.of(text)


# --- Host keys ----------------------------------------------------------------------------------


def test_only_keys_get_into_known_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    lines = f"{KEY} root@x\n@cert-authority * {KEY}\nevil {KEY}\nssh-rsa ????\n"
    alias = hostkeys.keep(server(lines), "first")
    path = hostkeys.path_of(alias)
    assert path.read_text() == f"{alias} {KEY}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Failure, match="no ssh host keys"):
        hostkeys.keep(server("cat: no such file"), "first")
    with pytest.raises(Failure, match="openssh-server"):
        hostkeys.keep(server(exit_code=3), "first")


def test_every_pod_has_a_name_of_its_own() -> None:
    names = {hostkeys.alias(server(), ins) for ins in ("a", "A", "a-b", "a_b")}
    assert len(names) == 4
    assert all(name.startswith("podyd-gpu1.lab-8799-pods-alice-a") for name in names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for name in names)


# --- What ssh is told ---------------------------------------------------------------------------


def test_words_come_through_a_shell_as_they_are() -> None:
    words = ["/home/a b/it's $(x)/pody", "100%", "--server", "https://gpu1.lab:8799"]
    line = ssh.command_line(words, is_windows=False)
    assert shlex.split(line.replace("%%", "%")) == words
    windows = ssh.command_line([r"C:\Program Files\pody.exe", "forward"], is_windows=True)
    assert windows == r'"C:\Program Files\pody.exe" forward'
    with pytest.raises(Usage, match="not printable"):
        ssh.command_line(["/home/a\nProxyCommand x/pody"], is_windows=False)


@pytest.mark.parametrize("directory", ['/a"b', "/a\\b", "/${HOME}", "/a\nb"])
def test_places_that_ssh_cannot_be_told_of(
    directory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", [str(program(tmp_path))])
    monkeypatch.setenv("XDG_CONFIG_HOME", directory)
    with pytest.raises(Usage, match="ssh cannot use"):
        ssh.config(server(), ["first"], None)


def program(directory: Path) -> Path:
    path = directory / "pody"
    path.touch(0o755)
    return path


def test_a_block_for_each_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = program(tmp_path)
    monkeypatch.setattr("sys.argv", [str(own)])
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/a 1%")
    text = ssh.config(server(), ["first", "second"], "/etc/lab ca.pem")
    alias = hostkeys.alias(server(), "first")
    assert text.partition("\n\n")[0].splitlines() == [
        "Host pod-first",
        f"    ProxyCommand {own} forward first 22 --stdio --host-keys --server"
        " https://gpu1.lab:8799/Pods --user alice --cacert '/etc/lab ca.pem'",
        f"    HostKeyAlias {alias}",
        f'    UserKnownHostsFile "/home/a 1%%/pody/known_hosts/{alias}"',
        "    StrictHostKeyChecking yes",
        "    User root",
    ]
    assert text.count("Host pod-") == 2


@pytest.mark.parametrize("before", [b"", b"Host *\n  User x\n", b"\xff\r\n"])
def test_what_is_in_ssh_config_stays(
    before: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    kept = tmp_path / "dotfiles"
    config = tmp_path / ".ssh" / "config"
    if before:
        config.parent.mkdir()
        kept.write_bytes(before)
        kept.chmod(0o640)
        config.symlink_to(kept)
    for text in ("Host pod-a\n", "Host pod-b\n"):
        path = ssh.write(server(), text)
        assert path.read_text() == text
    written = config.read_bytes()
    assert written.count(b"\nInclude pody.d/*.conf\n") == 1
    assert written.endswith(b"\n" + before)
    assert config.stat().st_mode & 0o777 == (0o640 if before else 0o600)
    assert config.is_symlink() == bool(before)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.rglob(".*.conf")), "no draft is left"


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    with pytest.raises(Failure, match="missing"):
        ssh.write(server(), "")


# --- Public keys --------------------------------------------------------------------------------


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    return tmp_path / ".ssh"


def test_the_key_that_ssh_offers_first(home: Path) -> None:
    with pytest.raises(Usage, match="ssh-keygen -t ed25519"):
        publickeys.choose(None)
    (home / "github.pub").write_text(f"{KEY} other\n")
    (home / "id_rsa.pub").write_text(f"{KEY} old\n")
    assert publickeys.choose(None).comment == "old"
    (home / "id_ed25519.pub").write_text(f"# mine\n{KEY} a 'b' \x1b[2J\n")
    chosen = publickeys.choose(None)
    assert (chosen.bare, chosen.comment) == (KEY, "a 'b' [2J")
    assert publickeys.choose(str(home / "github.pub")).comment == "other"


def test_the_key_of_the_agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = home / "ssh-add"
    tool.write_text(f"#!/bin/sh\necho ssh-dss AAAA; echo '{KEY} agent'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    chosen = publickeys.choose(None)
    assert (str(chosen), chosen.source) == (f"{KEY} agent", "the ssh agent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n", "private key"),
        ("", "not a public ssh key"),
        (f"{KEY}\n{KEY}\n", "not a public ssh key"),
        (f"ssh-rsa {BLOB}", "not a public ssh key"),
        (f'command="x" {KEY}', "not a public ssh key"),
        ("ssh-ed25519 AAAA", "not a public ssh key"),
        ("ssh-ed25519 AAA=A", "not a public ssh key"),
        ("\0" * 100_000, "not a public ssh key"),
    ],
)
def test_what_is_no_public_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(Usage, match=message):
        publickeys.choose(str(path))


def test_a_key_that_cannot_be_put_there() -> None:
    key = publickeys.PublicKey("ssh-ed25519", BLOB, "", "x")
    with pytest.raises(Failure, match="No space left"):
        publickeys.copy(server("bash: No space left on device", 1), "first", key)


# --- Usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "lines"),
    [
        ({}, ["user  time"]),
        ({"a": 0}, ["user  time", "a     0 s"]),
        ({"a": 1, "汉": 30}, ["user  time", f"汉    30 s  {'█' * 30}", "a     1 s   █"]),
    ],
)
def test_bars(seconds: dict[str, Any], lines: list[str]) -> None:
    assert usage.chart(seconds) == lines
