"""Messages to members and admins, which are kept for a while to be read."""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from podyd.base.errors import PodydError
from podyd.base.tasks import came
from podyd.model.member import Member
from podyd.model.notice import Notice
from podyd.model.pod import account_key
from podyd.store.notices import NoticeStore, Shelf, StoredNotice

log = logging.getLogger(__name__)

MAX_CHARACTERS = 500
# Held in memory until they are written, while the database cannot be used.
MAX_HELD = 1000
# Until what could not be written is tried again, and until what is too old is deleted.
RETRY_SECONDS = 60.0
TIDY_SECONDS = 3600.0


class Notices:
    """Notices by reader: an account as `Pod.account` has it, or None for the admins.

    Which members are admins is decided when they read. `clock` gives seconds since 1970.
    """

    def __init__(self, store: NoticeStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        # By reader, pod and text, the oldest first.
        self._held: dict[tuple[str | None, str, str], Notice] = {}
        self._has_new = asyncio.Event()
        self._shelf = Shelf({}, {})
        self._has_lost = False

    def tell(self, account: str | None, text: str, *, pod: str = "") -> None:
        """Tell a member, or the admins: one line of text, which may have any characters, and the
        instance that it is about.

        It is written later: no caller waits for the disk, or fails with it.
        """
        new = Notice(account, _plain(text), _plain(pod), count=1, time=self._clock())
        self._hold(new)
        self._has_new.set()

    def _hold(self, new: Notice) -> None:
        key = new.account, new.pod, new.text
        before = self._held.pop(key, None)
        if before is not None:
            new = replace(new, count=before.count + new.count)
        self._held[key] = new
        if len(self._held) > MAX_HELD:
            del self._held[next(iter(self._held))]
            if not self._has_lost:
                log.error("notices are lost: more than %d cannot be written at present", MAX_HELD)
            self._has_lost = True

    async def run(self) -> None:
        """Store new notices, and delete old ones, until cancelled."""
        while True:
            try:
                await self.flush()
            except PodydError:
                # The database has logged it.
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await came(self._has_new, TIDY_SECONDS)

    async def flush(self) -> None:
        """Store all new notices. Raises Unavailable; they are then kept for the next time."""
        self._has_new.clear()
        held, self._held = self._held, {}
        try:
            self._shelf = await self._store.add(held.values(), now=self._clock())
        except PodydError:
            later, self._held = self._held, held
            for notice in later.values():
                self._hold(notice)
            raise
        self._has_lost = False

    async def of(self, member: Member, *, since: float, most: int) -> list[StoredNotice]:
        """The last notices that a member may read and that were sent at `since` or later, in
        seconds since 1970; the newest last. Raises Unavailable."""
        return await self._store.of(_readers(member), since=since, most=most)

    def is_read(self, member: Member, id: int) -> bool:
        """Whether a member has read the notice of this id."""
        return id <= self._shelf.read.get(_account_of(member), 0)

    def unread(self, member: Member) -> int:
        """How many notices there are that a member has not read; asks no disk."""
        upto = self._shelf.read.get(_account_of(member), 0)
        kept = (self._shelf.ids.get(reader, ()) for reader in _readers(member))
        return sum(len(ids) - bisect_right(ids, upto) for ids in kept)

    async def read(self, member: Member, id: int) -> None:
        """Note that a member has read all up to this id. Raises Unavailable."""
        self._shelf = await self._store.read(_account_of(member), id)


def _account_of(member: Member) -> str:
    return account_key(member.name, member.uid)


def _readers(member: Member) -> Sequence[str | None]:
    """The readers whose notices a member may read: the account with their uid, their name alone,
    and for an admin the admins."""
    accounts = [_account_of(member), member.name]
    return [*accounts, None] if member.is_admin else accounts


def _plain(text: str) -> str:
    """Text in one line, of bounded length, without characters that steer a terminal."""
    line = " ".join(text[: 4 * MAX_CHARACTERS].split())
    line = "".join(char for char in line if char.isprintable())
    return line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 1]}…"
