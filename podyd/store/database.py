"""SQLite, for what LXD cannot hold. The only importer of sqlite3.

All of it happens in one thread, so that nobody waits for the disk but who asked. `Database` knows
the file, `SCHEMA` its tables, and each further class the statements of some of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from podyd.base.errors import Unavailable
from podyd.model.token import Token

log = logging.getLogger(__name__)

# Another process, such as an admin's sqlite3, may hold the file so long.
BUSY_SECONDS = 5.0
# A file that cannot be used is looked at again after so long.
RETRY_SECONDS = 5.0
CLOSE_SECONDS = 3.0
MAX_WAITING = 64
MAX_WAL_BYTES = 4 * 1024**2

T = TypeVar("T")

# What leads from each version of the schema to the next: entries are added, never changed.
SCHEMA: tuple[tuple[str, ...], ...] = (
    (
        # `start` in seconds since 1970, `span` in seconds; `seconds` were used meanwhile.
        """CREATE TABLE usage (
            kind TEXT NOT NULL,
            span INTEGER NOT NULL,
            start INTEGER NOT NULL,
            owner TEXT NOT NULL,
            seconds REAL NOT NULL,
            PRIMARY KEY (kind, span, start, owner)
        ) WITHOUT ROWID""",
        # What LXD's counter of each instance was when it was last read.
        """CREATE TABLE cpu_counters (
            uuid TEXT PRIMARY KEY,
            nanoseconds INTEGER NOT NULL,
            taken REAL NOT NULL
        ) WITHOUT ROWID""",
    ),
    (
        # Times in seconds since 1970. `mark` is that of the owner's password at the time.
        """CREATE TABLE tokens (
            digest BLOB PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            uid INTEGER NOT NULL,
            mark TEXT NOT NULL,
            name TEXT NOT NULL,
            scope TEXT NOT NULL,
            created REAL NOT NULL,
            expires REAL NOT NULL,
            last_used REAL
        ) WITHOUT ROWID""",
        "CREATE INDEX tokens_of_owner ON tokens (owner)",
    ),
    (
        # Which card was last known to be where.
        "CREATE TABLE cards (pci TEXT PRIMARY KEY, uuid TEXT NOT NULL) WITHOUT ROWID",
    ),
)


class Database:
    """One file, opened when it is first needed.

    One that cannot be used is Unavailable to who asks, is told once in the log, and is tried again
    later: moved away or mended, it works without a restart.
    """

    def __init__(self, path: Path, *, retry: float = RETRY_SECONDS) -> None:
        self._path = path
        self._retry = retry
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._waiting = 0
        # What follows belongs to the thread.
        self._connection: sqlite3.Connection | None = None
        self._problem: str | None = None
        self._failed_at = 0.0

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns; all that it does is one transaction. Raises Unavailable.

        Once asked for it is done, also if the caller is cancelled meanwhile.
        """
        if self._waiting >= MAX_WAITING:
            raise Unavailable(
                "podyd's database has much to do; try again shortly.", code="database_busy"
            )
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._transact, work)
        self._waiting += 1
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    def _done(self, future: asyncio.Future[T]) -> None:
        self._waiting -= 1
        # Its caller may be gone; that it failed is in the log already.
        future.exception()

    async def close(self) -> None:
        """Do what was asked for, `CLOSE_SECONDS` at most, and let go of the file."""
        closing = asyncio.get_running_loop().run_in_executor(self._pool, self._disconnect)
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
        self._pool.shutdown(wait=False)

    # --- In the thread ---------------------------------------------------------------------------

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._problem is not None and time.monotonic() < self._failed_at + self._retry:
            raise self._unavailable(self._problem)
        try:
            connection = self._connection or self._connect()
            with connection:
                result = work(connection)
        except OSError as error:
            raise self._failed(
                f"cannot be opened ({error.strerror}); run 'podyd setup' as root"
            ) from error
        except sqlite3.OperationalError as error:
            raise self._failed(f"cannot be used ({error})") from error
        except sqlite3.DatabaseError as error:
            # The subclasses stand for mistakes of ours.
            if type(error) is not sqlite3.DatabaseError:
                raise
            raise self._failed(
                f"is damaged ({error}); move it away, and podyd begins a new one"
            ) from error
        if self._problem is not None:
            log.info("the database %s works again", self._path)
            self._problem = None
        return result

    def _connect(self) -> sqlite3.Connection:
        # For podyd alone; SQLite gives the files beside it the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        self._connection = connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(SCHEMA):
            raise self._failed(
                f"is a newer podyd's (schema {version}, this one knows {len(SCHEMA)}); upgrade"
                " podyd, or move the file away"
            )
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        connection.execute("PRAGMA journal_mode = WAL")
        # A token that was revoked stays so, also when the power fails.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            for statement in (statement for step in SCHEMA[version:] for statement in step):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(SCHEMA)}")
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failed(self, problem: str) -> Unavailable:
        self._disconnect()
        if problem != self._problem:
            log.error("the database %s %s", self._path, problem)
        self._problem, self._failed_at = problem, time.monotonic()
        return self._unavailable(problem)

    def _unavailable(self, problem: str) -> Unavailable:
        return Unavailable(
            f"podyd's database {self._path} {problem}; tell your admin.", code="database_failed"
        )


# --- Cards --------------------------------------------------------------------------------------


class CardStore:
    """The table of cards."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known(self) -> Mapping[str, str]:
        """The UUIDs that were last remembered, by PCI address."""

        def work(connection: sqlite3.Connection) -> dict[str, str]:
            return dict(connection.execute("SELECT pci, uuid FROM cards"))

        return await self._database.run(work)

    async def remember(self, cards: Mapping[str, str]) -> None:
        """Remember these UUIDs by PCI address, and no others."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM cards")
            connection.executemany("INSERT INTO cards (pci, uuid) VALUES (?, ?)", cards.items())

        await self._database.run(work)


