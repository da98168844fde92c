"""`podyd nvml` and what keeps it running, with the real binding on a driver of the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from podyd.gpus.report import alive
from podyd.node.procs import Reader
from podyd.node.samples import Failure, Gpu, ProcessSample, Sample, parse_line
from podyd.node.telemetry import Telemetry, Timing
from tests.lab.nvml import DEFAULT_GPUS, GIB, FakeDriver, FakeGpu, FakeNvml, FakeProcess, build

OTHER_DRIVER = "550.54.15"
NOT_SUPPORTED = dict.fromkeys(
    ("memory_total", "memory_used", "utilisation", "temperature", "power", "power_limit")
)
FUTURE = 2**52  # Microseconds since 1970: in a hundred years.


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver(tmp_path / "nvidia")
    for key, value in driver.environment.items():
        monkeypatch.setenv(key, value)
    return driver


@contextlib.contextmanager
def sampler(*words: str) -> Iterator[Iterator[Sample | Failure]]:
    """What a `podyd nvml` of our own says."""
    with subprocess.Popen(
        [sys.executable, "-m", "podyd", "nvml", *words], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield map(parse_line, process.stdout)
        finally:
            process.kill()


def once() -> Sample | Failure:
    with sampler("--once") as samples:
        return next(samples)


def sample() -> Sample:
    reported = once()
    assert isinstance(reported, Sample), reported
    return reported


def failure() -> Failure:
    reported = once()
    assert isinstance(reported, Failure), reported
    return reported


# --- What NVML says -----------------------------------------------------------------------------


def test_the_cards(driver: FakeDriver) -> None:
    shown = sample()
    assert (shown.driver, shown.cuda) == ("535.183.01", "12.2")
    assert 0 <= shown.age < 10
    assert shown.gpus == tuple(
        Gpu(
            uuid=gpu.uuid,
            pci=gpu.pci,
            name="NVIDIA A100 80GB PCIe",
            memory_total=80 * GIB,
            memory_used=0,
            utilisation=0,
            peak=0,
            temperature=35,
            power=61.5,
            power_limit=300.0,
        )
        for gpu in DEFAULT_GPUS
    )


def test_a_sample_is_one_line_and_comes_back_whole(driver: FakeDriver) -> None:
    driver.write(FakeNvml().holding(0, FakeProcess(7, utilisation=3), FakeProcess(9, None)))
    shown = sample()
    assert "\n" not in shown.to_line()
    assert parse_line(shown.to_line()) == shown


def test_who_is_on_a_card(driver: FakeDriver) -> None:
    driver.write(
        FakeNvml().holding(
            1,
            FakeProcess(40, 3 * GIB, utilisation=90),
            FakeProcess(30, GIB, kind="graphics", utilisation=5),
            FakeProcess(20, None, kind="mps"),
            # Both: the driver gives it in both lists.
            FakeProcess(10, 2 * GIB),
            FakeProcess(10, 2 * GIB, kind="graphics"),
        )
    )
    first, second = sample().gpus
    assert first.processes == ()
    assert as_nvml_says(second) == (
        ProcessSample(10, 2 * GIB, 0),
        ProcessSample(20, None, 0),
        ProcessSample(30, GIB, 5, seen=True),
        ProcessSample(40, 3 * GIB, 90, seen=True),
    )


def as_nvml_says(gpu: Gpu) -> tuple[ProcessSample, ...]:
    """Without what this machine says of the pids."""
    return tuple(dataclasses.replace(process, cgroup=None, cpu=None) for process in gpu.processes)


def test_what_a_card_does_not_support_is_none(driver: FakeDriver) -> None:
    state = FakeNvml().with_gpu(0, **NOT_SUPPORTED, process_utilisation=False)
    driver.write(state.holding(0, FakeProcess(7)))
    gpu = sample().gpus[0]
    assert {name: getattr(gpu, name) for name in NOT_SUPPORTED} == NOT_SUPPORTED
    assert as_nvml_says(gpu) == (ProcessSample(7, 2 * GIB, None),)
    assert gpu.problem is None


def test_no_cards(driver: FakeDriver) -> None:
    driver.write(FakeNvml(gpus=()))
    assert sample().gpus == ()


def test_a_lost_card_keeps_its_name_and_harms_no_other(driver: FakeDriver) -> None:
    driver.write(FakeNvml().holding(1, FakeProcess(7)))
    with sampler() as samples:
        before = next(samples)
        driver.write(FakeNvml().holding(1, FakeProcess(7)).with_gpu(0, lost=True))
        after = next(
            found for found in samples if isinstance(found, Sample) and found.gpus[0].problem
        )
        assert isinstance(before, Sample)
        lost, well = after.gpus
        card = before.gpus[0]
        assert lost == Gpu(card.uuid, card.pci, card.name, problem="GPU is lost")
        assert (well.uuid, as_nvml_says(well)) == (
            before.gpus[1].uuid,
            as_nvml_says(before.gpus[1]),
        )
    driver.write(FakeNvml().with_gpu(0, lost=True))
    assert sample().gpus[0] == Gpu("", "", "", problem="GPU is lost")


def test_what_a_process_has_used_is_since_the_last_sample(driver: FakeDriver) -> None:
    driver.write(FakeNvml().holding(0, FakeProcess(7, utilisation=90)))
    with sampler() as samples:
        next(samples)
        driver.write(FakeNvml().holding(0, FakeProcess(7, utilisation=5)))
        used = [found.gpus[0].processes[0].utilisation for found in take(samples, 2)]
        assert used[-1] == 5


def take(samples: Iterator[Sample | Failure], count: int) -> Iterator[Sample]:
    for _ in range(count):
        item = next(samples)
        assert isinstance(item, Sample)
        yield item


def test_a_use_of_less_than_a_percent_is_in_the_whole_buffer_at_its_time(
    driver: FakeDriver,
) -> None:
    again = FakeProcess(7, utilisation=0, in_buffer=1)
    once = dataclasses.replace(again, pid=8, sampled=1_700_000_000_000_000)
    # By a clock that is then set back.
    back = dataclasses.replace(again, pid=9, sampled=FUTURE)
    resting = FakeProcess(6)
    driver.write(FakeNvml().holding(0, resting, again, once, back))
    with sampler() as samples:
        (first,) = take(samples, 1)
        driver.write(
            FakeNvml().holding(0, resting, again, once, dataclasses.replace(back, sampled=0))
        )
        later = list(take(samples, 2))
    assert [process.seen for process in first.gpus[0].processes] == [False] + [True] * 3
    assert {
        process.pid for item in later for process in item.gpus[0].processes if process.seen
    } == {
        7,
        9,
    }
    assert [process.utilisation for process in later[-1].gpus[0].processes] == [0] * 4


def test_the_highest_of_the_cards_own_samples_counts_until_the_next_look(
    driver: FakeDriver,
) -> None:
    driver.write(FakeNvml().with_gpu(0, peak=7))
    with sampler() as samples:
        (first,) = take(samples, 1)
        assert (first.gpus[0].utilisation, first.gpus[0].peak) == (0, 7)
        driver.write(FakeNvml())
        assert [item.gpus[0].peak for item in take(samples, 2)][-1] == 0


def test_a_card_that_has_the_newer_call_alone(driver: FakeDriver) -> None:
    state = FakeNvml().with_gpu(0, blackwell=True)
    driver.write(state.holding(0, FakeProcess(7, utilisation=0), FakeProcess(9, utilisation=4)))
    assert as_nvml_says(sample().gpus[0]) == (
        ProcessSample(7, 2 * GIB, 0),
        ProcessSample(9, 2 * GIB, 4, seen=True),
    )


def test_cpu_time_is_that_of_a_process_and_of_all_below_it(driver: FakeDriver) -> None:
    worker = "while :; do :; done"
    with (
        subprocess.Popen(["sh", "-c", f"({worker}) & wait"], start_new_session=True) as loading,
        subprocess.Popen(["sleep", "60"]) as resting,
    ):
        pids = (loading.pid, resting.pid, 2**22 + 1)
        driver.write(FakeNvml().holding(0, *map(FakeProcess, pids)))
        try:
            with sampler() as samples:
                cpu = {item.pid: item.cpu for item in list(take(samples, 2))[-1].gpus[0].processes}
        finally:
            os.killpg(loading.pid, signal.SIGKILL)
            resting.kill()
    used = cpu[loading.pid]
    assert used is not None
    assert used > 0.01
    assert (cpu[resting.pid], cpu[2**22 + 1]) == (0.0, None)


def test_many_cards_and_processes(driver: FakeDriver) -> None:
    gpus = [FakeGpu(f"GPU-{index}", f"0000:{index:02x}:00.0", index) for index in range(8)]
    held = [
        dataclasses.replace(gpu, processes=tuple(map(FakeProcess, range(1000, 1200))))
        for gpu in gpus
    ]
    driver.write(FakeNvml(gpus=tuple(held)))
    shown = sample()
    assert [len(gpu.processes) for gpu in shown.gpus] == [200] * 8


@pytest.mark.parametrize(
    ("state", "words", "absent"),
    [
        (FakeNvml(init_fails=999), "Unknown Error", False),
        (FakeNvml(init_fails=9), "Driver Not Loaded", True),
        (FakeNvml(init_fails=4), "Insufficient Permissions", False),
        (FakeNvml(driver=OTHER_DRIVER), "driver/library version mismatch", False),
    ],
)
def test_init_fails(driver: FakeDriver, state: FakeNvml, words: str, absent: bool) -> None:
    driver.write(state)
    reported = failure()
    assert words in reported.problem
    assert reported.absent is absent


def test_no_library(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH")
    if not isinstance(once(), Sample):  # This machine may have a card of its own.
        assert failure() == Failure("NVML Shared Library Not Found", absent=True)


def test_an_update_of_the_driver_ends_it_and_a_new_one_works(driver: FakeDriver) -> None:
    with sampler() as samples:
        next(samples)
        build(driver.directory, OTHER_DRIVER)
        driver.write(FakeNvml(driver=OTHER_DRIVER))
        last = list(samples)[-1]
        assert isinstance(last, Failure)
        assert "mismatch" in last.problem
    assert sample().driver == OTHER_DRIVER


def test_nobody_reads(driver: FakeDriver) -> None:
    driver.write(FakeNvml(hangs=True))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "podyd", "nvml"]
    with os.fdopen(writer) as closed:
        assert subprocess.run(command, stdout=closed, timeout=20, check=False).returncode == 1


# --- What keeps it running ----------------------------------------------------------------------

QUICK = Timing(silent=3.0, absent_retry=0.1, retry=0.1, stale=2.0)


@contextlib.asynccontextmanager
async def running(timing: Timing = QUICK) -> AsyncIterator[Telemetry]:
    telemetry = Telemetry(timing)
    task = asyncio.create_task(telemetry.run())
    try:
        yield telemetry
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, f"timed out waiting: {what}"
        await asyncio.sleep(0.02)


def test_the_first_answer_and_the_next_ones(driver: FakeDriver) -> None:
    async def play() -> None:
        async with running() as telemetry:
            seen: list[Sample] = []
            telemetry.subscribe(seen.append)
            await telemetry.first(10)
            assert telemetry.current is telemetry.latest is seen[0]
            await until(lambda: len(seen) == 3, "two more")
            apart = [after.taken - before.taken for before, after in itertools.pairwise(seen)]
            assert all(0.5 < gap < 2 for gap in apart), apart

    asyncio.run(play())


def test_a_hang_is_told_and_over_when_nvml_answers(driver: FakeDriver) -> None:
    async def play() -> None:
        async with running() as telemetry:
            await telemetry.first(10)
            driver.write(FakeNvml(hangs=True))
            await until(lambda: telemetry.current is None, "the sample to be too old")
            assert telemetry.latest is not None
            assert telemetry.latest.age > QUICK.stale
            await until(lambda: telemetry.problem == "NVML hangs", "the cause")
            assert not telemetry.absent
            driver.write(FakeNvml())
            await until(lambda: telemetry.current, "a new sample")
            assert telemetry.problem is None

    asyncio.run(play())


def test_an_update_of_the_driver_mends_itself(driver: FakeDriver) -> None:
    async def play() -> None:
        async with running() as telemetry:
            await telemetry.first(10)
            driver.write(FakeNvml(driver=OTHER_DRIVER))
            await until(lambda: telemetry.problem, "the cause")
            assert "mismatch" in str(telemetry.problem)
            await until(lambda: telemetry.current is None, "the sample to be too old")
            build(driver.directory, OTHER_DRIVER)
            await until(lambda: telemetry.current, "a new sample")
            assert telemetry.current is not None
            assert telemetry.current.driver == OTHER_DRIVER

    asyncio.run(play())


def test_a_driver_that_goes_and_comes(driver: FakeDriver) -> None:
    async def play() -> None:
        async with running() as telemetry:
            await telemetry.first(10)
            driver.file.unlink()
            await until(lambda: telemetry.absent, "the driver to be gone")
            assert telemetry.latest is telemetry.current is None
            driver.write(FakeNvml())
            await until(lambda: telemetry.current, "a new sample")
            assert not telemetry.absent

    asyncio.run(play())


def test_one_that_cannot_be_started_is_told(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def play() -> None:
        python = sys.executable
        monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
        async with running() as telemetry:
            await telemetry.first(10)
            assert "cannot be started (No such file" in str(telemetry.problem)
            monkeypatch.setattr(sys, "executable", python)
            await until(lambda: telemetry.current, "a sample")

    asyncio.run(play())


def test_the_end_is_at_once_while_nvml_hangs(driver: FakeDriver) -> None:
    driver.write(FakeNvml(hangs=True))

    async def play() -> float:
        async with running(Timing()) as telemetry:
            await telemetry.first(0.5)
            assert (telemetry.current, telemetry.problem) == (None, None)
            began = time.monotonic()
        return time.monotonic() - began

    assert asyncio.run(play()) < 1


# --- Old samples --------------------------------------------------------------------------------


def test_what_came_after_the_sample_is_not_what_was_on_the_card() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        held = [ProcessSample(pid, GIB, None) for pid in (1, process.pid)]
        gpu = Gpu("", "", "", processes=tuple(held))
        try:
            known = asyncio.run(Reader().processes([1, process.pid]))
            assert [holder for holder, _ in alive(gpu, known, 0.0)] == held
            assert [holder for holder, _ in alive(gpu, known, 30.0)] == held[:1]
        finally:
            process.kill()


def test_a_line_that_is_none_is_refused() -> None:
    for line in (b"", b"{", b"[]", b"null", json.dumps({"taken": 1}).encode()):
        with pytest.raises((ValueError, KeyError, TypeError)):
            parse_line(line)
