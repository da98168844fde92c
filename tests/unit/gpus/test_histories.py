"""Leases on an engine that refuses, does half of it, and is slow, with a clock that is set:
whatever comes of it, no leased card is in two pods, and in the end all is as decided."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest

from podyd.base.errors import Busy, EngineRefused, PodydError, TimedOut, Unavailable
from podyd.engine.types import Instance
from podyd.gpus import scheduler
from podyd.gpus.decisions import WISH
from podyd.gpus.inventory import Card, cards_in
from podyd.gpus.leases import WAITING, lease_key, leases_of
from podyd.gpus.scheduler import Scheduler, _is_behind
from podyd.model.pod import pods_of
from tests.unit.engine.fake import When, until
from tests.unit.gpus.test_scheduler import (
    CARDS,
    Lxd,
    choice,
    having,
    instance,
    member,
    play,
    running,
    scheduler_of,
)

NAMES = ("a", "b", "c", "d")
STEPS = 40
# What an engine says when it does not do what it is told, or not for sure.
ERRORS: tuple[Callable[[], PodydError], ...] = (
    lambda: Busy("busy running a stop", operation="stop"),
    lambda: EngineRefused("It rains"),
    lambda: Unavailable("LXD cannot be reached"),
    lambda: TimedOut("LXD has not finished"),
)


class Clock:
    """Goes on only when it is told to, or is set back."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 28, tzinfo=timezone.utc)

    def now(self) -> datetime:
        return self.at

    def jump(self, hours: float) -> None:
        self.at += timedelta(hours=hours)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(scheduler, "now", clock.now)
    monkeypatch.setattr(scheduler, "BUSY_SECONDS", 0.0)
    return clock


async def settled(scheduler: Scheduler) -> None:
    """Have everything made so, and see that it is."""
    for _ in range(10):
        problems: dict[str, str] = {}
        await scheduler._reconcile(problems)
        if not problems:
            break
    assert not problems
    view = await scheduler.view()
    assert [pod.name for pod in view.pods if _is_behind(view, pod)] == []
    for pod in view.pods:
        assert view.present(pod) == view.due(pod), pod.name


async def some_turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class History:
    """Members who lease, share, wait and give back at random, and an engine with its moods."""

    def __init__(self, clock: Clock, seed: int) -> None:
        self.clock = clock
        self.dice = random.Random(seed)
        self.uuids = (f"uuid-{number}" for number in itertools.count())
        self.lxd = Lxd(*(instance(name, None, **self.own()) for name in NAMES))
        self.scheduler = scheduler_of(self.lxd)
        self.held: set[tuple[str, Card]] = set()
        self.lxd.checks[:] = [self.check]

    def check(self) -> None:
        """Who is given a card gets none that another has leased and has, and has it alone if it is
        leased to them. A lease that is over by the clock is none, whether podyd has said so yet or
        not."""
        pods = pods_of(map(self.lxd.shown, self.lxd.stored.values()))
        before, self.held = (
            self.held,
            {(pod.name, card) for pod in pods for card in cards_in(pod.instance.devices, CARDS)},
        )
        leases = leases_of(pods, CARDS)
        for name, card in self.held - before:
            lease = leases.get(card.key)
            others = {other for other, held in self.held if held == card and other != name}
            if lease is not None and lease.until > self.clock.at and lease.pod.name != name:
                assert lease.pod.name not in others, (name, card)
            if lease is not None and lease.until > self.clock.at and lease.pod.name == name:
                assert not others, (name, card)

    def own(self) -> dict[str, str]:
        """What no other instance has, also of the same name."""
        return {"volatile.uuid": next(self.uuids)}

    async def play(self) -> None:
        left = STEPS
        while left:
            # As one that is killed, and another that begins.
            self.scheduler = scheduler_of(self.lxd)
            async with running(self.scheduler):
                for _ in range(min(left, self.dice.randint(3, 20))):
                    left -= 1
                    await self.step()
        for refusal in self.lxd.refusals:
            refusal.times = 0
        await settled(scheduler_of(self.lxd))

    async def step(self) -> None:
        some = self.dice.sample(NAMES, self.dice.randint(1, 2))
        self.trouble()
        with contextlib.suppress(PodydError):
            await asyncio.gather(*(self.ask(name) for name in some), return_exceptions=False)
        self.scheduler.poke()
        await some_turns(self.dice.randint(0, 30))

    def trouble(self) -> None:
        kind = self.dice.random()
        if kind < 0.4:
            when: When = self.dice.choice(("before", "after"))
            of = self.dice.choice((None, *NAMES))
            self.lxd.refuse("edit", self.dice.choice(ERRORS)(), of=of, when=when)
        elif kind < 0.6:
            self.clock.jump(self.dice.choice((-30, -0.5, 0.5, 3, 100)))
        elif kind < 0.7:
            name = self.dice.choice(NAMES)
            self.lxd.stored.pop(name, None)
            # As an admin's who has made one of the name anew.
            if self.dice.random() < 0.7:
                self.lxd.add(instance(name, having(), **{WISH: "none"}, **self.own()))

    async def ask(self, name: str) -> None:
        if name not in self.lxd.stored:
            return
        pod, owner, dice = self.lxd.pod(name), member(name), self.dice
        cards = dice.choice(("0,", "1,", "1", "2"))
        what = dice.random()
        with contextlib.suppress(PodydError):
            if what < 0.5:
                hours = dice.choice((0.25, 2.0, 24.0))
                waits = dice.random() < 0.5
                await self.scheduler.lease(owner, pod, choice(cards), hours, wait=waits)
            elif what < 0.7:
                await self.scheduler.release(pod, None, force=True)
            else:
                share = choice(dice.choice(("all", "none", "0,", "1")))
                await self.scheduler.change(owner, pod, share, force=True)


