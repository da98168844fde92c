"""Curves: means over steps of time, the coarser the older they are."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from podyd.store.database import Database

HOUR_SECONDS = 3600
DAY_SECONDS = 24 * HOUR_SECONDS
# To how many digits the means of each figure are kept.
DIGITS: Mapping[str, int] = {
    "gpu utilisation": 1,
    "gpu memory_used": 0,
    "gpu power": 1,
    "gpu temperature": 1,
    "pod cpu": 2,
    "pod memory_used": 0,
}


# Of each figure and level, whatever there is: about 170 MB for the pods together, and the cards are
# few. A pod that is there has less than 400 of each.
MAX_ROWS = 200_000
PODS = "pod "

# A value for each step, None where nothing is known.
Curve = list[float | None]


@dataclass(frozen=True)
class Level:
    """Means over `step` seconds, kept for `kept` seconds; curves show `shown` of them."""

    step: int
    shown: int
    kept: int


# Each one's steps are whole ones of the level before, of which it has the means.
LEVELS = (
    Level(60, 60, 2 * HOUR_SECONDS),
    Level(300, 288, 26 * HOUR_SECONDS),
    Level(1800, 336, 8 * DAY_SECONDS),
    Level(7200, 372, 32 * DAY_SECONDS),
    Level(DAY_SECONDS, 366, 400 * DAY_SECONDS),
)


@dataclass(frozen=True)
class Mean:
    """The mean of a figure of a card or of a pod, `whose` being the card's key or the uuid of the
    instance, over the step that begins at `start`, in seconds since 1970."""

    figure: str
    start: int
    whose: str
    value: float


class HistoryStore:
    """The table `history`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, means: Iterable[Mean], *, whole: Iterable[int] = ()) -> None:
        """Store means of the finest level in place of earlier ones of the same steps; `whole` are
        the beginnings of those that are complete. Raises Unavailable."""
        rows = [
            (item.figure, LEVELS[0].step, item.start, item.whose, _rounded(item)) for item in means
        ]
        ended = tuple(whole)

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO history (figure, step, start, whose, value)"
                " VALUES (?, ?, ?, ?, ?)",
                rows,
            )
            for finer, coarser in pairwise(LEVELS):
                for start in sorted({start // coarser.step * coarser.step for start in ended}):
                    _roll_up(connection, finer, coarser, start)

        await self._database.run(work)

    async def curves(
        self, figures: Sequence[str], level: Level, start: int, whose: str | None = None
    ) -> dict[str, dict[str, Curve]]:
        """What is stored of one card or pod, or of all that have any of these figures: by whose it
        is and by figure, a value for each of the level's `shown` steps from `start` on.

        Raises Unavailable."""

        def work(connection: sqlite3.Connection) -> dict[str, dict[str, Curve]]:
            curves_of: dict[str, dict[str, Curve]] = {}
            for figure in figures:
                rows = connection.execute(
                    "SELECT whose, (start - :start) / :step, value FROM history"
                    " WHERE figure = :figure AND step = :step AND start >= :start AND start < :end"
                    " AND (:whose IS NULL OR whose = :whose)",
                    {
                        "figure": figure,
                        "step": level.step,
                        "start": start,
                        "end": start + level.shown * level.step,
                        "whose": whose,
                    },
                )
                for name, at, value in rows:
                    curves = curves_of.setdefault(name, {})
                    curves.setdefault(figure, [None] * level.shown)[at] = value
            return curves_of

        return await self._database.run(work)

    async def tidy(self, now: float | None, pods: Set[str] | None) -> None:
        """Delete what is older at `now` (None: nothing is) than its level keeps it, what is more
        than `MAX_ROWS`, the oldest first, and of pods all but that of these uuids (None: of all
        pods). Raises Unavailable."""

        def work(connection: sqlite3.Connection) -> None:
            for figure in DIGITS:
                if pods is not None and figure.startswith(PODS):
                    _forget_others(connection, figure, pods)
                for level in LEVELS:
                    since = _full_since(connection, figure, level)
                    if now is not None:
                        since = max(since, int(now) - level.kept)
                    connection.execute(
                        "DELETE FROM history WHERE figure = ? AND step = ? AND start < ?",
                        (figure, level.step, since),
                    )

        await self._database.run(work)


def _forget_others(connection: sqlite3.Connection, figure: str, pods: Set[str]) -> None:
    # One statement for all: each has to look at everything.
    connection.execute(
        "DELETE FROM history WHERE figure = ? AND whose NOT IN (SELECT value FROM json_each(?))",
        (figure, json.dumps(list(pods))),
    )


def _full_since(connection: sqlite3.Connection, figure: str, level: Level) -> int:
    """From when on there are `MAX_ROWS` at most."""
    row = connection.execute(
        "SELECT start FROM history WHERE figure = ? AND step = ?"
        " ORDER BY start DESC LIMIT 1 OFFSET ?",
        (figure, level.step, MAX_ROWS),
    ).fetchone()
    return row[0] + 1 if row else 0


def _roll_up(connection: sqlite3.Connection, finer: Level, coarser: Level, start: int) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO history (figure, step, start, whose, value)"
        " SELECT figure, ?, ?, whose, round(avg(value), ?) FROM history"
        " WHERE figure = ? AND step = ? AND start >= ? AND start < ? GROUP BY whose",
        [
            (coarser.step, start, digits, figure, finer.step, start, start + coarser.step)
            for figure, digits in DIGITS.items()
        ],
    )


def _rounded(mean: Mean) -> float:
    return round(mean.value, DIGITS[mean.figure])
