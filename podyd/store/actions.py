"""What members have changed, one row for each request."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from podyd.store.database import Database

KEPT_SECONDS = 90 * 86400.0
# Of all users; of those who have most of them, the oldest go first.
MAX_KEPT = 20_000

# In the order of Action's fields.
_ACTION = "time, user, operation, pod, status, code"


@dataclass(frozen=True)
class Action:
    """A request that changes something, and how it was answered: `time` in seconds since 1970,
    `operation` the path of the call, `pod` the engine's name of the instance or "", `code` that of
    the error or ""."""

    time: float
    user: str
    operation: str
    pod: str
    status: int
    code: str


@dataclass(frozen=True)
class Which:
    """Which actions are meant: those that are not older than `since`, in seconds since 1970, and
    of one user, pod or call, where these are given."""

    since: float = 0.0
    user: str | None = None
    pod: str | None = None
    operation: str | None = None


def share(counts: Iterable[int], most: int) -> int:
    """How many each may have so that all together have `most` at most: who has fewer keeps all."""
    left, sizes = most, sorted(counts)
    for at, size in enumerate(sizes):
        fair = left // (len(sizes) - at)
        if size > fair:
            return fair
        left -= size
    return most


class ActionStore:
    """The table `actions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, actions: Iterable[Action], *, since: float | None) -> None:
        """Store actions, and delete what is too much, or not newer than `since`, in seconds since
        1970; None: nothing is too old."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                f"INSERT INTO actions ({_ACTION}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
                [tuple(vars(action).values()) for action in actions],
            )
            connection.execute("DELETE FROM actions WHERE time <= ?", (since,))
            _shorten(connection)

        await self._database.run(work)

    async def of(self, which: Which, *, most: int) -> list[Action]:
        """The last `most` of these actions, the newest first."""

        def work(connection: sqlite3.Connection) -> list[Action]:
            rows = connection.execute(
                f"SELECT {_ACTION} FROM actions WHERE time >= :since"  # noqa: S608 - constants
                " AND (:user IS NULL OR user = :user) AND (:pod IS NULL OR pod = :pod)"
                " AND (:operation IS NULL OR operation = :operation)"
                " ORDER BY id DESC LIMIT :most",
                {**vars(which), "most": most},
            )
            return [Action(*row) for row in rows]

        return await self._database.run(work)


def _shorten(connection: sqlite3.Connection) -> None:
    (total,) = connection.execute("SELECT count(*) FROM actions").fetchone()
    if total <= MAX_KEPT:
        return
    counts = dict(connection.execute("SELECT user, count(*) FROM actions GROUP BY user"))
    kept = share(counts.values(), MAX_KEPT)
    connection.executemany(
        "DELETE FROM actions WHERE user = :user AND id IN"
        " (SELECT id FROM actions WHERE user = :user ORDER BY id LIMIT :more)",
        [{"user": user, "more": count - kept} for user, count in counts.items() if count > kept],
    )