@pytest.mark.parametrize("seed", range(25))
def test_a_leased_card_is_never_in_two_pods(clock: Clock, seed: int) -> None:
    """It is looked at after each write of the engine's, by History.check."""
    history = History(clock, seed)
    play(history.play)
    assert history.lxd.edited


def test_histories_have_leases_lines_and_refusals(clock: Clock) -> None:
    """Else the ones above would say nothing."""
    history = History(clock, 1)
    seen: set[str] = set()

    def note() -> None:
        for item in history.lxd.stored.values():
            seen.update(key.rpartition(".")[0] if "lease" in key else key for key in item.config)

    history.lxd.checks.append(note)
    play(history.play)
    assert {lease_key("x").rpartition(".")[0], WAITING, WISH} <= seen
    assert len(history.lxd.refused) > STEPS // 10


# --- One thing after another --------------------------------------------------------------------


def leased(lxd: Lxd, *names: str) -> dict[str, list[int]]:
    """Which cards each of them has leased."""
    return {
        name: [card.index for card in CARDS if lease_key(card.key) in lxd.stored[name].config]
        for name in names
    }


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pod_whose_card_is_not_taken_for_sure_keeps_others_from_it(
    clock: Clock, when: When
) -> None:
    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("b"))
        scheduler = scheduler_of(lxd)
        lxd.refuse("edit", TimedOut("LXD has not finished"), of="b", when=when)
        with pytest.raises(PodydError):
            await scheduler.lease(member("a"), lxd.pod("a"), choice("0,"), 1, wait=False)
        assert leased(lxd, "a") == {"a": []}
        assert ("edit", "a") not in lxd.done
        await settled(scheduler)
        await scheduler.lease(member("a"), lxd.pod("a"), choice("0,"), 1, wait=False)
        assert (lxd.of("a"), lxd.of("b")) == ([0, 1], [1])

    play(whole)


def test_a_lease_that_was_written_and_refused_all_the_same_is_a_lease(clock: Clock) -> None:
    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("b"))
        scheduler = scheduler_of(lxd)
        lxd.refuse("edit", Unavailable("LXD cannot be reached"), of="a", when="after")
        with pytest.raises(Unavailable):
            await scheduler.lease(member("a"), lxd.pod("a"), choice("0,"), 1, wait=False)
        assert leased(lxd, "a", "b") == {"a": [0], "b": []}
        with pytest.raises(PodydError):
            await scheduler.lease(member("b"), lxd.pod("b"), choice("0,"), 1, wait=False)
        clock.jump(2)
        await settled(scheduler)
        assert leased(lxd, "a") == {"a": []}
        assert (lxd.of("a"), lxd.of("b")) == ([0, 1], [0, 1])

    play(whole)


