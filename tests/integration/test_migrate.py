"""`podyd migrate`: ten pods from the real LXD of the lab to its real Incus, on the same machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from podyd.engine.admin import ASIDE
from tests.integration.harness import (
    DIALECT,
    IMAGE,
    PYTHON,
    SMALL,
    Client,
    Node,
    Server,
    free_port,
    run,
    wait_until,
)
from tests.lab import lab
from tests.lab.nvml import FakeDriver

INCUS = lab.ENGINES["incus"]
STOPPED = 8


class Between(socketserver.ThreadingUnixStreamServer):
    """Passes on what is asked of Incus and answered, until it is to make the copy of this number:
    as soon as Incus has begun with that, `then` is called in place of the answer."""

    daemon_threads = True

    def __init__(self, path: Path, number: int, then: Callable[[], None]) -> None:
        super().__init__(str(path), _Connection)
        self._left = number
        self._then = then

    def has_begun(self) -> bool:
        """Whether the answer to a request for a copy is the one to be kept back."""
        self._left -= 1
        if self._left == 0:
            self._then()
        return self._left <= 0


class _Connection(socketserver.BaseRequestHandler):
    server: Between

    def handle(self) -> None:
        self.asked = b""
        with socket.socket(socket.AF_UNIX) as incus:
            incus.connect(str(INCUS.socket))
            back = threading.Thread(target=self._back, args=(incus,), daemon=True)
            back.start()
            while data := self.request.recv(65536):
                self.asked += data
                incus.sendall(data)
            incus.shutdown(socket.SHUT_RDWR)
            back.join()

    def _back(self, incus: socket.socket) -> None:
        while data := incus.recv(65536):
            is_copy = b'"type": "migration"' in self.asked
            self.asked = b""
            if is_copy and self.server.has_begun():
                return
            self.request.sendall(data)


class Lab:
    """A small lab on LXD that is to move: one member with two running pods, and eight that were
    never started, one of a kind each."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.incus = lab.Api(INCUS.socket)
        disk = node.directory / "disk"
        self.own = disk / node.accounts.user()
        self.driver = FakeDriver(node.directory / "nvidia")
        self.user = self.own.name
        account = pwd.getpwnam(self.user)
        self.own.mkdir(mode=0o700, parents=True)
        os.chown(self.own, account.pw_uid, account.pw_gid)
        node.accounts.allow_root(self.user)
        self.changes: Mapping[str, Any] = {
            "pods": {"mounts": [f"{disk}/$user:/workspace"]},
            "images": {"offer": [SMALL, IMAGE]},
            "engine": "auto",
        }
        # As on a server that has had podyd: what was chosen counts, with both engines there.
        node.podyd("setup", "--user", node.account)
        node.podyd("setup", "--user", node.account, changes=self.changes)

    def serve(self, engine: str) -> Server:
        server = self.node.serve_soon(self.changes, environment=self.driver.environment)
        server.wait_for_log(f"following {engine}'s events")
        return server

    def fill(self, client: Client) -> None:
        for ins in ("main", "idle"):
            client.post("/pod/create", ins=ins, image=SMALL, gpus="none").ok
        client.exec("main", "echo before > /root/state && chown 33:33 /root/state")
        client.post("/pod/snapshot", ins="main", name="early").ok
        client.exec("main", "echo after > /root/state")
        client.exec("main", "echo mine > /workspace/note")
        client.post("/pod/port", ins="main", port=8888).ok
        client.post("/pod/limits", ins="main", memory="512MiB", cpu="1").ok
        client.post("/gpu/lease", ins="main", gpus="1", hours=5).ok
        for number in range(STOPPED):
            name = f"{client.user}-p{number}"
            own = {"owner": client.user, "ins": f"p{number}", "image": SMALL, "ports": "none"}
            options = [f"--config=user.podyd.{key}={value}" for key, value in own.items()]
            self.node.lxc("init", SMALL, name, "--profile=podyd-base", *options)
        self.node.lxc("config", "set", f"{client.user}-p0", "security.devlxd=false")
        self.node.lxc("snapshot", f"{client.user}-p1", "kept")
        self.node.lxc("profile", "set", "podyd-base", "limits.processes=12345")

    def migrate(self, *words: str, config: Path) -> list[str]:
        return [
            *(PYTHON, "-m", "podyd", "migrate", "--config", str(config)),
            *("--user", self.node.account, *words),
        ]

    def run(self, *words: str, config: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.migrate(*words, config=config),
            env=self.node.environment,
            cwd="/",
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def killed_after(self, line: str, config: Path) -> None:
        """Begin to migrate, and kill it as soon as it has said this."""
        with self._begun(config) as process:
            assert process.stdout is not None
            said = ""
            for text in process.stdout:
                said += text
                if line in text:
                    process.kill()
        assert process.returncode == -signal.SIGKILL, said

    def killed_in_copy(self, number: int, config: Path) -> None:
        """Begin to migrate, and kill it while Incus copies the pod of this number."""
        directory = self.node.directory / "between"
        directory.mkdir()
        environment = {INCUS.variable: str(directory)}

        def kill() -> None:
            process.kill()

        with (
            Between(directory / INCUS.socket.name, number, kill) as server,
            self._begun(config, environment) as process,
        ):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            said, _ = process.communicate()
            server.shutdown()
        assert process.returncode == -signal.SIGKILL, said

    def _begun(
        self, config: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.migrate("--yes", config=config),
            env={**self.node.environment, **(environment or {})},
            cwd="/",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def in_incus(self) -> dict[str, Any]:
        found = self.incus.get(f"/1.0/instances?recursion=1&project={self.node.project}")
        return {item["name"]: item for item in found or ()}

    def trusting(self) -> list[str]:
        """The engines that trust a certificate for the project."""
        apis = {"LXD": self.node.lxd, "Incus": self.incus}
        return [name for name, api in apis.items() if self.node.project in _projects(api)]

    def limits(self) -> dict[str, str]:
        """Those of the project in Incus that are sums, and not aside."""
        config = self.incus.get(f"/1.0/projects/{self.node.project}")["config"]
        names = ("memory", "disk")
        return {key: config[f"limits.{key}"] for key in names if f"limits.{key}" in config}

    def limit(self, *, aside: bool = False, **limits: str) -> None:
        """Set limits of the project in Incus, in their place or where a move has them aside."""
        path = f"/1.0/projects/{self.node.project}"
        begin = f"{ASIDE if aside else ''}limits."
        config = self.incus.get(path)["config"]
        config |= {f"{begin}{key}": value for key, value in limits.items()}
        self.incus.change("PUT", path, {"config": config})

    def pool(self) -> str:
        """That of pods in Incus."""
        pools: list[str] = self.incus.get("/1.0/storage-pools")
        return pools[0].rpartition("/")[2]

    def close(self) -> None:
        lab.use("incus")
        try:
            wipe = lab.Wipe(self.incus, time.monotonic() + 60)
            wipe.projects(self.node.project)
            wipe.certificates(self.node.project)
        finally:
            lab.use(DIALECT.key)


@pytest.fixture
def incus() -> Iterator[None]:
    """The other engine's lab, which is there, or for as long as this test runs."""
    if DIALECT.key != "lxd":
        pytest.skip("it begins with an LXD")
    is_there = lab.read_state(INCUS.state_file) is not None
    if not is_there and shutil.which(INCUS.command) is None:
        pytest.skip("Incus is not installed: type 'apt install incus-base incus-client'")
    command = [sys.executable, str(Path(lab.__file__))]
    if not is_there:
        run(*command, "up", "--engine", INCUS.key)
    yield
    if not is_there:
        run(*command, "down", "--engine", INCUS.key)


@pytest.fixture
def moving(incus: None) -> Iterator[Lab]:
    node = Node()
    try:
        node.start_helper()
        node.start_relay()
        node.start_cards()
        migration = Lab(node)
        try:
            yield migration
        finally:
            migration.close()
    finally:
        node.close()


def told(client: Client) -> dict[str, Any]:
    """What a member sees of their pods that must stay as it is."""
    kept = ("status", "image", "port_mapping", "gpu_ids", "memory_limit", "cpu_limit", "profiles")
    shown: dict[str, Any] = {}
    for ins in client.get("/pod/list").ok:
        info = client.get("/pod/info", ins=ins).ok
        snapshots = [item["name"] for item in client.get("/pod/snapshots", ins=ins).ok]
        shown[ins] = {key: info[key] for key in kept} | {"snapshots": snapshots}
    return shown


def test_a_lab_with_ten_pods_moves_to_incus(moving: Lab) -> None:
    node = moving.node
    server = moving.serve("LXD")
    member = server.client(moving.user)
    moving.fill(member)
    before, there = told(member), node.instances()
    ids = {name: item["config"]["volatile.uuid"] for name, item in there.items()}
    assert len(before) == STOPPED + 2
    assert len(before["main"]["gpu_ids"]) == 1
    assert before["main"]["port_mapping"]
    assert before["main"]["cpu_limit"] == 1
    main = node.instance_of(moving.user, "main")

    # While podyd runs, it only says what it would do.
    dry = moving.run("--dry-run", config=server.config)
    assert dry.returncode == 0, dry.stderr
    assert "10 of 10 pods are to be copied, 2 to be started again" in dry.stdout
    assert "podyd is running" in dry.stdout
    refused = moving.run("--yes", config=server.config)
    assert refused.returncode == 1
    assert "systemctl stop podyd" in refused.stderr
    assert not moving.incus.get("/1.0/projects").count(f"/1.0/projects/{node.project}")
    server.stop()
    node.lxc("pause", f"{moving.user}-idle")
    node.lxc("project", "set", node.project, "limits.instances", "20")

    # Killed between two pods, it goes on.
    moving.killed_after("(4 of 10)", server.config)
    check_that_each_is_shown_once(moving)
    assert moving.trusting() == ["LXD"]
    moved = moving.run("--yes", config=server.config)
    assert moved.returncode == 0, moved.stdout + moved.stderr
    assert moving.trusting() == ["Incus"]

    # And all the way back.
    assert moving.run("--back", "--yes", config=server.config).returncode == 0
    assert moving.in_incus() == {}
    back = {name: (item["status"], _own(item)) for name, item in node.instances().items()}
    assert back == {name: (item["status"], _own(item)) for name, item in there.items()}
    assert moving.trusting() == ["LXD"]

    # Killed in the middle of a pod, it goes on, too.
    moving.killed_in_copy(3, server.config)
    check_that_each_is_shown_once(moving)
    (partial,) = [item for item in moving.in_incus().values() if "migration" in _keys(item)]
    assert "owner" not in _keys(partial) | _keys(node.instances()[partial["name"]])
    done = moving.run("--yes", config=server.config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "started" in done.stdout
    assert moving.trusting() == ["Incus"]

    copies = moving.in_incus()
    assert {name: item["config"]["volatile.uuid"] for name, item in copies.items()} == ids
    config = moving.incus.get(f"/1.0/projects/{node.project}")["config"]
    assert config["restricted"] == "true"
    assert (config["limits.instances"], config["limits.virtual-machines"]) == ("20", "0")
    assert copies[f"{moving.user}-p0"]["config"]["security.guestapi"] == "false"
    assert not [item for item in copies.values() if "volatile.apply_template" in item["config"]]
    copy = copies[main["name"]]
    assert copy["expanded_config"]["limits.processes"] == "12345", "as an admin has edited it"
    assert copy["config"]["raw.idmap"] == main["config"]["raw.idmap"]
    kept = {key: text for key, text in main["config"].items() if key.startswith("user.podyd.")}
    assert [key for key in kept if key.startswith("user.podyd.lease.")]
    assert kept.items() <= copy["config"].items()

    # The member finds all of it again.
    server = moving.serve("Incus")
    member = server.client(moving.user)
    wait_until(lambda: told(member) == before, f"{told(member)} as {before}")
    state = member.exec("main", "cat /root/state; stat -c %u /root/state; cat /workspace/note")
    assert state["stdout"] == "after\n33\nmine\n"
    member.post("/pod/restore", ins="main", name="early").ok
    assert member.exec("main", "cat /root/state")["stdout"] == "before\n"
    server.stop()

    # In the end LXD's go.
    finished = moving.run("--finish", "--yes", config=server.config)
    assert finished.returncode == 0, finished.stderr
    assert node.instances() == {}
    assert len(moving.in_incus()) == 10
    assert moving.trusting() == ["Incus"]


def test_what_a_project_may_have_in_all_is_told_before_anything_moves(moving: Lab) -> None:
    """Sums of limits, as the engines count them (limits.py)."""
    node, user = moving.node, moving.user
    config = node.write_config({**moving.changes, "listen": f"127.0.0.1:{free_port()}"})
    pods = [f"{user}-a", f"{user}-b"]
    for name in pods:
        own = {"owner": user, "ins": name[-1], "image": SMALL, "ports": "none"}
        options = [f"--config=user.podyd.{key}={value}" for key, value in own.items()]
        limits = ["--config=limits.memory=64MiB", "--device=root,size=40MiB"]
        node.lxc("init", SMALL, name, "--profile=podyd-base", *options, *limits)
    # The base image is larger than that, and no pod's disk.
    for key, value in (("limits.memory", "128MiB"), ("limits.disk", "80MiB")):
        node.lxc("project", "set", node.project, key, value)
    there = {name: _own(item) for name, item in node.instances().items()}

    def refused(sentence: str) -> None:
        dry = moving.run("--dry-run", config=config)
        assert (dry.returncode, sentence in dry.stdout) == (1, True), dry.stdout
        done = moving.run("--yes", config=config)
        assert (done.returncode, sentence in done.stderr) == (1, True), done.stderr

    # An instance of somebody else's there, and a limit of its own.
    assert moving.run("--yes", config=config).returncode == 0
    assert moving.run("--back", "--yes", config=config).returncode == 0
    other = {"name": "other", "type": "container", "profiles": [], "source": {"type": "none"}}
    root = {"type": "disk", "path": "/", "pool": moving.pool(), "size": "10MiB"}
    body = {**other, "config": {"limits.memory": "1MiB"}, "devices": {"root": root}}
    moving.limit(memory="200MiB", disk="90MiB")
    moving.incus.change("POST", f"/1.0/instances?project={node.project}", body)
    moving.limit(memory="128MiB", disk="90MiB")
    refused(
        f"Project {node.project} in Incus may have 128MiB by limits.memory, and its pods would have"
        f" 129MiB together: raise that first ('incus project set {node.project}"
        " limits.memory=129MiB'), or lower theirs."
    )
    assert {name: _own(item) for name, item in node.instances().items()} == there
    assert [*moving.in_incus()] == ["other"]

    # Half way, and then it is too low.
    moving.limit(memory="129MiB", disk="90MiB")
    moving.killed_after("(1 of 2)", config)
    assert moving.limits() == {}
    moving.limit(aside=True, memory="100MiB", disk="90MiB")
    refused("may have 100MiB by limits.memory, and its pods would have 129MiB together")
    assert moving.limits() == {"memory": "100MiB", "disk": "90MiB"}
    assert set(moving.in_incus()) == {pods[0], "other"}
    moving.limit(memory="129MiB", disk="90MiB")
    done = moving.run("--yes", config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert moving.limits() == {"memory": "129MiB", "disk": "90MiB"}
    assert set(moving.in_incus()) == {*pods, "other"}


def check_that_each_is_shown_once(moving: Lab) -> None:
    copies, there = moving.in_incus(), moving.node.instances()
    whole = {name for name, item in copies.items() if "owner" in _keys(item)}
    shown = {name for name, item in there.items() if "owner" in _keys(item)}
    assert not whole & shown, "each is shown once at most"
    assert len(there) == 10, "and LXD has all"


def _projects(api: lab.Api) -> set[str]:
    certificates = api.list("/1.0/certificates?recursion=1")
    return {project for item in certificates for project in item["projects"] or ()}


def _keys(item: Mapping[str, Any]) -> set[str]:
    return {key.removeprefix("user.podyd.") for key in item["config"]}


def _own(item: Mapping[str, Any]) -> dict[str, str]:
    return {key: text for key, text in item["config"].items() if not key.startswith("volatile.")}
