"""What is counted for whom, and what is left of it after days, restarts and jumps of the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from podyd.accounting.clock import STEADY_SECONDS, Clock
from podyd.accounting.usage import GAP_SECONDS, Usage, spread
from podyd.base.errors import Unavailable
from podyd.config.current import Settings
from podyd.config.schema import Config
from podyd.engine.types import CpuTime, Instance
from podyd.node.samples import Gpu, ProcessSample, Sample
from podyd.store.database import Database
from podyd.store.usage import Bucket, UsageStore
from tests.unit.gpus.attributing import attribution

# At the beginning of an hour.
START = 1_800_000_000.0
DAY = 86400


def instance(name: str, owner: str, *, started: float = START) -> Instance:
    """A running instance, as LXD would show it; an empty owner is none."""
    when = datetime.fromtimestamp(started, timezone.utc)
    config = {"volatile.uuid": f"uuid-{name}"} | ({"user.podyd.owner": owner} if owner else {})
    return Instance(name, "running", when, when, config, {}, {}, {}, ())


CGROUPS = {
    **{pid: ("podyd", name) for pid, name in {11: "a-1", 12: "a-1", 13: "a-2", 21: "b"}.items()},
    31: ("podyd", "gone"),
    # As an admin may call his own.
    99: ("default", "a-1"),
}


def process(pid: int) -> ProcessSample:
    return ProcessSample(pid, None, None, CGROUPS.get(pid))


def sample(taken: float, cards: Iterable[Sequence[int]]) -> Sample:
    """Who is on which card."""
    gpus = tuple(
        Gpu(f"GPU-{index}", f"0000:{index}", "", processes=tuple(process(pid) for pid in pids))
        for index, pids in enumerate(cards)
    )
    return Sample(taken, "535", "12.2", gpus)


class Rig:
    """Usage on a real file; LXD, NVML, /proc and the clocks are what the test says."""

    def __init__(self, path: Path) -> None:
        self.wall, self.monotonic = START, 5000.0
        self.instances = [instance("a-1", "alice"), instance("a-2", "alice"), instance("b", "bob")]
        self.counters: dict[str, float | None] = {}
        self.away = False
        self._path = path
        self.start()

    def start(self) -> None:
        """A podyd on the same file; the one before is not asked to end."""
        self.database = Database(self._path, retry=0)
        self.store = UsageStore(self.database)
        self.usage = Usage(
            store=self.store,
            instances=self._list,
            cpu_times=self._cpu_times,
            settings=Settings(Config()),
            clock=Clock(lambda: self.wall, lambda: self.monotonic),
        )
        self.attribution = attribution()
        self.attribution.subscribe(self.usage.sampled)

    async def _list(self) -> Sequence[Instance]:
        if self.away:
            raise Unavailable("LXD is away.")
        return self.instances

    async def _cpu_times(self) -> Sequence[CpuTime]:
        return [
            CpuTime(item, None if seconds is None else round(seconds * 1e9))
            for item in await self._list()
            for seconds in [self.counters.get(item.name, 0.0)]
        ]

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    async def hold(
        self, seconds: int, *cards: Sequence[int], step: float = 1.0, write: bool = True
    ) -> None:
        """Processes on cards for so long, with a sample each `step` seconds."""
        for _ in range(round(seconds / step)):
            self.pass_by(step)
            self.attribution.sampled(sample(self.monotonic, cards))
            if write:
                await self.usage.write()

    async def gpu(self, window: float | None = None) -> Mapping[str, float]:
        return await self.usage.seconds("gpu", None, window)

    async def cpu(self, window: float | None = None, **gains: float | None) -> Mapping[str, float]:
        """Read the counters, of a_1 for the instance a-1, and what was counted."""
        self.counters |= {name.replace("_", "-"): seconds for name, seconds in gains.items()}
        await self.usage.sample_cpu()
        return await self.usage.seconds("cpu", None, window)

    async def rows(self, span: int) -> int:
        (output,) = await self.database.run(
            lambda connection: connection.execute(
                "SELECT count(*) FROM usage WHERE span = ?", (span,)
            ).fetchone()
        )
        return int(output)


Play = Callable[[Rig], Coroutine[Any, Any, None]]


def play(directory: Path, what: Play) -> None:
    async def whole() -> None:
        rig = Rig(directory / "db")
        try:
            await what(rig)
        finally:
            await rig.database.close()

    asyncio.run(whole())


# --- GPU seconds --------------------------------------------------------------------------------


def test_a_known_job_on_two_cards(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        await rig.hold(5, [], [])
        await rig.hold(60, [11], [11])
        await rig.hold(5, [], [])
        assert await rig.gpu() == {"alice": pytest.approx(120, rel=0.05)}
        assert await rig.usage.seconds("gpu", ("bob", "alice"), None) == {
            "bob": 0.0,
            "alice": pytest.approx(120, rel=0.05),
        }

    play(tmp_path, job)


@pytest.mark.parametrize(
    ("cards", "seconds"),
    [
        ([[11, 12], []], {"alice": 10}),
        ([[11, 13], []], {"alice": 10}),
        ([[11], [13]], {"alice": 20}),
        ([[11, 21], [21]], {"alice": 10, "bob": 20}),
        ([[99], [77, 31]], {}),
        ([[99, 21], [1]], {"bob": 10}),
    ],
    ids=["one pod twice", "two pods", "two cards", "two owners", "nobody's", "beside nobody's"],
)
def test_once_per_card_and_owner(
    tmp_path: Path, cards: list[list[int]], seconds: Mapping[str, float]
) -> None:
    async def job(rig: Rig) -> None:
        await rig.hold(1, [])
        await rig.hold(10, *cards)
        assert await rig.gpu() == pytest.approx(seconds)

    play(tmp_path, job)


def test_a_gap_counts_a_few_seconds_at_most(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        await rig.hold(11, [11])
        rig.pass_by(3600)
        await rig.hold(1, [11])
        assert await rig.gpu() == {"alice": pytest.approx(10 + GAP_SECONDS)}

    play(tmp_path, job)


@pytest.mark.parametrize("jump", [-7 * DAY, -3600, 3600])
def test_the_clock_jumps(tmp_path: Path, jump: float) -> None:
    async def job(rig: Rig) -> None:
        await rig.hold(31, [11])
        rig.wall += jump
        await rig.hold(30, [11])
        # What is in the future now is not of the past.
        assert await rig.gpu(20) == {"alice": pytest.approx(20, abs=0.5)}
        rig.wall = START + 2 * DAY
        assert await rig.gpu() == {"alice": pytest.approx(60)}

    play(tmp_path, job)


def test_windows_are_prorated(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        await rig.hold(1, [])
        await rig.hold(99, [11])
        for window in (4, 10, 33, 99):
            assert await rig.gpu(window) == {"alice": pytest.approx(window, abs=1)}
        rig.pass_by(1000)
        assert await rig.gpu(1000) == {}
        assert await rig.gpu(1025) == {"alice": pytest.approx(25)}
        assert await rig.usage.seconds("gpu", ("alice",), 5) == {"alice": 0.0}

    play(tmp_path, job)


def test_while_lxd_is_away(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        rig.away = True
        await rig.hold(11, [11])
        assert await rig.gpu() == {}, "nobody has said whose it is"
        rig.away = False
        await rig.hold(1, [11])
        assert await rig.gpu() == {"alice": pytest.approx(11)}
        rig.away = True
        await rig.hold(9, [11])
        assert await rig.gpu() == {"alice": pytest.approx(20)}, "it is still hers"

    play(tmp_path, job)


def test_while_the_database_fails(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        (tmp_path / "db").mkdir()
        await rig.hold(11, [11])
        with pytest.raises(Unavailable, match=r"podyd's database .* cannot be opened"):
            await rig.gpu()
        (tmp_path / "db").rmdir()
        await rig.hold(10, [11])
        assert await rig.gpu() == {"alice": pytest.approx(20)}, "nothing is lost meanwhile"

    play(tmp_path, job)


def test_killed_it_loses_one_sample_at_most(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        await rig.hold(1, [])
        await rig.hold(30, [11])
        killed = rig.database
        rig.start()
        await rig.hold(30, [11])
        assert await rig.gpu() == {"alice": pytest.approx(59)}
        await killed.close()

    play(tmp_path, job)


def test_what_is_heard_last_is_written_at_the_end(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        await rig.hold(11, [11])
        await rig.hold(5, [11], write=False)
        assert await rig.gpu() == {"alice": pytest.approx(10)}
        await rig.usage.flush()
        assert await rig.gpu() == {"alice": pytest.approx(15)}

    play(tmp_path, job)


# --- CPU seconds --------------------------------------------------------------------------------


def test_cpu_is_what_the_counters_gain(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        assert await rig.cpu() == {}
        rig.pass_by(60)
        assert await rig.cpu(a_1=30, a_2=6, b=3) == {"alice": 36, "bob": 3}
        rig.pass_by(60)
        assert await rig.cpu(a_1=40) == {"alice": 46, "bob": 3}
        assert await rig.cpu(60) == {"alice": 10}
        assert await rig.cpu(30) == {"alice": 5}

    play(tmp_path, job)


def test_a_restarted_pod_counts_from_zero(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        rig.pass_by(60)
        await rig.cpu(a_1=30)
        rig.pass_by(60)
        assert await rig.cpu(a_1=4) == {"alice": 34}
        rig.pass_by(60)
        assert await rig.cpu(a_1=0) == {"alice": 34}, "it is stopped"
        rig.pass_by(60)
        assert await rig.cpu(a_1=2) == {"alice": 36}

    play(tmp_path, job)


def test_a_restarted_podyd_knows_the_counters(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        rig.pass_by(60)
        await rig.cpu(a_1=30)
        await rig.database.close()
        rig.start()
        rig.pass_by(3000)
        assert await rig.cpu(a_1=90) == {"alice": 90}
        assert await rig.cpu(1500) == {"alice": pytest.approx(30)}, "as it may have been"

    play(tmp_path, job)


def test_renamed_given_away_deleted_and_unknown(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        rig.pass_by(60)
        await rig.cpu(a_1=10, a_2=10, b=10)
        rig.instances[0] = replace(rig.instances[0], name="renamed")
        rig.instances[1] = replace(instance("a-2", "bob"))
        rig.pass_by(60)
        assert await rig.cpu(renamed=11, a_2=13, b=None) == {"alice": 21, "bob": 13}
        rig.instances.pop(0)
        rig.pass_by(60)
        assert await rig.cpu(b=20) == {"alice": 21, "bob": 23}
        rig.instances.append(instance("nobodys", ""))
        rig.instances.append(replace(instance("new", "carol"), config={"user.podyd.owner": "c"}))
        assert await rig.cpu(nobodys=50, new=1) == {"alice": 21, "bob": 23}

    play(tmp_path, job)


def test_a_pod_that_ran_before_is_counted_from_its_start(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        rig.instances = [instance("a-1", "alice", started=START - 10 * DAY)]
        assert await rig.cpu(a_1=1000) == {"alice": pytest.approx(1000)}
        assert await rig.cpu(DAY) == {"alice": pytest.approx(100, abs=1)}
        assert await rig.rows(3600) == 240

    play(tmp_path, job)


def test_cpu_time_waits_while_the_database_fails(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        await rig.cpu()
        await rig.database.close()
        rig.start()
        await rig.cpu()
        await rig.database.run(lambda connection: connection.execute("DROP TABLE usage") and None)
        rig.pass_by(100)
        with pytest.raises(Unavailable, match="no such table"):
            await rig.cpu(a_1=10)
        (tmp_path / "db").unlink()
        rig.pass_by(100)
        assert await rig.cpu(a_1=20) == {"alice": 20}

    play(tmp_path, job)


@pytest.mark.parametrize("jump", [-3600, 400 * DAY])
def test_the_clock_jumps_between_two_counters(tmp_path: Path, jump: float) -> None:
    async def job(rig: Rig) -> None:
        rig.pass_by(60)
        await rig.cpu(a_1=0)
        rig.pass_by(60)
        rig.wall += jump
        assert (await rig.cpu(60, a_1=30))["alice"] == pytest.approx(30)
        assert await rig.rows(3600) == 0

    play(tmp_path, job)


# --- Days and years -----------------------------------------------------------------------------


async def steady(rig: Rig) -> None:
    """Tidy up with a clock that has been steady."""
    await rig.usage.tidy()
    rig.pass_by(STEADY_SECONDS)
    await rig.usage.tidy()


def test_after_two_days_it_is_rolled_up_and_after_thirteen_months_it_is_gone(
    tmp_path: Path,
) -> None:
    async def job(rig: Rig) -> None:
        await rig.hold(1, [])
        await rig.hold(3600, [11], step=5)
        await steady(rig)
        assert (await rig.rows(10), await rig.rows(3600)) == (361, 0)
        rig.pass_by(2 * DAY + 3600)
        await steady(rig)
        assert (await rig.rows(10), await rig.rows(3600)) == (0, 2)
        assert await rig.gpu() == {"alice": pytest.approx(3600)}
        since = rig.wall - START - 1800
        assert await rig.gpu(since) == {"alice": pytest.approx(1800, abs=2)}, "half of the hour"
        rig.pass_by(360 * DAY)
        await steady(rig)
        assert await rig.gpu() == {"alice": pytest.approx(3600)}
        rig.pass_by(5 * DAY)
        await steady(rig)
        assert (await rig.gpu(), await rig.rows(3600)) == ({}, 2), "its month is still there"
        rig.pass_by(65 * DAY)
        await steady(rig)
        assert await rig.rows(3600) == 0

    play(tmp_path, job)


def test_a_month_has_the_hours_of_its_days_also_thirteen_months_later(tmp_path: Path) -> None:
    async def month(rig: Rig, first: datetime | None) -> Mapping[str, tuple[float, float]]:
        found = await rig.usage.month(first)
        assert [item.user for item in found] == sorted(item.user for item in found)
        return {item.user: (round(item.hours, 1), item.leased_hours) for item in found}

    async def job(rig: Rig) -> None:
        january, february = (datetime(2027, month, 1, tzinfo=timezone.utc) for month in (1, 2))
        rig.wall = january.timestamp()
        await rig.hold(3600, [11], [12], step=5)
        rig.wall = february.timestamp() - 1800
        await rig.hold(3600, [21], step=5)
        await rig.store.add({Bucket("lease", 3600, int(january.timestamp()), "carol"): 5400.0})
        assert await month(rig, None) == {"bob": (0.5, 0)}, "the present one"
        for later in (0, 3 * DAY, 390 * DAY):
            rig.pass_by(later)
            await steady(rig)
            assert await month(rig, january) == {
                "alice": (2, 0),
                "bob": (0.5, 0),
                "carol": (0, 1.5),
            }
            assert await month(rig, february) == {"bob": (0.5, 0)}
        assert await month(rig, None) == {}

    play(tmp_path, job)


def test_a_clock_that_is_set_forward_and_back_costs_no_history(tmp_path: Path) -> None:
    async def job(rig: Rig) -> None:
        await rig.hold(101, [11], step=5)
        before = await rig.gpu()
        await steady(rig)
        rig.wall += 1000 * DAY
        await rig.usage.tidy()
        rig.pass_by(STEADY_SECONDS - 1)
        await rig.usage.tidy()
        rig.wall -= 1000 * DAY
        await steady(rig)
        assert await rig.gpu() == before

    play(tmp_path, job)


def test_a_year_of_thirty_users_stays_within_bounds(tmp_path: Path) -> None:
    """Everybody is on a card in every hour; of the fine buckets, the last two days are full."""
    users = [f"student{number:04}" for number in range(30)]

    def size() -> int:
        return sum(path.stat().st_size for path in tmp_path.iterdir())

    async def day(rig: Rig, at: int, step: int) -> None:
        starts = range(at, at + DAY, step)
        await rig.store.add({Bucket("gpu", 10, s, user): 10.0 for s in starts for user in users})
        end = at + DAY
        await rig.store.tidy(fine_since=end - 2 * DAY, since=end - 366 * DAY)

    async def years(rig: Rig) -> None:
        sizes = []
        for number in range(400):
            await day(rig, int(START) + number * DAY, 10 if number in (364, 365) else 3600)
            if number in (363, 365, 399):
                sizes.append(size())
            if number == 365:
                assert await rig.rows(10) == 2 * 8640 * 30
        assert await rig.rows(3600) == 364 * 24 * 30
        assert max(sizes) < 40 * 1024**2
        assert sizes[2] < 1.01 * sizes[1], "what is free is used again"
        rig.wall = START + 400 * DAY
        begun = time.monotonic()
        assert len(await rig.gpu()) == 30
        assert time.monotonic() - begun < 10

    play(tmp_path, years)


@pytest.mark.parametrize(
    ("begin", "end"), [(5.0, 5.0), (10.0, 10.0), (9.5, 10.5), (0.0, 3600.0), (50.0, 9000.5)]
)
def test_spread_adds_up(begin: float, end: float) -> None:
    parts = list(spread("cpu", "alice", begin, end, 7.0))
    assert sum(part for _, part in parts) == pytest.approx(7)
    assert all(part > 0 for _, part in parts)
    assert len({bucket for bucket, _ in parts}) == len(parts)
    for bucket, _ in parts:
        assert bucket.start <= end
        assert bucket.start + bucket.span > begin
