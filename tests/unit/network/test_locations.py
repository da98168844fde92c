"""At which address a pod is, whatever it says itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

import pytest

from podyd.engine.types import Address, Instance, State
from podyd.network.locations import Locations, held_nics, location_of
from podyd.node.arp import Nic
from tests.unit.engine.fake import FakeEngine
from tests.unit.node.fake import FakeNeighbours

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


@pytest.mark.parametrize(
    ("heard", "claimed", "expected", "asked"),
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
    expected: Mapping[str, str],
    asked: set[str],
) -> None:
    neighbours = FakeNeighbours(heard)
    lxd = FakeEngine()
    if claimed:
        lxd.add(instance())
        addresses = tuple(Address("eth0", "inet", address) for address in claimed)
        lxd.states["a"] = State(addresses=addresses)
    locations = Locations(lxd.engine.instances, neighbours)
    assert asyncio.run(locations.of([instance()])) == expected
    assert neighbours.asked == {("lxdbr0", address) for address in asked}
