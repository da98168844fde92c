"""How cards are given, and what devices say of that.

Which id names what, and what excludes what, is of LXD's source: lxd/device/cdi/id.go,
lxd/device/cdi/spec.go, lxd/device/gpu_physical.go, doc/reference/devices_gpu.md; main of August
2026. No such server was at hand: nothing here was tried on one.
"""

from __future__ import annotations

import pytest

from podyd.base.errors import SetupError
from podyd.engine.gpu_devices import (
    card_device,
    card_of_device,
    has_driver,
    is_by_cdi,
    wants_cdi,
    with_address,
)
from podyd.engine.profile_files import on_host, shipped
from podyd.engine.types import PciCard, Profile
from tests.unit.engine.recorded import EXTENSIONS, WANTS_CDI

UUIDS = {"0000:41:00.0": "GPU-a", "0000:4a:00.0": ""}


@pytest.mark.parametrize(("tag", "by_cdi"), WANTS_CDI.items())
def test_which_servers_want_cdi_ids(tag: str, by_cdi: bool) -> None:
    assert wants_cdi(EXTENSIONS[tag]) is by_cdi


def test_a_card_in_either_form() -> None:
    pci = "0000:41:00.0"
    gpu = {"type": "gpu", "gputype": "physical"}
    assert card_device(pci, "GPU-a", 3, by_cdi=False) == {**gpu, "pci": pci}
    assert card_device(pci, "GPU-a", 3, by_cdi=True) == {**gpu, "id": "nvidia.com/gpu=GPU-a"}
    assert card_device(pci, "", 3, by_cdi=True) == {**gpu, "id": "nvidia.com/gpu=3"}


@pytest.mark.parametrize(
    ("keys", "card"),
    [
        ({}, None),
        ({"pci": "41:00.0"}, "41:00.0"),
        ({"id": "0"}, None),
        ({"id": "nvidia.com/gpu=all"}, None),
        ({"id": "nvidia.com/gpu=0"}, "0"),
        ({"id": "nvidia.com/gpu=GPU-a"}, "GPU-a"),
        ({"id": "nvidia.com/mig=1:0"}, "1"),
        ({"id": "nvidia.com/mig=MIG-x"}, None),
        ({"id": "amd.com/gpu=0"}, ""),
    ],
)
def test_which_card_a_device_names(keys: dict[str, str], card: str | None) -> None:
    device = {"type": "gpu", **keys}
    assert card_of_device(device) == card
    assert is_by_cdi(device) is ("=" in keys.get("id", ""))


def test_what_brings_the_driver() -> None:
    assert has_driver({"nvidia.runtime": "true"}, {})
    assert has_driver({}, {"g": {"type": "gpu", "id": "nvidia.com/gpu=all"}})
    assert not has_driver({"nvidia.runtime": "false"}, {"g": {"type": "gpu", "pci": "41:00.0"}})


def test_the_shipped_profile_where_cards_are_given_by_cdi_ids() -> None:
    profile = shipped()["podyd-gpu"]
    assert on_host(profile, "default", "lxdbr0", None) == profile
    there = on_host(profile, "default", "lxdbr0", UUIDS)
    assert there.config == {}
    assert there.devices == {
        "gpus": {"type": "gpu", "gputype": "physical", "id": "nvidia.com/gpu=all"}
    }


def test_a_profile_of_an_admin_where_cards_are_given_by_cdi_ids() -> None:
    config = {
        "nvidia.runtime": "true",
        "nvidia.driver.capabilities": "all",
        "nvidia.require.cuda": "12",
        "limits.cpu": "2",
    }
    untouched = {
        "root": {"type": "disk", "path": "/", "pool": "p"},
        "amd": {"type": "gpu", "vendorid": "1002"},
        "slice": {"type": "gpu", "gputype": "mig", "pci": "41:00.0", "mig.gi": "1", "mig.ci": "0"},
        "cdi": {"type": "gpu", "id": "nvidia.com/gpu=1"},
    }
    one = {"type": "gpu", "pci": "41:00.0", "mode": "0660"}
    there = on_host(Profile("p", "", config, {**untouched, "one": one}), "p", "b", UUIDS)
    assert there.config == {"limits.cpu": "2"}
    given = {"type": "gpu", "mode": "0660", "id": "nvidia.com/gpu=GPU-a"}
    assert there.devices == {**untouched, "one": given}
    for pci in ("4A:00.0", "0000:99:00.0"):
        with pytest.raises(SetupError, match="knows no UUID") as caught:
            on_host(Profile("p", devices={"one": {**one, "pci": pci}}), "p", "b", UUIDS)
        assert "id: nvidia.com/gpu=NUMBER" in caught.value.advice


CARDS = (
    PciCard("0000:4a:00.0", "10de", "GPU-b"),
    PciCard("0000:41:00.0", "10de", "GPU-a"),
)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("all", {}),
        ("GPU-a", {"pci": "0000:41:00.0"}),
        ("0", {"pci": "0000:41:00.0"}),
        ("1", {"pci": "0000:4a:00.0"}),
    ],
)
def test_a_cdi_id_where_cards_are_given_by_address(name: str, keys: dict[str, str]) -> None:
    device = {"type": "gpu", "gputype": "physical", "mode": "0660", "id": f"nvidia.com/gpu={name}"}
    rest = {"type": "gpu", "gputype": "physical", "mode": "0660"}
    assert with_address(device, CARDS) == {**rest, **keys}


@pytest.mark.parametrize(
    "text", ["nvidia.com/gpu=2", "nvidia.com/gpu=GPU-c", "nvidia.com/mig=1:0", "amd.com/gpu=0"]
)
def test_a_cdi_id_that_names_no_card_of_nvidias(text: str) -> None:
    with pytest.raises(SetupError, match=f"No address is known of {text}"):
        with_address({"type": "gpu", "id": text}, CARDS)


def test_what_is_no_cdi_id_stays_as_it_is() -> None:
    for device in (
        {"type": "gpu", "pci": "41:00.0"},
        {"type": "gpu", "id": "0"},
        {"type": "disk", "path": "/", "pool": "p"},
    ):
        assert with_address(device, CARDS) == device
