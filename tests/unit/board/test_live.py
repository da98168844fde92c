"""Who watches, and what they are sent and when: the sources are a test's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

import pytest

from podyd.base.errors import TooMany, Unavailable
from podyd.base.tasks import Tasks
from podyd.board import live as module
from podyd.board.board import ADMINS, ALL
from podyd.board.live import MAX_BEHIND_BYTES, Live, Viewer
from podyd.board.sources import Picture, Sources, Values
from podyd.config.schema import Quota
from podyd.model.member import Member

ALICE = Member("alice", False, Quota(), (), 1001, 1001)
# What would take a second takes this long in a test.
FAST = 0.01


class FakeSources(Sources):
    """`said` is what LXD says of pods, or the error that it gives; it waits for `gate`. `asked`
    counts the pictures, and `looked` the looks."""

    def __init__(self) -> None:
        self.said: object = 1
        self.card: object = 1
        self.news = 1
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = self.looked = self.forgot = 0

    def forget(self) -> None:
        self.forgot += 1

    async def picture(self) -> Picture:
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.said, Exception):
            raise self.said
        none: Any = None
        return Picture(str(self.said), none, [], {}, {})

    def host(self, picture: Picture | None, problem: str | None) -> Values:
        self.looked += 1
        return {(ALL, "host"): problem}

    def pods(self, picture: Picture) -> Values:
        return {(ALL, "pods"): picture.version}

    async def cards(self, picture: Picture) -> Values:
        if isinstance(self.card, Exception):
            raise self.card
        return {(ALL, "card"): self.card}

    async def loads(self, picture: Picture) -> Values:
        return {}

    def works(self, picture: Picture | None) -> Values:
        return {}

    async def admin(self) -> Values:
        return {(ADMINS, "admin"): self.news}

    def people(self, members: Iterable[Member]) -> Values:
        return {(ALL, "people"): sorted(member.name for member in members)}


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something has come about."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(FAST)
    assert condition()


class Page:
    """What a viewer was sent; `takes` says whether its connection takes it, `size` how many bytes
    it has not taken."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.takes = True
        self.size = 0
        self.not_taken: list[asyncio.Future[None]] = []
        self.messages: list[Any] = []
        self.sent = asyncio.Event()
        self.task = asyncio.ensure_future(viewer.run(self._send))

    def _send(self, text: bytes) -> asyncio.Future[None]:
        self.messages.append(json.loads(text))
        self.sent.set()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.takes:
            future.set_result(None)
        else:
            self.size += len(text)
            self.not_taken.append(future)
        return future

    def take(self) -> None:
        """Take all that has not been taken, and what comes from now on."""
        self.takes, self.size = True, 0
        while self.not_taken:
            self.not_taken.pop().set_result(None)

    async def next(self) -> Any:
        """The next message that has something in it."""
        while True:
            while self.messages:
                found = self.messages.pop(0)
                if found["set"] or found["gone"]:
                    return found
            self.sent.clear()
            await asyncio.wait_for(self.sent.wait(), 10)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        self.viewer.close()


class Rig:
    def __init__(self) -> None:
        self.sources = FakeSources()
        self.live = Live(self.sources)

    @contextlib.asynccontextmanager
    async def page(self, member: Member | None = ALICE) -> AsyncIterator[Page]:
        page = Page(self.live.viewer(member))
        try:
            yield page
        finally:
            await page.leave()


Work = Callable[[Rig], Coroutine[Any, Any, None]]
Play = Callable[[Work], None]


@pytest.fixture
def play(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[Rig], Coroutine[Any, Any, None]]], None]:
    for name in ("LOOK_SECONDS", "GATHER_SECONDS", "ENGINE_SECONDS"):
        monkeypatch.setattr(module, name, FAST)
    monkeypatch.setattr(module, "PER_SECOND", 1000)
    monkeypatch.setattr("podyd.base.tasks.RESTART_SECONDS", FAST)

    def whole(work: Work) -> None:
        async def run() -> None:
            rig, tasks = Rig(), Tasks()
            tasks.keep(rig.live.run, "showing")
            try:
                await work(rig)
            finally:
                await tasks.cancel()

        asyncio.run(run())

    return whole


def test_first_everything_and_then_what_changes(play: Play) -> None:
    async def work(rig: Rig) -> None:
        async with rig.page() as page:
            first = await page.next()
            assert first["whole"] is True
            assert first["set"] == {"host": None, "pods": "1", "card": 1, "people": ["alice"]}
            rig.sources.card = 2
            changed = await page.next()
            assert "whole" not in changed
            assert (changed["set"], changed["gone"]) == ({"card": 2}, [])
            # Who comes later gets everything, and who is there nothing that they know.
            async with rig.page(replace(ALICE, name="bob")) as other:
                assert (await other.next())["set"]["card"] == 2
                assert (await page.next())["set"] == {"people": ["alice", "bob"]}

    play(work)


