"""Which engine setup takes, by stand-ins for both that say what they have."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from podyd.admin.setup import choose, keep_choice, reach
from podyd.base.errors import SetupError
from podyd.config.schema import Config
from podyd.engine.dialect import CHOICE, DIALECTS, INCUS, LXD, Dialect


class StandIn(socketserver.ThreadingUnixStreamServer):
    """Has projects and instances, of which `choose` needs the names alone."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory / "unix.socket"), Handler)
        self.projects = ["default"]
        self.instances: list[str] = []
        # Those of podyd's project.
        self.pods: list[str] = []
        self.is_well = True


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: there is no use for it."""

    def do_GET(self) -> None:
        answers: dict[str, object] = {
            "/1.0": {"auth": "trusted", "api_extensions": ["projects"], "environment": {}},
            "/1.0/projects": [{"name": name, "config": {}} for name in self.server.projects],
            "/1.0/instances": [f"/1.0/instances/{name}" for name in self._instances()],
        }
        answer = {"type": "sync", "metadata": answers[self.path.partition("?")[0]]}
        data = json.dumps(answer).encode()
        self.send_response(200 if self.server.is_well else 500)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _instances(self) -> list[str]:
        is_project = "project=podyd" in self.path
        return self.server.pods + ([] if is_project else self.server.instances)


class Host:
    """Both engines are installed; `said` is what setup tells the admin."""

    def __init__(self, directory: Path, held: ExitStack) -> None:
        self._directory = directory
        self.said: list[str] = []
        self.engines: dict[Dialect, StandIn] = {}
        for dialect in DIALECTS:
            (directory / dialect.key).mkdir()
            server = held.enter_context(StandIn(directory / dialect.key))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            held.callback(thread.join)
            held.callback(server.shutdown)
            self.engines[dialect] = server

    def without(self, dialect: Dialect) -> None:
        """As if it were not there."""
        (self._directory / dialect.key / "unix.socket").unlink()

    def kill(self, dialect: Dialect) -> None:
        """Its socket stays, and refuses."""
        self.without(dialect)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self._directory / dialect.key / "unix.socket"))

    def choose(self, engine: str = "auto") -> Dialect:
        state = self._directory / "state"
        return choose(Config(engine=engine, state_dir=str(state)), self.said.append)

    def keep(self, dialect: Dialect) -> None:
        """It was chosen before."""
        (self._directory / "state").mkdir()
        (self._directory / "state" / CHOICE).write_text(f"{dialect.key}\n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    for dialect in DIALECTS:
        monkeypatch.setenv(dialect.directory_variable, str(tmp_path / dialect.key))
    with ExitStack() as held:
        yield Host(tmp_path, held)
    LXD.speak()


def test_without_one_it_says_what_to_install(host: Host) -> None:
    host.without(LXD)
    host.without(INCUS)
    with pytest.raises(SetupError, match=r"apt install incus-base.*apt install lxd"):
        host.choose()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_only_one_is_taken_without_a_word(host: Host, dialect: Dialect) -> None:
    (other,) = {LXD, INCUS} - {dialect}
    host.without(other)
    assert host.choose() is dialect
    assert host.said == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_of_both_the_one_with_podyds_project(host: Host, dialect: Dialect) -> None:
    (other,) = {LXD, INCUS} - {dialect}
    host.engines[dialect].projects.append("podyd")
    host.engines[other].instances.append("web")
    assert host.choose() is dialect
    assert host.said == [
        f"LXD and Incus run here; pods are made in {dialect.name}. To change that, write"
        f" 'engine: {other.key}' into podyd.yaml and run 'podyd setup' again"
    ]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_of_two_projects_the_one_with_pods(host: Host, dialect: Dialect) -> None:
    """After a migration LXD keeps a project without any."""
    for server in host.engines.values():
        server.projects.append("podyd")
        server.instances.append("web")
    host.engines[dialect].pods.append("pod")
    assert host.choose() is dialect


@pytest.mark.parametrize("dialect", DIALECTS)
def test_else_the_one_that_has_instances(host: Host, dialect: Dialect) -> None:
    host.engines[dialect].instances.append("web")
    assert host.choose() is dialect
    assert len(host.said) == 1


def test_else_incus(host: Host) -> None:
    assert host.choose() is INCUS


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_the_admin_says_or_setup_took_before_stays(host: Host, dialect: Dialect) -> None:
    (other,) = {LXD, INCUS} - {dialect}
    host.engines[other].projects.append("podyd")
    assert host.choose(dialect.key) is dialect
    host.keep(dialect)
    assert host.choose() is dialect
    # Also while it does not run: pods are in it.
    host.without(dialect)
    assert host.choose() is dialect
    assert host.said == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_that_does_not_answer_is_named(host: Host, dialect: Dialect) -> None:
    host.engines[dialect].is_well = False
    (other,) = {LXD, INCUS} - {dialect}
    way = f"Or write 'engine: {other.key}' into podyd.yaml"
    with pytest.raises(SetupError, match=f"^{dialect.name} does not answer.*{way}"):
        host.choose()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_socket_of_a_dead_one_does_not_count(host: Host, dialect: Dialect) -> None:
    (other,) = {LXD, INCUS} - {dialect}
    host.kill(dialect)
    assert host.choose() is other
    assert host.said == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_where_the_chosen_one_is_gone_there_is_another(host: Host, dialect: Dialect) -> None:
    (other,) = {LXD, INCUS} - {dialect}
    host.without(dialect)
    with pytest.raises(SetupError, match=f"'engine: {other.key}'.*; its pods are others") as caught:
        reach(dialect, "podyd")
    assert caught.value.detail == f"{dialect.name} is not running here."
    host.without(other)
    with pytest.raises(SetupError) as caught:
        reach(dialect, "podyd")
    assert "podyd.yaml" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="it gives a file away")
@pytest.mark.parametrize("before", [None, b"lxd\n", b"\xff"])
def test_what_it_has_taken_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    """Its words before they have the file's name, and then the name."""
    path = tmp_path / CHOICE
    if before is not None:
        path.write_bytes(before)
    synced: list[tuple[bool, bytes | None]] = []

    def fsync(number: int) -> None:
        opened = Path(f"/proc/self/fd/{number}")
        there = path.read_bytes() if path.exists() else None
        synced.append((opened.is_dir(), there if opened.is_dir() else opened.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    keep_choice(str(tmp_path), INCUS, os.getgid())
    assert synced == [(False, b"incus\n"), (True, b"incus\n")]
    keep_choice(str(tmp_path), INCUS, os.getgid())
    assert len(synced) == 2
