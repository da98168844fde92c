"""The kernel's permission to open cards: the table that `podyd cards` enforces.

Everything goes on without that helper; the table is sent again when it comes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from podyd.base.errors import PodydError
from podyd.base.tasks import came, seen
from podyd.gpus.decisions import Cards
from podyd.gpus.inventory import Card
from podyd.gpus.rights import Rights
from podyd.node.card_access import Enforcement, Holder, Permissions
from podyd.node.interface import CardAccess, CardAccesses

log = logging.getLogger(__name__)

# The helper answers in milliseconds. One that takes longer is waited for no more, until it is
# connected to again. A pod's root can make it take long to see who has cards open.
ASK_SECONDS = 2.0
LOOK_SECONDS = 8.0
RETRY_SECONDS = 2.0
NOTHING: frozenset[str] = frozenset()

T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """The cards that a process of an instance of the project has open; see Holder."""

    pod: str
    cards: Cards
    holder: Holder


class _Line:
    """A connection to the helper, if there is one, for one request at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.turn = asyncio.Lock()
        self.connected: CardAccess | None = None


class Access:
    """Sends the scheduler's table to the helper, and asks which processes have cards open.

    `aliases` are the cgroups that are not named after their instance, with its name; `clock`
    returns monotonic seconds.
    """

    def __init__(
        self,
        helper: CardAccesses,
        *,
        aliases: Callable[[], Mapping[str, str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._helper = helper
        self._aliases = aliases
        self._clock = clock
        self._rights: Rights | None = None
        self._numbers: dict[Card, frozenset[str]] = {}
        # When each instance was refused a card, and when it was first seen.
        self._refused: dict[tuple[str, Card], float] = {}
        self._seen: dict[str, float] = {}
        self._subscribers: list[Callable[[], None]] = []
        self._orders, self._looks = _Line(ASK_SECONDS), _Line(LOOK_SECONDS)
        self._broken = asyncio.Event()
        # Not set while `run` tries for the first time.
        self._tried = asyncio.Event()
        self._tried.set()
        self._sent: Permissions | None = None
        self._problem = ""

    @property
    def rights(self) -> Rights | None:
        """The latest rights; None before the first ones."""
        return self._rights

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Call `subscriber` whenever the rights change."""
        self._subscribers.append(subscriber)

    def refused_since(self, pod: str, card: Card) -> float:
        """Since when, on the clock, an instance of the table may not have a card."""
        return self._refused.get((pod, card), self._seen.get(pod, self._clock()))

    async def permit(self, rights: Rights) -> None:
        """Apply these rights from now on, in the kernel too if the helper answers; never fails."""
        before, self._rights = self._rights, rights
        if rights != before:
            self._note(before, rights)
            for subscriber in self._subscribers:
                subscriber()
        await came(self._tried, ASK_SECONDS)
        await self.send()

    def _note(self, before: Rights | None, rights: Rights) -> None:
        now = self._clock()
        self._seen = {name: self._seen.get(name, now) for name in rights.rows}
        for name, cards in (before.rows if before else {}).items():
            self._refused |= {(name, card): now for card in cards - rights.rows.get(name, cards)}
        self._refused = {key: at for key, at in self._refused.items() if key[0] in rights.rows}

    async def send(self) -> None:
        """Send the table, if it is not the one that was sent last."""
        async with self._orders.turn:
            access, table = self._orders.connected, self._table()
            if access is None or table is None or table == self._sent:
                return
            answer = await self._answer(self._orders, access.permit(table))
            if answer is not None:
                self._sent = table
                self._say(_why_not(answer))

    def _table(self) -> Permissions | None:
        rights = self._rights
        if rights is None:
            return None
        # A card that does not answer has the numbers that it had.
        self._numbers |= {card: card.numbers for card in rights.cards if card.numbers}
        table = {
            name: NOTHING.union(*(self._numbers.get(card, NOTHING) for card in cards))
            for name, cards in rights.rows.items()
        }
        aliases = self._aliases().items()
        return table | {cgroup: table[name] for cgroup, name in aliases if name in table}

    async def holders(self) -> list[Held] | None:
        """The processes of pods that have a card open; None if the helper does not answer."""
        async with self._looks.turn:
            access, rights = self._looks.connected, self._rights
            if access is None or rights is None:
                return None
            holders = await self._answer(self._looks, access.holders())
        names = self._aliases()
        if holders is None:
            return None
        # An idle systemd has a descriptor queued in a socket. No process computes with such a one,
        # and the one that receives it has it open.
        return [
            Held(names.get(holder.cgroup, holder.cgroup), cards, holder)
            for holder in holders
            if not holder.dormant and (cards := self._cards(rights, holder))
        ]

    def _cards(self, rights: Rights, holder: Holder) -> Cards:
        return frozenset(
            card for card in rights.cards if self._numbers.get(card, NOTHING) & holder.numbers
        )

    async def end(self, due: Callable[[], Iterable[Holder]], *, kill: bool) -> None:
        """Send SIGTERM, or SIGKILL, to the processes that `due` then returns, if the helper
        answers."""
        async with self._looks.turn:
            access, holders = self._looks.connected, list(due())
            if access is not None and holders:
                await self._answer(self._looks, access.end(holders, kill=kill))

    async def _answer(self, line: _Line, question: Awaitable[T]) -> T | None:
        # Before Python 3.12, asyncio.wait_for may lose a cancellation.
        asking = asyncio.ensure_future(question)
        problem = "'podyd cards' takes too long"
        try:
            await asyncio.wait({asking}, timeout=line.seconds)
            if asking.done():
                return asking.result()
        except PodydError as error:
            problem = error.detail
        finally:
            asking.add_done_callback(seen)
            asking.cancel()
        # What it answers later would be taken for the answer to the next question.
        line.connected = None
        self._broken.set()
        self._say(problem)
        return None

    async def run(self) -> None:
        """Keep connected to the helper, until cancelled."""
        self._tried.clear()
        while True:
            try:
                async with (
                    self._helper.card_access() as orders,
                    self._helper.card_access() as looks,
                ):
                    await self._follow(orders, looks)
            except PodydError as error:
                self._say(error.detail)
            self._tried.set()
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, orders: CardAccess, looks: CardAccess) -> None:
        self._broken.clear()
        self._orders.connected, self._looks.connected, self._sent = orders, looks, None
        broken = asyncio.ensure_future(self._broken.wait())
        try:
            await self.send()
            self._tried.set()
            while not (broken.done() or orders.gone.done()):
                await asyncio.wait({orders.gone, broken}, return_when=asyncio.FIRST_COMPLETED)
                async with self._orders.turn:
                    pass  # `gone` is also done for a moment while a request is answered.
        finally:
            self._orders.connected = self._looks.connected = None
            broken.cancel()
        if not self._broken.is_set():
            self._say("'podyd cards' has ended")

    def _say(self, problem: str) -> None:
        if problem == self._problem:
            return
        if not problem:
            log.info("the kernel keeps pods from GPUs that they may not have")
        elif not self._problem:
            log.warning("the kernel keeps no pod from GPUs that it may not have: %s", problem)
        self._problem = problem


def _why_not(answer: Enforcement) -> str:
    return "" if answer.way else answer.problem or "it has no way to do it"
