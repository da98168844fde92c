"""What setup makes in an LXD that has nothing, by an LXD that says what a test wants."""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from podyd.base.errors import SetupError
from podyd.engine.admin import BRIDGE_TRIES, Admin, Bridge, Openings, Pool
from podyd.engine.dialect import LXD, Place
from podyd.engine.types import Profile
from tests.unit.engine.recorded import EXTENSIONS, WANTS_CDI


class Lxd(socketserver.ThreadingUnixStreamServer):
    """Has storage drivers, of which some fail, and no pool until it is told to make one.

    It manages one bridge, and lists the interface of a pod that has stopped meanwhile.
    """

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.path = path
        self.drivers: tuple[str, ...] = ()
        self.failing: tuple[str, ...] = ()
        self.pools: dict[str, Mapping[str, Any]] = {}
        self.profiles: dict[str, Mapping[str, Any]] = {}
        self.has_bridge = True
        self.project: Mapping[str, Any] = {"description": "", "config": {}}
        self.instances: Sequence[Mapping[str, Any]] = ()
        self.extensions: Collection[str] = ("projects", "storage")
        # As LXD 6.8 and later: changes of pools, networks and profiles are operations
        # (lxd/storage_pools.go storagePoolsPost, lxd/networks.go networksPost, lxd/profiles.go
        # profilePut; tags lxd-6.8, lxd-6.9, and main of August 2026). The wait for one is answered
        # with HTTP's 200 in each case (lxd/operations.go operationWaitGet).
        self.has_operations = False
        self.waited: list[str] = []
        # What an operation fails with.
        self.error = ""
        # What it says to each try to make a bridge, before one that it takes.
        self.bridge_errors: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Lxd

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: there is no use for it."""

    def do_GET(self) -> None:
        match self.path:
            case path if path.startswith("/1.0/operations/"):
                self.server.waited.append(path.partition("?")[0])
                self.answer_wait()
            case path if path.startswith("/1.0/profiles/own"):
                self.answer_profile("own")
            case "/1.0/resources":
                nvidia = {"uuid": "GPU-a"}
                card = {"pci_address": "0000:41:00.0", "vendor_id": "10de", "nvidia": nvidia}
                self.answer({"gpu": {"cards": [card]}})
            case "/1.0/networks?recursion=1" if not self.server.has_bridge:
                self.answer([])
            case "/1.0/networks?recursion=1":
                config = {"ipv4.address": "10.0.0.1/24"}
                bridge = {"managed": True, "type": "bridge"}
                self.answer(
                    [
                        {"name": "lxdbr0", "config": config, **bridge},
                        {"name": "none", "config": {"ipv4.address": "none"}, **bridge},
                        {"name": "static", "config": {**config, "ipv4.dhcp": "false"}, **bridge},
                        {"name": "eth0", "config": {}, "managed": False, "type": "physical"},
                    ]
                )
            case "/1.0/warnings?recursion=1":
                self.answer(
                    [
                        {"type": f"Couldn't find the CGroup {what}", "status": status}
                        for what, status in (
                            ("CPU controller", "new"),
                            ("pids controller", "acknowledged"),
                            ("memory controller", "resolved"),
                            ("memory swap accounting", "new"),
                        )
                    ]
                )
            case "/1.0/projects/podyd":
                self.answer(self.server.project)
            case path if path.startswith("/1.0/instances?"):
                self.answer(self.server.instances)
            case "/1.0/networks":
                self.answer(["/1.0/networks/lxdbr0", "/1.0/networks/veth1"])
            case "/1.0/networks/veth1":
                error = {"type": "error", "error": "Network not found", "error_code": 404}
                self.send(404, error)
            case "/1.0/profiles/default":
                self.answer({"devices": {"eth0": {"type": "nic", "network": "lxdbr0"}}})
            case _:
                self.do_get_others()

    def do_get_others(self) -> None:
        pools = self.server.pools
        path, _, name = self.path.partition("?")[0].partition("/1.0/storage-pools")
        drivers = [{"Name": driver, "Version": "1"} for driver in self.server.drivers]
        if name:
            self.answer(pools[name.strip("/")])
        elif path:
            environment = {"storage_supported_drivers": drivers, "server_version": "5.0.2"}
            self.answer(
                {
                    "auth": "trusted",
                    "api_extensions": [*self.server.extensions],
                    "environment": environment,
                }
            )
        else:
            # As Incus does, null where there are none.
            self.answer([{"name": name, **pool} for name, pool in pools.items()] or None)

    def body(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return data

    def do_POST(self) -> None:
        body = self.body()
        error = (
            f"Failed to load {body['driver']}" if body.get("driver") in self.server.failing else ""
        )
        if self.path == "/1.0/networks" and self.server.bridge_errors:
            error = self.server.bridge_errors.pop(0)
        if error and not self.server.has_operations:
            self.send(500, {"type": "error", "error": error, "error_code": 500})
            return
        if self.path.startswith("/1.0/storage-pools") and not error:
            self.server.pools[body["name"]] = {"status": "Created", "used_by": [], **body}
        self.answer_change(error)

    def do_PUT(self) -> None:
        if self.path == "/1.0/projects/podyd":
            self.server.project = self.body()
        else:
            self.server.profiles["own"] = self.body()
        self.answer_change("")

    def answer_change(self, error: str) -> None:
        if not self.server.has_operations:
            self.answer({})
            return
        self.server.error = error or self.server.error
        operation = "/1.0/operations/6916c8a6-9b7d-4abd-90b3-aedfec7ec7da"
        running = {"id": operation.rpartition("/")[2], "status_code": 103, "err": ""}
        body = {"type": "async", "status_code": 100, "operation": operation, "metadata": running}
        self.send(202, body)

    def answer_wait(self) -> None:
        error = self.server.error
        if error and self.server.waited[-1].endswith("/wait"):
            self.send(200, {"type": "error", "error": error, "error_code": 500, "metadata": None})
            return
        self.server.error = ""
        self.answer({"status_code": 400 if error else 200, "err": error})

    def answer_profile(self, name: str) -> None:
        if name in self.server.profiles:
            self.answer(self.server.profiles[name])
        else:
            self.send(404, {"type": "error", "error": "Profile not found", "error_code": 404})

    def answer(self, metadata: object) -> None:
        self.send(200, {"type": "sync", "status_code": 200, "metadata": metadata})

    def send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def admin_of(lxd: Lxd) -> Admin:
    return Admin(LXD, "podyd", place=Place(lxd.path.parent, "lxd"))


@pytest.fixture
def lxd(tmp_path: Path) -> Iterator[Lxd]:
    with Lxd(tmp_path / "unix.socket") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("drivers", "failing", "made", "messages"),
    [
        (("dir", "btrfs", "zfs"), (), "btrfs", 1),
        (("dir", "zfs"), (), "zfs", 1),
        (("dir", "lvm"), (), "dir", 1),
        (("dir", "zfs", "btrfs"), ("btrfs",), "zfs", 2),
        (("dir", "zfs", "btrfs"), ("btrfs", "zfs"), "dir", 3),
    ],
)
def test_the_pool_is_of_the_best_driver_that_works(
    lxd: Lxd, drivers: tuple[str, ...], failing: tuple[str, ...], made: str, messages: int
) -> None:
    lxd.drivers, lxd.failing = drivers, failing
    words: list[str] = []
    assert admin_of(lxd).prepare_pool(words.append) == "default"
    pool = lxd.pools["default"]
    assert pool["driver"] == made
    assert ("size" in pool["config"]) is (made != "dir"), "a file of limited size"
    assert (pool["config"].get("volume.zfs.use_refquota") == "true") is (made == "zfs")
    assert len(words) == messages
    for driver, line in zip(failing, words, strict=False):
        assert line.startswith(f"no pool of {driver}: ")
        assert f"Failed to load {driver}" in line


def test_no_pool_at_all_is_an_error(lxd: Lxd) -> None:
    lxd.drivers, lxd.failing = ("dir",), ("dir",)
    with pytest.raises(SetupError, match="Failed to load dir"):
        admin_of(lxd).prepare_pool(print)


def no_network() -> IPv4Network:
    raise AssertionError("there is a bridge")


@pytest.mark.parametrize(
    ("kind", "limit", "said"),
    [("container", "0", "set .*limits.virtual"), ("virtual-machine", None, "has virtual machines")],
)
def test_a_project_takes_no_virtual_machines_unless_it_has_one(
    lxd: Lxd, kind: str, limit: str | None, said: str
) -> None:
    lxd.instances = [{"type": kind, "expanded_devices": {}, "expanded_config": {}}]
    messages: list[str] = []
    openings = Openings(frozenset(), frozenset(), frozenset())
    admin_of(lxd).prepare_project("lxdbr0", openings, messages.append)
    assert lxd.project["config"]["restricted"] == "true"
    assert lxd.project["config"].get("limits.virtual-machines") == limit
    assert re.search(said, " ".join(messages))


def test_a_pod_that_stops_meanwhile_is_no_matter(lxd: Lxd) -> None:
    admin = admin_of(lxd)
    assert admin.prepare_bridge(no_network, print) == "lxdbr0"
    lxd.pools["default"] = {"driver": "dir"}
    assert admin.pool_and_bridge() == ("default", "lxdbr0")


# What Incus 6.0.4 said beside an LXD that stopped a pod.
INTERFACE_GONE = (
    "Failed to delete bridge children interfaces: Failed to run: ip -d -j link show veth809bedb5:"
    ' exit status 1 (Device "veth809bedb5" does not exist.)'
)


@pytest.mark.parametrize("has_operations", [False, True])
def test_a_bridge_is_made_although_an_interface_of_a_pod_goes_meanwhile(
    lxd: Lxd, has_operations: bool
) -> None:
    lxd.has_bridge, lxd.has_operations = False, has_operations
    lxd.bridge_errors = [INTERFACE_GONE] * 3
    words: list[str] = []
    network = IPv4Network("10.9.0.0/24")
    assert admin_of(lxd).prepare_bridge(lambda: network, words.append) == "lxdbr0"
    assert not lxd.bridge_errors
    assert words == ["made bridge lxdbr0 (10.9.0.1/24)"]


@pytest.mark.parametrize(
    ("error", "tries"),
    [("Failed to run: dnsmasq: exit status 2", 1), (INTERFACE_GONE, BRIDGE_TRIES)],
)
def test_a_bridge_that_cannot_be_made_is_an_error(lxd: Lxd, error: str, tries: int) -> None:
    lxd.has_bridge, lxd.bridge_errors = False, [error] * 20
    with pytest.raises(SetupError, match="could not make a bridge: Failed to"):
        admin_of(lxd).prepare_bridge(lambda: IPv4Network("10.9.0.0/24"), print)
    assert len(lxd.bridge_errors) == 20 - tries


def test_which_bridges_give_addresses(lxd: Lxd) -> None:
    address = "10.0.0.1/24"
    assert admin_of(lxd).bridges() == [
        Bridge("lxdbr0", address, True),
        Bridge("none", "", True),
        Bridge("static", address, False),
    ]


def test_which_controllers_lxd_has_missed(lxd: Lxd) -> None:
    assert admin_of(lxd).missing_controllers() == {
        "cpu",
        "pids",
    }


def test_what_later_lxds_change_in_an_operation_is_waited_for(lxd: Lxd) -> None:
    lxd.has_operations, lxd.drivers = True, ("dir",)
    admin = admin_of(lxd)
    assert admin.prepare_pool(print) == "default"
    assert len(lxd.waited) == 1
    lxd.has_bridge = False
    assert admin.prepare_bridge(lambda: IPv4Network("10.9.0.0/24"), print) == "lxdbr0"
    assert len(lxd.waited) == 2
    lxd.profiles["own"] = {"description": "", "config": {}, "devices": {}}
    admin.put_profile(Profile("own", "mine"))
    assert lxd.profiles["own"]["description"] == "mine"
    assert lxd.waited[2:] == ["/1.0/operations/6916c8a6-9b7d-4abd-90b3-aedfec7ec7da/wait"]


def test_what_such_an_operation_fails_with_is_said(lxd: Lxd) -> None:
    lxd.has_operations = True
    lxd.drivers, lxd.failing = ("btrfs", "dir"), ("btrfs",)
    words: list[str] = []
    admin = admin_of(lxd)
    assert admin.prepare_pool(words.append) == "default"
    assert words[0].startswith("no pool of btrfs: ")
    assert "Failed to load btrfs" in words[0]
    lxd.profiles["own"] = {"description": "", "config": {}, "devices": {}}
    lxd.error = "Device validation failed"
    with pytest.raises(SetupError, match="did not take profile own: Device validation failed"):
        admin.put_profile(Profile("own"))


@pytest.mark.parametrize("tag", EXTENSIONS)
def test_whether_a_profile_names_cards_by_cdi_ids(lxd: Lxd, tag: str) -> None:
    lxd.extensions = EXTENSIONS[tag]
    admin = admin_of(lxd)
    assert admin.cdi_uuids() == ({"0000:41:00.0": "GPU-a"} if WANTS_CDI[tag] else None)
    assert [card.by_cdi for card in admin.cards()] == [WANTS_CDI[tag]]


def test_where_snapshots_can_be_copied_over_pods(lxd: Lxd) -> None:
    pools = [Pool("p", driver, "", "Created", 0, 1) for driver in ("btrfs", "dir", "zfs", "lvm")]
    admin = admin_of(lxd)
    assert [pool.driver for pool in pools if admin.can_refresh(pool)] == ["btrfs", "dir"]
    lxd.extensions = [*lxd.extensions, "instance_refresh_config"]
    assert not any(map(admin.can_refresh, pools))
