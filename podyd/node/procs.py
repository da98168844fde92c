"""Processes of the host, read from /proc, and the pod that each is in.

Reading a file in /proc of another's process may take for ever: a command line is that process' own
memory, and one that hangs in a driver or on NFS may hold the lock of it (mmap_lock). So the service
asks a `Reader`, and never on its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from podyd.node.pod_limits import PodLimits, pod_limits

# lxc.payload.<instance> in the engine's default project, lxc.payload.<project>_<instance> in any
# other; project names cannot hold '_'. A nested container has a second one further down.
_PAYLOAD = re.compile(r"/lxc\.payload\.(?:([^/_\s]*)_)?([^/\s]+)")
# The project, and the name that is an instance's unless liblxc had to number it (see cgroups.py).
InstanceCgroup = tuple[str, str]
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
# A command line may have megabytes, and belongs to whoever runs it; other files are shorter.
MAX_HEAD_BYTES = 4096
# A file of /proc is read in microseconds. A thread that takes longer for one is given up.
PATIENCE_SECONDS = 0.3
# For all reads of one request.
LIMIT_SECONDS = 2.0
# Threads that read at a time, and threads that were given up, which do not count towards these.
MAX_THREADS = 4
MAX_STUCK = 32

MAX_PID = 2**22  # Of proc(5).

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """A process: its uptime in seconds, its resident memory in bytes; None if not known.

    `started` is field 22 of proc_pid_stat(5), in clock ticks: with the pid, it identifies a
    process.
    """

    uid: int | None
    cmd: str
    uptime: float | None
    memory_used: int | None
    started: int | None = None


def cgroup_of(pid: int, proc: Path = Path("/proc")) -> InstanceCgroup | None:
    """The instance's cgroup that a process is in; None for one of the host, or one that ended."""
    try:
        # A pod's root gives its own cgroups whatever names they like, such as what is no UTF-8.
        return cgroup_in((proc / str(pid) / "cgroup").read_text(errors="replace"))
    except OSError:
        return None


def cgroup_in(text: str) -> InstanceCgroup | None:
    """The outermost cgroup of an instance that /proc/PID/cgroup names."""
    match = _PAYLOAD.search(text)
    return (match[1] or "default", match[2]) if match else None


def look_up(pid: int, proc: Path = Path("/proc")) -> Process | None:
    """A process; None if it has ended. If it has no command line, `cmd` is its name, as in ps."""
    try:
        stat = _head(proc, pid, "stat")
        # The name in parentheses may hold anything, ')' too.
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        return Process(
            uid=(proc / str(pid)).stat().st_uid,
            cmd=f"[{name}]{' <defunct>' * (fields[0] == 'Z')}",
            # proc(5): starttime is field 22, rss (in pages) field 24; state is field 3.
            uptime=max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS),
            memory_used=int(fields[21]) * _PAGE_BYTES,
            started=int(fields[19]),
        )
    except (FileNotFoundError, ProcessLookupError):
        return _HIDDEN if _is_there(pid) else None
    except PermissionError:
        return _HIDDEN


_HIDDEN = Process(None, "", None, None)


def pid_in_pod(pid: int, proc: Path = Path("/proc")) -> int | None:
    """The pid that a process has one namespace further in; None on the host. Raises OSError."""
    match = re.search(r"^NSpid:\t\d+\t(\d+)", _head(proc, pid, "status"), re.MULTILINE)
    return int(match[1]) if match else None


def command_line(pid: int, proc: Path = Path("/proc")) -> str:
    """The first `MAX_HEAD_BYTES` of it; "" of a kernel's thread and of a zombie. Raises OSError."""
    return _head(proc, pid, "cmdline").replace("\0", " ").strip()


