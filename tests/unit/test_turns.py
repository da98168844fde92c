"""Turns: who waits, who goes first, and what becomes of a turn whose holder is gone."""

from __future__ import annotations

import asyncio

import pytest

from podyd.turns import LineFull, Turns


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


class Holder:
    """Takes a turn and holds it until it is released."""

    def __init__(self, turns: Turns, name: str, order: list[str], *, favoured: bool = False):
        self._turns, self._name, self._order, self._favoured = turns, name, order, favoured
        self.release = asyncio.Event()
        self.task = asyncio.ensure_future(self._hold())

    async def _hold(self) -> None:
        async with self._turns.turn(favoured=self._favoured):
            self._order.append(self._name)
            await self.release.wait()


def test_in_order_and_the_favoured_first() -> None:
    async def play() -> list[str]:
        turns, order = Turns(width=1, length=9), list[str]()
        holders = [Holder(turns, name, order, favoured=name.isupper()) for name in "abCd"]
        await settle()
        assert order == ["a"]
        for holder in holders:
            holder.release.set()
        await asyncio.gather(*(holder.task for holder in holders))
        return order

    assert asyncio.run(play()) == ["a", "C", "b", "d"]


def test_a_full_line_refuses() -> None:
    async def play() -> None:
        turns, order = Turns(width=1, length=1), list[str]()
        first, second = (Holder(turns, name, order) for name in "ab")
        await settle()
        with pytest.raises(LineFull):
            async with turns.turn(favoured=True):
                pass
        first.release.set()
        second.release.set()
        await asyncio.gather(first.task, second.task)
        async with turns.turn():
            assert order == ["a", "b"]

    asyncio.run(play())


@pytest.mark.parametrize("when", ["in line", "as the turn comes"])
def test_who_leaves_takes_no_turn_along(when: str) -> None:
    async def play() -> list[str]:
        turns, order = Turns(width=1, length=9), list[str]()
        async with turns.turn():
            leaver, next_one = (Holder(turns, name, order) for name in "ab")
            await settle()
            if when == "in line":
                leaver.task.cancel()
        # Nothing has run since the turn was passed on.
        leaver.task.cancel()
        next_one.release.set()
        await asyncio.wait({leaver.task, next_one.task}, timeout=5)
        assert leaver.task.cancelled()
        async with turns.turn():
            return order

    assert asyncio.run(play()) == ["b"]