def test_several_leases_end_at_once_and_one_is_not_written(clock: Clock) -> None:
    """Nobody is given its card for a moment."""

    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("b"))
        scheduler = scheduler_of(lxd)
        await scheduler.lease(member("a"), lxd.pod("a"), choice("0,"), 1, wait=False)
        await scheduler.lease(member("b"), lxd.pod("b"), choice("1,"), 1, wait=False)
        clock.jump(2)
        lxd.refuse("edit", EngineRefused("It rains"), of="a")
        problems: dict[str, str] = {}
        await scheduler._reconcile(problems)
        assert [*problems] == ["a"]
        assert leased(lxd, "a", "b") == {"a": [0], "b": []}
        await settled(scheduler)
        assert (lxd.of("a"), lxd.of("b")) == ([0, 1], [0, 1])

    play(whole)


def test_a_lease_that_lxd_writes_too_late_yields_to_the_one_before(clock: Clock) -> None:
    """LXD goes on with what podyd has given up, so both have the card until podyd looks."""

    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("b"), instance("c"))
        scheduler = scheduler_of(lxd)
        lxd.refuse("edit", TimedOut("LXD has not finished"), of="a", when="later")
        with pytest.raises(TimedOut):
            await scheduler.lease(member("a"), lxd.pod("a"), choice("0,"), 9, wait=False)
        clock.jump(0.1)
        await scheduler.lease(member("b"), lxd.pod("b"), choice("0,"), 9, wait=False)
        lxd.checks.clear()
        lxd.catch_up()
        await settled(scheduler)
        held = {name: lxd.of(name) for name in ("a", "b", "c")}
        assert sorted(card for cards in held.values() for card in cards).count(0) == 1
        assert sorted(leased(lxd, "a", "b").values()) == [[], [0]]

    play(whole)


@pytest.mark.parametrize("hours", [-1000.0, 1000.0])
def test_a_clock_that_is_set_takes_no_lease_from_the_wrong_pod(clock: Clock, hours: float) -> None:
    """Set back, a lease lasts until its time; set forward, it is over, and nobody else's is."""

    async def whole() -> None:
        lxd = Lxd(instance("a"), instance("b"))
        scheduler = scheduler_of(lxd)
        await scheduler.lease(member("a"), lxd.pod("a"), choice("0,"), 24, wait=False)
        assert await scheduler.lease(member("b"), lxd.pod("b"), choice("0,"), 100, wait=True) == 1
        clock.jump(hours)
        await settled(scheduler)
        holder, other = ("a", "b") if hours < 0 else ("b", "a")
        assert leased(lxd, "a", "b") == {holder: [0], other: []}
        assert (lxd.of(holder), lxd.of(other)) == ([0, 1], [1])

    play(whole)


def test_a_slow_pod_keeps_only_its_own_cards_from_others(clock: Clock) -> None:
    async def whole() -> None:
        lxd = Lxd(*map(alone, ("a", "b", "slow")))
        await scheduler_of(lxd).lease(member("slow"), lxd.pod("slow"), choice("1,"), 1, wait=False)
        scheduler = scheduler_of(lxd)
        gate = lxd.hold("edit", "slow")
        clock.jump(2)
        async with running(scheduler):
            await until(lambda: lxd.running.get("edit", 0) == 1)
            assert 1 in lxd.of("slow"), "LXD has not taken it yet"
            asked = asyncio.ensure_future(
                scheduler.lease(member("a"), lxd.pod("a"), choice("1,"), 1, wait=False)
            )
            await some_turns(50)
            assert not asked.done()
            assert 1 not in lxd.of("a")
            gate.set()
            await asked
        assert (lxd.of("a"), lxd.of("slow")) == ([1], [])

    play(whole)


def alone(name: str) -> Instance:
    """A pod that shares no card."""
    made = instance(name, having(), **{WISH: "none"})
    assert cards_in(made.devices, CARDS) == frozenset()
    return made