def test_admins_are_told_what_is_new_for_them(play: Play) -> None:
    async def work(rig: Rig) -> None:
        async with rig.page() as page:
            assert "admin" not in (await page.next())["set"]
            async with rig.page(replace(ALICE, name="root2", is_admin=True)) as admins:
                assert (await admins.next())["set"]["admin"] == 1
                rig.sources.news = 2
                assert (await admins.next())["set"] == {"admin": 2}
            assert (await page.next())["set"] == {"people": ["alice", "root2"]}

    play(work)


def test_lxd_is_asked_when_it_has_changed_and_not_at_every_look(play: Play) -> None:
    async def work(rig: Rig) -> None:
        async with rig.page() as page:
            await page.next()
            looked = rig.sources.looked
            await until(lambda: rig.sources.looked >= looked + 5)
            assert rig.sources.asked == 1
            rig.sources.said = 2
            rig.live.changed()
            assert (await page.next())["set"] == {"pods": "2"}
            assert rig.sources.asked == 2

    play(work)


def test_nothing_is_asked_while_nobody_watches(play: Play) -> None:
    async def work(rig: Rig) -> None:
        async with rig.page() as page:
            await page.next()
        for _ in range(5):
            await asyncio.sleep(FAST)
        looked, asked = rig.sources.looked, rig.sources.asked
        for _ in range(10):
            rig.live.changed()
            await asyncio.sleep(FAST)
        assert (rig.sources.looked, rig.sources.asked) == (looked, asked)
        rig.sources.said = 7
        async with rig.page() as page:
            assert (await page.next())["set"]["pods"] == "7", "nothing old is shown"
        assert rig.sources.forgot == 2

    play(work)


def test_while_lxd_fails_the_rest_goes_on_and_the_host_says_so(play: Play) -> None:
    async def work(rig: Rig) -> None:
        rig.sources.said = Unavailable("LXD is away.", advice="Wait.", code="lxd_unreachable")
        async with rig.page() as page:
            first = await page.next()
            assert first["set"] == {"host": "LXD is away. Wait.", "people": ["alice"]}
            rig.sources.said = 1
            assert (await page.next())["set"] == {"host": None, "pods": "1", "card": 1}
            rig.sources.said = Unavailable("LXD is away.", code="lxd_unreachable")
            rig.live.changed()
            assert (await page.next())["set"] == {"host": "LXD is away."}
            rig.sources.card = 2
            assert (await page.next())["set"] == {"card": 2}, "pods stay as they were"

    play(work)


