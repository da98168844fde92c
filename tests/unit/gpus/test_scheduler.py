"""Cards are taken and given on an LXD that a test makes up: in which order, and who waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, cast

import pytest

from podyd.base.errors import Busy, Conflict, Gone, LxdRefused
from podyd.config.current import Settings
from podyd.config.schema import Config, Quota
from podyd.contract.kinds import Cards
from podyd.engine.instances import LxdInstances
from podyd.engine.interface import UPDATE_SECONDS, Profiles, Server
from podyd.engine.types import Devices, Instance, PciCard, Profile, profiles_of
from podyd.gpus.activity import Occupancy
from podyd.gpus.decisions import COVERS, WISH
from podyd.gpus.inventory import Card, Gpus, Identities, cards_in
from podyd.gpus.leases import lease_key, lease_value
from podyd.gpus.scheduler import LOCK_SECONDS, WRITERS, Allotment
from podyd.model.gpu import CardChoice
from podyd.model.member import Member
from podyd.model.pod import Pod, pods_of
from podyd.node.samples import Gpu, Sample
from tests.unit.gpus.attributing import attribution
from tests.unit.node.fake import FakeSamples

CARDS = tuple(Card(index, f"0000:{index}1:00.0", f"GPU-{index}") for index in range(2))
START = datetime(2026, 11, 24, tzinfo=timezone.utc)
HOURS = lease_value(
    datetime.now(timezone.utc) - timedelta(hours=1), datetime.now(timezone.utc) + timedelta(hours=9)
)
PROFILE = Profile("podyd-gpu", devices={"gpus": {"type": "gpu"}})
NONE: Devices = {"gpus": {"type": "none"}}


class Lxd(LxdInstances):
    """Instances in memory. An edit takes a turn of the event loop, or until `gate` is open; after
    each, no card that somebody has leased may be in two pods."""

    def __init__(self, *instances: Instance) -> None:
        self.found = {item.name: item for item in instances}
        # In turn: who was changed, and the errors that are still to come, by name.
        self.edited: list[str] = []
        self.errors: dict[str, list[LxdRefused]] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = self.most = 0

    async def all(self) -> tuple[Instance, ...]:
        return tuple(self.found.values())

    async def edit(
        self,
        name: str,
        *,
        config: Mapping[str, str | None],
        devices: Callable[[Devices], Devices],
        patience: float = UPDATE_SECONDS,
    ) -> None:
        # Others wait for the lock meanwhile.
        assert patience <= LOCK_SECONDS / 2
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if self.errors.get(name):
                error = self.errors[name].pop(0)
                if isinstance(error, Gone):
                    del self.found[name]
                raise error
            item = self.found[name]
            merged = {**item.config, **config}
            own = devices(item.own_devices)
            self.found[name] = replace(
                item,
                config={key: value for key, value in merged.items() if value is not None},
                own_devices=own,
                devices={**PROFILE.devices, **own},
            )
            self.edited.append(name)
            self.check()
        finally:
            self.under_way -= 1

    def check(self) -> None:
        for card in CARDS:
            leased = {
                name for name, item in self.found.items() if lease_key(card.key) in item.config
            }
            holders = {name for name in self.found if card.index in self.cards(name)}
            assert not leased & holders or len(holders) == 1, (card.index, holders)

    def cards(self, name: str) -> list[int]:
        return sorted(card.index for card in cards_in(self.found[name].devices, CARDS))

    def pod(self, name: str) -> Pod:
        return next(pod for pod in pods_of(self.found.values()) if pod.name == name)


class OneProfile(Profiles):
    """There is no other."""

    async def all(self) -> Mapping[str, Profile]:
        return {PROFILE.name: PROFILE}

    async def of(self, instance: Instance) -> list[Profile]:
        return profiles_of(instance, await self.all())


class Hardware:
    """The cards, with their UUIDs if these are `told`."""

    def __init__(self, *, told: bool) -> None:
        self._told = told

    async def cards(self) -> tuple[PciCard, ...]:
        return tuple(PciCard(card.pci, "10de", card.uuid if self._told else "") for card in CARDS)


class Remembering(Identities):
    """Remembers nothing."""

    def __init__(self) -> None:
        pass

    async def of(self, told: Mapping[str, str]) -> Mapping[str, str]:
        return told


def sampled(*, fails: bool) -> FakeSamples:
    """NVML says that nobody is on the cards; or it fails."""
    samples = FakeSamples()
    if fails:
        samples.failed("it is broken")
    else:
        gpus = tuple(Gpu(card.uuid, card.pci, "A100") for card in CARDS)
        samples.sampled(Sample(0.0, "535", "12.2", gpus))
    return samples


def instance(name: str, own: Devices | None = None, **config: str) -> Instance:
    keys = {"user.podyd.owner": f"owner-{name}", "user.podyd.ins": name, **config}
    own = {} if own is None else own
    if own:
        keys.setdefault(COVERS, "gpus")
    devices = {**PROFILE.devices, **own}
    return Instance(name, "running", START, START, keys, keys, own, devices, ("podyd-gpu",))


def having(*cards: Card) -> Devices:
    return {
        **NONE,
        **{
            f"podyd-gpu-{card.pci.replace(':', '-')}": {
                "type": "gpu",
                "gputype": "physical",
                "pci": card.pci,
            }
            for card in cards
        },
    }


def member(name: str) -> Member:
    return Member(f"owner-{name}", False, Quota(), (), 1000, 1000)


def allotment(lxd: Lxd, *, told: bool = True) -> Allotment:
    samples = sampled(fails=not told)
    return Allotment(
        instances=lxd,
        profiles=OneProfile(),
        gpus=Gpus(cast(Server, Hardware(told=told)), samples, Remembering()),
        samples=samples,
        occupancy=Occupancy(attribution(samples)),
        settings=Settings(Config()),
    )


def choice(text: str) -> CardChoice:
    return Cards().parse(text)


@contextlib.asynccontextmanager
async def running(found: Allotment) -> Any:
    task = asyncio.ensure_future(found.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes in some turns of the event loop."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    assert condition()


def play(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


def test_a_new_pod_has_its_turn_while_those_of_an_edited_profile_are_written() -> None:
    async def whole() -> None:
        # They had no card of the profile, and now they have.
        lxd = Lxd(*(instance(f"p{number}", having()) for number in range(100)))
        lxd.gate.clear()
        found = allotment(lxd)
        async with running(found):
            await until(lambda: lxd.under_way > 0)
            new = found.new(member("x"), "owner-x-new", [PROFILE], None)
            asked = asyncio.ensure_future(new.__aenter__())
            await asyncio.sleep(0)
            lxd.gate.set()
            await asked
            assert 0 < len(lxd.edited) <= 2 * WRITERS
            await new.__aexit__(None, None, None)
            await until(lambda: len(lxd.edited) == 100)
        assert lxd.most == WRITERS
        assert all(lxd.cards(name) == [0, 1] for name in lxd.found)

    play(whole)


def test_a_lease_takes_its_card_from_many_at_once_and_then_gives_it() -> None:
    async def whole() -> None:
        lxd = Lxd(
            instance("a", having(), **{WISH: "none"}), *(instance(f"p{n}") for n in range(30))
        )
        assert (
            await allotment(lxd).lease(member("a"), lxd.pod("a"), choice("1,"), 1, wait=False) == 0
        )
        assert lxd.most == WRITERS
        assert lxd.edited[-1] == "a"
        assert {name: lxd.cards(name) for name in ("a", "p0", "p29")} == {
            "a": [1],
            "p0": [0],
            "p29": [0],
        }

    play(whole)


def test_who_has_leased_a_card_gets_it_once_the_others_do_not_have_it() -> None:
    async def whole() -> None:
        # As a podyd leaves it that was killed, or where another pod could not be changed.
        keys = {WISH: "none", lease_key(CARDS[0].key): HOURS}
        lxd = Lxd(instance("a", having(), **keys), instance("b"))
        lxd.errors["b"] = [Busy("busy running a stop", operation="stop")]
        async with running(allotment(lxd)):
            await until(lambda: not lxd.errors["b"])
            assert lxd.cards("a") == [], "it is b's still"
        async with running(allotment(lxd)):
            await until(lambda: lxd.cards("a") == [0])
        assert (lxd.edited, lxd.cards("b")) == (["b", "a"], [1])

    play(whole)


def test_another_pod_that_has_gone_has_no_card_any_more() -> None:
    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("c"))
        lxd.errors["c"] = [Gone("not found")]
        await allotment(lxd).lease(member("a"), lxd.pod("a"), choice("0,"), 1, wait=False)
        assert lxd.cards("a") == [0, 1]

    play(whole)


@pytest.mark.parametrize("wait", [False, True])
def test_another_pod_that_stays_busy_is_named(wait: bool) -> None:
    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("b"))
        lxd.errors["b"] = [Busy("busy running a stop", operation="stop")]
        found = allotment(lxd)
        asked = found.lease(member("a"), lxd.pod("a"), choice("0,"), 1, wait=wait)
        if wait:
            assert await asked == 1, "it gets the card by itself"
        else:
            with pytest.raises(Conflict, match=r"GPU 0 .* b of owner-b.*'stop'") as refused:
                await asked
            assert refused.value.code == "gpu_held"
            assert [item["pod"] for item in refused.value.fields["holders"]] == ["b"]
        assert lxd.cards("b") == [0, 1]

    play(whole)


def test_nothing_is_moved_while_nobody_tells_which_card_is_which(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def whole() -> None:
        keys = {WISH: "none", lease_key(CARDS[0].key): HOURS}
        lxd = Lxd(instance("a", having(CARDS[0]), **keys), instance("b", having(CARDS[1])))
        found = allotment(lxd, told=False)
        async with running(found):
            await until(lambda: "GPUs cannot be shared out now: Neither LXD" in caplog.text)
            async with found.new(member("x"), "owner-x-new", [PROFILE], None) as plan:
                assert cards_in(plan.devices, CARDS) == frozenset()
        assert lxd.edited == []

    play(whole)
