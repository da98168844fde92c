"""At which address a pod is, whatever it says itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from podyd.base.errors import Gone
from podyd.engine.instances import LxdInstances
from podyd.engine.rest import LxdClient
from podyd.engine.restore_guard import Holds
from podyd.engine.types import Instance
from podyd.network.locations import Locations, held_nics, location_of
from podyd.node.arp import Nic, neighbours, probe

BORN = datetime(2026, 1, 1, tzinfo=timezone.utc)
HELD = {
    "type": "nic",
    "nictype": "bridged",
    "parent": "lxdbr0",
    "security.ipv4_filtering": "true",
}
OWN, OTHER = Nic("lxdbr0", "00:16:3e:00:00:01"), Nic("lxdbr0", "00:16:3e:00:00:02")


def instance(
    devices: Mapping[str, Mapping[str, str]] | None = None, started: datetime = BORN
) -> Instance:
    config = {"volatile.eth0.hwaddr": "00:16:3E:00:00:01", "volatile.uuid": "u"}
    devices = {"eth0": HELD} if devices is None else devices
    return Instance("a", "running", BORN, started, config, config, {}, devices, ())


def test_only_a_card_that_lxd_holds_to_its_address_counts() -> None:
    assert held_nics(instance()) == [OWN]
    for changes in (
        {"security.ipv4_filtering": "false"},
        {"security.ipv4_filtering": ""},
        {"parent": ""},
        {"type": "proxy"},
    ):
        assert not held_nics(instance({"eth0": {**HELD, **changes}})), changes
    assert not held_nics(instance({"eth1": HELD})), "its address is not known"
    assert held_nics(instance({"eth1": {**HELD, "hwaddr": OTHER.hardware}})) == [OTHER]


def test_the_kernels_word_counts_and_is_remembered_until_the_next_start() -> None:
    heard = {OWN: frozenset({"10.0.0.2"}), OTHER: frozenset({"10.0.0.3"})}
    before = location_of(instance(), heard, None)
    assert before is not None
    assert before.address == "10.0.0.2"
    assert location_of(instance(), {}, before) == before
    assert location_of(instance(started=BORN + timedelta(seconds=1)), {}, before) is None
    assert location_of(instance(), {}, None) is None


def test_an_address_that_is_another_pods_by_now() -> None:
    before = location_of(instance(), {OWN: frozenset({"10.0.0.2"})}, None)
    assert location_of(instance(), {OTHER: frozenset({"10.0.0.2"})}, before) is None
    # On another bridge it may be anybody's.
    elsewhere = {Nic("virbr0", OTHER.hardware): frozenset({"10.0.0.2"})}
    assert location_of(instance(), elsewhere, before) == before


class Lxd(LxdClient):
    """Says of each instance what it claims."""

    def __init__(self, *claimed: str) -> None:
        self.claimed = claimed

    async def get(self, path: str, **query: Any) -> Any:
        if not self.claimed:
            raise Gone("Instance not found")
        addresses = [
            {"family": "inet", "scope": "global", "address": address} for address in self.claimed
        ]
        return {"network": {"eth0": {"addresses": addresses}}}


@pytest.mark.parametrize(
    ("heard", "claimed", "found", "asked"),
    [
        ({OWN: frozenset({"10.0.0.2"})}, ("10.0.0.9",), {"a": "10.0.0.2"}, set()),
        # What it claims is asked for, and is no more than a claim.
        ({OTHER: frozenset({"10.0.0.3"})}, ("10.0.0.3",), {}, {"10.0.0.3"}),
        ({}, (), {}, set()),
        (
            {OWN: frozenset({"10.0.0.2", "10.0.0.4"})},
            (),
            {"a": "10.0.0.2"},
            {"10.0.0.2", "10.0.0.4"},
        ),
    ],
)
def test_what_is_asked_for(
    heard: Mapping[Nic, frozenset[str]],
    claimed: tuple[str, ...],
    found: Mapping[str, str],
    asked: set[str],
) -> None:
    seen: set[str] = set()

    def ask(interface: str, addresses: Iterable[str]) -> None:
        assert interface == "lxdbr0"
        seen.update(addresses)

    instances = LxdInstances(Lxd(*claimed), Holds(Path("/nowhere")))
    locations = Locations(instances, lambda: heard, ask)
    assert asyncio.run(locations.of([instance()])) == found
    assert seen == asked
    instances.close()


def test_what_the_kernel_lists(tmp_path: Path) -> None:
    (tmp_path / "arp").write_text(
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        "192.0.2.99       0x1         0x0         00:00:00:00:00:00     *        eth0\n"
        "10.0.0.4         0x1         0x2         00:16:3e:00:00:01     *        lxdbr0\n"
        "10.0.0.2         0x1         0x6         00:16:3E:00:00:01     *        lxdbr0\n"
    )
    assert neighbours(tmp_path / "arp") == {OWN: frozenset({"10.0.0.2", "10.0.0.4"})}
    assert isinstance(neighbours(), dict), "the kernel's own"


def test_asking_never_fails_and_stays_on_its_interface() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 9))
        listener.settimeout(5)
        probe("no-such0", ["127.0.0.1"])
        probe("lo", ["not an address", "127.0.0.1"])
        assert listener.recv(10) == b""
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(10)
