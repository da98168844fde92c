"""What LXD's JSON of an instance comes to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from podyd.base.errors import EngineRefused
from podyd.engine import instances as module
from podyd.engine.instances import RestInstances, state_of
from podyd.engine.refusals import refusal
from podyd.engine.rest import RestClient
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.types import Address, FromImage, NewInstance, State
from podyd.engine.view import instance_of


@pytest.mark.parametrize(
    ("data", "state"),
    [
        # As LXD 5.0.2 says of one that does not run.
        ({"pid": 0, "disk": None, "network": None, "memory": {"usage": 0}}, State()),
        ({"pid": -1, "disk": {"root": {"usage": -1}}}, State(-1, disk_bytes={"root": 0})),
        (
            {"pid": 7, "disk": {"root": {"usage": 9}}, "memory": {"usage": 5, "usage_peak": 6}},
            State(7, memory_bytes=5, disk_bytes={"root": 9}),
        ),
    ],
)
def test_what_lxd_leaves_out_of_a_state(data: dict[str, Any], state: State) -> None:
    assert state_of(data) == state


def test_only_addresses_that_others_reach_count() -> None:
    network = {
        "eth0": {
            "addresses": [
                {"family": "inet", "address": "10.0.0.2", "netmask": "24", "scope": "global"},
                {"family": "inet6", "address": "fe80::1", "netmask": "64", "scope": "link"},
            ]
        },
        "lo": {"addresses": [{"family": "inet", "address": "127.0.0.1", "scope": "local"}]},
    }
    assert state_of({"network": network}).addresses == (Address("eth0", "inet", "10.0.0.2"),)


class Client:
    """LXD that makes what it is asked for, and whose events are late."""

    async def change(self, method: str, path: str, body: object, **options: object) -> None:
        assert (method, path) == ("POST", "/1.0/instances")


def test_what_has_been_made_is_looked_for_although_no_event_has_come(tmp_path: Path) -> None:
    async def make() -> None:
        instances = RestInstances(cast(RestClient, Client()), RestoreGuard(tmp_path))
        heard: list[None] = []
        instances.subscribe(lambda: heard.append(None))
        await instances.create(NewInstance("x", FromImage("f"), (), {}, {}), timeout=1)
        assert heard
        instances.close()

    asyncio.run(make())


def listed(name: str, **more: object) -> dict[str, Any]:
    """LXD's JSON of an instance that runs, or what of it is other than that."""
    time = "2026-01-01T00:00:00Z"
    return {
        "name": name,
        "status": "Running",
        "created_at": time,
        "last_used_at": time,
        "location": "none",
        "config": {"volatile.uuid": name},
        "expanded_config": {},
        "profiles": [],
        "devices": {},
        "expanded_devices": {},
        "state": {"cpu": {"usage": 5}},
        **more,
    }


def test_one_that_has_told_that_it_has_booted_runs() -> None:
    assert instance_of(listed("x", status="Ready")).status == "running"


class Incus:
    """An Incus in which "b" is being stopped; "b" has ended after `ends_after` looks at it."""

    def __init__(self, ends_after: int) -> None:
        self.looks_left = ends_after
        self.told = False

    async def get(self, path: str, **query: object) -> Any:
        if path == "/1.0/instances/b/state":
            if self.looks_left:
                self.looks_left -= 1
                raise refusal("Invalid PID '\ufffd'", 500)
            return {"status": "Stopped", "pid": 0, "disk": None, "network": None}
        assert path == "/1.0/instances"
        nameless = dict.fromkeys(listed("b")) | {"name": "b", "status": "Error"}
        return [listed("a"), nameless if query["recursion"] == 2 else listed("b")]

    async def change(self, method: str, path: str, body: object, **options: object) -> None:
        assert (method, path) == ("PUT", "/1.0/instances/b/state")
        assert not self.looks_left, "told to stop while it is being cleaned up"
        self.told = True


class Filtering:
    """An Incus of 6.21 or newer, in whose project there is nothing that podyd may see."""

    project = "podyd pods"

    def __init__(self, *, is_allowed: bool) -> None:
        self.is_allowed = is_allowed

    async def get(self, path: str, **query: object) -> Any:
        if path == "/1.0/instances":
            return []
        assert path == "/1.0/projects/podyd%20pods"
        if not self.is_allowed:
            raise refusal('User does not have permission for project "podyd pods"', 403)
        return {"config": {}}


def test_a_project_that_podyd_may_not_see_is_not_one_without_pods(tmp_path: Path) -> None:
    async def look(is_allowed: bool) -> None:
        incus = cast(RestClient, Filtering(is_allowed=is_allowed))
        instances = RestInstances(incus, RestoreGuard(tmp_path))
        try:
            for ask in (instances.all, instances.cpu_times):
                assert await ask() == ()
        finally:
            instances.close()

    asyncio.run(look(True))
    with pytest.raises(EngineRefused, match="permission"):
        asyncio.run(look(False))


def of_incus(tmp_path: Path, incus: Incus) -> RestInstances:
    return RestInstances(cast(RestClient, incus), RestoreGuard(tmp_path))


def test_one_that_is_being_stopped_has_no_figures_and_is_there(tmp_path: Path) -> None:
    async def look() -> None:
        instances = of_incus(tmp_path, Incus(ends_after=9))
        times = {item.instance.uuid: item.nanoseconds for item in await instances.cpu_times()}
        assert times == {"a": 5, "b": None}
        assert set(instances.last_states) == {"a"}
        assert await instances.state("b") == State()
        instances.close()

    asyncio.run(look())


def test_one_that_is_being_stopped_is_let_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FREE_SECONDS", 0.0)

    async def stop() -> None:
        incus = Incus(ends_after=3)
        instances = of_incus(tmp_path, incus)
        await instances.set_status("b", "stop", timeout=30)
        assert incus.told
        instances.close()

    asyncio.run(stop())
