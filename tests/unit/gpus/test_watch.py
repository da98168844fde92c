"""Who is on a card that their pod may not have: told, ended, and when not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from podyd.base.errors import Conflict, PodydError, TimedOut, Unavailable
from podyd.config.schema import Config, LeaseConfig
from podyd.gpus.leases import evict_key, lease_key, leases_of
from podyd.model.pod import pods_of
from tests.unit.engine.fake import When
from tests.unit.gpus.test_histories import alone
from tests.unit.gpus.test_scheduler import CARDS, choice, instance, member
from tests.unit.gpus.watching import GRACE, World
from tests.unit.node.fake import _FakeCardAccess

FIRST, SECOND = (evict_key(card.key) for card in CARDS)
STUBBORN = 41
NAMES = ("a", "b", "c")


def play(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


def make_world(monkeypatch: pytest.MonkeyPatch, **ends: Any) -> World:
    """With pods a, which shares no card, and b, which shares all."""
    return World(monkeypatch, alone("a"), instance("b"), alone("c"), **ends)


async def ended_lease(world: World, pid: int = STUBBORN, **how: Any) -> None:
    """a has had card 0 for ten seconds, and a process of it still has it open."""
    await world.lease("a", "0,", 10)
    world.open("a", pid, 0, **how)
    await world.go(10)


# --- The table ----------------------------------------------------------------------------------


def test_the_kernel_is_told_what_each_pod_may_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            nothing, both = frozenset[str](), frozenset({"195:0", "195:1"})
            assert world.helper.permissions == {"a": nothing, "b": both, "c": nothing}
            await world.lease("a", "0,", 10)
            rows = world.helper.permissions
            assert [{*rows[name]} for name in "ab"] == [{"195:0"}, {"195:1"}]
            await world.go(10)
            assert world.helper.permissions["b"] == both

    play(whole)


def test_it_is_told_before_a_card_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused first, then unplugged; permitted first, then plugged."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        seen: list[tuple[str, list[str], list[str]]] = []

        def note() -> None:
            rows = world.helper.permissions
            seen.append((world.lxd.edited[-1], sorted(rows["a"]), sorted(rows["b"])))

        async with world.podyd():
            world.lxd.checks.append(note)
            await world.lease("a", "0,", 10)
        assert seen == [("b", ["195:0"], ["195:1"]), ("a", ["195:0"], ["195:1"])]

    play(whole)


def test_it_is_told_again_to_a_helper_that_comes_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        monkeypatch.setattr("podyd.gpus.access.RETRY_SECONDS", 0.0)
        caplog.set_level("INFO")
        async with world.podyd():
            world.helper.end()
            await world.lease("a", "0,", 10)
            world.helper.permissions = {}
            await world.go(2)
            assert world.helper.permissions == {}
            world.helper.begin()
            await world.go(1)
            assert world.helper.permissions["a"] == {"195:0"}
        assert caplog.text.count("keeps no pod from GPUs") == 1
        assert caplog.text.count("keeps pods from GPUs") == 1

    play(whole)


def test_a_helper_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        monkeypatch.setattr("podyd.gpus.access.ASK_SECONDS", 0.01)
        monkeypatch.setattr("podyd.gpus.access.RETRY_SECONDS", 60.0)

        async def never(self: Any, permissions: Any) -> Any:
            asked.append(permissions)
            await asyncio.Event().wait()

        asked: list[Any] = []
        async with world.podyd():
            monkeypatch.setattr("tests.unit.node.fake._FakeCardAccess.permit", never)
            await world.lease("a", "0,", 10)
            await world.lease("c", "1,", 10)
            assert len(asked) == 1
            assert (world.lxd.of("a"), world.lxd.of("c")) == ([0], [1])

    play(whole)


def test_a_pod_that_is_made_may_open_its_cards_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("a", "0,", 10)
            picture = await world.scheduler.picture()
            profiles = list(picture.profiles.values())
            async with world.scheduler.new(member("x"), "owner-x-new", profiles, None, picture):
                assert world.helper.permissions["owner-x-new"] == {"195:1"}

    play(whole)


def test_what_lxd_writes_too_late_gives_no_second_pod_a_leased_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is plugged into both until podyd looks, and one of them can open it."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            world.lxd.refuse("edit", TimedOut("LXD has not finished"), of="c", when="later")
            with pytest.raises(TimedOut):
                await world.lease("c", "0,", 100)
            await world.go(1)
            await world.lease("a", "0,", 100)
            world.lxd.checks.clear()
            world.lxd.catch_up()
            assert (world.lxd.of("a"), world.lxd.of("c")) == ([0], [0])
            may = [name for name, row in world.helper.permissions.items() if "195:0" in row]
            assert may == ["a"]

    play(whole)


# --- The end of a lease -------------------------------------------------------------------------


def test_a_descriptor_on_its_way_through_a_socket_ends_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """systemd has one at rest, and nobody can tell of what it is."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("a", "0,", 10)
            init = world.open("a", STUBBORN, 0, init=True)
            world.helper.held = [replace(init, dormant=True)]
            await world.go(30)
            assert (world.stopped, world.watch.seen) == ([], 0)
            assert world.lxd.of("b") == [0, 1]

    play(whole)


