"""Amounts of usage that are counted and not written yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from podyd.base.errors import Unavailable
from podyd.store.usage import COARSE_SECONDS, Bucket, UsageStore

# From so many buckets on, those of an hour become one: while the database cannot be used, an owner
# takes 24 a day of each kind, so that a hundred can wait for four days.
MAX_FINE = 5_000
MAX_PENDING = 10_000


class Pending:
    """Writes amounts, and keeps for the next time what cannot be written."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store
        self._amounts: dict[Bucket, float] = defaultdict(float)

    def add(self, bucket: Bucket, seconds: float) -> None:
        """Count seconds of usage."""
        self._amounts[bucket] += seconds

    async def write(self) -> None:
        """Write all that is counted. Raises Unavailable, and it is kept then, but for what is more
        than `MAX_PENDING` buckets, of which the oldest go."""
        amounts, self._amounts = self._amounts, defaultdict(float)
        if not amounts:
            return
        try:
            await self._store.add(amounts)
        except Unavailable:
            for bucket, seconds in amounts.items():
                self._amounts[bucket] += seconds
            if len(self._amounts) > MAX_FINE:
                self._amounts = _by_hour(self._amounts)
            raise


def _by_hour(amounts: Mapping[Bucket, float]) -> dict[Bucket, float]:
    hours: dict[Bucket, float] = defaultdict(float)
    for bucket, seconds in amounts.items():
        start = bucket.start // COARSE_SECONDS * COARSE_SECONDS
        hours[Bucket(bucket.kind, COARSE_SECONDS, start, bucket.owner)] += seconds
    while len(hours) > MAX_PENDING:
        del hours[min(hours, key=lambda bucket: bucket.start)]
    return hours
