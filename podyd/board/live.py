"""Who watches the board, and what they are sent: one look at everything serves them all."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from podyd.base.engine_words import ENGINE
from podyd.base.errors import PodydError, TooMany
from podyd.base.tasks import came, seen
from podyd.board.board import Audience, Board, Encoded, audiences_of, message
from podyd.board.sources import Picture, Sources
from podyd.contract.events import BEAT_SECONDS
from podyd.model.member import Member
from podyd.people.origins import network_of

# Between two looks where nothing says that there is news; NVML's samples come as often.
LOOK_SECONDS = 1.0
# Several changes often come together, and are shown at once.
GATHER_SECONDS = 0.05
PER_SECOND = 2
# What the engine has no event for, such as how much of a disk is used.
ASK_SECONDS = 5.0
# A look goes on without the engine's answer, and says so when it is late.
ENGINE_SECONDS, LATE_SECONDS = 0.5, 3.0
LOAD_SECONDS = 2.0
# What has not been read yet may have so many bytes: of one viewer, unless it is a single message,
# of one member, and of all together. Who reads more slowly gets no more until they have read that,
# and then everything.
MAX_BEHIND_BYTES = 64 * 1024
MAX_HELD_OF_ONE = 8 * 1024**2
MAX_HELD_BYTES = 64 * 1024**2
# Who has not taken a single message for so long is left.
STUCK_SECONDS = 30.0
# So many are sent something before others have a turn, and before it is counted what they took.
BATCH = 16
# Of the event loop, until it is known that a connection has taken what it was sent.
TURNS = 3
# How many streams there may be, and of these one member's; and without a login, by their address.
MAX_VIEWERS, MAX_OF_ONE = 1024, 64
MAX_GUESTS, MAX_OF_ADDRESS = 128, 16

# Done once the connection has taken the message.
Send = Callable[[bytes], "asyncio.Future[None]"]


class Viewer:
    """Somebody who watches; None is one who has not logged in. `who` are all that count as one."""

    def __init__(self, live: Live, member: Member | None, who: Hashable) -> None:
        self._live = live
        self.member = member
        self.who = who
        self.audiences = audiences_of(member)
        self.has_whole = False
        # How many bytes have not been taken; since when none were, on the monotonic clock; and when
        # the last message was sent.
        self.held = 0
        self.stuck_since = self.sent = 0.0
        self._why = ""
        self._over = asyncio.Event()

    async def run(self, send: Send) -> str:
        """Send what there is, and then what changes, until cancelled, or until somebody else needs
        the room; returns why."""
        self._send = send
        self._live.add(self)
        try:
            await self._over.wait()
        finally:
            self._live.remove(self)
        return self._why

    def close(self) -> None:
        """It is over; somebody else may watch in its place."""
        self._live.leave(self)

    def end(self, why: str) -> None:
        """Have it end."""
        self._why = why
        self._over.set()
        self.close()

    def send(self, text: bytes) -> asyncio.Future[None]:
        """Send a message; what is returned is done once it is taken."""
        return self._send(text)


class _Held:
    """Counts what viewers have not taken yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all = 0
        self._of: Counter[Hashable] = Counter()

    def push(self, viewer: Viewer, text: bytes) -> bool:
        """Send a message, if there is room for it: whoever has nothing unread may have one."""
        size = len(text)
        if viewer.held and viewer.held + size > MAX_BEHIND_BYTES:
            return False
        own = self._of[viewer.who]
        if own and (own + size > MAX_HELD_OF_ONE or self._all + size > MAX_HELD_BYTES):
            return False
        if not viewer.held:
            viewer.stuck_since = self._clock()
        self._add(viewer, size)

        def taken(done: asyncio.Future[None]) -> None:
            viewer.stuck_since = self._clock()
            self._add(viewer, -size)
            seen(done)

        viewer.send(text).add_done_callback(taken)
        return True

    def _add(self, viewer: Viewer, size: int) -> None:
        viewer.held += size
        self._all += size
        self._of[viewer.who] += size
        if not self._of[viewer.who]:
            del self._of[viewer.who]