def test_a_lease_that_nobody_uses_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("a", "0,", 10)
            await world.go(10)
            assert (world.lxd.of("a"), world.lxd.of("b")) == ([], [0, 1])
            assert FIRST not in world.config("a")
        assert world.helper.ended == []
        assert [text for _, text, _ in world.notices] == [
            "The lease of GPU 0 has ended: its time is up."
        ]

    play(whole)


@pytest.mark.parametrize("grace", [0.0, 1.0, 5.0, 30.0])
def test_who_is_next_has_the_card_when_the_grace_is_over(
    monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch, grace=grace)
        world.helper.stubborn = {STUBBORN}
        async with world.podyd():
            await ended_lease(world)
            assert FIRST in world.config("a")
            assert await world.lease("c", "0,", 100, wait=True) == 1
            while lease_key(CARDS[0].key) not in world.config("c"):
                assert world.lxd.of("b") == [1], "those in line go before who shares"
                await world.go(0.25)
            took = world.seconds - 1010
            assert took <= max(grace, 2.0) + 1
            terms = [] if grace == 0 else [(STUBBORN, False)]
            assert world.signals() == [*terms, (STUBBORN, True)]
            await world.go(0.25)
            assert FIRST not in world.config("a")
            assert [(account, pod) for account, _, pod in world.notices] == [
                ("owner-a", "a"),
                ("owner-a", "a"),
                ("owner-c", "c"),
            ]
            assert "its time is up" in world.notices[0][1]
            assert "still on it: pid 41" in world.notices[1][1]
            assert "turn" in world.notices[2][1]
            assert (world.watch.seen, world.watch.ended) == (1, 1)
            assert world.stopped == []

    play(whole)


def test_what_ends_by_itself_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await ended_lease(world)
            await world.go(3)
            assert world.signals() == [(STUBBORN, False)]
            assert (world.lxd.of("b"), FIRST in world.config("a")) == ([0, 1], False)

    play(whole)


def test_where_the_pod_shares_the_card_it_has_it_again_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("b", "0,", 10)
            world.open("b", STUBBORN, 0)
            await world.go(10)
            assert world.lxd.of("b") == [1]
            assert world.helper.permissions["b"] == {"195:1"}
            await world.go(3)
            assert world.lxd.of("b") == [0, 1]
            assert world.helper.permissions["b"] == {"195:0", "195:1"}

    play(whole)