def test_an_lxd_that_hangs_holds_up_nothing_else(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_SECONDS", 0.1)

    async def work(rig: Rig) -> None:
        async with rig.page() as page:
            await page.next()
            rig.sources.gate.clear()
            rig.sources.said = 2
            rig.live.changed()
            rig.sources.card = 2
            assert (await page.next())["set"] == {"card": 2}
            assert (await page.next())["set"] == {"host": "LXD takes long to answer."}
            rig.sources.gate.set()
            assert (await page.next())["set"] == {"host": None, "pods": "2"}
        assert rig.sources.asked == 2

    play(work)


def test_an_lxd_that_hangs_and_fails_by_turns_is_said_once(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_SECONDS", 0.1)

    async def work(rig: Rig) -> None:
        async with rig.page() as page:
            await page.next()
            rig.sources.said = Unavailable("LXD is away.", code="lxd_unreachable")
            rig.live.changed()
            assert (await page.next())["set"] == {"host": "LXD is away."}
            # It is asked again, and does not answer.
            rig.sources.gate.clear()
            rig.live.changed()
            await asyncio.sleep(0.3)
            rig.sources.card = 2
            try:
                assert (await page.next())["set"] == {"card": 2}
            finally:
                rig.sources.gate.set()

    play(work)


def test_there_are_few_messages_however_much_changes(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PER_SECOND", 2)

    async def work(rig: Rig) -> None:
        async with rig.page() as page:
            await page.next()
            began, number = asyncio.get_running_loop().time(), 0
            while asyncio.get_running_loop().time() - began < 1.2:
                number += 1
                rig.sources.card = number
                rig.live.poke()
                await asyncio.sleep(FAST)
            assert 1 <= len(page.messages) <= 4
            assert number > 10

    play(work)


def test_who_hears_nothing_new_hears_that_podyd_is_there(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.1)

    async def work(rig: Rig) -> None:
        async with rig.page() as page:
            await page.next()
            page.sent.clear()
            await asyncio.wait_for(page.sent.wait(), 10)
            assert (page.messages[0]["set"], page.messages[0]["gone"]) == ({}, [])

    play(work)


def test_who_reads_slowly_has_little_held_for_them_and_then_gets_everything(play: Play) -> None:
    async def work(rig: Rig) -> None:
        async with rig.page() as page, rig.page(replace(ALICE, name="bob")) as slow:
            await page.next()
            await slow.next()
            slow.takes = False
            for number in range(20):
                rig.sources.card = f"{number} " + "x" * 20_000
                assert (await page.next())["set"]["card"] == rig.sources.card
            assert 20_000 < slow.size <= MAX_BEHIND_BYTES
            slow.messages.clear()
            slow.take()
            again = await slow.next()
            assert again["whole"] is True
            assert again["set"]["card"] == rig.sources.card
            rig.sources.card = 1
            assert await slow.next() == {**await page.next(), "set": {"card": 1}}

    play(work)


def test_one_message_may_be_of_any_length(play: Play) -> None:
    async def work(rig: Rig) -> None:
        rig.sources.card = "x" * 2 * MAX_BEHIND_BYTES
        async with rig.page() as page:
            assert (await page.next())["set"]["card"] == rig.sources.card

    play(work)


def test_what_one_member_does_not_read_leaves_room_for_others(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HELD_OF_ONE", 250_000)
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 350_000)

    async def work(rig: Rig) -> None:
        rig.sources.card = "x" * 100_000
        async with contextlib.AsyncExitStack() as stack:

            async def stuck(name: str) -> list[Page]:
                pages = [
                    await stack.enter_async_context(rig.page(replace(ALICE, name=name)))
                    for _ in range(5)
                ]
                for page in pages:
                    page.takes = False
                await until(lambda: any(page.messages for page in pages))
                looked = rig.sources.looked
                await until(lambda: rig.sources.looked >= looked + 3)
                return pages

            first = await stuck("mallory")
            assert sum(page.size for page in first) < 250_000
            both = [*first, *await stuck("marvin")]
            assert sum(page.size for page in both) < 350_000
            # Whoever reads gets everything even so.
            page = await stack.enter_async_context(rig.page())
            assert (await page.next())["whole"] is True
            for page in both:
                page.take()
            await until(lambda: all(page.messages for page in both))

    play(work)


def test_who_takes_nothing_is_left_after_a_while(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STUCK_SECONDS", 0.1)

    async def work(rig: Rig) -> None:
        async with rig.page() as page, rig.page() as stuck:
            stuck.takes = False
            assert await asyncio.wait_for(stuck.task, 10) == "too_slow"
            assert stuck.viewer not in rig.live._viewers
            page.messages.clear()
            rig.sources.card = 2
            assert (await page.next())["set"]["card"] == 2

    play(work)


def test_what_crashes_is_started_again_and_everybody_gets_everything(play: Play) -> None:
    async def work(rig: Rig) -> None:
        async with rig.page() as page:
            await page.next()
            rig.sources.card = ValueError("broken")
            looked = rig.sources.looked
            await until(lambda: rig.sources.looked >= looked + 2)
            rig.sources.card = 2
            again = await page.next()
            assert again["whole"] is True
            assert again["set"]["card"] == 2

    play(work)


def test_one_member_has_so_many_pages_at_most(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OF_ONE", 2)

    async def work(rig: Rig) -> None:
        async with rig.page(), rig.page() as second:
            await second.next()
            with pytest.raises(TooMany, match="of yours"):
                rig.live.viewer(ALICE)
            rig.live.viewer(replace(ALICE, name="bob"))
        rig.live.viewer(ALICE)

    play(work)


def test_whoever_has_the_most_pages_gives_one_up_to_who_has_fewer(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_VIEWERS", 3)

    async def work(rig: Rig) -> None:
        async with rig.page() as first, rig.page() as second, rig.page() as last:
            await last.next()
            async with rig.page(replace(ALICE, name="bob")) as other:
                assert (await other.next())["whole"] is True
                assert await asyncio.wait_for(last.task, 10) == "too_many_pages"
                for full in (ALICE, replace(ALICE, name="bob")):
                    with pytest.raises(TooMany, match="Too many pages are open"):
                        rig.live.viewer(full)
                # Without a login nobody takes anything from members.
                rig.live.viewer(None, "10.0.0.1")
                assert not first.task.done() and not second.task.done()

    play(work)


def test_without_a_login_pages_are_counted_by_address(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_GUESTS", 3)
    monkeypatch.setattr(module, "MAX_OF_ADDRESS", 2)

    async def work(rig: Rig) -> None:
        for _ in range(2):
            rig.live.viewer(None, "10.0.0.1")
        with pytest.raises(TooMany, match="of yours"):
            rig.live.viewer(None, "10.0.0.1")
        for address in ("10.0.0.2", "10.0.0.3"):
            rig.live.viewer(None, address)
        with pytest.raises(TooMany, match="Too many pages are open"):
            rig.live.viewer(None, "10.0.0.4")
        rig.live.viewer(ALICE)

    play(work)


def test_without_a_login_a_host_of_many_addresses_counts_as_one(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_GUESTS", 3)

    async def work(rig: Rig) -> None:
        for number in range(3):
            rig.live.viewer(None, f"2001:db8::{number}")
        # It gives one up to a display on the wall.
        rig.live.viewer(None, "2001:db8:0:1::1")
        rig.live.viewer(ALICE)

    play(work)
