"""The log of actions: its order, its bounds, and what happens while nothing can be written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from podyd.accounting import actions as module
from podyd.accounting.actions import Actions
from podyd.accounting.clock import STEADY_SECONDS, Clock
from podyd.base.errors import Unavailable
from podyd.store import actions as store
from podyd.store.actions import Action, ActionStore, Which
from podyd.store.database import Database


class Times:
    """The clocks; `now` is the wall's, in seconds since 1970."""

    now = 1_000_000_000.0
    monotonic = 5000.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.monotonic += seconds


Play = Callable[[Actions, Times], Coroutine[Any, Any, None]]


def play(path: Path, what: Play) -> None:
    async def whole() -> None:
        database, times = Database(path, retry=0), Times()
        clock = Clock(lambda: times.now, lambda: times.monotonic)
        try:
            await what(Actions(ActionStore(database), clock), times)
        finally:
            await database.close()

    asyncio.run(whole())


def record(actions: Actions, operation: str, user: str = "alice", pod: str = "") -> None:
    actions.record(user=user, operation=operation, pod=pod, status=200, code="")


async def operations(actions: Actions, most: int = 1000, **which: Any) -> list[str]:
    return [action.operation for action in await actions.of(Which(**which), most=most)]


def test_the_newest_first_by_user_pod_and_time(tmp_path: Path) -> None:
    async def use(actions: Actions, clock: Times) -> None:
        record(actions, "/pod/create", pod="alice-a")
        clock.now += 10
        record(actions, "/pod/start", "bob", "bob-b")
        record(actions, "/gpu/lease", pod="alice-a")
        assert await operations(actions) == ["/gpu/lease", "/pod/start", "/pod/create"]
        assert await operations(actions, user="bob") == ["/pod/start"]
        assert await operations(actions, pod="alice-a") == ["/gpu/lease", "/pod/create"]
        assert await operations(actions, operation="/gpu/lease") == ["/gpu/lease"]
        assert await operations(actions, since=clock.now) == ["/gpu/lease", "/pod/start"]
        assert await operations(actions, most=1) == ["/gpu/lease"]
        (first,) = await actions.of(Which(user="bob"), most=1)
        assert first == Action(clock.now, "bob", "/pod/start", "bob-b", 200, "")

    play(tmp_path / "podyd.db", use)


def test_what_is_too_old_or_too_much_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_KEPT", 3)

    async def use(actions: Actions, clock: Times) -> None:
        for number in range(5):
            record(actions, f"/{number}")
        assert await operations(actions) == ["/4", "/3", "/2"]
        clock.pass_by(store.KEPT_SECONDS)
        record(actions, "/new")
        assert await operations(actions) == ["/new"]

    play(tmp_path / "podyd.db", use)


def test_who_is_busy_pushes_out_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_KEPT", 10)

    async def use(actions: Actions, clock: Times) -> None:
        for user, count in (("alice", 2), ("bob", 4), ("mallory", 90), ("carol", 1)):
            for number in range(count):
                record(actions, f"/{number}", user)
                if number % 7 == 0:
                    await actions.flush()
        assert await operations(actions, user="alice") == ["/1", "/0"]
        assert await operations(actions, user="bob") == ["/3", "/2", "/1", "/0"][:3]
        assert await operations(actions, user="mallory") == ["/89", "/88", "/87"]
        assert await operations(actions, user="carol") == ["/0"]

    play(tmp_path / "podyd.db", use)


def test_who_is_busy_while_nothing_can_be_written_pushes_out_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 4)
    path = tmp_path / "away" / "podyd.db"

    async def use(actions: Actions, clock: Times) -> None:
        record(actions, "/first", "alice")
        for number in range(9):
            record(actions, f"/{number}", "mallory")
        with pytest.raises(Unavailable):
            await actions.flush()
        record(actions, "/last", "mallory")
        path.parent.mkdir()
        assert await operations(actions) == ["/last", "/8", "/7", "/first"]

    play(path, use)


def test_a_clock_that_is_set_forward_and_back_costs_nothing(tmp_path: Path) -> None:
    async def use(actions: Actions, clock: Times) -> None:
        record(actions, "/old")
        assert await operations(actions) == ["/old"]
        clock.pass_by(STEADY_SECONDS)
        clock.now += 2 * store.KEPT_SECONDS
        record(actions, "/later")
        clock.pass_by(STEADY_SECONDS - 1)
        assert await operations(actions) == ["/later", "/old"]
        clock.now -= 2 * store.KEPT_SECONDS
        clock.pass_by(STEADY_SECONDS)
        assert await operations(actions) == ["/later", "/old"]

    play(tmp_path / "podyd.db", use)


def test_what_cannot_be_written_is_kept_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 3)
    path = tmp_path / "away" / "podyd.db"

    async def use(actions: Actions, clock: Times) -> None:
        for number in range(5):
            record(actions, f"/{number}")
        with pytest.raises(Unavailable):
            await actions.flush()
        record(actions, "/5")
        path.parent.mkdir()
        assert await operations(actions) == ["/5", "/4", "/3"]

    play(path, use)
