"""CPU seconds, GPU seconds and seconds of leases by owner, summed in buckets of time."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from podyd.store.database import Database

Kind = Literal["cpu", "gpu", "lease"]

FINE_SECONDS = 10
COARSE_SECONDS = 3600


@dataclass(frozen=True)
class Bucket:
    """A bucket of an owner's usage: `start` in seconds since 1970, `span` fine or coarse."""

    kind: Kind
    span: int
    start: int
    owner: str


@dataclass(frozen=True)
class Counter:
    """The CPU seconds of an instance since its start, and when they were read, in seconds since
    1970."""

    nanoseconds: int
    taken: float


class UsageStore:
    """The tables `usage` and `cpu_counters`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, amounts: Mapping[Bucket, float], counters: Mapping[str, Counter] | None = None
    ) -> None:
        """Add seconds to buckets and, in the same transaction, replace the counters of all
        instances, by uuid."""
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
        """The stored counters, by the instances' uuids."""

        def work(connection: sqlite3.Connection) -> dict[str, Counter]:
            rows = connection.execute("SELECT uuid, nanoseconds, taken FROM cpu_counters")
            return {uuid: Counter(nanoseconds, taken) for uuid, nanoseconds, taken in rows}

        return await self._database.run(work)

    async def totals(self, kind: Kind, since: float, until: float) -> Mapping[str, float]:
        """Seconds of usage by owner between two times, in seconds since 1970; a bucket that is
        partly outside counts in proportion."""

        def work(connection: sqlite3.Connection) -> dict[str, float]:
            return dict(
                connection.execute(
                    "SELECT owner, sum("
                    "  seconds * (min(start + span, :until) - max(start, :since))"
                    "  / (min(start + span, :until) - start)"
                    ") FROM usage"
                    " WHERE kind = :kind AND span IN (:fine, :coarse)"
                    # The first condition lets SQLite use the primary key.
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
        """Roll up into coarse buckets what is older than `fine_since`, delete what is older than
        `since`; both in seconds since 1970, at whole hours."""
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
