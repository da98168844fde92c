"""What members have changed, one row for each request."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from podyd.store.database import Database

KEPT_SECONDS = 90 * 86400.0
MAX_KEPT = 20_000

# In the order of Action's fields.
_ACTION = "time, user, operation, pod, status, code"


@dataclass(frozen=True)
class Action:
    """A request that changes something, and how it was answered: `time` in seconds since 1970,
    `operation` the path of the call, `pod` LXD's name of the instance or "", `code` that of the
    error or ""."""

    time: float
    user: str
    operation: str
    pod: str
    status: int
    code: str


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
            connection.execute(
                "DELETE FROM actions WHERE time <= ? OR id <= (SELECT max(id) FROM actions) - ?",
                (since, MAX_KEPT),
            )

        await self._database.run(work)

    async def of(
        self, *, since: float, user: str | None, pod: str | None, most: int
    ) -> list[Action]:
        """The last `most` actions that are not older than `since`, of one user or pod if given; the
        newest first."""

        def work(connection: sqlite3.Connection) -> list[Action]:
            rows = connection.execute(
                f"SELECT {_ACTION} FROM actions WHERE time >= :since"  # noqa: S608 - constants
                " AND (:user IS NULL OR user = :user) AND (:pod IS NULL OR pod = :pod)"
                " ORDER BY id DESC LIMIT :most",
                {"since": since, "user": user, "pod": pod, "most": most},
            )
            return [Action(*row) for row in rows]

        return await self._database.run(work)
