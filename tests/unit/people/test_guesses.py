"""How often a password may be tried, and who gets the tries that there are."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from podyd.base.errors import TooMany
from podyd.base.throttle import Throttle
from podyd.config.schema import AuthConfig
from podyd.people import guesses
from podyd.people.guesses import Guesses, Try

LIMIT, WINDOW = 6, 60.0


class Clock:
    """Goes on only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def asked(clock: Clock) -> Guesses:
    return Guesses(
        lambda: AuthConfig(failures_per_user=LIMIT, failures_per_address=60, failure_window=WINDOW),
        Throttle(clock),
    )


def tried(asked: Guesses, who: str, origin: str, *, known: bool = False) -> bool:
    """Whether a wrong password is tried at once."""
    one = Try(who, origin, known)
    if asked._pause(one) > 0:
        return False
    asyncio.run(asked.admit(one))
    return True


def most_in_a_window(times: list[float]) -> int:
    return max(sum(begin <= at < begin + WINDOW for at in times) for begin in times)


@pytest.mark.parametrize("origins", [1, 2, 3, 50])
def test_guesses_stay_bounded_however_many_places_they_come_from(
    asked: Guesses, clock: Clock, origins: int
) -> None:
    luck = random.Random(7)
    times = []
    for number in itertools.count():
        if clock.now > 1600:
            break
        if tried(asked, "victim", f"origin{number % origins}"):
            times.append(clock.now)
        clock.now += luck.choice((0.01, 0.1, 1.0))
    assert 4 <= most_in_a_window(times) <= (4 if origins == 1 else LIMIT)


def test_a_victim_has_tries_that_one_who_guesses_cannot_take(asked: Guesses, clock: Clock) -> None:
    for _ in range(600):
        clock.now += 0.5
        tried(asked, "victim", "mallory")
    assert tried(asked, "victim", "their own laptop")
    assert tried(asked, "victim", "where they always are", known=True)
    for _ in range(60):
        clock.now += 0.01
        tried(asked, "somebody", "mallory", known=True)
    assert tried(asked, "somebody", "their own laptop")


def test_many_names_of_one_place_keep_nobody_else_out(asked: Guesses) -> None:
    count = sum(tried(asked, f"user{number}", "mallory") for number in range(500))
    assert count == 60
    assert tried(asked, "user499", "elsewhere")


# --- Waiting for a try --------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Guesses:
    """Two tries in 0.4 s, on the real clock."""
    return Guesses(
        lambda: AuthConfig(failures_per_user=2, failures_per_address=9, failure_window=0.4)
    )


def test_who_comes_too_late_waits_and_then_gets_in(short: Guesses) -> None:
    async def play() -> list[str]:
        order = []

        async def come(origin: str) -> None:
            await short.admit(Try("victim", origin, known=False))
            order.append(origin)

        await come("m1")
        await asyncio.sleep(0.2)
        await come("m2")
        # One that has failed already comes first, and goes after one that has not.
        waiting = [asyncio.ensure_future(come("m2"))]
        await asyncio.sleep(0.05)
        waiting.append(asyncio.ensure_future(come("victim's")))
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(play())[2] == "victim's"


def test_only_some_wait_for_one_user_at_one_place(
    short: Guesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        for _ in range(2):
            await short.admit(Try("victim", "mallory", known=True))
        many = [
            asyncio.ensure_future(short.admit(Try("victim", "mallory", known=True)))
            for _ in range(9)
        ]
        answers = await asyncio.gather(*many, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, TooMany)]
        assert len(refused) == 9 - guesses.MAX_WAITING_PER_USER
        assert short._waiting == set()

    asyncio.run(play())


def test_who_would_wait_too_long_is_told_when_to_come_again(asked: Guesses, clock: Clock) -> None:
    for _ in range(LIMIT):
        assert tried(asked, "victim", "here", known=True)
    clock.now += 10
    with pytest.raises(TooMany) as raised:
        asyncio.run(asked.admit(Try("victim", "here", known=True)))
    # Early enough to be in line when a try is free.
    assert raised.value.retry_after == WINDOW - 10 - guesses.MAX_DELAY / 2
    assert asked._waiting == set()


def test_who_hangs_up_leaves_the_line(short: Guesses) -> None:
    async def play() -> None:
        for _ in range(2):
            await short.admit(Try("victim", "here", known=True))
        waiting = asyncio.ensure_future(short.admit(Try("victim", "here", known=True)))
        await asyncio.sleep(0)
        assert len(short._waiting) == 1
        waiting.cancel()
        await asyncio.wait({waiting})
        assert short._waiting == set()

    asyncio.run(play())


def test_what_is_forgiven_is_free_again(asked: Guesses) -> None:
    for _ in range(50):
        asked.forgive(asyncio.run(asked.admit(Try("victim", "here", known=False))))
