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


def world(monkeypatch: pytest.MonkeyPatch, **ends: Any) -> World:
    """With pods a, which shares no card, and b, which shares all."""
    return World(monkeypatch, alone("a"), instance("b"), alone("c"), **ends)


async def ended_lease(found: World, pid: int = STUBBORN, **how: Any) -> None:
    """a has had card 0 for ten seconds, and a process of it still has it open."""
    await found.lease("a", "0,", 10)
    found.open("a", pid, 0, **how)
    await found.go(10)


# --- The table ----------------------------------------------------------------------------------


def test_the_kernel_is_told_what_each_pod_may_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            nothing, both = frozenset[str](), frozenset({"195:0", "195:1"})
            assert found.helper.permissions == {"a": nothing, "b": both, "c": nothing}
            await found.lease("a", "0,", 10)
            rows = found.helper.permissions
            assert [{*rows[name]} for name in "ab"] == [{"195:0"}, {"195:1"}]
            await found.go(10)
            assert found.helper.permissions["b"] == both

    play(whole)


def test_it_is_told_before_a_card_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused first, then unplugged; permitted first, then plugged."""

    async def whole() -> None:
        found = world(monkeypatch)
        seen: list[tuple[str, list[str], list[str]]] = []

        def note() -> None:
            rows = found.helper.permissions
            seen.append((found.lxd.edited[-1], sorted(rows["a"]), sorted(rows["b"])))

        async with found.podyd():
            found.lxd.checks.append(note)
            await found.lease("a", "0,", 10)
        assert seen == [("b", ["195:0"], ["195:1"]), ("a", ["195:0"], ["195:1"])]

    play(whole)


def test_it_is_told_again_to_a_helper_that_comes_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        monkeypatch.setattr("podyd.gpus.access.RETRY_SECONDS", 0.0)
        caplog.set_level("INFO")
        async with found.podyd():
            found.helper.end()
            await found.lease("a", "0,", 10)
            found.helper.permissions = {}
            await found.go(2)
            assert found.helper.permissions == {}
            found.helper.begin()
            await found.go(1)
            assert found.helper.permissions["a"] == {"195:0"}
        assert caplog.text.count("keeps no pod from GPUs") == 1
        assert caplog.text.count("keeps pods from GPUs") == 1

    play(whole)


def test_a_helper_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        monkeypatch.setattr("podyd.gpus.access.ASK_SECONDS", 0.01)
        monkeypatch.setattr("podyd.gpus.access.RETRY_SECONDS", 60.0)

        async def never(self: Any, permissions: Any) -> Any:
            asked.append(permissions)
            await asyncio.Event().wait()

        asked: list[Any] = []
        async with found.podyd():
            monkeypatch.setattr("tests.unit.node.fake._FakeCardAccess.permit", never)
            await found.lease("a", "0,", 10)
            await found.lease("c", "1,", 10)
            assert len(asked) == 1
            assert (found.lxd.of("a"), found.lxd.of("c")) == ([0], [1])

    play(whole)


def test_a_pod_that_is_made_may_open_its_cards_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await found.lease("a", "0,", 10)
            picture = await found.found.picture()
            profiles = list(picture.profiles.values())
            async with found.found.new(member("x"), "owner-x-new", profiles, None, picture):
                assert found.helper.permissions["owner-x-new"] == {"195:1"}

    play(whole)


def test_what_lxd_writes_too_late_gives_no_second_pod_a_leased_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is plugged into both until podyd looks, and one of them can open it."""

    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            found.lxd.refuse("edit", TimedOut("LXD has not finished"), of="c", when="later")
            with pytest.raises(TimedOut):
                await found.lease("c", "0,", 100)
            await found.go(1)
            await found.lease("a", "0,", 100)
            found.lxd.checks.clear()
            found.lxd.catch_up()
            assert (found.lxd.of("a"), found.lxd.of("c")) == ([0], [0])
            may = [name for name, row in found.helper.permissions.items() if "195:0" in row]
            assert may == ["a"]

    play(whole)


# --- The end of a lease -------------------------------------------------------------------------


def test_a_descriptor_on_its_way_through_a_socket_ends_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """systemd has one at rest, and nobody can tell of what it is."""

    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await found.lease("a", "0,", 10)
            init = found.open("a", STUBBORN, 0, init=True)
            found.helper.held = [replace(init, dormant=True)]
            await found.go(30)
            assert (found.stopped, found.watch.seen) == ([], 0)
            assert found.lxd.of("b") == [0, 1]

    play(whole)