class Live:
    """Shows the board to viewers; nothing is asked while nobody watches."""

    def __init__(
        self,
        sources: Sources,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._wall = wall
        # All, and those whose connection is there, in the order in which they have come.
        self._known: dict[Viewer, None] = {}
        self._viewers: dict[Viewer, None] = {}
        self._held = _Held(clock)
        self._come = asyncio.Event()
        self._poke = asyncio.Event()
        self._reset()

    def _reset(self) -> None:
        for viewer in self._viewers:
            viewer.has_whole = False
        self._board = Board()
        self._picture: Picture | None = None
        self._problem: str | None = None
        self._asking: asyncio.Task[Picture] | None = None
        self._is_due = True
        self._asked = self._loaded = float("-inf")

    # --- What others say -------------------------------------------------------------------------

    def poke(self) -> None:
        """There is something new, but not from the engine."""
        self._poke.set()

    def changed(self) -> None:
        """The engine has something new."""
        self._is_due = True
        self._poke.set()

    def viewer(self, member: Member | None, address: str = "") -> Viewer:
        """Somebody who will watch, until closed. Raises TooMany."""
        if member is None:
            who, most, most_of_one = network_of(address), MAX_GUESTS, MAX_OF_ADDRESS
        else:
            who, most, most_of_one = member.name, MAX_VIEWERS, MAX_OF_ONE
        alike = [item for item in self._known if (item.member is None) == (member is None)]
        counts = Counter(item.who for item in alike)
        if counts[who] >= most_of_one:
            raise _too_many("Too many pages of yours are open.", "Close some of them.")
        if len(alike) >= most:
            # Whoever has the most gives one up to who has fewer.
            (greedy, count) = counts.most_common(1)[0]
            if counts[who] + 1 >= count:
                raise _too_many("Too many pages are open.", "Try again shortly.")
            next(item for item in reversed(alike) if item.who == greedy).end("too_many_pages")
        viewer = Viewer(self, member, who)
        self._known[viewer] = None
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Forget somebody."""
        self._known.pop(viewer, None)

    def add(self, viewer: Viewer) -> None:
        """A viewer's connection is there."""
        self._viewers[viewer] = None
        self._come.set()
        self._poke.set()

    def remove(self, viewer: Viewer) -> None:
        """A viewer's connection is gone."""
        del self._viewers[viewer]

    # --- Looking ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look and tell while somebody watches, until cancelled."""
        while True:
            await self._come.wait()
            self._come.clear()
            self._reset()
            self._sources.forget()
            try:
                await self._show()
            finally:
                if self._asking is not None:
                    self._asking.add_done_callback(seen)
                    self._asking.cancel()
                if self._viewers:  # This has failed, and is started again.
                    self._come.set()

    async def _show(self) -> None:
        sent: deque[float] = deque(maxlen=PER_SECOND)
        while self._viewers:
            wait = GATHER_SECONDS
            if len(sent) == PER_SECOND:
                wait = max(wait, sent[0] + 1 - self._clock())
            await asyncio.sleep(wait)
            self._poke.clear()
            await self._look()
            if await self._tell():
                sent.append(self._clock())
            await came(self._poke, LOOK_SECONDS)

    async def _look(self) -> None:
        """Bring the board up to date."""
        put, sources = self._board.put, self._sources
        if await self._ask() and self._picture is not None:
            put("pods", sources.pods(self._picture))
        put("host", sources.host(self._picture, self._problem))
        if self._picture is not None:
            put("cards", await sources.cards(self._picture))
            if self._clock() - self._loaded >= LOAD_SECONDS - LOOK_SECONDS / 2:
                self._loaded = self._clock()
                put("loads", await sources.loads(self._picture))
        put("works", sources.works(self._picture))
        members = {viewer.member for viewer in self._viewers if viewer.member is not None}
        put("people", sources.people(members))
        if any(member.is_admin for member in members):
            put("admin", await sources.admin())

    async def _ask(self) -> bool:
        """Ask the engine if there is a reason to; returns whether there is a new picture."""
        if self._asking is None:
            if not self._is_due and self._clock() - self._asked < ASK_SECONDS:
                return False
            self._is_due, self._asked = False, self._clock()
            self._asking = asyncio.ensure_future(self._sources.picture())
        asking = self._asking
        await asyncio.wait({asking}, timeout=ENGINE_SECONDS)
        if not asking.done():
            # What is known to be wrong is said on, while it is asked once more.
            if self._problem is None and self._clock() - self._asked >= LATE_SECONDS:
                self._problem = f"{ENGINE} takes long to answer."
            asking.add_done_callback(self._answered)
            return False
        self._asking = None
        try:
            self._picture, self._problem = asking.result(), None
        except PodydError as error:
            self._problem, self._is_due = str(error), True
            return False
        return True

    def _answered(self, asking: asyncio.Task[Any]) -> None:
        seen(asking)
        self._poke.set()

    # --- Telling ---------------------------------------------------------------------------------

    async def _tell(self) -> bool:
        """Send everybody what is new to them; returns whether anything has changed."""
        if self._picture is None and self._problem is None:
            return False
        changes, now = self._board.take(), self._clock()
        changed = frozenset(changes)
        messages: dict[tuple[bool, frozenset[Audience]], bytes] = {}
        for number, viewer in enumerate(list(self._viewers)):
            if number % BATCH == BATCH - 1:
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            if viewer.held and now - viewer.stuck_since >= STUCK_SECONDS:
                viewer.end("too_slow")
                continue
            is_new = not viewer.has_whole
            mine = viewer.audiences if is_new else viewer.audiences & changed
            # The next look may be late, too.
            is_quiet = not mine and now - viewer.sent < BEAT_SECONDS - 2 * LOOK_SECONDS
            if is_quiet or (is_new and viewer.held) or viewer not in self._viewers:
                continue
            text = messages.get((is_new, mine))
            if text is None:
                text = messages[is_new, mine] = self._message(mine, changes, whole=is_new)
            viewer.has_whole = self._held.push(viewer, text)
            if viewer.has_whole:
                viewer.sent = now
        return bool(changed)

    def _message(
        self, audiences: frozenset[Audience], changes: Mapping[Audience, Encoded], *, whole: bool
    ) -> bytes:
        if whole:
            return message(self._wall(), self._board.whole(audiences), whole=True)
        return message(self._wall(), (changes[audience] for audience in audiences))


def _too_many(detail: str, advice: str) -> TooMany:
    return TooMany(detail, advice=advice, retry_after=10, code="too_many_pages")
