"""What setup makes in an LXD that has nothing, by an LXD that says what a test wants."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from podyd.base.errors import SetupError
from podyd.engine.admin import Admin, Bridge
from podyd.engine.dialect import LXD, Place


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


class Handler(BaseHTTPRequestHandler):
    server: Lxd

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: there is no use for it."""

    def do_GET(self) -> None:
        match self.path:
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
                    "api_extensions": ["projects", "storage"],
                    "environment": environment,
                }
            )
        else:
            # As Incus does, null where there are none.
            self.answer([{"name": name, **pool} for name, pool in pools.items()] or None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["driver"] in self.server.failing:
            error = f"Failed to load {body['driver']}"
            self.send(500, {"type": "error", "error": error, "error_code": 500})
            return
        self.server.pools[body["name"]] = {"status": "Created", "used_by": [], **body}
        self.answer({})

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


def test_a_pod_that_stops_meanwhile_is_no_matter(lxd: Lxd) -> None:
    admin = admin_of(lxd)
    assert admin.prepare_bridge(no_network, print) == "lxdbr0"
    lxd.pools["default"] = {"driver": "dir"}
    assert admin.pool_and_bridge() == ("default", "lxdbr0")


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
