"""What podyd knows of a real cluster's instances, with its own certificate, while a member is cut
off, hangs or ends: of $PODYD_TEST_ENGINE."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from podyd.engine.dialect import named as dialect_of
from podyd.engine.instances import RestInstances
from podyd.engine.rest import Credentials, RestClient
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.types import Instance, named
from tests.integration import small
from tests.lab import lab
from tests.lab.cluster import POOL, Cluster, Member
from tests.lab.conftest import mend
from tests.unit.api.test_tls import make

IMAGE, PROJECT, PROFILE = "small", "podyd", "default"
HERE, AWAY = "here", "away"
MARK = "user.podyd.mark"
# What a call may take while a member does not answer, and how long what it shows may be wrong after
# the engine counts it as back: 1 s and 10 s, and more where other tests have the processors. The
# engine itself takes 15 s and more.
SECONDS, WRONG_SECONDS = 5.0, 20.0
# The engine counts a member as away after this time.
OFFLINE_SECONDS = 60.0
# A pod that has ended is cleaned up for a while, and told then.
SETTLE_SECONDS = 10.0

T = TypeVar("T")


@pytest.fixture(scope="module")
def cluster(cluster: Cluster) -> Cluster:
    """With a running pod on the first and on the third, in a project like podyd's."""
    first, _, third = cluster.members
    environment = {"PATH": lab.SYSTEM_PATH, lab.ENGINE.variable: str(first.api.path.parent)}
    small.make(IMAGE, "default", environment)
    config = {"features.images": "false", "features.profiles": "true", "restricted": "true"}
    config["restricted.snapshots"] = "allow"
    first.api.change("POST", "/1.0/projects", {"name": PROJECT, "config": config})
    devices = {"root": {"type": "disk", "path": "/", "pool": POOL}}
    first.api.change("PATCH", f"/1.0/profiles/{PROFILE}?project={PROJECT}", {"devices": devices})
    for name, member in ((HERE, first), (AWAY, third)):
        body = {"name": name, "source": {"type": "image", "alias": IMAGE}, "config": {MARK: name}}
        path = f"/1.0/instances?project={PROJECT}&target={member.name}"
        first.api.change("POST", path, body)
        path = f"/1.0/instances/{name}/state?project={PROJECT}"
        first.api.change("PUT", path, {"action": "start"})
    return cluster


@pytest.fixture(scope="module")
def credentials(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """A certificate that is restricted to the project."""
    first = cluster.members[0]
    directory = tmp_path_factory.mktemp("credentials")
    files = make(directory, "podyd")
    credentials = Credentials(directory, dialect_of(lab.ENGINE.key))
    shutil.copy(files.cert, credentials.certificate)
    shutil.copy(files.key, credentials.key)
    server = first.api.get("/1.0")["environment"]["certificate"]
    credentials.server_certificate.write_text(server)
    der = ssl.PEM_cert_to_DER_cert(credentials.certificate.read_text())
    body = {
        "name": "podyd",
        "type": "client",
        "restricted": True,
        "projects": [PROJECT],
        "certificate": base64.b64encode(der).decode(),
    }
    first.api.change("POST", "/1.0/certificates", body)
    return credentials


class Podyd:
    """What podyd, which asks one member, knows of the instances; every look is timed."""

    def __init__(self, asked: Member, credentials: Credentials, directory: Path) -> None:
        self.client = RestClient(f"https://{asked.https}", PROJECT, credentials)
        self.instances = RestInstances(self.client, RestoreGuard(directory))
        self.slowest = 0.0
        self.told = asyncio.Event()
        self.instances.subscribe(self.told.set)

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        connected = asyncio.Event()

        async def connect() -> None:
            connected.set()

        watching = asyncio.ensure_future(self.instances.watch(connect))
        try:
            await asyncio.wait_for(connected.wait(), SECONDS * 10)
            await self.instances.all()
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            self.instances.close()
            self.client.close()

    async def one(self, name: str) -> Instance:
        began = time.monotonic()
        instance = named(await self.instances.all(), name)
        self.slowest = max(self.slowest, time.monotonic() - began)
        assert instance is not None
        return instance

    async def until(self, name: str, has: Callable[[Instance], bool], seconds: float) -> float:
        """Look at each change until an instance is so; after how many seconds."""
        began = time.monotonic()
        while True:
            self.told.clear()
            if has(await self.one(name)):
                return time.monotonic() - began
            left = began + seconds - time.monotonic()
            assert left > 0, await self.one(name)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.told.wait(), left)

    async def change(self, name: str, mark: str) -> None:
        """By podyd, which sees it at once."""
        await self.instances.edit(name, config={MARK: mark}, devices=dict)
        assert (await self.one(name)).config[MARK] == mark


