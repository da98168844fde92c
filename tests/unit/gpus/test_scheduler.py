"""Cards are taken and given on an LXD that a test makes up: in which order, and who waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from podyd.base.errors import Busy, Conflict, NeedsStop
from podyd.config.current import Settings
from podyd.config.schema import Config, Quota
from podyd.contract.kinds import Cards
from podyd.engine.types import Devices, Instance, PciCard, Profile
from podyd.gpus.access import Access
from podyd.gpus.activity import Activity
from podyd.gpus.decisions import COVERS, WISH
from podyd.gpus.inventory import Card, Identities, Inventory, cards_in
from podyd.gpus.leases import lease_key, lease_value
from podyd.gpus.scheduler import WRITERS, Picture, Scheduler
from podyd.model.gpu import CardChoice
from podyd.model.member import Member
from podyd.model.pod import Pod, pods_of
from podyd.node.samples import Gpu, Sample
from tests.unit.engine.fake import FakeEngine, until
from tests.unit.gpus.attributing import attribution
from tests.unit.node.fake import FakeCardAccesses, FakeSamples

CARDS = tuple(
    Card(index, f"0000:{index}1:00.0", f"GPU-{index}", numbers=frozenset({f"195:{index}"}))
    for index in range(2)
)
START = datetime(2026, 11, 24, tzinfo=timezone.utc)
HOURS = lease_value(
    datetime.now(timezone.utc) - timedelta(hours=1), datetime.now(timezone.utc) + timedelta(hours=9)
)
PROFILE = Profile("podyd-gpu", devices={"gpus": {"type": "gpu"}})
NONE: Devices = {"gpus": {"type": "none"}}


class Lxd(FakeEngine):
    """After each change, no card that somebody has leased may be in two pods. LXD tells the cards'
    UUIDs if it `has_uuids`."""

    def __init__(self, *instances: Instance, has_uuids: bool = True, by_cdi: bool = False) -> None:
        super().__init__(PROFILE)
        self.add(*instances)
        self.cards = tuple(
            PciCard(
                card.pci,
                "10de",
                card.uuid if has_uuids else "",
                numbers=card.numbers,
                by_cdi=by_cdi,
            )
            for card in CARDS
        )
        self.has_uuids = has_uuids
        self.helper = FakeCardAccesses()
        self.checks.append(self.check)

    @property
    def edited(self) -> list[str]:
        """Who was changed, in turn."""
        return [name for call, name in self.done if call == "edit"]

    def check(self) -> None:
        for card in CARDS:
            leased = {
                name for name, item in self.stored.items() if lease_key(card.key) in item.config
            }
            holders = {name for name in self.stored if card.index in self.of(name)}
            assert not leased & holders or len(holders) == 1, (card.index, holders)

    def of(self, name: str) -> list[int]:
        """The cards of a pod."""
        return sorted(card.index for card in cards_in(self.instance(name).devices, CARDS))

    def pod(self, name: str) -> Pod:
        pods = pods_of(self.shown(item) for item in self.stored.values())
        return next(pod for pod in pods if pod.name == name)


class Remembering(Identities):
    """Remembers nothing."""

    def __init__(self) -> None:
        pass

    async def of(self, reported: Mapping[str, str]) -> Mapping[str, str]:
        return reported


def sampled(*, fails: bool) -> FakeSamples:
    """NVML says that nobody is on the cards; or it fails."""
    samples = FakeSamples()
    if fails:
        samples.failed("it is broken")
    else:
        gpus = tuple(Gpu(card.uuid, card.pci, "A100") for card in CARDS)
        samples.sampled(Sample(0.0, "535", "12.2", gpus))
    return samples


def instance(name: str, own_devices: Devices | None = None, **config: str) -> Instance:
    keys = {"user.podyd.owner": f"owner-{name}", "user.podyd.ins": name, **config}
    own_devices = {} if own_devices is None else own_devices
    if own_devices:
        keys.setdefault(COVERS, "gpus")
    devices = {**PROFILE.devices, **own_devices}
    return Instance(name, "running", START, START, keys, keys, own_devices, devices, ("podyd-gpu",))


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


def tell_nobody(account: str | None, text: str, *, pod: str = "") -> None: ...


def scheduler_of(lxd: Lxd) -> Scheduler:
    samples = sampled(fails=not lxd.has_uuids)
    engine = lxd.engine
    return Scheduler(
        instances=engine.instances,
        profiles=engine.profiles,
        inventory=Inventory(engine.server, samples, Remembering()),
        samples=samples,
        activity=Activity(attribution(samples)),
        access=Access(lxd.helper, aliases=dict),
        notify=tell_nobody,
        settings=Settings(Config()),
    )


def picture(lxd: Lxd) -> Picture:
    """What somebody sees who asks for cards and profiles now."""
    cards = CARDS if lxd.has_uuids else tuple(replace(card, uuid="") for card in CARDS)
    return Picture(cards, {PROFILE.name: PROFILE})


def choice(text: str) -> CardChoice:
    return Cards().parse(text)


@contextlib.asynccontextmanager
async def running(scheduler: Scheduler) -> Any:
    tasks = {asyncio.ensure_future(work) for work in (scheduler._access.run(), scheduler.run())}
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def play(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


def test_a_new_pod_has_its_turn_while_those_of_an_edited_profile_are_written() -> None:
    async def whole() -> None:
        # They had no card of the profile, and now they have.
        lxd = Lxd(*(instance(f"p{number}", having()) for number in range(100)))
        gate = lxd.hold("edit")
        scheduler = scheduler_of(lxd)
        async with running(scheduler):
            await until(lambda: lxd.running.get("edit", 0) > 0)
            new = scheduler.new(member("x"), "owner-x-new", [PROFILE], None, picture(lxd))
            asked = asyncio.ensure_future(new.__aenter__())
            await asyncio.sleep(0)
            gate.set()
            await asked
            assert 0 < len(lxd.edited) <= 2 * WRITERS
            await new.__aexit__(None, None, None)
            await until(lambda: len(lxd.edited) == 100)
        assert lxd.most["edit"] == WRITERS
        assert all(lxd.of(name) == [0, 1] for name in lxd.stored)

    play(whole)


def test_a_lease_takes_its_card_from_many_at_once_and_then_gives_it() -> None:
    async def whole() -> None:
        lxd = Lxd(
            instance("a", having(), **{WISH: "none"}), *(instance(f"p{n}") for n in range(30))
        )
        scheduler = scheduler_of(lxd)
        place = await scheduler.lease(member("a"), lxd.pod("a"), choice("1,"), 1, wait=False)
        assert place == 0
        assert lxd.most["edit"] == WRITERS
        assert lxd.edited[-1] == "a"
        assert {name: lxd.of(name) for name in ("a", "p0", "p29")} == {
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
        lxd.refuse("edit", Busy("busy running a stop", operation="stop"), of="b")
        async with running(scheduler_of(lxd)):
            await until(lambda: ("edit", "b") in lxd.refused)
            assert lxd.of("a") == [], "it is b's still"
        async with running(scheduler_of(lxd)):
            await until(lambda: lxd.of("a") == [0])
        assert (lxd.edited, lxd.of("b")) == (["b", "a"], [1])

    play(whole)


def test_another_pod_that_has_gone_has_no_card_any_more() -> None:
    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("c"))
        gate = lxd.hold("edit", "c")
        asked = scheduler_of(lxd).lease(member("a"), lxd.pod("a"), choice("0,"), 1, wait=False)
        leasing = asyncio.ensure_future(asked)
        await until(lambda: ("edit", "c") in lxd.asked)
        del lxd.stored["c"]
        gate.set()
        await leasing
        assert lxd.of("a") == [0, 1]

    play(whole)


def test_a_card_that_another_pod_gives_back_only_while_it_is_stopped() -> None:
    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("b"))
        lxd.refuse("edit", NeedsStop("Device cannot be stopped when instance is running"), of="b")
        asked = scheduler_of(lxd).lease(member("a"), lxd.pod("a"), choice("0,"), 1, wait=False)
        with pytest.raises(Conflict, match=r"GPU 0 .* b of owner-b.* only while it is stopped"):
            await asked
        assert lxd.of("b") == [0, 1]

    play(whole)


def test_cards_that_are_given_by_cdi_ids() -> None:
    async def whole() -> None:
        # The engine was updated while b had a card by its address.
        lxd = Lxd(instance("a"), instance("b", having(CARDS[1]), **{WISH: "GPU-1"}), by_cdi=True)
        scheduler = scheduler_of(lxd)
        await scheduler.change(member("a"), lxd.pod("a"), choice("0,"), force=False)
        async with running(scheduler):
            await until(lambda: "b" in lxd.edited)
        for name, card in (("a", CARDS[0]), ("b", CARDS[1])):
            devices = dict(lxd.stored[name].devices)
            assert devices.pop("gpus") == NONE["gpus"]
            assert [*devices.values()] == [
                {"type": "gpu", "gputype": "physical", "id": f"nvidia.com/gpu={card.uuid}"}
            ]
        assert (lxd.of("a"), lxd.of("b")) == ([0], [1])

    play(whole)


@pytest.mark.parametrize("wait", [False, True])
def test_another_pod_that_stays_busy_is_named(wait: bool) -> None:
    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("b"))
        lxd.refuse("edit", Busy("busy running a stop", operation="stop"), of="b")
        scheduler = scheduler_of(lxd)
        asked = scheduler.lease(member("a"), lxd.pod("a"), choice("0,"), 1, wait=wait)
        if wait:
            assert await asked == 1, "it gets the card by itself"
        else:
            with pytest.raises(Conflict, match=r"GPU 0 .* b of owner-b.*'stop'") as refused:
                await asked
            assert refused.value.code == "gpu_held"
            assert [item["pod"] for item in refused.value.fields["holders"]] == ["b"]
        assert lxd.of("b") == [0, 1]

    play(whole)


def test_nothing_is_moved_while_nobody_tells_which_card_is_which(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def whole() -> None:
        keys = {WISH: "none", lease_key(CARDS[0].key): HOURS}
        pods = instance("a", having(CARDS[0]), **keys), instance("b", having(CARDS[1]))
        lxd = Lxd(*pods, has_uuids=False)
        scheduler = scheduler_of(lxd)
        async with running(scheduler):
            await until(lambda: "GPUs cannot be shared out now: Neither LXD" in caplog.text)
            async with scheduler.new(
                member("x"), "owner-x-new", [PROFILE], None, picture(lxd)
            ) as plan:
                assert cards_in(plan.devices, CARDS) == frozenset()
        assert lxd.edited == []

    play(whole)
