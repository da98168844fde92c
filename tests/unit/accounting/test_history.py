"""The curves of cards and pods, after hours, days and a year, restarts and jumps of the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from podyd.accounting.clock import STEADY_SECONDS, Clock
from podyd.accounting.history import MAX_MINUTES, TIDY_SECONDS, History
from podyd.base.clock import iso
from podyd.base.errors import Unavailable
from podyd.contract.history import SPANS
from podyd.engine.types import Instance, Status
from podyd.gpus.inventory import Card
from podyd.node.cgroups import Cgroups, InstanceCgroup
from podyd.node.pod_loads import PodLoad
from podyd.node.samples import Gpu, Sample
from podyd.pods.loads import Loads
from podyd.store import history as store
from podyd.store.database import Database
from podyd.store.history import DIGITS, LEVELS, HistoryStore, Level
from tests.unit.node.fake import FakeLoads

GIB = 1024**3
# At the beginning of a day.
START = 1_800_057_600.0
MINUTE, HOUR, DAY = 60, 3600, 86400
POD = "uuid-alice-x"


class Rig:
    """History on a real file; LXD, NVML, the kernel's counters and the clocks are as the test
    says. There are two cards and one pod, and its first process is 1."""

    def __init__(self, path: Path) -> None:
        self.wall, self.monotonic = START, 5000.0
        self.gpus: list[Gpu] = []
        self.cards = [Card(0, "0000:01:00.0", "GPU-a"), Card(1, "0000:02:00.0", "GPU-b")]
        self.runs, self.is_away = True, False
        # What uuid LXD gives the pod.
        self.uuid = POD
        self.kernel = FakeLoads()
        self._path = path
        self.start()

    def start(self) -> None:
        """A podyd on the same file; the one before is not asked to end."""
        self.database = Database(self._path, retry=0)
        self.store = HistoryStore(self.database)
        clock = Clock(lambda: self.wall, lambda: self.monotonic)
        self.cgroups = Cgroups(
            "podyd",
            instances=self._instances,
            first_process=self._first_process,
            cgroup_of=self._cgroup_of,
        )
        self.history = History(
            store=self.store,
            loads=Loads(cgroups=self.cgroups, counters=self.kernel, clock=clock.monotonic),
            instances=self._instances,
            cards=self._cards,
            clock=clock,
        )

    async def _instances(self) -> Sequence[Instance]:
        if self.is_away:
            raise Unavailable("LXD is away.")
        when = datetime.fromtimestamp(START, timezone.utc)
        keys = {"volatile.uuid": self.uuid, "user.podyd.owner": "alice"}
        status: Status = "running" if self.runs else "stopped"
        return [Instance("alice-x", status, when, when, keys, {}, {}, {}, ())]

    async def _cards(self) -> Sequence[Card]:
        return self.cards

    async def _first_process(self, name: str) -> int:
        return 1

    async def _cgroup_of(self, pid: int) -> InstanceCgroup | None:
        return "podyd", "alice-x"

    async def learn(self) -> None:
        """Have the pods' cgroups read."""
        self.cgroups.changed()
        following = asyncio.ensure_future(self.cgroups.follow())
        for _ in range(10):
            await asyncio.sleep(0)
        following.cancel()

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def sample(self, **figures: float | None) -> None:
        """A sample of the first card; the other does not answer."""
        self.history.sampled(
            Sample(
                self.monotonic,
                "535",
                "12.2",
                (
                    Gpu("GPU-a", "0000:01:00.0", "", **figures),  # type: ignore[arg-type]
                    Gpu("GPU-b", "0000:02:00.0", "", utilisation=100, problem="It fell off."),
                ),
            )
        )

    async def minutes(self, count: int, utilisation: Callable[[int], float]) -> None:
        """So many minutes with a sample and a write in each; the last one goes on."""
        for number in range(count):
            self.sample(utilisation=utilisation(number))
            await self.history.write()
            self.pass_by(MINUTE)

    async def used(self, span: str) -> list[float | None]:
        return (await self.history.gpus(span)).gpus["0"].utilisation