def test_who_is_refused_meanwhile_is_told_until_when(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.stubborn = {STUBBORN}
        async with world.podyd():
            await ended_lease(world)
            with pytest.raises(Conflict, match="is being taken from a of owner-a until") as refused:
                await world.lease("c", "0,", 100)
            (holder,) = refused.value.fields["holders"]
            assert (holder["pod"], holder["until"]) == ("a", "2026-11-28T00:16:55Z")
            with pytest.raises(Conflict, match="being taken from a"):
                await world.scheduler.change(member("c"), world.pod("c"), choice("0,"), force=False)

    play(whole)


def test_who_leases_it_again_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await ended_lease(world)
            await world.go(0.5)
            await world.lease("a", "0,", 100)
            await world.go(20)
            assert FIRST not in world.config("a")
            assert world.lxd.of("a") == [0]
            assert world.signals() == []

    play(whole)


def test_it_goes_on_after_a_restart_of_podyd(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.stubborn = {STUBBORN}
        async with world.podyd():
            await ended_lease(world)
            await world.go(1.5)
        assert world.signals() == [(STUBBORN, False)]
        world.seconds += 60
        async with world.podyd():
            assert world.helper.permissions["a"] == frozenset()
            await world.go(0.75)
            assert len(world.signals()) == 1, "it was seen once"
            await world.go(2.5)
            assert world.signals()[-1] == (STUBBORN, True), "its time was up before"
            assert (world.lxd.of("b"), FIRST in world.config("a")) == ([0, 1], False)

    play(whole)


def test_a_pod_that_is_stopped_has_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.stubborn = {STUBBORN}
        async with world.podyd():
            await ended_lease(world)
            await world._stop("a")
            await world.go(0)
            assert (world.lxd.of("b"), FIRST in world.config("a")) == ([0, 1], False)

    play(whole)


@pytest.mark.parametrize("how", [{"init": True}, {}])
def test_what_cannot_be_ended_ends_with_its_pod(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.immortal = {STUBBORN}
        async with world.podyd():
            await ended_lease(world, **how)
            await world.go(GRACE + (0.5 if how else 4.5))
            assert world.stopped == (["a"] if how else [])
            await world.go(1)
            assert world.stopped == ["a"]
            assert "stopped by force" in world.notices[-1][1]
            assert all(holder.is_init is False for holder, _ in world.helper.ended)
            assert world.lxd.of("b") == [0, 1]

    play(whole)


def test_processes_that_follow_one_another_end_with_their_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await ended_lease(world)
            for pid in range(100, 170):
                world.gone(pid - 1)
                world.open("a", pid, 0)
                world.gone(STUBBORN)
                await world.go(0.25)
            assert world.signals() == [], "none of them was seen twice"
            assert world.stopped == ["a"]

    play(whole)


def test_leave_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch, end="leave")
        async with world.podyd():
            await world.lease("a", "0,", 10)
            world.compute("a", STUBBORN, 0)
            await world.go(10 + 2 * GRACE)
            assert FIRST not in world.config("a")
            assert (world.signals(), world.stopped) == ([], [])
            (row,) = world.watch.intruders(CARDS[0])
            assert (row.pid, row.pod, row.state) == (STUBBORN, "a", "left")
            assert world.watch.seen == 1
            assert world.notices

    play(whole)


def test_settings_that_change_to_leave_end_the_withdrawal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.stubborn = {STUBBORN}
        async with world.podyd():
            await ended_lease(world)
            world.settings.current = Config(lease=LeaseConfig(end="leave"))
            await world.go(2 * GRACE)
            assert FIRST not in world.config("a")
            assert world.lxd.of("b") == [0, 1]
            assert (STUBBORN, True) not in world.signals()

    play(whole)


def test_release_by_force_ends_what_uses_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("a", "0,", 100)
            world.open("a", STUBBORN, 0)
            await world.scheduler.release(world.pod("a"), None, force=True)
            assert len(await world.watch.ending(world.pod("a"))) == 1
            await world.lease("a", "0,", 100)
            world.compute("a", STUBBORN, 0)
            await world.go(1)
            with pytest.raises(Conflict, match="in use by 1 process"):
                await world.scheduler.release(world.pod("a"), None, force=False)
            await world.scheduler.release(world.pod("a"), None, force=True)
            (ending,) = await world.watch.ending(world.pod("a"))
            assert (ending.gpu, ending.pod, ending.processes) == (0, "a", 1)
            await world.go(2)
            assert world.signals() == [(STUBBORN, False)]
            world.gone(STUBBORN)
            await world.go(3)
            assert await world.watch.ending(world.pod("a")) == []
            assert world.lxd.of("b") == [0, 1]

    play(whole)


@pytest.mark.parametrize("end", ["end", "leave"])
def test_a_used_card_that_is_shared_too_is_given_back_by_force(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Else who waits for it would wait until that process ends."""

    async def whole() -> None:
        world = make_world(monkeypatch, end=end)
        async with world.podyd():
            await world.lease("b", "0,", 100)
            world.open("b", STUBBORN, 0)
            world.compute("b", STUBBORN, 0)
            await world.go(1)
            if end == "end":
                with pytest.raises(Conflict, match="in use by 1 process"):
                    await world.scheduler.release(world.pod("b"), None, force=False)
                assert await world.scheduler.leases(world.pod("b"))
                await world.scheduler.release(world.pod("b"), None, force=True)
                await world.go(2)
                assert world.signals() == [(STUBBORN, False)]
            else:
                await world.scheduler.release(world.pod("b"), None, force=False)
                await world.go(2 * GRACE)
                assert world.signals() == []
            assert not await world.scheduler.leases(world.pod("b"))

    play(whole)


# --- Who shares a card that is leased -----------------------------------------------------------

LEASE = lease_key(CARDS[0].key)


async def lease_taken(world: World, pid: int = STUBBORN) -> None:
    """a has leased card 0, on which b computes."""
    world.compute("b", pid, 0)
    world.open("b", pid, 0)
    await world.go(1)
    assert await world.lease("a", "0,", 100) == 0


@pytest.mark.parametrize("grace", [0.0, 2.0, 5.0, 30.0])
def test_who_computes_on_a_card_that_is_leased_is_ended(
    monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    """Then its holder has it, and nobody else meanwhile."""

    async def whole() -> None:
        world = make_world(monkeypatch, grace=grace)
        world.helper.stubborn = {STUBBORN}
        async with world.podyd():
            await lease_taken(world)
            assert FIRST in world.config("b")
            assert LEASE in world.config("a")
            assert (world.lxd.of("a"), world.lxd.of("b")) == ([], [1])
            rows = world.helper.permissions
            assert [{*rows[name]} for name in "ab"] == [set(), {"195:1"}]
            (ending,) = await world.watch.ending(world.pod("a"))
            assert (ending.gpu, ending.pod, ending.grace, ending.processes) == (0, "b", grace, 1)
            began = world.seconds
            while world.lxd.of("a") == []:
                with pytest.raises(Conflict, match="is leased to a of owner-a since"):
                    await world.lease("c", "0,", 100)
                await world.go(0.25)
            assert world.seconds - began <= max(grace, 2.0) + 1
            terms = [] if grace == 0 else [(STUBBORN, False)]
            assert world.signals() == [*terms, (STUBBORN, True)]
            await world.go(0.5)
            assert FIRST not in world.config("b")
            (told,) = world.notices
            assert told[0] == "owner-b"
            assert "GPU 0 is leased to a of owner-a; still on it: pid 41; " in told[1]
            assert (world.watch.seen, world.watch.ended, world.stopped) == (1, 1, [])

    play(whole)


def test_its_holder_keeps_a_card_that_it_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = World(monkeypatch, instance("a"), instance("b"))
        async with world.podyd():
            await lease_taken(world)
            assert (world.lxd.of("a"), world.lxd.of("b")) == ([0, 1], [1])

    play(whole)


@pytest.mark.parametrize("ends", [{"sharers": "wait"}, {"end": "leave"}])
def test_where_nobody_is_ended_for_a_lease_it_waits(
    monkeypatch: pytest.MonkeyPatch, ends: dict[str, str]
) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch, **ends)
        async with world.podyd():
            with pytest.raises(Conflict, match="GPU 0 is in use by b of owner-b"):
                await lease_taken(world)
            assert await world.lease("a", "0,", 100, wait=True) == 1
            await world.go(30)
            assert (world.signals(), world.ran, world.lxd.of("b")) == ([], [], [0, 1])
            world.gone(STUBBORN)
            await world.go(2)
            assert world.lxd.of("a") == [0]

    play(whole)


def test_a_turn_in_the_queue_ends_who_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("c", "0,", 10)
            world.compute("b", STUBBORN, 1)
            await world.go(1)
            assert await world.lease("a", "2", 100, wait=True) == 1
            assert world.lxd.of("b") == [1], "nobody is ended before it is its turn"
            await world.go(9)
            assert (world.lxd.of("a"), world.lxd.of("b")) == ([0], [])
            (_, (account, text, _)) = world.notices
            assert account == "owner-a"
            assert "it has leased GPU 0, 1" in text
            assert "GPU 1 once what others have on it is ended, within 5 s." in text
            world.gone(STUBBORN)
            await world.go(2)
            assert world.lxd.of("a") == [0, 1]

    play(whole)


def test_a_lease_that_is_given_back_at_once_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await lease_taken(world)
            await world.go(0.5)
            await world.scheduler.release(world.pod("a"), None, force=False)
            await world.go(2 * GRACE)
            assert (world.signals(), world.notices, world.watch.seen) == ([], [], 0)
            assert (world.lxd.of("b"), FIRST in world.config("b")) == ([0, 1], False)

    play(whole)


def test_the_next_podyd_goes_on_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await lease_taken(world)
        async with world.podyd():
            assert world.lxd.of("a") == []
            await world.go(2)
            assert world.signals() == [(STUBBORN, False)]
            world.gone(STUBBORN)
            await world.go(1)
            assert (world.lxd.of("a"), FIRST in world.config("b")) == ([0], False)

    play(whole)


def test_without_the_helper_nvml_says_when_they_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.end()
        async with world.podyd():
            await lease_taken(world)
            await world.go(GRACE + 0.5)
            kills = [words[4] for _, words in world.ran if words[0] == "/bin/sh"]
            assert kills == ["TERM", "KILL"]
            assert world.lxd.of("a") == []
            world.gone(STUBBORN)
            await world.go(2)
            assert world.lxd.of("a") == [0]

    play(whole)


@pytest.mark.parametrize("of", ["a", "b"])
def test_a_lease_that_lxd_refuses_ends_nobody(monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            world.lxd.refuse("edit", Unavailable("LXD cannot be reached"), of=of)
            with pytest.raises(Unavailable):
                await lease_taken(world)
            await world.go(2 * GRACE)
            assert (world.signals(), world.lxd.of("b")) == ([], [0, 1])
            assert FIRST not in world.config("b")

    play(whole)


def test_who_has_had_a_card_to_itself_and_leases_it_again_is_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though others are on it who may not be."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await ended_lease(world)
            world.compute("b", 42, 0)
            await world.go(0.75)
            await world.lease("a", "0,", 100)
            assert world.lxd.of("a") == [0]
            await world.go(2 * GRACE)
            assert world.signals() == []
            assert [words[4] for _, words in world.ran if words[0] == "/bin/sh"] == ["TERM", "KILL"]

    play(whole)


# --- Intruders ----------------------------------------------------------------------------------


def test_who_has_a_leased_card_open_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as CUDA, which opens all cards that it sees: the lease is granted at once."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.stubborn = {STUBBORN}
        async with world.podyd():
            world.open("b", STUBBORN, 0)
            await world.go(5)
            assert world.watch.intruders(CARDS[0]) == [], "it may have the card"
            assert await world.lease("a", "0,", 100) == 0
            (ending,) = await world.watch.ending(world.pod("a"))
            assert (ending.gpu, ending.pod, ending.grace) == (0, "b", GRACE)
            await world.go(0.75)
            assert (world.signals(), world.watch.seen) == ([], 0)
            await world.go(0.5)
            (row,) = world.watch.intruders(CARDS[0])
            assert (row.pid, row.pod, row.owner, row.state) == (STUBBORN, "b", "owner-b", "warned")
            assert world.watch.pods_on(CARDS[0]) == {"b"}
            assert {account for account, _, _ in world.notices} == {"owner-b", "owner-a", None}
            await world.go(GRACE)
            assert world.signals() == [(STUBBORN, False), (STUBBORN, True)]
            assert world.watch.intruders(CARDS[0]) == []

    play(whole)


def test_who_hides_in_between_has_no_new_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor in a socket's queue is not seen for a moment; another process takes it out."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.stubborn = set(range(100, 200))
        on_card: list[float] = []
        async with world.podyd():
            await world.lease("a", "0,", 1000)
            for pid in itertools.count(100):
                world.open("b", pid, 0)
                before = world.seconds
                while world.seconds < before + GRACE and world.helper.held:
                    await world.go(0.25)
                on_card.append(world.seconds - before)
                if world.stopped:
                    break
                world.gone(pid)
                await world.go(1.5)
            assert max(on_card[1:]) < 3
            assert sum(on_card) < GRACE + 15
            # What it does after that counts anew.
            world.lxd.stored["b"].status, world.lxd.stored["b"].started = "running", world.now()
            world.open("b", STUBBORN, 0)
            await world.go(2)
            assert (world.stopped, world.signals()[-1]) == (["b"], (STUBBORN, False))

    play(whole)


def test_short_visits_end_no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of nvidia-smi each minute, where the kernel does not refuse it."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("a", "0,", 10_000)
            for pid in range(100, 200):
                world.open("b", pid, 0)
                await world.go(0)
                world.gone(pid)
                await world.go(3)
            assert (world.signals(), world.stopped) == ([], [])

    play(whole)


def test_who_computes_where_they_may_not_is_ended_in_the_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the helper, by what NVML says, and by a command in the pod."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.end()
        async with world.podyd():
            await world.lease("a", "0,", 100)
            world.compute("b", 77, 0, started=123, inner=17)
            await world.go(2.75)
            kills = [words for _, words in world.ran if words[0] == "/bin/sh"]
            assert [tuple(words[4:]) for words in kills] == [("TERM", "17", "123")]
            await world.go(GRACE)
            kills = [words for _, words in world.ran if words[0] == "/bin/sh"]
            assert tuple(kills[-1][4:]) == ("KILL", "17", "123")
            world.gone(77)
            await world.go(1)
            assert world.watch.ended == 1

    play(whole)


def test_a_sample_that_is_old_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML hangs: however often one looks, it was seen once."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        world.helper.end()
        async with world.podyd():
            await world.lease("a", "0,", 100)
            world.compute("b", 77, 0)
            await world.go(1)
            world.sample = lambda: None  # type: ignore[method-assign]
            await world.go(20)
            assert (world.ran, world.watch.seen, world.stopped) == ([], 0, [])

    play(whole)


def test_another_process_of_the_same_pid_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("a", "0,", 100)
            for started in range(10):
                world.gone(STUBBORN)
                world.open("b", STUBBORN, 0, started=started)
                await world.go(0.75)
            assert world.signals() == []

    play(whole)


def test_a_change_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen before the card was given and taken again does not count."""

    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("a", "0,", 100)
            world.open("b", STUBBORN, 0)
            await world.go(0.75)
            await world.scheduler.release(world.pod("a"), None, force=False)
            await world.scheduler._reconcile({})
            await world.lease("a", "0,", 100)
            await world.go(0.75)
            assert world.signals() == []
            await world.go(0.5)
            assert world.signals() == [(STUBBORN, False)]

    play(whole)


def test_who_only_has_a_card_open_that_nobody_has_leased_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            world.open("b", STUBBORN, 0, 1)
            await world.scheduler.change(member("b"), world.pod("b"), choice("1,"), force=False)
            await world.go(20)
            assert (world.signals(), world.watch.seen) == ([], 0)
            # Who computes there does.
            world.compute("b", STUBBORN, 0)
            await world.go(4)
            assert world.signals() == [(STUBBORN, False)]

    play(whole)


def test_the_host_and_other_projects_are_no_intruders(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            await world.lease("a", "0,", 100)
            world.compute("stranger", 77, 0)
            world.on_nvml[78] = "b", CARDS[1]
            await world.go(30)
            assert (world.signals(), world.ran, world.watch.seen) == ([], [], 0)

    play(whole)


def test_a_pod_that_makes_many_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch, grace=3600.0)
        monkeypatch.setattr("podyd.gpus.watch.NOTIFY_AGAIN_SECONDS", 6.0)
        async with world.podyd():
            await world.lease("a", "0,", 4000)
            for pid in range(100, 140):
                world.open("b", pid, 0)
                await world.go(0.25)
            of_b = [item for item in world.notices if item[0] == "owner-b"]
            assert len(of_b) == 2
            assert all(len(text) < 500 for _, text, _ in world.notices)

    play(whole)


def test_nothing_happens_while_nobody_is_where_they_may_not_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        world = make_world(monkeypatch)
        async with world.podyd():
            assert await world.watch.look() is None
            await world.lease("a", "0,", 100)
            assert await world.watch.look() == 2.0

    play(whole)


# --- At random ----------------------------------------------------------------------------------


class History:
    """Members who lease, share and give back, processes that come and go, and a helper, an engine
    and a podyd that now and then fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.dice = random.Random(seed)
        self.world = World(monkeypatch, *map(instance, NAMES), grace=self.dice.choice((0.0, 2.0)))
        self.world.lxd.checks[:] = [self.check]
        monkeypatch.setattr("podyd.gpus.access.RETRY_SECONDS", 0.0)
        self.pids = itertools.count(100)
        # When each process was seen, by the pid and when it was started.
        self.seen: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self.signalled = 0
        helper = self.world.helper
        helper.stubborn = set(range(100, 1000, 3))
        access: Any = _FakeCardAccess
        for name in ("permit", "holders", "end"):
            monkeypatch.setattr(access, name, getattr(self, name)(getattr(access, name)))

    def check(self) -> None:
        """The table permits a leased card to its holder alone, whatever LXD's devices are; while
        the helper is away it is as old as that."""
        world = self.world
        if world.access._orders.connected is None or world.access._sent is None:
            return
        pods = pods_of(map(world.lxd.shown, world.lxd.stored.values()))
        for lease in leases_of(pods, CARDS).values():
            if lease.until > world.now():
                (card,) = (card for card in CARDS if card.key == lease.key)
                rows = world.helper.permissions.items()
                may = {name for name, row in rows if card.numbers & row}
                assert may <= {lease.pod.name}, (lease, may)

    def permit(self, real: Any) -> Any:
        async def checked(access: Any, permissions: Any) -> Any:
            answer = await real(access, permissions)
            self.check()
            return answer

        return checked

    def holders(self, real: Any) -> Any:
        async def noted(access: Any) -> Any:
            answer = await real(access)
            for item in answer:
                self.seen[item.pid, item.started].append(self.world.seconds)
            return answer

        return noted

    def end(self, real: Any) -> Any:
        async def checked(access: Any, holders: Any, *, kill: bool) -> None:
            for item in holders:
                looks = self.seen[item.pid, item.started]
                assert looks[-1] - looks[0] >= 1, "it was seen once only"
                assert item.numbers - self.world.helper.permissions[item.cgroup], "it may"
                self.signalled += 1
            await real(access, holders, kill=kill)

        return checked

    async def play(self) -> None:
        for _ in range(2):
            self.world.helper.begin()
            async with self.world.podyd():
                for _ in range(12):
                    await self.step()
        for refusal in self.world.lxd.refusals:
            refusal.times = 0
        self.world.helper.begin()
        async with self.world.podyd():
            self.world.helper.stubborn = set()
            await self.world.go(8)
            view = await self.world.scheduler.view()
            assert all(view.present(pod) == view.due(pod) for pod in view.pods)
            assert not [key for pod in view.pods for key in pod.instance.config if "evict" in key]

    async def step(self) -> None:
        world, dice = self.world, self.dice
        name = dice.choice(NAMES)
        what = dice.random()
        if what < 0.15:
            when: When = dice.choice(("before", "after"))
            world.lxd.refuse("edit", Unavailable("LXD cannot be reached"), when=when)
        elif what < 0.2:
            world.helper.end()
            world.helper.begin()
        elif what < 0.45:
            pid, opened = next(self.pids), dice.choice(((0,), (1,), (0, 1)))
            world.open(name, pid, *opened)
            if dice.random() < 0.5:
                world.compute(name, pid, opened[0])
        elif what < 0.5 and world.helper.held:
            item = dice.choice(world.helper.held)
            world.gone(item.pid)
            # Another one of its pid.
            world.open(item.cgroup, item.pid, 0, started=item.started + 1)
        elif world.lxd.stored[name].status == "stopped":
            world.lxd.stored[name].status = "running"
        with contextlib.suppress(PodydError):
            cards, wait = dice.choice(("0,", "1,", "1", "2")), dice.random() < 0.5
            if 0.5 < what < 0.8:
                await world.lease(name, cards, dice.choice((1, 3, 100)), wait=wait)
            elif 0.8 < what < 0.9:
                await world.scheduler.release(world.pod(name), None, force=True)
            elif what > 0.9:
                share = choice(dice.choice(("all", "none", "0,")))
                await world.scheduler.change(member(name), world.pod(name), share, force=True)
        await world.go(dice.choice((0, 0.25, 0.75, 1.25, 2)))


@pytest.mark.parametrize("seed", range(12))
def test_the_table_and_signals_are_right_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    history = History(monkeypatch, seed)
    play(history.play)


def test_these_histories_have_signals_and_withdrawals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the ones above would say nothing."""
    signalled, keys = 0, set[str]()
    for seed in range(4):
        with monkeypatch.context() as patched:
            history = History(patched, seed)

            def note(history: History = history) -> None:
                for item in history.world.lxd.stored.values():
                    keys.update(key.rpartition(".")[0] for key in item.config)

            history.world.lxd.checks.append(note)
            play(history.play)
            signalled += history.signalled
    assert signalled > 3
    assert {FIRST.rpartition(".")[0], lease_key("x").rpartition(".")[0]} <= keys