def test_a_lease_that_nobody_uses_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await found.lease("a", "0,", 10)
            await found.go(10)
            assert (found.lxd.of("a"), found.lxd.of("b")) == ([], [0, 1])
            assert FIRST not in found.config("a")
        assert found.helper.ended == []
        assert [text for _, text, _ in found.told] == [
            "The lease of GPU 0 has ended: its time is up."
        ]

    play(whole)


@pytest.mark.parametrize("grace", [0.0, 1.0, 5.0, 30.0])
def test_who_is_next_has_the_card_when_the_grace_is_over(
    monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    async def whole() -> None:
        found = world(monkeypatch, grace=grace)
        found.helper.stubborn = {STUBBORN}
        async with found.podyd():
            await ended_lease(found)
            assert FIRST in found.config("a")
            assert await found.lease("c", "0,", 100, wait=True) == 1
            while lease_key(CARDS[0].key) not in found.config("c"):
                assert found.lxd.of("b") == [1], "those in line go before who shares"
                await found.go(0.25)
            took = found.seconds - 1010
            assert took <= max(grace, 2.0) + 1
            terms = [] if grace == 0 else [(STUBBORN, False)]
            assert found.signals() == [*terms, (STUBBORN, True)]
            await found.go(0.25)
            assert FIRST not in found.config("a")
            assert [(account, pod) for account, _, pod in found.told] == [
                ("owner-a", "a"),
                ("owner-a", "a"),
                ("owner-c", "c"),
            ]
            assert "its time is up" in found.told[0][1]
            assert "still on it: pid 41" in found.told[1][1]
            assert "turn" in found.told[2][1]
            assert (found.watch.seen, found.watch.ended) == (1, 1)
            assert found.stopped == []

    play(whole)


def test_what_ends_by_itself_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await ended_lease(found)
            await found.go(3)
            assert found.signals() == [(STUBBORN, False)]
            assert (found.lxd.of("b"), FIRST in found.config("a")) == ([0, 1], False)

    play(whole)


def test_where_the_pod_shares_the_card_it_has_it_again_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await found.lease("b", "0,", 10)
            found.open("b", STUBBORN, 0)
            await found.go(10)
            assert found.lxd.of("b") == [1]
            assert found.helper.permissions["b"] == {"195:1"}
            await found.go(3)
            assert found.lxd.of("b") == [0, 1]
            assert found.helper.permissions["b"] == {"195:0", "195:1"}

    play(whole)


def test_who_is_refused_meanwhile_is_told_until_when(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        found.helper.stubborn = {STUBBORN}
        async with found.podyd():
            await ended_lease(found)
            with pytest.raises(Conflict, match="is being taken from a of owner-a until") as refused:
                await found.lease("c", "0,", 100)
            (holder,) = refused.value.fields["holders"]
            assert (holder["pod"], holder["until"]) == ("a", "2026-11-28T00:16:55Z")
            with pytest.raises(Conflict, match="being taken from a"):
                await found.found.change(member("c"), found.pod("c"), choice("0,"), force=False)

    play(whole)


def test_who_leases_it_again_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await ended_lease(found)
            await found.go(0.5)
            await found.lease("a", "0,", 100)
            await found.go(20)
            assert FIRST not in found.config("a")
            assert found.lxd.of("a") == [0]
            assert found.signals() == []

    play(whole)


def test_it_goes_on_after_a_restart_of_podyd(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        found.helper.stubborn = {STUBBORN}
        async with found.podyd():
            await ended_lease(found)
            await found.go(1.5)
        assert found.signals() == [(STUBBORN, False)]
        found.seconds += 60
        async with found.podyd():
            assert found.helper.permissions["a"] == frozenset()
            await found.go(0.75)
            assert len(found.signals()) == 1, "it was seen once"
            await found.go(2.5)
            assert found.signals()[-1] == (STUBBORN, True), "its time was up before"
            assert (found.lxd.of("b"), FIRST in found.config("a")) == ([0, 1], False)

    play(whole)


def test_a_pod_that_is_stopped_has_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        found.helper.stubborn = {STUBBORN}
        async with found.podyd():
            await ended_lease(found)
            await found._stop("a")
            await found.go(0)
            assert (found.lxd.of("b"), FIRST in found.config("a")) == ([0, 1], False)

    play(whole)


@pytest.mark.parametrize("how", [{"init": True}, {}])
def test_what_cannot_be_ended_ends_with_its_pod(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        found.helper.immortal = {STUBBORN}
        async with found.podyd():
            await ended_lease(found, **how)
            await found.go(GRACE + (0.5 if how else 4.5))
            assert found.stopped == (["a"] if how else [])
            await found.go(1)
            assert found.stopped == ["a"]
            assert "stopped by force" in found.told[-1][1]
            assert all(holder.is_init is False for holder, _ in found.helper.ended)
            assert found.lxd.of("b") == [0, 1]

    play(whole)


def test_processes_that_follow_one_another_end_with_their_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await ended_lease(found)
            for pid in range(100, 170):
                found.gone(pid - 1)
                found.open("a", pid, 0)
                found.gone(STUBBORN)
                await found.go(0.25)
            assert found.signals() == [], "none of them was seen twice"
            assert found.stopped == ["a"]

    play(whole)


def test_leave_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch, end="leave")
        async with found.podyd():
            await found.lease("a", "0,", 10)
            found.compute("a", STUBBORN, 0)
            await found.go(10 + 2 * GRACE)
            assert FIRST not in found.config("a")
            assert (found.signals(), found.stopped) == ([], [])
            (row,) = found.watch.intruders(CARDS[0])
            assert (row.pid, row.pod, row.state) == (STUBBORN, "a", "left")
            assert found.watch.seen == 1
            assert found.told

    play(whole)


def test_settings_that_change_to_leave_end_the_withdrawal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        found.helper.stubborn = {STUBBORN}
        async with found.podyd():
            await ended_lease(found)
            found.settings.current = Config(lease=LeaseConfig(end="leave"))
            await found.go(2 * GRACE)
            assert FIRST not in found.config("a")
            assert found.lxd.of("b") == [0, 1]
            assert (STUBBORN, True) not in found.signals()

    play(whole)


def test_release_by_force_ends_what_uses_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await found.lease("a", "0,", 100)
            found.open("a", STUBBORN, 0)
            await found.found.release(found.pod("a"), None, force=True)
            assert len(await found.watch.ending(found.pod("a"))) == 1
            await found.lease("a", "0,", 100)
            found.compute("a", STUBBORN, 0)
            await found.go(1)
            with pytest.raises(Conflict, match="in use by 1 process"):
                await found.found.release(found.pod("a"), None, force=False)
            await found.found.release(found.pod("a"), None, force=True)
            (ending,) = await found.watch.ending(found.pod("a"))
            assert (ending.gpu, ending.pod, ending.processes) == (0, "a", 1)
            await found.go(2)
            assert found.signals() == [(STUBBORN, False)]
            found.gone(STUBBORN)
            await found.go(3)
            assert await found.watch.ending(found.pod("a")) == []
            assert found.lxd.of("b") == [0, 1]

    play(whole)


@pytest.mark.parametrize("end", ["end", "leave"])
def test_a_used_card_that_is_shared_too_is_given_back_by_force(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Else who waits for it would wait until that process ends."""

    async def whole() -> None:
        found = world(monkeypatch, end=end)
        async with found.podyd():
            await found.lease("b", "0,", 100)
            found.open("b", STUBBORN, 0)
            found.compute("b", STUBBORN, 0)
            await found.go(1)
            if end == "end":
                with pytest.raises(Conflict, match="in use by 1 process"):
                    await found.found.release(found.pod("b"), None, force=False)
                assert await found.found.leases(found.pod("b"))
                await found.found.release(found.pod("b"), None, force=True)
                await found.go(2)
                assert found.signals() == [(STUBBORN, False)]
            else:
                await found.found.release(found.pod("b"), None, force=False)
                await found.go(2 * GRACE)
                assert found.signals() == []
            assert not await found.found.leases(found.pod("b"))

    play(whole)


# --- Intruders ----------------------------------------------------------------------------------


def test_who_has_a_leased_card_open_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as CUDA, which opens all cards that it sees: the lease is granted at once."""

    async def whole() -> None:
        found = world(monkeypatch)
        found.helper.stubborn = {STUBBORN}
        async with found.podyd():
            found.open("b", STUBBORN, 0)
            await found.go(5)
            assert found.watch.intruders(CARDS[0]) == [], "it may have the card"
            assert await found.lease("a", "0,", 100) == 0
            (ending,) = await found.watch.ending(found.pod("a"))
            assert (ending.gpu, ending.pod, ending.grace) == (0, "b", GRACE)
            await found.go(0.75)
            assert (found.signals(), found.watch.seen) == ([], 0)
            await found.go(0.5)
            (row,) = found.watch.intruders(CARDS[0])
            assert (row.pid, row.pod, row.owner, row.state) == (STUBBORN, "b", "owner-b", "warned")
            assert found.watch.pods_on(CARDS[0]) == {"b"}
            assert {account for account, _, _ in found.told} == {"owner-b", "owner-a", None}
            await found.go(GRACE)
            assert found.signals() == [(STUBBORN, False), (STUBBORN, True)]
            assert found.watch.intruders(CARDS[0]) == []

    play(whole)


def test_who_hides_in_between_has_no_new_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor in a socket's queue is not seen for a moment; another process takes it out."""

    async def whole() -> None:
        found = world(monkeypatch)
        found.helper.stubborn = set(range(100, 200))
        on_card: list[float] = []
        async with found.podyd():
            await found.lease("a", "0,", 1000)
            for pid in itertools.count(100):
                found.open("b", pid, 0)
                before = found.seconds
                while found.seconds < before + GRACE and found.helper.held:
                    await found.go(0.25)
                on_card.append(found.seconds - before)
                if found.stopped:
                    break
                found.gone(pid)
                await found.go(1.5)
            assert max(on_card[1:]) < 3
            assert sum(on_card) < GRACE + 15
            # What it does after that counts anew.
            found.lxd.found["b"].status, found.lxd.found["b"].started = "running", found.now()
            found.open("b", STUBBORN, 0)
            await found.go(2)
            assert (found.stopped, found.signals()[-1]) == (["b"], (STUBBORN, False))

    play(whole)


def test_short_visits_end_no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of nvidia-smi each minute, where the kernel does not refuse it."""

    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await found.lease("a", "0,", 10_000)
            for pid in range(100, 200):
                found.open("b", pid, 0)
                await found.go(0)
                found.gone(pid)
                await found.go(3)
            assert (found.signals(), found.stopped) == ([], [])

    play(whole)


def test_who_computes_where_they_may_not_is_ended_in_the_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the helper, by what NVML says, and by a command in the pod."""

    async def whole() -> None:
        found = world(monkeypatch)
        found.helper.end()
        async with found.podyd():
            await found.lease("a", "0,", 100)
            found.compute("b", 77, 0, started=123, inner=17)
            await found.go(2.75)
            kills = [words for _, words in found.ran if words[0] == "/bin/sh"]
            assert [tuple(words[4:]) for words in kills] == [("TERM", "17", "123")]
            await found.go(GRACE)
            kills = [words for _, words in found.ran if words[0] == "/bin/sh"]
            assert tuple(kills[-1][4:]) == ("KILL", "17", "123")
            found.gone(77)
            await found.go(1)
            assert found.watch.ended == 1

    play(whole)


def test_a_sample_that_is_old_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML hangs: however often one looks, it was seen once."""

    async def whole() -> None:
        found = world(monkeypatch)
        found.helper.end()
        async with found.podyd():
            await found.lease("a", "0,", 100)
            found.compute("b", 77, 0)
            await found.go(1)
            found.sample = lambda: None  # type: ignore[method-assign]
            await found.go(20)
            assert (found.ran, found.watch.seen, found.stopped) == ([], 0, [])

    play(whole)


def test_another_process_of_the_same_pid_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await found.lease("a", "0,", 100)
            for started in range(10):
                found.gone(STUBBORN)
                found.open("b", STUBBORN, 0, started=started)
                await found.go(0.75)
            assert found.signals() == []

    play(whole)


def test_a_change_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen before the card was given and taken again does not count."""

    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await found.lease("a", "0,", 100)
            found.open("b", STUBBORN, 0)
            await found.go(0.75)
            await found.found.release(found.pod("a"), None, force=False)
            await found.found._reconcile({})
            await found.lease("a", "0,", 100)
            await found.go(0.75)
            assert found.signals() == []
            await found.go(0.5)
            assert found.signals() == [(STUBBORN, False)]

    play(whole)


def test_who_only_has_a_card_open_that_nobody_has_leased_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            found.open("b", STUBBORN, 0, 1)
            await found.found.change(member("b"), found.pod("b"), choice("1,"), force=False)
            await found.go(20)
            assert (found.signals(), found.watch.seen) == ([], 0)
            # Who computes there does.
            found.compute("b", STUBBORN, 0)
            await found.go(4)
            assert found.signals() == [(STUBBORN, False)]

    play(whole)


def test_the_host_and_other_projects_are_no_intruders(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            await found.lease("a", "0,", 100)
            found.compute("stranger", 77, 0)
            found.on_nvml[78] = "b", CARDS[1]
            await found.go(30)
            assert (found.signals(), found.ran, found.watch.seen) == ([], [], 0)

    play(whole)


def test_a_pod_that_makes_many_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        found = world(monkeypatch, grace=3600.0)
        monkeypatch.setattr("podyd.gpus.watch.TELL_AGAIN_SECONDS", 6.0)
        async with found.podyd():
            await found.lease("a", "0,", 4000)
            for pid in range(100, 140):
                found.open("b", pid, 0)
                await found.go(0.25)
            of_b = [item for item in found.told if item[0] == "owner-b"]
            assert len(of_b) == 2
            assert all(len(text) < 500 for _, text, _ in found.told)

    play(whole)


def test_nothing_happens_while_nobody_is_where_they_may_not_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def whole() -> None:
        found = world(monkeypatch)
        async with found.podyd():
            assert await found.watch.look() is None
            await found.lease("a", "0,", 100)
            assert await found.watch.look() == 2.0

    play(whole)


# --- At random ----------------------------------------------------------------------------------


class History:
    """Members who lease, share and give back, processes that come and go, and a helper, an engine
    and a podyd that now and then fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.dice = random.Random(seed)
        self.found = World(monkeypatch, *map(instance, NAMES), grace=self.dice.choice((0.0, 2.0)))
        self.found.lxd.checks[:] = [self.check]
        monkeypatch.setattr("podyd.gpus.access.RETRY_SECONDS", 0.0)
        self.pids = itertools.count(100)
        # When each process was seen, by the pid and when it was started.
        self.seen: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self.signalled = 0
        helper = self.found.helper
        helper.stubborn = set(range(100, 1000, 3))
        access: Any = _FakeCardAccess
        for name in ("permit", "holders", "end"):
            monkeypatch.setattr(access, name, getattr(self, name)(getattr(access, name)))

    def check(self) -> None:
        """The table permits a leased card to its holder alone, whatever LXD's devices are; while
        the helper is away it is as old as that."""
        found = self.found
        if found.access._orders.connected is None or found.access._sent is None:
            return
        pods = pods_of(map(found.lxd.shown, found.lxd.found.values()))
        for lease in leases_of(pods, CARDS).values():
            if lease.until > found.now():
                (card,) = (card for card in CARDS if card.key == lease.key)
                rows = found.helper.permissions.items()
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
                self.seen[item.pid, item.started].append(self.found.seconds)
            return answer

        return noted

    def end(self, real: Any) -> Any:
        async def checked(access: Any, holders: Any, *, kill: bool) -> None:
            for item in holders:
                looks = self.seen[item.pid, item.started]
                assert looks[-1] - looks[0] >= 1, "it was seen once only"
                assert item.numbers - self.found.helper.permissions[item.cgroup], "it may"
                self.signalled += 1
            await real(access, holders, kill=kill)

        return checked

    async def play(self) -> None:
        for _ in range(2):
            self.found.helper.begin()
            async with self.found.podyd():
                for _ in range(12):
                    await self.step()
        for refusal in self.found.lxd.refusals:
            refusal.times = 0
        self.found.helper.begin()
        async with self.found.podyd():
            self.found.helper.stubborn = set()
            await self.found.go(8)
            view = await self.found.found.view()
            assert all(view.present(pod) == view.due(pod) for pod in view.pods)
            assert not [key for pod in view.pods for key in pod.instance.config if "evict" in key]

    async def step(self) -> None:
        found, dice = self.found, self.dice
        name = dice.choice(NAMES)
        what = dice.random()
        if what < 0.15:
            when: When = dice.choice(("before", "after"))
            found.lxd.refuse("edit", Unavailable("LXD cannot be reached"), when=when)
        elif what < 0.2:
            found.helper.end()
            found.helper.begin()
        elif what < 0.45:
            found.open(name, next(self.pids), *dice.choice(((0,), (1,), (0, 1))))
        elif what < 0.5 and found.helper.held:
            item = dice.choice(found.helper.held)
            found.gone(item.pid)
            # Another one of its pid.
            found.open(item.cgroup, item.pid, 0, started=item.started + 1)
        elif found.lxd.found[name].status == "stopped":
            found.lxd.found[name].status = "running"
        with contextlib.suppress(PodydError):
            cards, wait = dice.choice(("0,", "1,", "1", "2")), dice.random() < 0.5
            if 0.5 < what < 0.8:
                await found.lease(name, cards, dice.choice((1, 3, 100)), wait=wait)
            elif 0.8 < what < 0.9:
                await found.found.release(found.pod(name), None, force=True)
            elif what > 0.9:
                share = choice(dice.choice(("all", "none", "0,")))
                await found.found.change(member(name), found.pod(name), share, force=True)
        await found.go(dice.choice((0, 0.25, 0.75, 1.25, 2)))


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
                for item in history.found.lxd.found.values():
                    keys.update(key.rpartition(".")[0] for key in item.config)

            history.found.lxd.checks.append(note)
            play(history.play)
            signalled += history.signalled
    assert signalled > 3
    assert {FIRST.rpartition(".")[0], lease_key("x").rpartition(".")[0]} <= keys
