"""Which ports pods have, and where they may lead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from podyd import __version__
from podyd.base.errors import Conflict, Forbidden, NotFound
from podyd.config.current import Settings
from podyd.config.schema import Config, PortsConfig, Quota
from podyd.engine.instances import RestInstances
from podyd.engine.rest import RestClient
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.view import instance_of
from podyd.model.member import Member
from podyd.model.pod import OWNER, PORTS, Pod, pods_of
from podyd.network.locations import Locations
from podyd.network.ports import Ports, parse, ports_of, written
from tests.unit.node.fake import FakeNode

BORN = datetime(2026, 11, 25, tzinfo=timezone.utc)
MEMBER = Member("alice", False, Quota(), (), 1000, 1000)


class Lxd(RestClient):
    """Has instances of these names, each with its key."""

    project = "podyd"

    def __init__(self, keys: Mapping[str, str]) -> None:
        self.keys = dict(keys)
        self.changed = asyncio.Event()

    async def get(self, path: str, **query: Any) -> Any:
        await asyncio.sleep(0)
        if path == "/1.0/projects/podyd":
            return {}
        assert path == "/1.0/instances"
        return [self._data(name) for name in self.keys]

    async def tagged(self, path: str) -> tuple[Any, str]:
        return self._data(path.rpartition("/")[2]), "tag"

    async def change(
        self, method: str, path: str, body: Any = None, *, etag: str = "", **more: Any
    ) -> Any:
        assert (method, etag) == ("PUT", "tag")
        self.keys[path.rpartition("/")[2]] = body["config"][PORTS]
        self.changed.set()

    def _data(self, name: str) -> dict[str, Any]:
        config = {OWNER: "alice", PORTS: self.keys[name]}
        born = BORN + timedelta(seconds=[*self.keys].index(name))
        return {
            "name": name,
            "status": "Running",
            "created_at": born.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "last_used_at": "2026-11-25T00:00:00Z",
            "location": "none",
            "config": config,
            "expanded_config": config,
            "devices": {},
            "expanded_devices": {},
            "profiles": [],
            "architecture": "x86_64",
            "description": "",
            "ephemeral": False,
        }


Make = Callable[..., Ports]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(
        lxd: Lxd,
        ports: tuple[int, int] = (20000, 20009),
        expose: tuple[int, ...] = (22,),
        node: FakeNode | None = None,
    ) -> Ports:
        node = node or FakeNode()
        instances = RestInstances(lxd, RestoreGuard(tmp_path / "holds"))
        return Ports(
            locations=Locations(instances, node.neighbours),
            instances=instances,
            sockets=node.sockets,
            relays=node.relays,
            settings=Settings(Config(ports=PortsConfig(range=ports, expose=expose))),
        )

    return made


async def pod_of(lxd: Lxd, name: str) -> Pod:
    answer = [instance_of(item) for item in await lxd.get("/1.0/instances")]
    return next(pod for pod in pods_of(answer) if pod.name == name)


@pytest.mark.parametrize("text", ["none", "20000:22", "20000:22,20001:22", "65535:65535"])
def test_what_stands_on_an_instance(text: str) -> None:
    mapped = parse(text)
    assert mapped is not None
    assert written(mapped) == text


@pytest.mark.parametrize("text", ["", "22", "80:22", "70000:22", "20000:0", "20000:x", "20000:22,"])
def test_what_is_none_of_podyds(text: str) -> None:
    assert parse(text) is None


def test_the_older_of_two_keeps_a_port(make: Make) -> None:
    lxd = Lxd({"old": "20001:22,20002:80", "new": "20001:22,20003:81"})
    ports = make(lxd)

    async def run() -> None:
        answer = [instance_of(item) for item in await lxd.get("/1.0/instances")]
        expected = {"old": {20001: 22, 20002: 80}, "new": {20003: 81}}
        assert ports_of(answer) == ports_of(reversed(answer)) == expected
        settling = asyncio.create_task(ports.settle())
        await lxd.changed.wait()
        settling.cancel()
        await asyncio.wait({settling})
        await asyncio.sleep(0)  # What it waited for ends a turn later.

    asyncio.run(asyncio.wait_for(run(), 10))
    assert lxd.keys["old"] == "20001:22,20002:80"
    new = parse(lxd.keys["new"])
    assert new is not None
    assert sorted(new.values()) == [22, 81]
    assert new[20003] == 81
    assert not {20001, 20002} & new.keys()


def test_twenty_pods_at_once_have_twenty_ports(make: Make) -> None:
    lxd = Lxd({"there": "20005:22"})
    ports = make(lxd, ports=(20000, 20020))

    async def one(number: int) -> None:
        async with ports.new(MEMBER, f"p{number}") as config:
            await asyncio.sleep(0)
            lxd.keys[f"p{number}"] = config[PORTS]

    async def run() -> None:
        await asyncio.gather(*map(one, range(20)))
        with pytest.raises(Conflict) as caught:
            await one(20)
        assert caught.value.code == "no_free_port"
        # A port that is given up is free again.
        del lxd.keys["p7"]
        await one(20)

    asyncio.run(run())
    assigned = [host for text in lxd.keys.values() for host in parse(text) or {}]
    assert sorted(assigned) == [*range(20000, 20021)]


def test_what_was_reserved_for_a_pod_that_was_not_made_is_free(make: Make) -> None:
    lxd = Lxd({})
    ports = make(lxd, ports=(20000, 20000))

    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            async with ports.new(MEMBER, "a"):
                raise ZeroDivisionError
        async with ports.new(MEMBER, "b") as config:
            assert config == {PORTS: "20000:22"}

    asyncio.run(run())


def test_what_listens_on_the_host_is_not_given_out(make: Make) -> None:
    lxd = Lxd({"a": "none"})
    node = FakeNode()
    node.sockets.listening = {*range(20000, 20009)} - {20004}
    ports = make(lxd, node=node)

    async def run() -> None:
        pod = await pod_of(lxd, "a")
        for inner in (1, 2):
            await ports.add(MEMBER, pod, inner)
        assert sorted(await ports.of(pod)) == [20004, 20009]
        with pytest.raises(Conflict):
            await ports.add(MEMBER, pod, 3)

    asyncio.run(run())


def test_a_kernel_that_does_not_tell_stops_nothing(make: Make) -> None:
    lxd, node = Lxd({"a": "none"}), FakeNode()
    node.sockets.fails = OSError(2, "sock_diag")
    ports = make(lxd, node=node)

    async def run() -> None:
        pod = await pod_of(lxd, "a")
        await ports.add(MEMBER, pod, 1)
        assert [*(await ports.of(pod)).values()] == [1]

    asyncio.run(run())


def test_another_range_moves_nothing(make: Make) -> None:
    lxd = Lxd({"a": "30000:22"})
    ports = make(lxd)

    async def run() -> None:
        pod = await pod_of(lxd, "a")
        await ports.add(MEMBER, pod, 80)
        mapped = await ports.of(pod)
        assert mapped[30000] == 22
        assert sorted(mapped.values()) == [22, 80]
        await ports.delete(pod, 80)
        with pytest.raises(NotFound):
            await ports.delete(pod, 80)
        await ports.delete(pod, 22)
        assert await ports.of(pod) == {}
        await ports.add(MEMBER, pod, 80)
        with pytest.raises(Conflict):
            await ports.add(MEMBER, pod, 80)

    asyncio.run(run())


def test_the_quota(make: Make) -> None:
    member = replace(MEMBER, quota=Quota(max_ports=1))
    lxd = Lxd({"a": "20000:22"})
    ports = make(lxd, expose=(22, 80, 443))

    async def run() -> None:
        with pytest.raises(Forbidden):
            await ports.add(member, await pod_of(lxd, "a"), 80)
        async with ports.new(member, "b") as config:
            assert config[PORTS].endswith(":22")

    asyncio.run(run())


def test_the_relay_is_told_and_what_it_refuses_and_its_end_are_said(make: Make) -> None:
    node = FakeNode()
    ports = make(Lxd({"a": "20000:22,20001:80"}), node=node)
    messages: asyncio.Queue[str] = asyncio.Queue()
    ports.subscribe(messages.put_nowait)

    async def run() -> None:
        node.relays.taken = {20001}
        node.relays.begin(__version__)
        running = asyncio.create_task(ports.run())
        try:
            text = "some ports cannot be opened: 20001 (Address already in use)"
            assert await messages.get() == text
            # Nobody has heard of the pod's network card, so its ports lead nowhere yet.
            assert node.relays.table == {20000: None}
            node.relays.taken = set()
            ports.poke()
            assert await messages.get() == ""
            assert node.relays.table == {20000: None, 20001: None}
            node.relays.end()
            assert "has ended" in await messages.get()
        finally:
            running.cancel()
            await asyncio.wait({running})

    asyncio.run(asyncio.wait_for(run(), 20))