def play(directory: Path, what: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        rig = Rig(directory / "db")
        try:
            await what(rig)
        finally:
            await rig.database.close()

    asyncio.run(whole())


def known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


# --- Cards --------------------------------------------------------------------------------------


def test_a_minute_is_the_mean_of_its_samples(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        rig.sample(utilisation=100, memory_used=3 * GIB, power=250.06, temperature=60)
        rig.pass_by(30)
        rig.sample(utilisation=35, memory_used=1 * GIB, power=None, temperature=61)
        await rig.history.write()
        rig.pass_by(30)
        rig.sample(utilisation=10, memory_used=GIB, power=None, temperature=None)
        await rig.history.write()
        found = await rig.history.gpus("hour")
        assert (found.step, len(found.gpus["0"].power)) == (60, 60)
        assert found.start == iso(datetime.fromtimestamp(START - 58 * 60, timezone.utc))
        first = found.gpus["0"]
        assert first.utilisation[-3:] == [None, 67.5, 10]
        assert first.memory_used[-2:] == [2 * GIB, GIB]
        assert first.power[-2:] == [250.1, None]
        assert first.temperature[-2:] == [60.5, None]
        assert known(found.gpus["1"].utilisation) == [], "it did not answer"

    play(tmp_path, whole)


def test_each_span_has_the_means_of_its_steps(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        # A day with a card that is busy each second hour.
        await rig.minutes(24 * 60 + 1, lambda minute: 100.0 * (minute // 60 % 2))
        assert rig.wall == START + DAY + MINUTE
        hour = await rig.used("hour")
        assert known(hour) == [100] * 58 + [0], "the present minute is not written yet"
        day = await rig.used("day")
        assert len(day) == 288
        assert day[:-1] == ([0.0] * 12 + [100.0] * 12)[1:] + ([0.0] * 12 + [100.0] * 12) * 11
        assert (await rig.used("week"))[-49:-1] == ([0.0] * 2 + [100.0] * 2) * 12
        assert known(await rig.used("month")) == [50.0] * 12
        assert known(await rig.used("year")) == [50.0]

    play(tmp_path, whole)


def test_each_span_is_a_few_hundred_values_with_the_present_step_last(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        for span, level in zip(SPANS, LEVELS, strict=True):
            found = await rig.history.gpus(span)
            assert found.step == level.step
            values = found.gpus["0"].utilisation
            assert 60 <= len(values) <= 400
            start = datetime.fromisoformat(found.start.replace("Z", "+00:00")).timestamp()
            assert start % level.step == 0
            last = start + (len(values) - 1) * level.step
            assert last <= rig.wall < last + level.step
            # What a span shows is not deleted yet.
            assert level.kept >= len(values) * level.step

    play(tmp_path, whole)


def test_a_card_that_was_stored_by_its_address_is_the_same(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        rig.history.sampled(Sample(0.0, "", "", (Gpu("", "0000:01:00.0", "", utilisation=7),)))
        await rig.history.write()
        rig.pass_by(MINUTE)
        rig.sample(utilisation=9)
        await rig.history.write()
        assert known(await rig.used("hour")) == [7, 9]

    play(tmp_path, whole)


# --- Pods ---------------------------------------------------------------------------------------


def test_what_a_pod_uses(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        await rig.learn()
        for minute in range(3):
            for second in range(0, MINUTE, 20):
                at = minute * MINUTE + second
                rig.kernel.known[1] = PodLoad(("podyd", "alice-x"), 1.5 * at, at * 1000)
                await rig.history.write()
                rig.pass_by(20)
        found = await rig.history.pod(POD, "hour")
        assert found.step == 60
        assert known(found.cpu) == [1.5, 1.5, 1.5]
        assert known(found.memory_used) == [20_000, 80_000, 140_000]
        # Another one that has its name later begins anew.
        assert known((await rig.history.pod("other", "hour")).cpu) == []

    play(tmp_path, whole)


def test_while_lxd_is_away_pods_are_those_that_it_named(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        await rig.learn()
        rig.kernel.known[1] = PodLoad(("podyd", "alice-x"), None, 5)
        await rig.history.write()
        rig.is_away = True
        rig.pass_by(MINUTE)
        await rig.history.write()
        assert known((await rig.history.pod(POD, "hour")).memory_used) == [5, 5]

    play(tmp_path, whole)


def test_a_pod_that_stops_has_a_gap(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        rig.kernel.known[1] = PodLoad(("podyd", "alice-x"), None, 5)
        for rig.runs in (True, False, True):
            await rig.learn()
            await rig.history.write()
            rig.pass_by(MINUTE)
        assert (await rig.history.pod(POD, "hour")).memory_used[-4:] == [5, None, 5, None]

    play(tmp_path, whole)


# --- Restarts, a database that fails, clocks ----------------------------------------------------


def test_a_restart_leaves_what_was_written(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        await rig.minutes(3, float)
        await rig.database.close()
        rig.start()
        await rig.minutes(2, lambda minute: 10.0)
        assert known(await rig.used("hour")) == [0, 1, 2, 10, 10]

    play(tmp_path, whole)


def test_what_cannot_be_written_is_kept_for_a_while(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        path = tmp_path / "db"
        path.mkdir()
        await rig.minutes(MAX_MINUTES + 5, float)
        path.rmdir()
        await rig.minutes(1, lambda minute: 77.0)
        last = [float(minute) for minute in range(5, MAX_MINUTES + 5)]
        assert known(await rig.used("hour")) == [*last, 77]

    play(tmp_path, whole)


def test_a_clock_that_jumps_costs_nothing_that_is_old(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        await rig.minutes(15, float)
        rig.wall += 10 * 366 * DAY
        await rig.minutes(int(STEADY_SECONDS / MINUTE) - 1, lambda minute: 50.0)
        rig.wall -= 10 * 366 * DAY
        await rig.minutes(15, lambda minute: 90.0)
        found = known(await rig.used("hour"))
        assert (found[0], found[-1]) == (0, 90)
        assert 50 not in found, "they are dated years ahead"

    play(tmp_path, whole)


def test_what_is_older_than_its_level_goes(tmp_path: Path) -> None:
    def oldest(step: int, connection: Any) -> int:
        rows = connection.execute("SELECT min(start) FROM history WHERE step = ?", (step,))
        return int(rows.fetchone()[0])

    async def whole(rig: Rig) -> None:
        for level in LEVELS:
            await rig.minutes(1, float)
            rig.pass_by(level.kept)
        rig.pass_by(STEADY_SECONDS)
        await rig.minutes(20, float)
        for level in LEVELS:
            first = await rig.database.run(partial(oldest, level.step))
            assert first >= rig.wall - level.kept - 2 * MINUTE

    play(tmp_path, whole)


async def rows(rig: Rig) -> int:
    """How many there are."""
    count = "SELECT count(*) FROM history"
    return int((await rig.database.run(lambda c: c.execute(count).fetchone()))[0])


def test_pods_that_are_no_more_leave_nothing(tmp_path: Path) -> None:
    async def whole(rig: Rig) -> None:
        await rig.learn()
        rig.kernel.known[1] = PodLoad(("podyd", "alice-x"), None, 5)
        rig.sample(utilisation=50)
        for number in range(25):
            # It is deleted, and another one made of its name.
            rig.uuid = f"uuid-{number}"
            await rig.history.write()
            rig.pass_by(MINUTE)
        assert known((await rig.history.pod("uuid-3", "hour")).memory_used) == [5]
        rig.is_away = True
        rig.pass_by(TIDY_SECONDS)
        await rig.history.write()
        assert known((await rig.history.pod("uuid-3", "day")).memory_used), "LXD does not say"
        rig.is_away = False
        rig.pass_by(TIDY_SECONDS)
        await rig.history.write()
        assert known((await rig.history.pod("uuid-3", "hour")).memory_used) == []
        assert known((await rig.history.pod("uuid-24", "day")).memory_used) != []
        assert known((await rig.history.gpus("day")).gpus["0"].utilisation) == [50]
        # Those of the card, in each level, and of the one pod that is there.
        assert await rows(rig) < 30

    play(tmp_path, whole)


def test_however_many_pods_there_are_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_ROWS", 30)

    async def whole(rig: Rig) -> None:
        def fill(connection: Any) -> None:
            connection.executemany(
                "INSERT INTO history VALUES ('pod cpu', 60, ?, ?, 1)",
                [(start, f"pod-{number}") for start in range(100) for number in range(7)],
            )

        await rig.database.run(fill)
        await rig.store.tidy(None, {f"pod-{number}" for number in range(7)})
        curves = await rig.store.curves(("pod cpu",), Level(1, 100, 100), 0)
        assert curves == {}, "of another level"
        left = "SELECT min(start), count(*) FROM history"
        first, count = await rig.database.run(lambda c: c.execute(left).fetchone())
        assert (first, count) == (96, 28), "whole steps of all pods"

    play(tmp_path, whole)


def test_a_year_of_eight_cards_and_fifty_pods_is_small(tmp_path: Path) -> None:
    """As many rows as there ever are: each level as long as it is kept."""
    cards = [f"GPU-01234567-89ab-cdef-0123-{number:012}" for number in range(8)]
    pods = [f"01234567-89ab-cdef-0123-{number:012}" for number in range(50)]
    whose = {"gpu": cards, "pod": pods}

    async def whole(rig: Rig) -> None:
        def fill(connection: Any) -> None:
            connection.executemany(
                "INSERT INTO history VALUES (?, ?, ?, ?, ?)",
                (
                    (figure, level.step, start, name, 81_234_567_890.0)
                    for level in LEVELS
                    for start in range(0, level.kept, level.step)
                    for figure in DIGITS
                    for name in whose[figure[:3]]
                ),
            )

        await rig.database.run(fill)

    play(tmp_path, whole)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    # 16 MB; ten times as much would be allowed.
    assert size < 25e6
    # With as many pods as members like to have.
    most = len(LEVELS) * store.MAX_ROWS * 2
    rows = sum(
        len(whose[figure[:3]]) * level.kept / level.step for figure in DIGITS for level in LEVELS
    )
    assert size / rows * most < 190e6
