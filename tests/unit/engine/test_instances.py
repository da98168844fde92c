"""What LXD's JSON of an instance comes to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from podyd.engine.instances import RestInstances, state_of
from podyd.engine.rest import RestClient
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.types import Address, FromImage, NewInstance, State


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