# --- Usage --------------------------------------------------------------------------------------

Kind = Literal["cpu", "gpu"]

FINE_SECONDS = 10
COARSE_SECONDS = 3600


@dataclass(frozen=True)
class Bucket:
    """Where usage is added up: `start` in seconds since 1970, `span` fine or coarse."""

    kind: Kind
    span: int
    start: int
    owner: str


@dataclass(frozen=True)
class Counter:
    """The CPU time of an instance since its start, and when that was read (since 1970)."""

    nanoseconds: int
    taken: float


class UsageStore:
    """The tables of usage."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, amounts: Mapping[Bucket, float], counters: Mapping[str, Counter] | None = None
    ) -> None:
        """Add seconds to buckets and, with it, replace the counters of all instances, by uuid."""
        rows = [
            (bucket.kind, bucket.span, bucket.start, bucket.owner, seconds)
            for bucket, seconds in amounts.items()
        ]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT INTO usage (kind, span, start, owner, seconds) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET seconds = seconds + excluded.seconds",
                rows,
            )
            if counters is not None:
                connection.execute("DELETE FROM cpu_counters")
                connection.executemany(
                    "INSERT INTO cpu_counters (uuid, nanoseconds, taken) VALUES (?, ?, ?)",
                    [(uuid, item.nanoseconds, item.taken) for uuid, item in counters.items()],
                )

        await self._database.run(work)

    async def counters(self) -> Mapping[str, Counter]:
        """The counters that were last added, by the instances' uuids."""

        def work(connection: sqlite3.Connection) -> dict[str, Counter]:
            found = connection.execute("SELECT uuid, nanoseconds, taken FROM cpu_counters")
            return {uuid: Counter(nanoseconds, taken) for uuid, nanoseconds, taken in found}

        return await self._database.run(work)

    async def totals(self, kind: Kind, since: float, until: float) -> Mapping[str, float]:
        """Seconds by owner between two times; of a bucket that is partly outside, its share."""

        def work(connection: sqlite3.Connection) -> dict[str, float]:
            return dict(
                connection.execute(
                    "SELECT owner, sum("
                    "  seconds * (min(start + span, :until) - max(start, :since))"
                    "  / (min(start + span, :until) - start)"
                    ") FROM usage"
                    " WHERE kind = :kind AND span IN (:fine, :coarse)"
                    # The first condition lets SQLite find the place in the primary key.
                    " AND start > :since - :coarse AND start + span > :since AND start < :until"
                    " GROUP BY owner",
                    {
                        "kind": kind,
                        "since": since,
                        "until": until,
                        "fine": FINE_SECONDS,
                        "coarse": COARSE_SECONDS,
                    },
                )
            )

        return await self._database.run(work)

    async def tidy(self, *, fine_since: float, since: float) -> None:
        """Roll up into coarse buckets what is older than `fine_since`, drop what is older than
        `since`; both in whole hours."""
        hour = {
            "fine": FINE_SECONDS,
            "coarse": COARSE_SECONDS,
            "fine_since": fine_since // COARSE_SECONDS * COARSE_SECONDS,
            "since": since // COARSE_SECONDS * COARSE_SECONDS,
        }

        def work(connection: sqlite3.Connection) -> None:
            for kind in get_args(Kind):
                named = {"kind": kind, **hour}
                connection.execute(
                    "INSERT INTO usage (kind, span, start, owner, seconds)"
                    " SELECT kind, :coarse, start / :coarse * :coarse, owner, sum(seconds)"
                    " FROM usage WHERE kind = :kind AND span = :fine AND start < :fine_since"
                    " GROUP BY start / :coarse, owner"
                    " ON CONFLICT DO UPDATE SET seconds = seconds + excluded.seconds",
                    named,
                )
                connection.execute(
                    "DELETE FROM usage WHERE kind = :kind AND span = :fine AND start < :fine_since",
                    named,
                )
                connection.execute(
                    "DELETE FROM usage WHERE kind = :kind AND span = :coarse AND start < :since",
                    named,
                )

        await self._database.run(work)


# --- Tokens -------------------------------------------------------------------------------------


# In the order of Token's fields.
_TOKEN = "id, owner, uid, mark, name, scope, created, expires, last_used"  # noqa: S105 - columns
_OF_ACCOUNT = "owner = ? AND uid = ? AND mark = ? AND expires > ?"


class TokenStore:
    """The table of tokens, by the digests of what is secret."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, digest: bytes, token: Token, *, most: int) -> bool:
        """Keep a token, unless its owner has `most` already; what has expired is removed."""

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
            found = connection.execute(
                f"SELECT {_TOKEN} FROM tokens WHERE digest = ?",  # noqa: S608 - constants
                (digest,),
            ).fetchone()
            return Token(*found) if found else None

        return await self._database.run(work)

    async def used(self, id: str, when: float) -> None:
        """Note when a token was used."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE tokens SET last_used = ? WHERE id = ?", (when, id))

        await self._database.run(work)

    async def of(self, owner: str, uid: int, mark: str, *, now: float) -> list[Token]:
        """The tokens of an account that have not expired, the oldest first."""

        def work(connection: sqlite3.Connection) -> list[Token]:
            found = connection.execute(
                f"SELECT {_TOKEN} FROM tokens WHERE {_OF_ACCOUNT}"  # noqa: S608 - constants
                " ORDER BY created, id",
                (owner, uid, mark, now),
            )
            return [Token(*row) for row in found]

        return await self._database.run(work)

    async def remove(self, owner: str, id: str | None, *, now: float) -> int:
        """Remove one token of this owner, or all; how many of them had not expired."""

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
