"""Logins on the page by the digests of their secrets."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence, Set

from podyd.model.web_session import WebSession
from podyd.store.database import Database

# In the order of WebSession's fields.
_SESSION = "digest, owner, uid, mark, created, expires, address"


class WebSessionStore:
    """The table `web_sessions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, session: WebSession, *, most: int, idle_since: float) -> int:
        """Store a session, used at its creation; returns how many of its owner's are deleted so
        that they have `most`: those that were not used for longest.

        Also deletes everybody's that have expired, or were not used since `idle_since`.
        """

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(
                "DELETE FROM web_sessions WHERE expires <= ? OR used <= ?",
                (session.created, idle_since),
            )
            connection.execute(
                f"INSERT INTO web_sessions ({_SESSION}, used) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
                (*vars(session).values(), session.created),
            )
            return connection.execute(
                "DELETE FROM web_sessions WHERE digest IN (SELECT digest FROM web_sessions"
                " WHERE owner = ? ORDER BY digest = ? DESC, used DESC LIMIT -1 OFFSET ?)",
                (session.owner, session.digest, most),
            ).rowcount

        return await self._database.run(work)

    async def find(self, digest: bytes) -> tuple[WebSession, float] | None:
        """The session with this digest, ended or not, and when it was last used."""

        def work(connection: sqlite3.Connection) -> tuple[WebSession, float] | None:
            row = connection.execute(
                f"SELECT {_SESSION}, used FROM web_sessions WHERE digest = ?",  # noqa: S608 - constants
                (digest,),
            ).fetchone()
            return (WebSession(*row[:-1]), row[-1]) if row else None

        return await self._database.run(work)

    async def of(
        self, owner: str, *, now: float, idle_since: float
    ) -> list[tuple[WebSession, float]]:
        """A user's sessions that have not expired at `now` and were used after `idle_since`, in
        seconds since 1970, and when each was; the last one used comes first."""

        def work(connection: sqlite3.Connection) -> list[tuple[WebSession, float]]:
            rows = connection.execute(
                f"SELECT {_SESSION}, used FROM web_sessions"  # noqa: S608 - constants
                " WHERE owner = ? AND expires > ? AND used > ? ORDER BY used DESC",
                (owner, now, idle_since),
            )
            return [(WebSession(*row[:-1]), row[-1]) for row in rows]

        return await self._database.run(work)

    async def among(self, digests: Sequence[bytes]) -> Set[bytes]:
        """Those of the digests that are of a session, ended or not."""

        def work(connection: sqlite3.Connection) -> Set[bytes]:
            places = ", ".join("?" * len(digests))
            rows = connection.execute(
                f"SELECT digest FROM web_sessions WHERE digest IN ({places})",  # noqa: S608 - "?"
                digests,
            )
            return {digest for (digest,) in rows}

        return await self._database.run(work)

    async def used(self, digest: bytes, when: float) -> None:
        """Store when a session was last used, in seconds since 1970."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE web_sessions SET used = ? WHERE digest = ?", (when, digest))

        await self._database.run(work)

    async def remove(self, digest: bytes) -> None:
        """Delete one session."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM web_sessions WHERE digest = ?", (digest,))

        await self._database.run(work)

    async def remove_all(self, owner: str, *, now: float, idle_since: float) -> int:
        """Delete all sessions of a user; returns how many had not expired at `now` and were used
        after `idle_since`, in seconds since 1970."""

        def work(connection: sqlite3.Connection) -> int:
            (count,) = connection.execute(
                "SELECT count(*) FROM web_sessions WHERE owner = ? AND expires > ? AND used > ?",
                (owner, now, idle_since),
            ).fetchone()
            connection.execute("DELETE FROM web_sessions WHERE owner = ?", (owner,))
            return int(count)

        return await self._database.run(work)
