"""What is to be ended in instances, while LXD is away and afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from podyd.base.errors import Gone, NotRunning, PodydError, TimedOut, Unavailable
from podyd.base.tasks import Tasks
from podyd.engine import endings
from podyd.engine.bound import bound, uuid_of
from podyd.engine.collected import Collected
from podyd.engine.endings import Endings
from podyd.engine.execution import RestExecutor
from podyd.engine.rest import RestClient
from podyd.engine.streams import STDERR, STDOUT, Ending, bash

KILL = Ending("ann-main", ("kill", "n"))
DROP = Ending("ann-main", ("drop", "f"), outlives_stop=True)
AWAY = Unavailable("LXD cannot be reached")
Outcome = PodydError | int


class Socket:
    """A websocket of LXD's: it gives what comes, and then its end, or nothing for ever."""

    def __init__(self, *messages: str | bytes, ends: bool) -> None:
        self._messages = list(messages)
        self._ends = ends
        self.is_closed = False

    async def read_message(self) -> str | bytes | None:
        if not self._messages and not self._ends:
            await asyncio.Event().wait()
        return self._messages.pop(0) if self._messages else None

    async def write_message(self, message: str | bytes, binary: bool = False) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


class Lxd:
    """Answers each command with what comes next, the last one for good."""

    def __init__(self, *outcomes: Outcome, cuts_off: bool = False) -> None:
        self.outcomes = list(outcomes)
        self.ran: list[str] = []
        self.sockets: list[Socket] = []
        self._cuts_off = cuts_off

    async def change(self, method: str, path: str, body: Any, *, timeout: float) -> Any:
        self.ran.append(body["command"][0])
        await asyncio.sleep(0)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, PodydError):
            raise outcome
        return {"metadata": {"return": outcome}}

    async def check(self, name: object) -> None:
        pass

    async def start(self, path: str, body: Any) -> Any:
        self.nonce = body["command"][4]
        return {"id": "1", "metadata": {"fds": {name: name for name in ("control", "0", "1", "2")}}}

    async def websocket(self, path: str, *, secret: str, answers_pings: bool = True) -> Socket:
        self.sockets.append(Socket(ends=self._cuts_off))
        return self.sockets[-1]

    async def get(self, path: str) -> Any:
        raise AWAY


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "AGAIN_SECONDS", (0.001, 0.004))


def made(lxd: Lxd, directory: Path) -> Endings:
    return Endings(cast(RestClient, lxd), directory / "endings")


@contextlib.asynccontextmanager
async def running(endings: Endings) -> AsyncIterator[None]:
    task = asyncio.ensure_future(endings.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("timed out")


def left(directory: Path) -> int:
    return len(list(directory.glob("endings/*")))


@pytest.mark.parametrize("first", [AWAY, TimedOut("late"), 1, NotRunning("", status="frozen")])
def test_what_cannot_be_ended_is_ended_later(tmp_path: Path, first: Outcome) -> None:
    lxd = Lxd(first, first, first, 0)

    async def play() -> None:
        endings = made(lxd, tmp_path)
        async with running(endings):
            await endings.do(KILL)
            assert left(tmp_path) == 1
            await until(lambda: not left(tmp_path))

    asyncio.run(play())
    assert lxd.ran == ["kill"] * 4


@pytest.mark.parametrize(
    ("outcome", "ending"), [(0, KILL), (Gone(""), DROP), (NotRunning(""), KILL)]
)
def test_what_has_ended_is_not_tried_again(
    tmp_path: Path, outcome: Outcome, ending: Ending
) -> None:
    lxd = Lxd(outcome)

    async def play() -> None:
        await made(lxd, tmp_path).do(ending)

    asyncio.run(play())
    assert (len(lxd.ran), left(tmp_path)) == (1, 0)


def test_half_a_file_waits_for_its_pod_to_run_again(tmp_path: Path) -> None:
    lxd = Lxd(NotRunning(""), NotRunning(""), 0)

    async def play() -> None:
        endings = made(lxd, tmp_path)
        async with running(endings):
            await endings.do(DROP)
            await until(lambda: not left(tmp_path))

    asyncio.run(play())
    assert len(lxd.ran) == 3


def test_the_next_podyd_ends_what_this_one_could_not(tmp_path: Path) -> None:
    async def begin() -> None:
        endings = made(Lxd(AWAY), tmp_path)
        await endings.do(KILL)
        # podyd stops in the middle of it.
        doing = asyncio.ensure_future(endings.do(DROP))
        await asyncio.sleep(0)
        doing.cancel()
        await asyncio.wait({doing})

    asyncio.run(begin())
    assert left(tmp_path) == 2
    (tmp_path / "endings/broken.json").write_text('{"ending": {"words": 3}}')
    lxd = Lxd(0)

    async def go_on() -> None:
        async with running(made(lxd, tmp_path)):
            await until(lambda: not left(tmp_path))

    asyncio.run(go_on())
    assert sorted(lxd.ran) == ["drop", "kill"]


def test_the_next_podyd_ends_it_in_the_pod_alone_that_was_meant(tmp_path: Path) -> None:
    class Telling(Lxd):
        uuid = ""

        async def change(self, method: str, path: str, body: Any, *, timeout: float) -> Any:
            self.uuid = uuid_of(path)
            return await super().change(method, path, body, timeout=timeout)

    lxd = Telling(0)

    async def play() -> None:
        await made(Lxd(AWAY), tmp_path).do(replace(KILL, instance=bound("pod", "uuid-1")))
        async with running(made(lxd, tmp_path)):
            await until(lambda: not left(tmp_path))

    asyncio.run(play())
    assert lxd.uuid == "uuid-1"


def test_it_is_given_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "MAX_TRIES", 3)
    lxd = Lxd(1)

    async def play() -> None:
        retrying = made(lxd, tmp_path)
        async with running(retrying):
            await retrying.do(KILL)
            await until(lambda: not left(tmp_path))

    asyncio.run(play())
    assert len(lxd.ran) < 10


