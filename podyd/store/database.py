"""SQLite, for what LXD cannot hold.

All of it happens in one thread, so that nobody waits for the disk but who asked. `Database` knows
the file, `SCHEMA` its tables, and each file beside this one the statements of some of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from podyd.base.errors import Unavailable

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
                "podyd's database has much to do.",
                advice="Try again shortly.",
                code="database_busy",
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
        (integrity,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if integrity != "ok":
            raise sqlite3.DatabaseError(integrity)
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
            f"podyd's database {self._path} {problem}.",
            advice="Tell your admin.",
            code="database_failed",
        )
