"""For how long cards were leased, and what each month had of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from podyd.accounting.clock import Clock
from podyd.accounting.leased import COUNT_SECONDS, GAP_SECONDS, LeaseTime
from podyd.base.errors import Unavailable
from podyd.engine.types import Instance
from podyd.gpus.leases import lease_key, lease_value
from podyd.store.database import Database
from podyd.store.usage import UsageStore

START = 1_800_057_600.0
HOUR = 3600


class Rig:
    """Lease time on a real file; LXD and the clocks are as the test says."""

    def __init__(self, path: Path) -> None:
        self.wall, self.monotonic = START, 5000.0
        self.leases: dict[tuple[str, str], tuple[float, float]] = {}
        self.is_away = False
        self._path = path
        self.database = Database(path, retry=0)
        self.time = LeaseTime(
            store=UsageStore(self.database),
            instances=self._instances,
            clock=Clock(lambda: self.wall, lambda: self.monotonic),
        )

    async def _instances(self) -> Sequence[Instance]:
        if self.is_away:
            raise Unavailable("LXD is away.")
        when = datetime.fromtimestamp(START, timezone.utc)
        return [
            Instance(
                f"{owner}-{card}",
                "stopped",
                when,
                None,
                {
                    "user.podyd.owner": owner,
                    lease_key(card): lease_value(*(_moment(START + at) for at in span)),
                },
                {},
                {},
                {},
                (),
            )
            for (owner, card), span in self.leases.items()
        ]

    async def after(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds
        await self.time.count()

    async def leased(self) -> dict[str, float]:
        found = await UsageStore(self.database).totals("lease", START - HOUR, START + 99 * HOUR)
        return {owner: round(seconds, 3) for owner, seconds in found.items()}


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.utc)


def play(directory: Path, what: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        rig = Rig(directory / "db")
        try:
            await what(rig)
        finally:
            await rig.database.close()

    asyncio.run(whole())


def test_each_card_counts_until_its_lease_is_over(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        rig.leases = {
            ("alice", "GPU-a"): (-50, HOUR),
            ("alice", "GPU-b"): (-50, 90),
            ("bob", "GPU-c"): (-50, HOUR),
        }
        await rig.after(0)
        await rig.after(60)
        assert await rig.leased() == {"alice": 120, "bob": 60}
        # The lease of GPU-b runs out, and bob gives his card back.
        del rig.leases["bob", "GPU-c"]
        await rig.after(40)
        assert await rig.leased() == {"alice": 190, "bob": 100}
        await rig.after(60)
        assert await rig.leased() == {"alice": 250, "bob": 100}

    play(tmp_path, whole)


def test_what_has_not_changed_is_not_written_at_each_of_lxds_events(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        rig.leases = {("alice", "GPU-a"): (0, HOUR)}
        await rig.after(0)
        await rig.after(COUNT_SECONDS - 1)
        assert await rig.leased() == {}
        await rig.after(1)
        assert await rig.leased() == {"alice": COUNT_SECONDS}

    play(tmp_path, whole)


def test_the_last_minute_is_written_when_podyd_stops(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        rig.leases = {("alice", "GPU-a"): (0, HOUR)}
        await rig.after(0)
        await rig.after(COUNT_SECONDS - 20)
        rig.is_away = True
        await rig.time.flush()
        assert await rig.leased() == {"alice": COUNT_SECONDS - 20}

    play(tmp_path, whole)


def test_while_lxd_or_the_database_does_not_answer_leases_go_on(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        rig.leases = {("alice", "GPU-a"): (0, HOUR)}
        await rig.after(0)
        rig.is_away = True
        (tmp_path / "db").mkdir()
        await rig.after(60)
        (tmp_path / "db").rmdir()
        await rig.after(60)
        assert await rig.leased() == {"alice": 120}

    play(tmp_path, whole)


def test_a_database_that_is_away_for_hours_costs_none(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        rig.leases = {("alice", "GPU-a"): (0, 90 * HOUR)}
        await rig.after(0)
        (tmp_path / "db").mkdir()
        for _ in range(5 * 15):
            await rig.after(240)
        (tmp_path / "db").rmdir()
        await rig.after(60)
        assert await rig.leased() == {"alice": 5 * HOUR + 60}

    play(tmp_path, whole)


@pytest.mark.parametrize("jump", [-5 * HOUR, 5 * HOUR])
def test_a_clock_that_is_set_and_a_host_that_sleeps(tmp_path: Path, jump: float) -> None:
    async def whole(rig: Rig) -> None:
        rig.leases = {("alice", "GPU-a"): (-9 * HOUR, 90 * HOUR)}
        await rig.after(0)
        rig.wall += jump
        await rig.after(60)
        assert await rig.leased() in ({"alice": 60}, {}), "it is dated before what is asked for"
        before = (await rig.leased()).get("alice", 0)
        rig.wall += 6 * HOUR
        await rig.after(2 * HOUR)
        assert (await rig.leased())["alice"] - before == GAP_SECONDS

    play(tmp_path, whole)
