"""The text of the cards: how often it is made, and what of a failure who has no login is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from podyd.api.binding import Call
from podyd.api.routes.host import HostRoutes
from podyd.base.errors import EngineRefused, PodydError
from podyd.contract.gpus import Waiting
from podyd.contract.host import NOT_FOR_ALL, GpuInfo
from podyd.contract.operation import Nothing
from podyd.gpus.report import Report
from podyd.gpus.scheduler import Scheduler
from podyd.gpus.status_text import KEPT_SECONDS
from tests.unit.api.test_notices import ALICE as LOGIN
from tests.unit.people.test_guesses import Clock

GUEST = Call(Nothing(), address="10.0.0.7")
ALICE = Call(Nothing(), LOGIN)


class Cards(Report):
    """`fails` is raised, if set; an answer waits for `gate`."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def gpus(self) -> list[GpuInfo]:
        self.asked += 1
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        return []


class Queue(Scheduler):
    def __init__(self) -> None:
        """Nobody waits."""

    async def queue(self) -> list[Waiting]:
        return []


def play(work: Callable[[HostRoutes, Cards, Clock], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        cards, clock = Cards(), Clock()
        await work(
            HostRoutes(host="lab", report=cards, scheduler=Queue(), clock=clock),
            cards,
            clock,
        )

    asyncio.run(whole())


def test_a_flood_of_questions_is_one() -> None:
    async def work(routes: HostRoutes, cards: Cards, clock: Clock) -> None:
        cards.gate.clear()
        asking = [asyncio.ensure_future(routes.status(GUEST)) for _ in range(500)]
        await asyncio.sleep(0)
        # Who leaves does not keep it from the others.
        asking.pop(0).cancel()
        await asyncio.sleep(0)
        cards.gate.set()
        assert all("no GPUs" in text for text in await asyncio.gather(*asking))
        await routes.status(ALICE)
        assert cards.asked == 1
        clock.now += KEPT_SECONDS
        await routes.status(GUEST)
        assert cards.asked == 2

    play(work)


def test_what_lxd_says_is_not_for_who_has_no_login() -> None:
    async def work(routes: HostRoutes, cards: Cards, clock: Clock) -> None:
        cards.fails = EngineRefused("open /var/lib/lxd/secret: no such file")
        with pytest.raises(PodydError, match="secret"):
            await routes.status(ALICE)
        with pytest.raises(PodydError) as refused:
            await routes.status(GUEST)
        assert (refused.value.detail, refused.value.status) == (NOT_FOR_ALL, 503)
        assert "secret" not in str(refused.value.body())

    play(work)
