"""Notices by reader, and how far each account has read them."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from podyd.model.notice import Notice
from podyd.store.database import Database

# The same notice again within so long is counted.
REPEAT_SECONDS = 60.0
KEPT_SECONDS = 30 * 86400.0
MAX_PER_READER = 200

# In the order of Notice's fields.
_NOTICE = "account, text, pod, count, time"


@dataclass(frozen=True)
class StoredNotice:
    """A notice by its id, which is higher the later it was sent."""

    id: int
    notice: Notice


@dataclass(frozen=True)
class Shelf:
    """The ids of what is kept by reader, lowest first, and up to which id each account has read."""

    ids: Mapping[str | None, Sequence[int]]
    read: Mapping[str, int]


class NoticeStore:
    """The tables `notices` and `notices_read`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, notices: Iterable[Notice], *, now: float) -> Shelf:
        """Store notices, and delete what is too old at `now`, in seconds since 1970, or too much;
        returns what is kept."""

        def work(connection: sqlite3.Connection) -> Shelf:
            for notice in notices:
                _put(connection, notice)
            connection.execute("DELETE FROM notices WHERE time <= ?", (now - KEPT_SECONDS,))
            # Of accounts for which nothing is kept that they have read.
            connection.execute("DELETE FROM notices_read WHERE id < (SELECT min(id) FROM notices)")
            return _shelf(connection)

        return await self._database.run(work)

    async def of(
        self, readers: Sequence[str | None], *, since: float, most: int
    ) -> list[StoredNotice]:
        """The last notices of these readers that were sent at `since` or later, in seconds since
        1970; the newest last."""

        def work(connection: sqlite3.Connection) -> list[StoredNotice]:
            marks = ", ".join("?" * len(readers))
            stored = connection.execute(
                f"SELECT {_NOTICE}, id FROM notices"  # noqa: S608 - constants and marks
                f" WHERE account IN ({marks}) AND time >= ? ORDER BY id DESC LIMIT ?",
                (*map(_column, readers), since, most),
            )
            rows = [
                StoredNotice(number, Notice(account or None, *rest))
                for account, *rest, number in stored
            ]
            return rows[::-1]

        return await self._database.run(work)

    async def read(self, account: str, id: int) -> Shelf:
        """Store that an account has read all up to this id; returns what is kept."""

        def work(connection: sqlite3.Connection) -> Shelf:
            # An id that no notice has yet would hide what is still to come.
            connection.execute(
                "INSERT INTO notices_read (account, id)"
                " VALUES (?, min(?, (SELECT coalesce(max(id), 0) FROM notices)))"
                " ON CONFLICT DO UPDATE SET id = max(id, excluded.id)",
                (account, id),
            )
            return _shelf(connection)

        return await self._database.run(work)


def _put(connection: sqlite3.Connection, notice: Notice) -> None:
    """Insert a notice, in place of the same one of a moment ago: it is new to who has read that."""
    account, count = _column(notice.account), notice.count
    before = connection.execute(
        "SELECT id, count FROM notices WHERE account = ? AND pod = ? AND text = ?"
        " AND abs(time - ?) < ? ORDER BY id DESC LIMIT 1",
        (account, notice.pod, notice.text, notice.time, REPEAT_SECONDS),
    ).fetchone()
    if before is not None:
        connection.execute("DELETE FROM notices WHERE id = ?", before[:1])
        count += before[1]
    connection.execute(
        f"INSERT INTO notices ({_NOTICE}) VALUES (?, ?, ?, ?, ?)",  # noqa: S608 - constants
        (account, notice.text, notice.pod, count, notice.time),
    )
    connection.execute(
        "DELETE FROM notices WHERE account = ? AND id <="
        " (SELECT id FROM notices WHERE account = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (account, account, MAX_PER_READER),
    )


def _shelf(connection: sqlite3.Connection) -> Shelf:
    ids: defaultdict[str | None, list[int]] = defaultdict(list)
    stored = connection.execute("SELECT account, id FROM notices ORDER BY account, id")
    for account, number in stored:
        ids[account or None].append(number)
    return Shelf(dict(ids), dict(connection.execute("SELECT account, id FROM notices_read")))


def _column(reader: str | None) -> str:
    return reader or ""
