"""What is asked of the two engines between which instances move; tests/integration/test_migrate.py
does it with real ones."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from podyd.admin.migration.move import Move
from podyd.admin.migration.plan import Plan, Pod
from podyd.admin.migration.translation import Translation
from podyd.base.errors import SetupError
from podyd.engine.admin import ASIDE, Openings
from podyd.engine.dialect import INCUS, LXD, Place
from podyd.engine.moving import Limit, Offer, Side, Volume

OPERATION = "6916c8a6-9b7d-4abd-90b3-aedfec7ec7da"
INSTANCE: dict[str, Any] = {
    "name": "p",
    "type": "container",
    "status": "Stopped",
    "ephemeral": False,
    "stateful": False,
    "architecture": "x86_64",
    "description": "",
    "created_at": "2026-01-01T00:00:00Z",
    "last_used_at": "1970-01-01T00:00:00Z",
    "location": "none",
    "profiles": ["podyd-base"],
    "config": {
        "limits.cpu": "2",
        "volatile.uuid": "u",
        "volatile.base_image": "f",
        "volatile.eth0.hwaddr": "00:16:3e:00:00:01",
        "volatile.eth0.host_name": "veth1",
        "volatile.idmap.base": "0",
        "volatile.last_state.idmap": "[]",
        "volatile.last_state.power": "STOPPED",
    },
    "devices": {},
    "expanded_config": {},
    "expanded_devices": {"root": {"type": "disk", "path": "/", "pool": "default"}},
    "snapshots": [{"name": "early", "config": {"limits.cpu": "1"}}],
    "state": {"disk": {"root": {"usage": 4096}}},
}

CERTIFICATES = [
    {"fingerprint": "a", "name": "laptop", "restricted": False, "projects": None},
    {"fingerprint": "b", "name": "ci", "restricted": True, "projects": ["other", "podyd"]},
    {"fingerprint": "c", "name": "web", "restricted": True, "projects": ["other"]},
]
SERVER = {
    "auth": "trusted",
    "api_extensions": ["projects"],
    "config": {"core.https_address": "127.0.0.1:8443"},
    "environment": {"certificate": "PEM"},
}


POOL = {"name": "fast", "driver": "btrfs", "status": "Created", "config": {}}


class Stub(socketserver.ThreadingUnixStreamServer):
    """An engine with one instance, whose operations end as a test says."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.end: dict[str, Any] | None = {"status_code": 200, "err": ""}
        # What waits are answered with before, as Incus 6.0.4 does: an error with HTTP's 200.
        self.late: list[str] = []
        self.settings: dict[str, str] = {}
        self.certificates: list[dict[str, Any]] = CERTIFICATES
        self.sent: list[tuple[str, str, Any]] = []
        self.asked: list[str] = []
        self.instance = INSTANCE
        # LXC's, of its start.
        self.log = ""
        self.takes = True
        # Keys that no project may have.
        self.refused: set[str] = set()
        self.is_broken = False
        self.pools: list[dict[str, Any]] = [POOL]
        self.volumes: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: there is no use for it."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        match self.path.partition("?")[0]:
            case _ if self.server.is_broken:
                self.send(500, {"type": "error", "error": "broken", "error_code": 500})
            case path if path.endswith("/wait") and self.server.late:
                error = self.server.late.pop(0)
                self.send(200, {"type": "error", "error": error, "error_code": 500})
            case path if path.startswith("/1.0/operations/"):
                answer = {"status_code": 103, "err": ""} if self.server.late else self.server.end
                self.answer(answer)
            case "/1.0/projects":
                self.answer([{"name": "podyd", "config": self.server.settings}])
            case "/1.0/projects/podyd":
                self.answer({"description": "", "config": self.server.settings})
            case "/1.0/certificates":
                self.answer(self.server.certificates)
            case "/1.0/instances" if "recursion=2" in self.path:
                self.answer([self.server.instance, {"name": "gone", "type": "", "config": None}])
            case "/1.0/instances":
                self.answer([self.server.instance])
            case "/1.0/instances/p":
                self.answer(self.server.instance)
            case "/1.0/storage-pools":
                self.answer(self.server.pools)
            case "/1.0/storage-pools/fast/resources":
                self.answer({"space": {"used": 1, "total": 2}})
            case "/1.0/storage-pools/fast/volumes/custom":
                self.answer(self.server.volumes)
            case "/1.0/profiles/default":
                self.answer({"devices": {}})
            case "/1.0/instances/p/state":
                self.answer({"status": "Stopped"})
            case "/1.0/instances/p/logs/lxc.log" if self.server.log:
                self.write(200, self.server.log.encode())
            case "/1.0":
                self.answer(SERVER)
            case _:
                self.answer(None)

    def do_DELETE(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        self.change()

    def do_PUT(self) -> None:
        self.change()

    def change(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if (
            self.command == "PUT"
            and self.path.startswith("/1.0/instances/p?")
            and self.server.takes
        ):
            self.server.instance = {**INSTANCE, **body}
        self.server.sent.append((self.command, self.path.partition("?")[0], body))
        if self.command == "PUT" and self.path == "/1.0/projects/podyd":
            if refused := self.server.refused & body["config"].keys():
                error = f"{min(refused)} is too low"
                self.send(400, {"type": "error", "error": error, "error_code": 400})
                return
            self.server.settings = body["config"]
        path = f"/1.0/operations/{OPERATION}"
        made = {"id": OPERATION, "metadata": {"control": "s"}}
        self.send(202, {"type": "async", "operation": path, "metadata": made})

    def answer(self, metadata: Any) -> None:
        if metadata is None:
            self.send(404, {"type": "error", "error": "not found", "error_code": 404})
        else:
            self.send(200, {"type": "sync", "metadata": metadata})

    def send(self, status: int, answer: dict[str, Any]) -> None:
        self.write(status, json.dumps(answer).encode())

    def write(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serving(path: Path) -> Iterator[Stub]:
    """One that answers at this socket; afterwards sentences name LXD again."""
    with Stub(path) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
    LXD.speak()


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with serving(tmp_path / "unix.socket") as server:
        yield server


@pytest.fixture
def side(stub: Stub, tmp_path: Path) -> Side:
    return Side(INCUS, "podyd", place=Place(tmp_path, "incus"))


OFFER = Offer("https://127.0.0.1:8443/1.0/operations/x", "lab", "PEM", {"control": "s"})


def test_an_instance_is_read_whole(side: Side) -> None:
    (original,) = side.originals()
    assert original == side.original("p")
    assert (original.uuid, original.snapshots, original.used_bytes) == ("u", ("early",), 4096)
    assert original.snapshot_configs == {"early": {"limits.cpu": "1"}}
    assert not original.has_run
    assert side.original("other") is None


def test_a_copy_keeps_who_it_is_and_not_how_it_ran(side: Side, stub: Stub) -> None:
    (original,) = side.originals()
    side.fetch("p", original, OFFER)
    ((method, path, body),) = stub.sent
    assert (method, path) == ("POST", "/1.0/instances")
    # Of a restricted project, or of how the old engine has shifted files, it must say nothing.
    assert body["config"] == {
        "limits.cpu": "2",
        "volatile.uuid": "u",
        "volatile.base_image": "f",
        "volatile.eth0.hwaddr": "00:16:3e:00:00:01",
    }
    assert body["source"]["operation"] == OFFER.address
    assert (body["devices"], body["profiles"]) == ({}, ["podyd-base"])


def test_no_file_of_a_pod_is_asked_for(side: Side, stub: Stub, tmp_path: Path) -> None:
    # For a list of a directory, the engine has the pod's own libraries name the owners, as root.
    old = Side(LXD, "podyd", place=Place(tmp_path, "lxd"))
    move = Move(old, side, Translation(frozenset(), "", ""), *[lambda *_: None] * 2)
    move.pods(Plan([Pod(side.originals()[0], None)]))
    assert [body["name"] for _, _, body in stub.sent if "source" in body] == ["p"]
    assert not [path for path in stub.asked if "/files" in path]


def test_why_a_copy_failed_is_told(side: Side, stub: Stub) -> None:
    stub.end = {"status_code": 400, "err": "No space left on device"}
    with pytest.raises(SetupError, match="Incus could not fetch p: No space left on device"):
        side.fetch("p", side.originals()[0], OFFER)


def test_why_a_pod_did_not_start_is_told(side: Side, stub: Stub) -> None:
    stub.end = {"status_code": 400, "err": "Failed to run: incusd forkstart p: exit status 1"}
    with pytest.raises(SetupError, match="Incus could not start p: Failed to run: incusd forkst"):
        side.start("p")
    stub.log = "lxc p 1 ERROR conf - a.c:lxc_setup:1 - newuidmap failed to write mapping\n"
    with pytest.raises(SetupError, match="Incus could not start p: newuidmap failed to write map"):
        side.start("p")
    stub.end = {"status_code": 400, "err": "No space left on device"}
    with pytest.raises(SetupError, match="Incus could not start p: No space left on device"):
        side.start("p")


def test_what_takes_long_is_waited_for(side: Side, stub: Stub) -> None:
    stub.late = ["context deadline exceeded"] * 3
    side.fetch("p", side.originals()[0], OFFER)
    assert stub.late == []


def test_the_error_of_what_has_failed_in_place_of_it(side: Side, stub: Stub) -> None:
    for stub.end in ({"status_code": 400, "err": "No space left on device"}, None):
        stub.late = ["No space left on device"]
        with pytest.raises(SetupError, match="Incus could not fetch p: No space left on device"):
            side.fetch("p", side.originals()[0], OFFER)


def test_what_has_ended_long_ago_has_ended(side: Side, stub: Stub) -> None:
    stub.end = None
    side.set_keys("p", {"limits.cpu": None, "user.new": "1"})
    ((_, path, body),) = stub.sent
    assert path == "/1.0/instances/p"
    assert (body["config"].get("limits.cpu"), body["config"]["user.new"]) == (None, "1")
    assert body["config"]["volatile.uuid"] == "u"


def test_what_is_set_though_the_disk_is_full_is_set(side: Side, stub: Stub) -> None:
    stub.end = {"status_code": 400, "err": "disk quota exceeded"}
    side.set_keys("p", {"user.new": "1"})
    side.set_keys("p", {"user.new": None})
    stub.takes = False
    with pytest.raises(SetupError, match="disk quota exceeded"):
        side.set_keys("p", {"user.new": "2"})


def test_a_trial_is_nobodys_pod(side: Side, stub: Stub) -> None:
    config = {**INSTANCE["config"], "user.podyd.owner": "alice"}
    stub.instance = {**INSTANCE, "config": config}
    side.try_out(side.originals()[0])
    (body,) = [body for method, _, body in stub.sent if method == "POST"]
    assert body["config"] == {"limits.cpu": "2"}


def test_who_is_trusted_for_the_project(side: Side) -> None:
    assert side.trusted() == {"b": "ci"}


def test_what_an_admin_has_set_in_the_project_is_taken_over(side: Side, stub: Stub) -> None:
    stub.settings = {"limits.instances": "5"}
    said: list[str] = []
    side.take_settings(
        {
            "limits.instances": "9",
            "restricted.containers.nesting": "allow",
            "restricted.devices.gpu": "block",
            "restricted.networks.access": "lxdbr0",
            "restricted.idmap.uid": "1000",
            "features.images": "false",
        },
        said.append,
    )
    ((_, _, body),) = stub.sent
    added = {"restricted.containers.nesting": "allow"}
    assert body["config"] == {"limits.instances": "5", **added}
    assert said == ["project podyd: set restricted.containers.nesting"]


def test_what_differs_is_told_also_after_a_move_that_was_killed(side: Side, stub: Stub) -> None:
    other = {"limits.instances": "9", "limits.cpu": "2", "restricted.idmap.uid": "1000"}
    for is_open in (False, True):
        stub.settings = {"limits.instances": "5", "limits.cpu": "2"}
        if is_open:
            side.confine(restricted=False)
        assert side.kept_settings(other) == {"limits.instances": "5"}
        side.take_settings(other, lambda text: None)
        assert side.is_open() is is_open
        assert "9" not in stub.settings.values()


def test_the_limits_that_a_project_will_have(side: Side, stub: Stub, tmp_path: Path) -> None:
    """By the keys that have to be changed for another value, and where."""
    (tmp_path / "lxd").mkdir()
    with serving(tmp_path / "lxd/unix.socket") as lxd:
        old = Side(LXD, "podyd", place=Place(tmp_path / "lxd", "lxd"))
        lxd.settings = {"limits.memory": "9GiB", "limits.cpu": "2", "limits.virtual-machines": "0"}
        stub.settings = {"limits.memory": "5GiB", "limits.virtual-machines": "0", "user.x": "1"}
        of_lxd = Limit("limits.cpu", "2", "limits.cpu", "lxc")
        own = Limit("limits.memory", "5GiB", "limits.memory", "incus")
        assert side.limits(old) == [of_lxd, own]
        side.confine(restricted=False)
        aside = f"{ASIDE}limits.memory"
        assert side.limits(old) == [of_lxd, replace(own, held=aside)]
        stub.settings["limits.memory"] = "1GiB"
        assert side.limits(old) == [of_lxd, replace(own, held=aside)]


def test_the_volumes_that_a_limit_of_disks_counts(side: Side, stub: Stub) -> None:
    stub.volumes = [{"name": "a", "config": {"size": "1GiB"}}, {"name": "b", "config": {}}]
    assert side.volumes() == [Volume("a", "fast", "1GiB"), Volume("b", "fast", "")]
    assert [path for path in stub.asked if "/volumes/custom" in path and "project=podyd" in path]


def test_the_pool_that_pods_come_to(side: Side, stub: Stub) -> None:
    assert side.pool() == "fast"
    stub.pools = []
    assert side.pool() == "default"


def test_an_open_project_has_no_limits_until_it_is_confined(side: Side, stub: Stub) -> None:
    """With one, Incus would give copies other ids."""
    before = {"restricted": "true", "limits.instances": "5", "user.note": "x"}
    stub.settings = before
    side.confine(restricted=False)
    opened = stub.sent[-1][2]["config"]
    assert opened["restricted"] == "false"
    assert not [key for key in opened if key.startswith("limits.")]
    assert side.is_open()
    # Interrupted, and called again: what was set then stays.
    stub.settings = {**opened, "restricted": "true", "limits.instances": "9", "limits.cpu": "2"}
    side.confine(restricted=False)
    side.confine(restricted=True)
    assert side.is_open()
    side.restore_limits(lambda text: None)
    assert stub.settings == {**before, "limits.cpu": "2"}
    assert not side.is_open()
    sent = len(stub.sent)
    side.restore_limits(lambda text: None)
    assert len(stub.sent) == sent


def test_limits_that_are_refused_leave_a_project_restricted(side: Side, stub: Stub) -> None:
    stub.settings = {"restricted": "true", "limits.containers": "5", "limits.cpu": "2"}
    side.confine(restricted=False)
    stub.refused = {"limits.containers"}
    said: list[str] = []
    side.confine(restricted=True)
    side.restore_limits(said.append)
    aside = "user.podyd.migration.limits.containers"
    assert stub.settings == {"restricted": "true", "limits.cpu": "2", aside: "5"}
    (sentence,) = said
    assert "limits.containers is too low" in sentence
    assert f"'incus project set podyd {aside}=NUMBER'" in sentence
    stub.settings = {**stub.settings, aside: "9"}
    stub.refused = set()
    side.restore_limits(said.append)
    assert stub.settings == {"restricted": "true", "limits.cpu": "2", "limits.containers": "9"}


def test_setup_brings_limits_back(side: Side, stub: Stub) -> None:
    openings = Openings(frozenset(), frozenset(), frozenset())
    side.prepare_project("incusbr0", openings, lambda text: None)
    before = stub.settings
    side.confine(restricted=False)
    assert stub.settings != before
    side.prepare_project("incusbr0", openings, lambda text: None)
    assert stub.settings == before
