"""Who watches the board, and what they are sent: one look at everything serves them all."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from podyd.base.errors import PodydError, TooMany
from podyd.base.tasks import came, seen
from podyd.board.board import Audience, Board, Encoded, audiences_of, message
from podyd.board.sources import Picture, Sources
from podyd.contract.events import BEAT_SECONDS
from podyd.model.member import Member

# Between two looks where nothing says that there is news; NVML's samples come as often.
LOOK_SECONDS = 1.0
# Several changes often come together, and are shown at once.
GATHER_SECONDS = 0.05
PER_SECOND = 2
# What LXD has no event for, such as how much of a disk is used.
ASK_SECONDS = 5.0
# A look goes on without LXD's answer, and says so when it is late.
LXD_SECONDS, LATE_SECONDS = 0.5, 3.0
LATE = "LXD takes long to answer."
LOAD_SECONDS = 2.0
# What a viewer has not read may have so many bytes.
MAX_HELD_BYTES = 1024**2
# How many streams one member may have open, all who have not logged in count as one, and how many
# there may be.
MAX_OF_ONE = 64
MAX_VIEWERS = 1024

# Done once the connection has taken the message.
Send = Callable[[bytes], "asyncio.Future[None]"]


class Viewer:
    """Somebody who watches; None is one who has not logged in."""

    def __init__(self, live: Live, member: Member | None) -> None:
        self._live = live
        self.member = member
        self.audiences = audiences_of(member)
        self.has_whole = False
        # On the monotonic clock.
        self.sent = 0.0
        self._held = 0

    async def run(self, send: Send) -> None:
        """Send what there is, and then what changes, until cancelled, or until too much of it is
        not read."""
        self._send = send
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._live.add(self)
        try:
            await self._over
        finally:
            self._live.remove(self)

    def close(self) -> None:
        """It is over; somebody else may watch in its place."""
        self._live.leave(self)

    def push(self, text: bytes) -> None:
        """Send a message, unless too many before it have not been read."""
        if self._held + len(text) > MAX_HELD_BYTES and self._held:
            if not self._over.done():
                self._over.set_result(None)
            return
        self._held += len(text)
        sending = self._send(text)

        def taken(done: asyncio.Future[None]) -> None:
            self._held -= len(text)
            seen(done)

        sending.add_done_callback(taken)


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
        self._known: set[Viewer] = set()
        self._viewers: dict[Viewer, None] = {}
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
        """There is something new, but not from LXD."""
        self._poke.set()

    def changed(self) -> None:
        """LXD has something new."""
        self._is_due = True
        self._poke.set()

    def viewer(self, member: Member | None) -> Viewer:
        """Somebody who will watch, until closed. Raises TooMany."""
        others = sum(_name(viewer.member) == _name(member) for viewer in self._known)
        if others >= MAX_OF_ONE or len(self._known) >= MAX_VIEWERS:
            raise TooMany(
                "Too many pages of yours are open.",
                advice="Close some of them.",
                retry_after=10,
                code="too_many_pages",
            )
        viewer = Viewer(self, member)
        self._known.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Forget somebody."""
        self._known.discard(viewer)

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
            if self._tell():
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
        """Ask LXD if there is a reason to; returns whether there is a new picture."""
        if self._asking is None:
            if not self._is_due and self._clock() - self._asked < ASK_SECONDS:
                return False
            self._is_due, self._asked = False, self._clock()
            self._asking = asyncio.ensure_future(self._sources.picture())
        asking = self._asking
        await asyncio.wait({asking}, timeout=LXD_SECONDS)
        if not asking.done():
            if self._clock() - self._asked >= LATE_SECONDS:
                self._problem = LATE
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

    def _tell(self) -> bool:
        """Send everybody what is new to them; returns whether anything has changed."""
        if self._picture is None and self._problem is None:
            return False
        changes, now = self._board.take(), self._clock()
        changed = frozenset(changes)
        messages: dict[tuple[bool, frozenset[Audience]], bytes] = {}
        for viewer in list(self._viewers):
            is_new = not viewer.has_whole
            mine = viewer.audiences if is_new else viewer.audiences & changed
            # The next look may be late, too.
            if not mine and now - viewer.sent < BEAT_SECONDS - 2 * LOOK_SECONDS:
                continue
            text = messages.get((is_new, mine))
            if text is None:
                text = messages[is_new, mine] = self._message(mine, changes, whole=is_new)
            viewer.has_whole, viewer.sent = True, now
            viewer.push(text)
        return bool(changed)

    def _message(
        self, audiences: frozenset[Audience], changes: Mapping[Audience, Encoded], *, whole: bool
    ) -> bytes:
        if whole:
            return message(self._wall(), self._board.whole(audiences), whole=True)
        return message(self._wall(), (changes[audience] for audience in audiences))


def _name(member: Member | None) -> str:
    return member.name if member is not None else ""
