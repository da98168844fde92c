"""The CPU time that processes use, each with all that it has started and that is still below it.

A process's clock needs no rights, and is exact to the nanosecond; /proc/PID/stat counts hundredths
of a second. Only who is below whom stands in /proc.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from podyd.node.procs import MAX_PID

# The time between two looks at who is below whom, and how much longer it is than such a look takes:
# who has thousands of processes makes it no dearer.
TREE_SECONDS = 10.0
TREE_SHARE = 100
# With more processes than that below it, nobody adds up what they use.
MAX_BELOW = 1000
MAX_STAT_BYTES = 4096
# Of the kernel's include/linux/posix-timers.h: the time that the scheduler gave to a process.
_CPUCLOCK_SCHED = 2

Pids = frozenset[int]


def cpu_clock(pid: int) -> int | None:
    """Nanoseconds of CPU time that a process has used; None if there is none."""
    if not 0 < pid <= MAX_PID:
        return None
    try:
        # As clock_getcpuclockid(3) makes it. The kernel asks for no right to it.
        return time.clock_gettime_ns(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError:
        return None


class CpuTimes:
    """Reads clocks, and says what each process has used since the last look."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        *,
        clock: Callable[[int], int | None] = cpu_clock,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc = proc
        self._clock = clock
        self._now = now
        self._clocks: dict[int, int] = {}
        # Each process with all below it; None if that is not known.
        self._trees: dict[int, Pids | None] = {}
        self._due = -math.inf

    def look(self, pids: Iterable[int]) -> dict[int, float | None]:
        """Seconds of CPU time since the last look, or since it began, by process; None if it has
        ended, or if it cannot be told what is below it, as /proc hides that or there are more than
        `MAX_BELOW`. What is new below one counts from its own beginning."""
        wanted = frozenset(pids)
        if wanted and self._now() >= self._due:
            began = self._now()
            self._trees = _trees(_parents(self._proc), wanted)
            ended = self._now()
            self._due = ended + max(TREE_SECONDS, TREE_SHARE * (ended - began))
        # One that came since then has had no time to start much.
        trees = {pid: self._trees.get(pid, frozenset((pid,))) for pid in wanted}
        below = frozenset[int]().union(*(tree for tree in trees.values() if tree is not None))
        clocks = {pid: clock for pid in below if (clock := self._clock(pid)) is not None}
        gained = {pid: _gained(clock, self._clocks.get(pid)) for pid, clock in clocks.items()}
        self._clocks, self._trees = clocks, trees
        return {
            pid: sum(gained.get(one, 0) for one in tree) / 1e9
            if tree is not None and pid in clocks
            else None
            for pid, tree in trees.items()
        }


def _gained(clock: int, before: int | None) -> int:
    """What a clock has gained; one that goes back is another process's, of the same pid."""
    return clock if before is None or clock < before else clock - before


def _parents(proc: Path) -> dict[int, int]:
    """The parent of each process that /proc shows."""
    parents = {}
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            try:
                with open(f"{entry}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - see procs.py
                    stat = file.read(MAX_STAT_BYTES)
                # The name in parentheses may hold anything; ppid is the second field after it.
                parents[int(entry.name)] = int(stat[stat.rindex(b")") + 1 :].split(None, 2)[1])
            except (OSError, ValueError):
                continue  # It has just ended, or is hidden.
    return parents


def _trees(parents: Mapping[int, int], tops: Iterable[int]) -> dict[int, Pids | None]:
    children = defaultdict(list)
    for pid, parent in parents.items():
        children[parent].append(pid)
    return {top: _tree(children, top) if top in parents else None for top in tops}


def _tree(children: Mapping[int, list[int]], top: int) -> Pids | None:
    pids, rest = {top}, [top]
    while rest:
        for pid in children.get(rest.pop(), ()):
            if pid not in pids:
                pids.add(pid)
                rest.append(pid)
        if len(pids) > MAX_BELOW:
            return None
    return frozenset(pids)
