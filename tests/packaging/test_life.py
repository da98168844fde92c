"""What becomes of pods, settings and commands under way when the package changes or goes."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.integration.harness import PASSWORD, Answer, wait_until
from tests.packaging.machine import FarClient, Machine

CONFIG = "quota: {default: {max_pods: 9}}\n"
PROCESSES = "12345"
# Enough for a login that PAM is asked about to be under way at any time of an upgrade.
MEMBERS = tuple(f"member{number}" for number in range(40))
_turn = itertools.count()


@dataclass(frozen=True)
class Site:
    """A server with a running pod of alice's."""

    machine: Machine
    alice: FarClient
    debs: list[Path]

    def install(self, *words: str, debs: list[Path] | None = None) -> None:
        chosen = self.debs if debs is None else debs
        self.machine.push(*chosen)
        self.machine.apt("install", *words, *(f"/root/{deb.name}" for deb in chosen))

    def init_of_pod(self) -> int:
        """The process that is the pod's init; another one after a restart."""
        query = "/1.0/instances/alice-kept/state?project=podyd"
        pid: int = json.loads(self.machine.ask("query", query))["pid"]
        return pid

    def assert_pod_is_theirs(self) -> None:
        assert self.alice.get("/pod/list").ok == ["kept"]
        assert self.alice.exec("kept", "cat /root/mark")["stdout"] == "mine\n"


@pytest.fixture(scope="module")
def site(bare: Machine, debs: list[Path], previous_debs: list[Path]) -> Site:
    """The previous version in use: edited settings, an edited profile, a pod."""
    for name in ("alice", *MEMBERS):
        bare.user(name, PASSWORD)
    output = Site(bare, bare.client("alice", PASSWORD), debs)
    output.install(debs=previous_debs)
    bare.run("podyd", "image", "build", timeout=600)
    bare.write("/etc/podyd/podyd.yaml", CONFIG)
    bare.run("systemctl", "reload", "podyd")
    profile = ("podyd-base", "--project", "podyd")
    bare.ask("profile", "set", *profile[:1], "limits.processes", PROCESSES, *profile[1:])
    output.alice.post("/pod/create", ins="kept", image="debian12").ok
    output.alice.exec("kept", "echo mine > /root/mark")
    return output


def logged_in_version(machine: Machine) -> str:
    """Who answers; a new member each time, so that PAM is asked each time."""
    user = MEMBERS[next(_turn) % len(MEMBERS)]
    version: str = machine.client(user, PASSWORD).get("/host/spec").ok["podyd"]
    return version


@contextmanager
def asking(ask: Callable[[], str]) -> Iterator[list[str]]:
    """Calls made one after the other meanwhile."""
    answers: list[str] = []
    stop = threading.Event()

    def go() -> None:
        while not stop.is_set():
            answers.append(ask())

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join(30)


def begun(site: Site, pool: ThreadPoolExecutor, name: str, rest: str) -> Future[Answer]:
    """A command of alice's that is under way in her pod."""
    call = site.alice.post
    cmd = f"touch /run/{name}; {rest}"
    running = pool.submit(call, "/pod/exec", ins="kept", cmd=cmd, timeout=600)
    command = site.machine.engine.command
    inside = (
        command,
        "exec",
        "alice-kept",
        "--project",
        "podyd",
        "--",
        "test",
        "-e",
        f"/run/{name}",
    )
    wait_until(lambda: site.machine.attempt(*inside).returncode == 0, f"{name} to begin")
    return running


def test_an_upgrade_keeps_pods_settings_and_calls(site: Site) -> None:
    machine = site.machine
    init = site.init_of_pod()
    assert site.alice.get("/version").ok == [0, 0, 1]
    helper = machine.show("podyd-auth.service", "MainPID")
    relay = machine.show("podyd-ports.service", "MainPID")
    assert "0" not in (helper, relay)  # The old version's.
    with ThreadPoolExecutor() as pool, asking(partial(logged_in_version, machine)) as answers:
        long = begun(site, pool, "long", "exec sleep 5252")
        # Under way when podyd is told to stop, however long apt takes until then.
        wait = "until test -e /run/stopping; do sleep 0.1; done; sleep 2; echo done"
        short = begun(site, pool, "short", wait)
        pool.submit(tell_when_stopping, site)
        site.install()
        assert long.result(60).refused(503, "shutting_down")
        assert short.result(60).ok["stdout"] == "done\n"
        wait_until(lambda: answers[-1] == "0.1.0", "the new version")
    assert [version for version, _ in itertools.groupby(answers)] == ["0.0.1", "0.1.0"]
    assert machine.attempt("pgrep", "-f", "^sleep 5252").returncode == 1
    assert site.init_of_pod() == init
    assert machine.show("podyd-auth.service", "MainPID") != helper
    assert machine.show("podyd-ports.service", "MainPID") == relay
    assert machine.read("/etc/podyd/podyd.yaml") == CONFIG
    assert site.alice.get("/user/info").ok["quota"]["max_pods"] == 9
    profile = ("podyd-base", "limits.processes", "--project", "podyd")
    assert machine.ask("profile", "get", *profile).strip() == PROCESSES
    site.assert_pod_is_theirs()


def tell_when_stopping(site: Site) -> None:
    """Let the short command go on once podyd is going down."""
    machine = site.machine
    wait_until(lambda: machine.show("podyd", "ActiveState") == "deactivating", "the stop", 120)
    machine.ask("exec", "alice-kept", "--project", "podyd", "--", "touch", "/run/stopping")


def test_an_upgrade_leaves_disabled_what_is_disabled(site: Site) -> None:
    machine = site.machine
    machine.run("systemctl", "disable", "--now", "podyd")
    site.install("--reinstall")
    assert machine.show("podyd", "UnitFileState") == "disabled"
    machine.run("systemctl", "enable", "--now", "podyd")
    site.assert_pod_is_theirs()


def test_a_reboot_brings_podyd_and_the_pods_back(site: Site) -> None:
    site.machine.shut_down()
    site.machine.boot()
    wait_until(lambda: site.machine.is_active("podyd"), "podyd after the reboot", 60)
    wait_until(
        lambda: site.alice.get("/pod/info", ins="kept").body.get("status") == "running",
        "the pod",
        60,
    )
    site.assert_pod_is_theirs()


def test_remove_leaves_pods_and_data_and_all_is_found_again(site: Site) -> None:
    machine = site.machine
    init = site.init_of_pod()
    machine.apt("remove", "podyd", "podyd-client")
    assert machine.attempt("pgrep", "-u", "podyd").returncode == 1
    assert not machine.is_active("podyd-auth.socket")
    assert machine.path(f"/var/lib/podyd/{machine.engine.key}/client.key").exists()
    assert machine.read("/etc/podyd/podyd.yaml") == CONFIG
    assert site.init_of_pod() == init
    site.install()
    site.assert_pod_is_theirs()
    assert site.init_of_pod() == init


def test_purge_takes_what_is_podyds_and_no_pod(site: Site) -> None:
    machine = site.machine
    init = site.init_of_pod()
    machine.apt("purge", "podyd", "podyd-client")
    left = machine.sh(
        "find / -xdev -name '*podyd*' -not -path '/root/*' -not -path '/proc/*' || true"
    )
    # Its pods, which the engine keeps; the account, as is Debian's custom.
    assert [line for line in left.splitlines() if f"/{machine.engine.key}/" not in line] == []
    assert site.init_of_pod() == init
    site.install()
    site.assert_pod_is_theirs()
    assert site.init_of_pod() == init
