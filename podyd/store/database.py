"""SQLite, for data that the engine cannot store.

All statements run in one thread, so that only their callers wait for the disk. `Database` manages
the file, `SCHEMA` declares its tables, and the modules beside this one have their statements.
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

# How long another process, such as an admin's sqlite3, may lock the file.
BUSY_SECONDS = 5.0
# How long to wait before a file that could not be used is opened again.
RETRY_SECONDS = 5.0
CLOSE_SECONDS = 3.0
MAX_WAITING = 64
MAX_WAL_BYTES = 4 * 1024**2

T = TypeVar("T")

# The statements from each version of the schema to the next: entries are added, never changed.
SCHEMA: tuple[tuple[str, ...], ...] = (
    (
        # `start` in seconds since 1970, `span` in seconds; `seconds` is the usage in this span.
        """CREATE TABLE usage (
            kind TEXT NOT NULL,
            span INTEGER NOT NULL,
            start INTEGER NOT NULL,
            owner TEXT NOT NULL,
            seconds REAL NOT NULL,
            PRIMARY KEY (kind, span, start, owner)
        ) WITHOUT ROWID""",
        # The engine's CPU counter of each instance at its last reading.
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
        # The last known PCI address of each card.
        "CREATE TABLE cards (pci TEXT PRIMARY KEY, uuid TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        # `account` is "alice:1001", "alice" (any account of that name) or "" for the admins; `time`
        # in seconds since 1970. A later notice has a higher id, whatever the clock says.
        """CREATE TABLE notices (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            account TEXT NOT NULL,
            pod TEXT NOT NULL,
            text TEXT NOT NULL,
            count INTEGER NOT NULL,
            time REAL NOT NULL
        )""",
        "CREATE INDEX notices_of_account ON notices (account, id)",
        # Up to which id an account ("alice:1001") has read those for it.
        "CREATE TABLE notices_read (account TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        # `time` in seconds since 1970.
        """CREATE TABLE actions (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time REAL NOT NULL,
            user TEXT NOT NULL,
            operation TEXT NOT NULL,
            pod TEXT NOT NULL,
            status INTEGER NOT NULL,
            code TEXT NOT NULL
        )""",
    ),
    (
        # The mean of a figure of a card (its key) or a pod (its instance's uuid) over `step`
        # seconds from `start` on, in seconds since 1970.
        """CREATE TABLE history (
            figure TEXT NOT NULL,
            step INTEGER NOT NULL,
            start INTEGER NOT NULL,
            whose TEXT NOT NULL,
            value REAL NOT NULL,
            PRIMARY KEY (figure, step, start, whose)
        ) WITHOUT ROWID""",
    ),
    (
        # Logins on the page. As `tokens`; `used` is exact to a minute.
        """CREATE TABLE web_sessions (
            digest BLOB PRIMARY KEY,
            owner TEXT NOT NULL,
            uid INTEGER NOT NULL,
            mark TEXT NOT NULL,
            created REAL NOT NULL,
            expires REAL NOT NULL,
            used REAL NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX web_sessions_of_owner ON web_sessions (owner)",
    ),
    ("CREATE INDEX actions_of_user ON actions (user)",),
    ("ALTER TABLE web_sessions ADD COLUMN address TEXT NOT NULL DEFAULT ''",),
)


class Database:
    """One file, opened at its first use.

    While it cannot be used, its callers get Unavailable, the log has one error, and it is opened
    again after a while: once it is moved away or repaired, it works without a restart.
    """

    def __init__(self, path: Path, *, retry: float = RETRY_SECONDS) -> None:
        self._path = path
        self._retry = retry
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._waiting = 0
        # The following attributes are used in the thread only.
        self._connection: sqlite3.Connection | None = None
        self._problem: str | None = None
        self._failed_at = 0.0

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one transaction and return its result. Raises Unavailable.

        It also runs to its end if the caller is cancelled meanwhile.
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
        # Its caller may be cancelled; a failure is logged already.
        future.exception()

    async def close(self) -> None:
        """Wait for all that is queued, `CLOSE_SECONDS` at most, and close the file."""
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
            # The subclasses are raised for bugs in podyd.
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
        # Only podyd may read it; SQLite creates the files beside it with the same mode.
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
        # A revoked token must stay revoked after a power failure.
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
