"""/events: what is so now, and what changes, on the real LXD."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import websocket

from tests.integration.harness import (
    Client,
    Node,
    Server,
    controllers,
    process_in,
    wait_until,
)
from tests.integration.talking import PATIENCE, connect
from tests.lab.nvml import FakeDriver, FakeNvml, FakeProcess

GIB = 1024**3
# A change is on a page within this time, says the API; a machine at work may take longer.
SOON = 10.0


@dataclass
class Page:
    """A page that stays open: what it has been told, as podyd/web/js/live.js keeps it."""

    connection: websocket.WebSocket
    values: dict[str, Any] = field(default_factory=dict)
    messages: list[Mapping[str, Any]] = field(default_factory=list)

    def take(self) -> Mapping[str, Any]:
        """Take one message."""
        text = self.connection.recv()
        assert text, "the connection was closed"
        message: Mapping[str, Any] = json.loads(text)
        assert message.get("whole", False) == (not self.messages)
        assert not message["set"].keys() & set(message["gone"])
        self.messages.append(message)
        self.values.update(message["set"])
        for key in message["gone"]:
            del self.values[key]
        return message

    def shows(self, key: str, **fields: object) -> Any:
        """Wait until a value has these fields; None waits until it is gone."""
        limit = time.monotonic() + PATIENCE
        while True:
            value = self.values.get(key)
            if value is not None and all(value[name] == item for name, item in fields.items()):
                return value
            assert time.monotonic() < limit, (key, fields, value)
            self.take()

    def loses(self, key: str) -> None:
        """Wait until a key is gone."""
        limit = time.monotonic() + PATIENCE
        while key in self.values:
            assert time.monotonic() < limit, key
            self.take()


@contextlib.contextmanager
def page(client: Client) -> Iterator[Page]:
    connection = connect(client, "/events")
    try:
        found = Page(connection)
        found.take()
        yield found
    finally:
        connection.shutdown()


def keys(found: Page, kind: str) -> set[str]:
    return {key for key in found.values if key.startswith(kind)}


@pytest.mark.usefixtures("lab_cards")
def test_a_page_sees_the_host_its_cards_and_the_members_pods(
    node: Node, gpu_server: Server, nvml: FakeDriver, alice: Client, pod: str
) -> None:
    member = gpu_server.client(alice.user)
    name = node.instance_of(alice.user, pod)["name"]
    with page(member) as mine, process_in(alice, pod) as running:
        assert mine.values["host"]["problem"] is None
        assert mine.values["host"]["name"] == socket.gethostname()
        assert mine.values["host"].items() >= member.get("/host/spec").ok.items()
        me = mine.values["me"]
        assert me == {"user": alice.user, "is_admin": False, "unread": 0, "logins": me["logins"]}
        assert "admin" not in mine.values
        assert mine.values["queue"] == member.get("/gpu/line").ok
        info = member.get("/pod/info", ins=pod).ok
        shown = dict(mine.shows(f"pod/{name}", status="running"))
        del info["uptime"], info["addresses"]
        # Storage tells of it only now and then.
        del info["disk_used"], shown["disk_used"]
        assert shown == info
        gpus = member.get("/host/gpus").ok
        for gpu in gpus:
            own = mine.values[f"gpu/{gpu['index']}"]
            assert own == {key: gpu[key] for key in own}
        process = FakeProcess(running.pid, memory=2 * GIB, utilisation=30)
        nvml.write(FakeNvml().with_gpu(1, utilisation=40).holding(1, process))
        used = mine.shows("use/1", utilisation=40)
        (row,) = used["processes"]
        assert (row["pod"], row["gpu_memory_used"]) == (name, 2 * GIB)
        load = mine.shows(f"load/{name}")
        # Of pods without a cgroup for it, the kernel does not tell.
        memory = load["memory_used"]
        assert memory > 0 if "memory" in controllers() else memory is None
        assert load["cpu"] >= 0


def test_what_is_done_with_lxc_or_through_podyd_is_shown_at_once(node: Node, own: Client) -> None:
    name = node.instance_of(own.user, "main")["name"]
    key = f"pod/{name}"
    with page(own) as mine, ThreadPoolExecutor(1) as pool:
        mine.shows(key, status="running")
        node.lxc("stop", "-f", name)
        began = time.monotonic()
        mine.shows(key, status="stopped")
        assert time.monotonic() - began < SOON
        starting = pool.submit(own.post, "/pod/start", ins="main")
        work = mine.shows(f"work/{name}", operation="/pod/start", user=own.user)
        assert work["since"].endswith("Z")
        mine.shows(key, status="running")
        mine.loses(f"work/{name}")
        assert starting.result().ok
        mine.shows(f"load/{name}")
        own.post("/pod/delete", ins="main").ok
        mine.loses(key)
        mine.loses(f"load/{name}")


def test_a_lease_and_the_queue_are_shown_to_all(
    node: Node, gpu_server: Server, alice: Client, bob: Client, pod: str
) -> None:
    member, other = gpu_server.client(alice.user), gpu_server.client(bob.user)
    name = node.instance_of(alice.user, pod)["name"]
    if not member.get("/host/gpus").ok:
        pytest.skip("no cards")
    with page(other) as theirs:
        member.post("/gpu/lease", ins=pod, gpus="0,", hours=1).ok
        limit = time.monotonic() + PATIENCE
        while not any(held["exclusive"] for held in theirs.values["gpu/0"]["pods"]):
            assert time.monotonic() < limit
            theirs.take()
        (held,) = [item for item in theirs.values["gpu/0"]["pods"] if item["exclusive"]]
        assert held["pod"] == name
        assert held["until"]
        member.post("/gpu/release", ins=pod).ok


def test_members_see_their_own_pods_and_admins_all(
    node: Node, server: Server, alice: Client, bob: Client, admin: Client, own: Client, pod: str
) -> None:
    first = node.instance_of(alice.user, pod)["name"]
    second = node.instance_of(own.user, "main")["name"]
    with page(alice) as hers, page(own) as theirs, page(bob) as nothing, page(admin) as all_of_it:
        assert (f"pod/{first}" in hers.values, f"pod/{second}" in hers.values) == (True, False)
        assert (f"pod/{first}" in theirs.values, f"pod/{second}" in theirs.values) == (False, True)
        assert keys(nothing, "pod/") == set()
        assert keys(all_of_it, "pod/") >= {f"pod/{first}", f"pod/{second}"}
        assert all_of_it.values["me"]["is_admin"] is True
        alice.post("/pod/start", ins="no-such").refused(404)
        all_of_it.shows("admin", actions=all_of_it.values["admin"]["actions"] + 1)
        alice.post("/user/token", name="page").ok
        hers.shows("me", logins=hers.values["me"]["logins"] + 1)
        node.lxc("config", "set", second, "limits.cpu=1")
        all_of_it.shows(f"pod/{second}", cpu_limit=1)
        theirs.shows(f"pod/{second}", cpu_limit=1)
        all_of_it.shows(f"load/{second}")
        # The next message, if only the beat, comes after those.
        for other in (hers, nothing):
            other.take()
            told = {key for found in other.messages for key in found["set"]}
            assert not [key for key in told if key.endswith(f"/{second}")]


def test_who_may_look(node: Node, server: Server, alice: Client) -> None:
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        connect(server.client(), "/events")
    assert caught.value.status_code == 401
    assert alice.get("/events").refused(426, "upgrade_required")
    token = alice.post("/user/token", name="page", scope="read").ok["token"]
    with page(server.client(alice.user, token)) as mine:
        assert mine.values["me"]["user"] == alice.user
        # The token's end is the stream's.
        alice.post("/user/token-revoke", id="all").ok
        with pytest.raises(AssertionError, match="closed"):
            while True:
                mine.take()
    open_to = node.serve({"web": {"status_allow": ["127.0.0.1"]}})
    with page(open_to.client()) as status:
        assert keys(status, "me") | keys(status, "pod/") == set()
        assert {"host", "queue"} <= status.values.keys()
        # A podyd that stops ends it, and does not wait for it.
        began = time.monotonic()
        assert open_to.stop() == 0
        assert time.monotonic() - began < SOON


def test_nothing_changes_and_still_a_page_hears_of_podyd(server: Server, bob: Client) -> None:
    with page(bob) as mine:
        while mine.take()["set"]:
            assert len(mine.messages) < 10


def test_what_a_client_sends_ends_it(server: Server, bob: Client) -> None:
    with page(bob) as mine:
        mine.connection.send("hello")
        with pytest.raises(AssertionError, match="closed"):
            while True:
                mine.take()
    wait_until(lambda: "101 GET /events" in server.log_text(), "its line in the log")
