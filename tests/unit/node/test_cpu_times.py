"""The CPU time of processes, each with all below it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podyd.node.cpu_times import MAX_BELOW, TREE_SECONDS, CpuTimes, cpu_clock

TOP, CHILD, GRANDCHILD, OTHER = 70, 71, 72, 90
SECOND = 10**9


class Rig:
    """A /proc with a parent for each process, clocks in nanoseconds, and a time of the test's."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self.clocks: dict[int, int] = {}
        self.now = 100.0
        self.times = CpuTimes(proc, clock=self.clocks.get, now=lambda: self.now)
        for pid, parent in ((TOP, 1), (CHILD, TOP), (GRANDCHILD, CHILD), (OTHER, 1)):
            self.begin(pid, parent)

    def begin(self, pid: int, parent: int) -> None:
        self.clocks[pid] = 0
        directory = self._proc / str(pid)
        directory.mkdir()
        # A name may look like the rest of the line.
        (directory / "stat").write_text(f"{pid} (a) S 1 (b) S {parent} 7 7 0")

    def hide(self, pid: int) -> None:
        (self._proc / str(pid) / "stat").unlink()

    def look(self, *pids: int) -> dict[int, float | None]:
        self.now += 1
        return self.times.look(pids)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_what_is_below_a_process_counts_for_it_alone(rig: Rig) -> None:
    assert rig.look(TOP, OTHER) == {TOP: 0.0, OTHER: 0.0}
    rig.clocks[GRANDCHILD] += 2 * SECOND
    rig.clocks[TOP] += SECOND
    assert rig.look(TOP, OTHER) == {TOP: 3.0, OTHER: 0.0}
    assert rig.look(TOP, OTHER) == {TOP: 0.0, OTHER: 0.0}


def test_one_that_comes_later_is_found_after_a_while_and_counts_from_its_beginning(
    rig: Rig,
) -> None:
    rig.look(TOP)
    rig.begin(73, TOP)
    rig.clocks[73] = SECOND
    assert rig.look(TOP) == {TOP: 0.0}
    rig.now += TREE_SECONDS
    assert rig.look(TOP) == {TOP: 1.0}
    assert rig.look(TOP) == {TOP: 0.0}
    assert rig.look(TOP, CHILD) == {TOP: 0.0, CHILD: 0.0}


def test_one_that_ends_takes_nothing_back(rig: Rig) -> None:
    rig.clocks[CHILD] = 5 * SECOND
    rig.look(TOP)
    del rig.clocks[CHILD]
    rig.clocks[TOP] += SECOND
    assert rig.look(TOP) == {TOP: 1.0}
    del rig.clocks[TOP]
    assert rig.look(TOP) == {TOP: None}


def test_a_pid_that_another_process_has_by_now_counts_from_its_beginning(rig: Rig) -> None:
    rig.clocks[TOP] = 5 * SECOND
    rig.look(TOP)
    rig.clocks[TOP] = SECOND
    assert rig.look(TOP) == {TOP: 1.0}


def test_who_is_hidden_or_has_too_many_below_is_not_known(rig: Rig) -> None:
    rig.hide(OTHER)
    for number in range(MAX_BELOW):
        rig.begin(1000 + number, GRANDCHILD)
    assert rig.look(TOP, OTHER, 1000) == {TOP: None, OTHER: None, 1000: 0.0}
    assert rig.look(TOP, OTHER, 1000) == {TOP: None, OTHER: None, 1000: 0.0}


def test_a_circle_has_an_end(rig: Rig) -> None:
    rig.begin(80, 81)
    rig.begin(81, 80)
    assert rig.look(80) == {80: 0.0}


def test_the_kernels_clock() -> None:
    before = cpu_clock(os.getpid())
    assert before is not None
    sum(range(100_000))
    after = cpu_clock(os.getpid())
    assert after is not None
    assert before < after < before + 60 * SECOND
    assert [cpu_clock(pid) for pid in (-1, 0, 2**22 + 1, 2**31, 2**32)] == [None] * 5
    assert cpu_clock(1) is not None, "another account's, too"