def _head(proc: Path, pid: int, name: str) -> str:
    # Of hundreds of processes at once: so it takes half the time.
    with open(f"{proc}/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - see above
        return file.read(MAX_HEAD_BYTES).decode(errors="replace")


def _is_there(pid: int) -> bool:
    """Whether a process runs that /proc does not show, as mounted with hidepid=invisible."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False  # It is ours, and has started meanwhile.


# --- In threads ---------------------------------------------------------------------------------


class Reader:
    """Reads of other processes in threads, and gives up on what hangs.

    A thread that hangs cannot be ended. It is left alone, and what it hangs in is not asked again
    until it is over: so there is one for each process that hangs, `MAX_STUCK` at most, and nothing
    is read while there are so many.
    """

    def __init__(self, proc: Path = Path("/proc"), *, patience: float = PATIENCE_SECONDS) -> None:
        self._proc = proc
        self._patience = patience
        self._turns = asyncio.Semaphore(MAX_THREADS)
        # The kind of read and the pid of those that hang.
        self._stuck: set[tuple[str, int]] = set()

    async def processes(self, pids: Iterable[int]) -> dict[int, Process]:
        """These processes, without those that have ended.

        If the command line of one cannot be read in time, it has its name in place of that.
        """
        read = await self.ask("process", lambda pid: look_up(pid, self._proc), pids)
        known = {pid: read.get(pid, _HIDDEN) for pid in pids}
        alive = {pid: process for pid, process in known.items() if process is not None}
        lines = await self.ask("command line", lambda pid: command_line(pid, self._proc), alive)
        return {
            pid: replace(process, cmd=lines.get(pid) or process.cmd)
            for pid, process in alive.items()
        }

    def hanging(self, what: str) -> frozenset[int]:
        """The processes whose read of this kind hangs."""
        return frozenset(pid for kind, pid in self._stuck if kind == what)

    async def cgroup_of(self, pid: int) -> InstanceCgroup | None:
        """The instance's cgroup that a process is in; None also if it cannot be read."""
        cgroups = await self.ask("cgroup", lambda pid: cgroup_of(pid, self._proc), [pid])
        return cgroups.get(pid)

    async def pids_in_pod(self, pids: Iterable[int]) -> dict[int, int]:
        """The pids that these processes have in their pods, without those that are in none."""
        inner_pids = await self.ask("status", lambda pid: pid_in_pod(pid, self._proc), pids)
        return {pid: inner for pid, inner in inner_pids.items() if inner is not None}

    async def pod_limits(self, pid: int) -> PodLimits | None:
        """The limits of the pod that a process is in; None also if they cannot be read."""
        limits = await self.ask("limits", lambda pid: pod_limits(pid, self._proc), [pid])
        return limits.get(pid)

    async def ask(
        self,
        what: str,
        read: Callable[[int], T],
        pids: Iterable[int],
        patience: float | None = None,
    ) -> dict[int, T]:
        """What `read` returns for each process; `what` names the kind of read.

        Processes for which it raised OSError or hangs are left out, and those that were not read
        within `LIMIT_SECONDS`.
        """
        results: dict[int, T] = {}
        remaining = [pid for pid in dict.fromkeys(pids) if (what, pid) not in self._stuck]
        patience = self._patience if patience is None else patience
        async with self._turns:
            end = time.monotonic() + max(LIMIT_SECONDS, patience)
            while remaining and len(self._stuck) < MAX_STUCK and time.monotonic() < end:
                reader = _Reader(read, remaining)
                try:
                    await reader.run(patience, end)
                finally:
                    if not reader.is_over:
                        self._give_up(what, reader)
                results |= reader.results
                remaining = [] if reader.is_over else remaining[remaining.index(reader.at) + 1 :]
        return results

    def _give_up(self, what: str, reader: _Reader[T]) -> None:
        key = what, reader.at
        self._stuck.add(key)
        reader.give_up(lambda: self._stuck.discard(key))


class _Reader(Generic[T]):
    """A thread that reads processes one after the other: `at` is the current one."""

    def __init__(self, read: Callable[[int], T], pids: Sequence[int]) -> None:
        self.at = pids[0]
        self.results: dict[int, T] = {}
        self._read = read
        self._pids = pids
        self._is_given_up = False
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_over(self) -> bool:
        return self._over.done()

    async def run(self, patience: float, end: float) -> None:
        """Run while each read takes less than `patience` seconds, and until `end` on the monotonic
        clock."""
        threading.Thread(target=self._walk, name="procs", daemon=True).start()
        while not self.is_over:
            at, seconds = self.at, min(patience, end - time.monotonic())
            await asyncio.wait({self._over}, timeout=max(0.0, seconds))
            if self.at == at or time.monotonic() >= end:
                return

    def give_up(self, over: Callable[[], None]) -> None:
        """Stop after the current read; `over` is called when the thread ends."""
        self._is_given_up = True
        self._over.add_done_callback(lambda _: over())

    def _walk(self) -> None:
        try:
            for pid in self._pids:
                if self._is_given_up:
                    return
                self.at = pid
                with contextlib.suppress(OSError):
                    self.results[pid] = self._read(pid)
        finally:
            with contextlib.suppress(RuntimeError):  # The loop has been closed meanwhile.
                self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