def change_elsewhere(member: Member, name: str, mark: str) -> None:
    """As an admin does there."""
    path = f"/1.0/instances/{name}?project={PROJECT}"
    member.api.change("PATCH", path, {"config": {MARK: mark}})


def is_marked(mark: str, instance: Instance) -> bool:
    return instance.config[MARK] == mark


def wait_until_online(cluster: Cluster, asked: Member, member: Member) -> None:
    assert lab.wait_for(lambda: cluster.states(asked)[member.name] == "Online", OFFLINE_SECONDS)


async def besides(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def test_what_is_changed_on_any_member_is_seen(
    cluster: Cluster, credentials: Credentials, tmp_path: Path
) -> None:
    async def work() -> None:
        first, second, third = cluster.members
        podyd = Podyd(first, credentials, tmp_path)
        async with podyd.following():
            assert [(await podyd.one(name)).host for name in (HERE, AWAY)] == ["gpu1", "gpu3"]
            for member in (first, second, third):
                for name in (HERE, AWAY):
                    await besides(partial(change_elsewhere, member, name, member.name))
                    await podyd.until(name, partial(is_marked, member.name), SECONDS)
            # An operation of another member, told by its path there.
            await podyd.instances.set_status(AWAY, "stop", timeout=30, force=True)
            assert (await podyd.one(AWAY)).status == "stopped"
            await podyd.instances.set_status(AWAY, "start", timeout=30)
            assert (await podyd.one(AWAY)).status == "running"
            await podyd.change(AWAY, "own")

    asyncio.run(work())


class Pod:
    """One that comes and goes, by an admin's hand or its own."""

    def __init__(self, cluster: Cluster) -> None:
        self.members = cluster.members
        self.api = cluster.members[0].api
        self.name = "fickle"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        path, _, query = path.partition("?")
        self.api.change(method, f"/1.0/{path}?project={PROJECT}&{query}", body)

    def change(self, method: str, part: str = "", body: dict[str, Any] | None = None) -> None:
        self.ask(method, f"instances/{self.name}{part}", body)

    def create(self) -> None:
        source = {"type": "image", "alias": IMAGE}
        self.ask("POST", "instances?target=gpu2", {"name": self.name, "source": source})

    def put_state(self, action: str) -> None:
        self.change("PUT", "/state", {"action": action, "force": True})

    def state(self) -> tuple[str, int]:
        """Its status and the number of its first process."""
        with contextlib.suppress(lab.LabError):  # It is being stopped.
            state = self.api.get(f"/1.0/instances/{self.name}/state?project={PROJECT}")
            return state["status"], state["pid"]
        return "", 0

    def end(self, signal: str) -> None:
        """By a signal to its first process."""
        self.members[1].run("kill", "-s", signal, str(self.state()[1]))
        assert lab.wait_for(self.has_ended, SETTLE_SECONDS)

    def has_ended(self) -> bool:
        """Incus says that it runs again from when it begins to clean up until it has done so."""
        data = self.api.get(f"/1.0/instances/{self.name}?project={PROJECT}")
        power = data["config"]["volatile.last_state.power"]
        return (data["status"], power) == ("Stopped", "STOPPED")

    def reboot_itself(self) -> None:
        before = self.state()
        words = ("exec", self.name, f"--project={PROJECT}", "--", "reboot", "-f")
        # It ends with the pod.
        with contextlib.suppress(lab.LabError):
            self.members[1].run(lab.ENGINE.command, *words)
        assert lab.wait_for(lambda: self.state() not in (before, ("", 0)), SETTLE_SECONDS)
        assert lab.wait_for(lambda: self.state()[0] == "Running", SETTLE_SECONDS)

    def rename(self, name: str) -> None:
        self.change("POST", "", {"name": name})
        self.name = name

    def works(self) -> Iterator[Callable[[], None]]:
        own = f"profiles/{PROFILE}"
        yield self.create
        yield partial(self.put_state, "start")
        yield partial(self.put_state, "freeze")
        yield partial(self.put_state, "unfreeze")
        yield partial(self.change, "PATCH", "", {"config": {MARK: "1"}})
        yield partial(self.change, "PATCH", "", {"devices": {"none": {"type": "none"}}})
        yield partial(self.ask, "PATCH", own, {"config": {"user.podyd.profile": "1"}})
        yield self.reboot_itself
        yield partial(self.put_state, "restart")
        yield partial(self.end, "PWR")
        yield partial(self.put_state, "start")
        yield partial(self.end, "KILL")
        yield partial(self.change, "POST", "/snapshots", {"name": "s"})
        yield partial(self.change, "PATCH", "", {"config": {MARK: "2"}})
        yield partial(self.change, "PUT", "", {"restore": "s"})
        yield partial(self.change, "DELETE", "/snapshots/s")
        yield partial(self.rename, "frail")
        yield partial(self.change, "POST", "?target=gpu3", {"name": self.name, "migration": True})
        yield partial(self.change, "DELETE")


def test_what_is_kept_is_what_the_engine_says(
    cluster: Cluster, credentials: Credentials, tmp_path: Path
) -> None:
    """After whatever happens to an instance, by the events of that alone."""

    async def work() -> None:
        pod = Pod(cluster)
        podyd = Podyd(cluster.members[0], credentials, tmp_path)
        # It hears no events and asks each time.
        other = Podyd(cluster.members[0], credentials, tmp_path)
        async with podyd.following():
            for what in pod.works():
                await besides(what)
                began = time.monotonic()
                while (kept := await podyd.instances.all()) != (now := await other.instances.all()):
                    shown = [named(each, pod.name) for each in (kept, now)]
                    assert time.monotonic() < began + SETTLE_SECONDS, (what, shown)
            assert [item.name for item in now] == [AWAY, HERE]
        other.instances.close()
        other.client.close()

    asyncio.run(work())


@pytest.mark.parametrize("fault", [Member.cut, Member.pause, Member.kill, Member.power_off])
def test_a_member_that_does_not_answer_is_not_waited_for(
    cluster: Cluster,
    third: Member,
    credentials: Credentials,
    tmp_path: Path,
    fault: Callable[[Member], None],
) -> None:
    async def work() -> None:
        first = cluster.members[0]
        podyd = Podyd(first, credentials, tmp_path)
        async with podyd.following():
            await podyd.change(AWAY, fault.__name__)
            before = await podyd.one(AWAY)
            await besides(lambda: fault(third))
            # All are to be read for it.
            profile = f"/1.0/profiles/{PROFILE}?project={PROJECT}"
            described = {"description": f"{fault.__name__} of a member"}
            await besides(lambda: first.api.change("PATCH", profile, described))
            podyd.slowest = 0.0
            number = 0
            began = time.monotonic()
            while (away := await podyd.one(AWAY)).is_reachable:
                assert time.monotonic() < began + OFFLINE_SECONDS
                assert away.config == before.config
                # What is on others goes on.
                number += 1
                await podyd.change(HERE, f"{fault.__name__} {number}")
            assert (away.config, away.devices) == (before.config, before.devices)
            assert (away.host, away.status) == ("gpu3", "running")
            # A podyd that begins now knows no more than the engine.
            if (await besides(lambda: cluster.states(first)))["gpu3"] == "Offline":
                other = Podyd(first, credentials, tmp_path)
                async with other.following():
                    unknown = await other.one(AWAY)
                    assert (unknown.host, unknown.is_reachable) == ("gpu3", False)
                    assert (unknown.config, unknown.uuid) == ({}, "")
            await besides(lambda: mend(third))
            await besides(lambda: wait_until_online(cluster, first, third))
            await podyd.until(AWAY, lambda item: item.is_reachable, WRONG_SECONDS)
            assert podyd.slowest < SECONDS
            assert (await podyd.one(AWAY)).config[MARK] == fault.__name__
            await podyd.until(AWAY, lambda item: item.status == "running", OFFLINE_SECONDS)
            await podyd.change(AWAY, "back")

    asyncio.run(work())
