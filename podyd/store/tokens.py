"""Tokens by the digests of their secrets."""

from __future__ import annotations

import sqlite3

from podyd.model.token import Token
from podyd.store.database import Database

# In the order of Token's fields.
_TOKEN = "id, owner, uid, mark, name, scope, created, expires, last_used"  # noqa: S105 - columns
_OF_ACCOUNT = "owner = ? AND uid = ? AND mark = ? AND expires > ?"


class TokenStore:
    """The table `tokens`; its key is the digest of a token's secret."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, digest: bytes, token: Token, *, most: int) -> bool:
        """Store a token and return True, or False if its owner has `most` already.

        Expired tokens are deleted.
        """

        def work(connection: sqlite3.Connection) -> bool:
            connection.execute("DELETE FROM tokens WHERE expires <= ?", (token.created,))
            owner = (token.owner, token.uid, token.mark, token.created)
            (count,) = connection.execute(
                f"SELECT count(*) FROM tokens WHERE {_OF_ACCOUNT}",  # noqa: S608 - constants
                owner,
            ).fetchone()
            if count >= most:
                return False
            connection.execute(
                f"INSERT INTO tokens (digest, {_TOKEN})"  # noqa: S608 - constants
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (digest, *vars(token).values()),
            )
            return True

        return await self._database.run(work)

    async def find(self, digest: bytes) -> Token | None:
        """The token with this digest, expired or not."""

        def work(connection: sqlite3.Connection) -> Token | None:
            row = connection.execute(
                f"SELECT {_TOKEN} FROM tokens WHERE digest = ?",  # noqa: S608 - constants
                (digest,),
            ).fetchone()
            return Token(*row) if row else None

        return await self._database.run(work)

    async def used(self, id: str, when: float) -> None:
        """Store when a token was last used, in seconds since 1970."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE tokens SET last_used = ? WHERE id = ?", (when, id))

        await self._database.run(work)

    async def of(self, owner: str, uid: int, mark: str, *, now: float) -> list[Token]:
        """An account's tokens that have not expired at `now`, in seconds since 1970, the oldest
        first."""

        def work(connection: sqlite3.Connection) -> list[Token]:
            rows = connection.execute(
                f"SELECT {_TOKEN} FROM tokens WHERE {_OF_ACCOUNT}"  # noqa: S608 - constants
                " ORDER BY created, id",
                (owner, uid, mark, now),
            )
            return [Token(*row) for row in rows]

        return await self._database.run(work)

    async def remove(self, owner: str, id: str | None, *, now: float) -> int:
        """Delete one token of this owner, or all; returns how many of them had not expired at
        `now`, in seconds since 1970."""

        def work(connection: sqlite3.Connection) -> int:
            which = "owner = :owner AND (:id IS NULL OR id = :id)"
            named = {"owner": owner, "id": id, "now": now}
            (count,) = connection.execute(
                f"SELECT count(*) FROM tokens WHERE {which} AND expires > :now",  # noqa: S608
                named,
            ).fetchone()
            connection.execute(f"DELETE FROM tokens WHERE {which}", named)  # noqa: S608
            return int(count)

        return await self._database.run(work)