def test_so_much_is_due_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "MAX_DUE", 3)

    async def play() -> None:
        retrying = made(Lxd(AWAY), tmp_path)
        for number in range(9):
            await retrying.do(Ending("a", (str(number),)))

    asyncio.run(play())
    assert left(tmp_path) == 3


# --- Commands whose end nobody knows -------------------------------------------------------------


def execute(lxd: Lxd, directory: Path, timeout: float) -> list[str]:
    """What is run in the end to kill a command, whose executor podyd stops when it has ended."""

    async def play() -> None:
        tasks, retrying = Tasks(), made(lxd, directory)
        executor = RestExecutor(cast(RestClient, lxd), tasks, retrying)
        async with running(retrying):
            with contextlib.suppress(Unavailable):
                await executor.run("ann-main", bash("true"), Collected(9), timeout=timeout)
            await tasks.finish(5)
            await until(lambda: not left(directory))

    asyncio.run(play())
    return lxd.ran


def test_a_command_whose_connection_breaks_is_killed_once_lxd_answers(tmp_path: Path) -> None:
    lxd = Lxd(AWAY, AWAY, 0, cuts_off=True)
    assert execute(lxd, tmp_path, timeout=60) == ["/bin/sh"] * 3
    assert all(socket.is_closed for socket in lxd.sockets)


def test_a_command_whose_time_is_up_while_lxd_is_away_is_killed_later(tmp_path: Path) -> None:
    lxd = Lxd(AWAY, AWAY, 0)
    assert execute(lxd, tmp_path, timeout=0.01) == ["/bin/sh"] * 3


def test_a_command_that_has_ended_is_not_killed(tmp_path: Path) -> None:
    class Ending(Lxd):
        async def websocket(self, path: str, *, secret: str, answers_pings: bool = True) -> Socket:
            mark = f"\0podyd-{self.nonce}:0;".encode()
            given: Sequence[bytes] = [mark] if secret in (str(STDOUT), str(STDERR)) else []
            return Socket(*given, ends=secret == "control")

    assert execute(Ending(0), tmp_path, timeout=60) == []


def test_an_instance_in_which_nothing_ends_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "ROUND_SECONDS", -1.0)
    lxd = Lxd(TimedOut("late"))

    async def play() -> None:
        retrying = made(lxd, tmp_path)
        for name in "abc":
            await retrying.do(Ending("ann-main", (name,)))
        for _ in range(4):
            await retrying._round()

    asyncio.run(play())
    # One in each round, and the same one again when it is its turn.
    assert "".join(lxd.ran[3:]) == "abca"


def test_who_has_most_loses_what_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "MAX_DUE", 3)
    bob = Ending("bob-main", ("b",))
    ann = [Ending("ann-main", (name,)) for name in "12345"]

    async def play() -> set[Ending]:
        retrying = made(Lxd(TimedOut("late")), tmp_path)
        for ending in (bob, *ann):
            await retrying.do(ending)
        return set(retrying._due)

    assert asyncio.run(play()) == {bob, *ann[3:]}
    assert left(tmp_path) == 3
