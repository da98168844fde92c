"""Cards, their names, and the devices that lead them into a pod."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from podyd.engine.types import PciCard, Profile
from podyd.gpus.inventory import Card, Identities, Inventory, cards_in, natural, with_cards
from podyd.node.samples import Gpu, Sample
from podyd.store.cards import CardStore
from podyd.store.database import Database
from tests.unit.engine.fake import FakeEngine
from tests.unit.node.fake import FakeSamples

CARDS = (
    Card(0, "0000:41:00.0", "GPU-a"),
    Card(1, "0000:4a:00.0", "GPU-b"),
    Card(2, "0001:01:00.0", ""),
)
PROFILES = [Profile("p", devices={"root": {"type": "disk"}, "gpus": {"type": "gpu"}})]
NONE = {"type": "none"}


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("0", 0),
        ("gpu-A", 0),
        ("41:00.0", 0),
        ("0000:4A:00.0", 1),
        ("00000000:4A:00.0", 1),
        ("0001:01:00.0", 2),
        ("01:00.0", None),
        ("x:y", None),
        ("", None),
        ("GPU-", None),
    ],
)
def test_a_card_has_several_names(name: str, index: int | None) -> None:
    named = [card.index for card in CARDS if card.is_named(name)]
    assert named == ([] if index is None else [index])


def test_a_card_without_a_uuid_is_known_by_its_address() -> None:
    assert [card.key for card in CARDS] == ["GPU-a", "GPU-b", "0001:01:00.0"]


def test_a_device_without_an_address_is_all_cards() -> None:
    assert cards_in({"g": {"type": "gpu"}}, CARDS) == frozenset(CARDS)
    assert cards_in({"g": {"type": "gpu", "pci": "4A:00.0"}}, CARDS) == {CARDS[1]}
    assert cards_in({"g": {"type": "gpu", "vendorid": "1002"}}, CARDS) == frozenset()


def test_covering_and_uncovering_leaves_the_admins_own_as_it_was() -> None:
    own = {"data": {"type": "disk"}, "mine": {"type": "gpu", "pci": "41:00.0"}}
    devices, covers = with_cards(PROFILES, own, (), [CARDS[0], CARDS[1]])
    assert covers == {"gpus"}
    assert devices.pop("podyd-gpu-0000-4a-00.0")["pci"] == "0000:4a:00.0"
    assert devices == {**own, "gpus": NONE}, "card 0 is there by the admin's device"
    assert with_cards(PROFILES, {**devices, "gpus": NONE}, covers, None) == (own, frozenset())


BY_CDI = tuple(replace(card, by_cdi=True) for card in CARDS)


def test_a_device_with_a_cdi_id() -> None:
    assert cards_in({"g": {"type": "gpu", "id": "nvidia.com/gpu=all"}}, CARDS) == frozenset(CARDS)
    assert cards_in({"g": {"type": "gpu", "id": "nvidia.com/gpu=1"}}, CARDS) == {CARDS[1]}
    assert cards_in({"g": {"type": "gpu", "id": "nvidia.com/gpu=GPU-a"}}, CARDS) == {CARDS[0]}
    assert cards_in({"g": {"type": "gpu", "id": "amd.com/gpu=0"}}, CARDS) == frozenset()


def test_cards_that_are_given_by_cdi_ids() -> None:
    devices, covers = with_cards(PROFILES, {}, (), BY_CDI)
    assert covers == {"gpus"}
    ids = {name: device.get("id") for name, device in devices.items()}
    assert ids == {
        "gpus": None,
        "podyd-gpu-0000-41-00.0": "nvidia.com/gpu=GPU-a",
        "podyd-gpu-0000-4a-00.0": "nvidia.com/gpu=GPU-b",
        "podyd-gpu-0001-01-00.0": "nvidia.com/gpu=2",
    }
    assert not any("pci" in device for device in devices.values())
    assert cards_in(devices, BY_CDI) == frozenset(BY_CDI)
    assert with_cards(PROFILES, devices, covers, BY_CDI) == (devices, covers)


def test_an_admin_who_gives_cards_by_cdi_ids_is_followed() -> None:
    gpus = {"type": "gpu", "id": "nvidia.com/gpu=all"}
    devices, _ = with_cards([Profile("p", devices={"gpus": gpus})], {}, (), [CARDS[0]])
    assert devices["podyd-gpu-0000-41-00.0"]["id"] == "nvidia.com/gpu=GPU-a"


def test_the_libraries_do_not_go_with_the_first_card() -> None:
    """LXD mounts them for the first CDI device alone, and takes them away with that."""
    first, second, third = BY_CDI

    def names(own: Mapping[str, Mapping[str, str]], *cards: Card) -> set[str]:
        devices, _ = with_cards(PROFILES, own, {"gpus"}, cards)
        again, _ = with_cards(PROFILES, devices, {"gpus"}, cards)
        assert again == devices, "what is written once is right from then on"
        assert cards_in(devices, BY_CDI) == set(cards)
        return {name for name in devices if name != "gpus"}

    both, _ = with_cards(PROFILES, {}, (), [first, second])
    one, _ = with_cards(PROFILES, both, {"gpus"}, [second])
    assert names(both, second) == {"podyd-gpu-0000-4a-00.0-again"}, "made anew"
    assert names(one, first, second) == {"podyd-gpu-0000-41-00.0", "podyd-gpu-0000-4a-00.0-again"}
    assert names({**both, **one}, second) == {"podyd-gpu-0000-4a-00.0"}
    assert names(both, second, third) == {"podyd-gpu-0000-4a-00.0", "podyd-gpu-0001-01-00.0"}
    assert names(both) == set()


def test_what_an_admin_covers_stays_covered() -> None:
    own = {"gpus": NONE}
    assert cards_in(natural(PROFILES, own, ()), CARDS) == frozenset()
    assert with_cards(PROFILES, own, (), None) == (own, frozenset())
    devices, covers = with_cards(PROFILES, own, (), [CARDS[1]])
    assert covers == frozenset()
    assert devices["gpus"] == NONE


@contextlib.asynccontextmanager
async def identities(path: Path) -> AsyncIterator[Identities]:
    """What a podyd with this database remembers."""
    database = Database(path)
    remembered = Identities(CardStore(database))
    task = asyncio.ensure_future(remembered.run())
    try:
        yield remembered
    finally:
        task.cancel()
        await database.close()


def test_which_card_is_where_is_remembered_and_what_is_told_counts_for_more(tmp_path: Path) -> None:
    first, second = "0000:01:00.0", "0000:02:00.0"

    async def known(reported: Mapping[str, str], after: Mapping[str, str]) -> None:
        async with identities(tmp_path / "db") as remembered:
            assert await remembered.of(reported) == after
            await asyncio.sleep(0)  # It is asked to be written before the database is closed.

    async def whole() -> None:
        await known({first: "GPU-a", second: "GPU-b"}, {first: "GPU-a", second: "GPU-b"})
        await known({}, {first: "GPU-a", second: "GPU-b"})
        # The card has been moved; what was in its place may be anywhere.
        await known({second: "GPU-a"}, {second: "GPU-a"})
        await known({first: "GPU-c"}, {first: "GPU-c", second: "GPU-a"})
        await known({}, {first: "GPU-c", second: "GPU-a"})

    asyncio.run(whole())


def test_without_a_database_it_is_remembered_while_podyd_runs(tmp_path: Path) -> None:
    async def whole() -> None:
        async with identities(tmp_path / "nowhere" / "db") as remembered:
            assert await remembered.of({}) == {}
            assert await remembered.of({"0000:01:00.0": "GPU-a"}) == {"0000:01:00.0": "GPU-a"}
            assert await remembered.of({}) == {"0000:01:00.0": "GPU-a"}

    asyncio.run(whole())


def test_a_driver_that_goes_takes_no_uuid_with_it(tmp_path: Path) -> None:
    async def whole() -> None:
        async with identities(tmp_path / "db") as known:
            samples, lxd = FakeSamples(), FakeEngine()
            # Without nvidia-container-cli.
            lxd.cards = (PciCard("0000:01:00.0", "10de"),)
            inventory = Inventory(lxd.engine.server, samples, known)
            assert [card.key for card in await inventory.cards()] == ["0000:01:00.0"]
            before = await inventory.cards()
            samples.latest = Sample(1.0, "535", "12.2", (Gpu("GPU-a", "0000:01:00.0", "A"),))
            assert [card.key for card in await inventory.cards()] == ["GPU-a"]
            samples.latest = None
            assert [card.key for card in await inventory.cards()] == ["GPU-a"]
            assert before == await inventory.cards(), "it is the same card all the time"

    asyncio.run(whole())
