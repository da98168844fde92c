"""What is counted while the database cannot be used."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from podyd.accounting import pending as module
from podyd.accounting.pending import Pending
from podyd.base.errors import Unavailable
from podyd.store.database import Database
from podyd.store.usage import COARSE_SECONDS, FINE_SECONDS, Bucket, UsageStore

START = 1_800_000_000


def test_what_cannot_be_written_is_kept_in_bounded_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FINE", 100)
    monkeypatch.setattr(module, "MAX_PENDING", 20)
    path = tmp_path / "db"

    async def whole() -> None:
        database = Database(path, retry=0)
        store = UsageStore(database)
        pending = Pending(store)
        path.mkdir()
        for hour in range(30):
            for at in range(0, COARSE_SECONDS, FINE_SECONDS):
                start = START + hour * COARSE_SECONDS + at
                pending.add(Bucket("gpu", FINE_SECONDS, start, "alice"), FINE_SECONDS)
            with pytest.raises(Unavailable):
                await pending.write()
        path.rmdir()
        await pending.write()
        await pending.write()
        end = START + 30 * COARSE_SECONDS
        # The oldest hours are lost, and no part of any other.
        assert await store.totals("gpu", START, end) == {"alice": 20 * COARSE_SECONDS}
        assert await store.totals("gpu", end - COARSE_SECONDS, end) == {"alice": COARSE_SECONDS}
        await database.close()

    asyncio.run(whole())
