"""FairSemaphore: who waits, who goes first, and what becomes of a turn whose holder is gone."""

from __future__ import annotations

import asyncio

import pytest

from podyd.base.fair_semaphore import FairSemaphore, QueueFull


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


class Holder:
    """Takes a turn and holds it until it is released.

    The first letter of its name is whose turn it is; who has a capital is favoured.
    """

    def __init__(self, turns: FairSemaphore, name: str, order: list[str], *, share: int = 9):
        self._turns, self._name, self._order, self._share = turns, name, order, share
        self.release = asyncio.Event()
        self.task = asyncio.ensure_future(self._hold())

    async def _hold(self) -> None:
        whose, favoured = self._name[0], self._name[0].isupper()
        async with self._turns.turn(whose, share=self._share, favoured=favoured):
            self._order.append(self._name)
            await self.release.wait()


def test_in_order_and_the_favoured_first() -> None:
    async def play() -> list[str]:
        turns, order = FairSemaphore(width=1, length=9), list[str]()
        holders = [Holder(turns, name, order) for name in "abCd"]
        await settle()
        assert order == ["a"]
        for holder in holders:
            holder.release.set()
        await asyncio.gather(*(holder.task for holder in holders))
        return order

    assert asyncio.run(play()) == ["a", "C", "b", "d"]


def test_a_full_line_refuses() -> None:
    async def play() -> None:
        turns, order = FairSemaphore(width=1, length=1), list[str]()
        first, second = (Holder(turns, name, order) for name in "ab")
        await settle()
        with pytest.raises(QueueFull):
            async with turns.turn("c", share=9, favoured=True):
                pass
        first.release.set()
        second.release.set()
        await asyncio.gather(first.task, second.task)
        async with turns.turn("c", share=9):
            assert order == ["a", "b"]

    asyncio.run(play())


@pytest.mark.parametrize("when", ["in line", "as the turn comes"])
def test_who_leaves_takes_no_turn_along(when: str) -> None:
    async def play() -> list[str]:
        turns, order = FairSemaphore(width=1, length=9), list[str]()
        async with turns.turn("z", share=9):
            leaver, next_one = (Holder(turns, name, order) for name in "ab")
            await settle()
            if when == "in line":
                leaver.task.cancel()
        # Nothing has run since the turn was passed on.
        leaver.task.cancel()
        next_one.release.set()
        await asyncio.wait({leaver.task, next_one.task}, timeout=5)
        assert leaver.task.cancelled()
        async with turns.turn("z", share=9):
            return order

    assert asyncio.run(play()) == ["b"]


def test_one_of_each_caller_in_turn() -> None:
    async def play() -> list[str]:
        turns, order = FairSemaphore(width=1, length=99), list[str]()
        names = ["a0", *(f"a{number}" for number in range(1, 9)), "b1", "b2", "c1"]
        holders = [Holder(turns, name, order) for name in names]
        await settle()
        for holder in holders:
            holder.release.set()
        await asyncio.gather(*(holder.task for holder in holders))
        return order

    assert asyncio.run(play())[:6] == ["a0", "a1", "b1", "c1", "a2", "b2"]


def test_nobody_has_more_than_their_share_at_once() -> None:
    async def play() -> None:
        turns, order = FairSemaphore(width=4, length=99), list[str]()
        many = [Holder(turns, f"a{number}", order, share=3) for number in range(9)]
        await settle()
        assert order == ["a0", "a1", "a2"]
        other = Holder(turns, "b", order, share=3)
        await settle()
        assert order[3:] == ["b"], "there is room for somebody else, at once"
        other.release.set()
        await settle()
        assert order[4:] == []
        for holder in many:
            holder.release.set()
        await asyncio.gather(other.task, *(holder.task for holder in many))
        assert len(order) == 10

    asyncio.run(play())


def test_who_fills_the_line_loses_the_last_places_to_others() -> None:
    async def play() -> None:
        turns, order = FairSemaphore(width=1, length=4), list[str]()
        many = [Holder(turns, f"a{number}", order) for number in range(6)]
        await settle()
        with pytest.raises(QueueFull):
            await many[5].task
        others = [Holder(turns, name, order) for name in ("b", "c")]
        await settle()
        for number in (3, 4):
            with pytest.raises(QueueFull):
                await many[number].task
        for holder in (*many, *others):
            holder.release.set()
        await asyncio.gather(*(holder.task for holder in (*many[:3], *others)))
        assert order == ["a0", "a1", "b", "c", "a2"]

    asyncio.run(play())


def test_nothing_is_kept_of_who_has_been_served() -> None:
    async def play() -> None:
        turns, order = FairSemaphore(width=2, length=9), list[str]()
        holders = [Holder(turns, name, order, share=1) for name in ("a0", "a1", "b", "c")]
        await settle()
        holders[1].task.cancel()
        for holder in holders:
            holder.release.set()
        await asyncio.wait([holder.task for holder in holders], timeout=5)
        assert (turns._free, turns._under_way) == (2, {})
        assert not turns._others._waiters
        assert not turns._others._shares

    asyncio.run(play())


def test_the_favoured_leave_something_to_the_others() -> None:
    async def play() -> list[str]:
        turns, order = FairSemaphore(width=1, length=99), list[str]()
        names = [
            "z",
            *(f"A{number}" for number in range(9)),
            *(f"B{number}" for number in range(9)),
        ]
        holders = [Holder(turns, name, order) for name in [*names, "x", "y"]]
        await settle()
        for holder in holders:
            holder.release.set()
        await asyncio.gather(*(holder.task for holder in holders))
        return order

    order = asyncio.run(play())
    assert order.index("x") < 6
    assert order.index("y") < 10
    assert order[1:4] == ["A0", "B0", "A1"]
