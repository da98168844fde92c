"""Which processes of pods have a card open: as a descriptor of any of their threads, as a mapping,
or possibly in a place that /proc does not show.

Root of a pod is hostile. So no name is trusted here, and no file system's server, such as that of
FUSE, is ever asked. A pod can make a read of one of its processes hang, or have more of them than
can be read in time: then the next look continues where this one has stopped, the pods in turn.

Two cases are not seen, and in neither does anything compute: a descriptor in a connection to a unix
socket that has not been accepted yet, and one that is passed from process to process faster than
the looks. Only stopping the pod ends these.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import platform
import re
import stat
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, tee, zip_longest
from pathlib import Path
from typing import Any

from podyd.node.card_access import Holder
from podyd.node.card_rules import Number, Numbers, written
from podyd.node.payloads import Hierarchy, Payload
from podyd.node.procs import MAX_STUCK, Reader

_libc = ctypes.CDLL(None, use_errno=True)
_KCMP = {"x86_64": 312, "aarch64": 272}.get(platform.machine())
_KCMP_FILES = 2
# statx(2): what the kernel has cached, without asking a file server; struct statx.
_AT_STATX_DONT_SYNC, _STATX_TYPE_AND_MODE = 0x4000, 0x3
_STATX_BYTES, _STATX = 256, struct.Struct("=28xH98xII")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# For one process.
PATIENCE_SECONDS = 2.0
# If so many of one pod's processes hang, no others of it are read.
MAX_HANGING = 4
# A place that could hide a card counts as one that does after so long and so many looks.
HIDDEN_SECONDS, HIDDEN_LOOKS = 2.0, 3
# Only each fourth look reads the processes of pods that never had a card, and only each eighth the
# mappings, which take longest, of pods from which no card was withdrawn.
CLEAN_EVERY, MAPPINGS_EVERY = 4, 8
# A process may have 64 Ki mappings, each with a name of up to a page; an admin may allow more.
MAX_MAPS_BYTES = 1024**3
# In Look.hiding, of a process that cannot be looked at.
HANGS = "hangs"
# In an answer, for all processes together; the others follow when these have ended.
MAX_HOLDERS, MAX_HOLDER_NUMBERS = 1000, 40_000
_PAYLOAD = "/lxc.payload."
# Of /proc/PID/task: its own two, and one for each thread.
_LINKS_OF_ONE = 3

_MAPPING = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) \S+ \S+ (\S+ [1-9][0-9]* .*)$", re.MULTILINE)
# Descriptors on their way to a socket's reader (Linux 5.12), or registered in an io_uring.
_HIDING = re.compile(rb"^(?:scm_fds|UserFiles):\s*[1-9]", re.MULTILINE)


@dataclass(frozen=True)
class Look:
    """What was seen of a process: the cards that it has open or mapped, and where it might have
    others."""

    started: int
    open: Numbers = frozenset()
    mapped: Numbers = frozenset()
    hiding: frozenset[str] = frozenset()
    is_init: bool = False


def look(
    pid: int,
    cards: Numbers,
    *,
    at_mappings: bool = True,
    may_hide: bool = False,
    proc: Path = Path("/proc"),
) -> Look:
    """Look at a process: at its mappings if `at_mappings`, and at places that hide cards if
    `may_hide`. Raises OSError."""
    # Everything is read through this: it refers to no other process after this one has ended.
    process = os.open(f"{proc}/{pid}", _DIRECTORY)
    try:
        numbers: set[Number] = set()
        hiding: set[str] = set()
        for thread in _with_files_of_their_own(pid, process):
            with contextlib.suppress(OSError):  # It has ended.
                for descriptor, kind, number in _descriptors(process, thread):
                    if kind == stat.S_IFCHR:
                        numbers.add(number)
                    elif may_hide and kind in (stat.S_IFSOCK, 0):
                        hiding |= _hiding(process, thread, descriptor)
        opened = cards & numbers
        mapped = cards & _mapped(process) if at_mappings else frozenset()
        is_init = bool(opened or mapped or hiding) and _is_init(process)
        return Look(_started(process), opened, mapped, frozenset(hiding), is_init)
    finally:
        os.close(process)


def started(pid: int, proc: Path = Path("/proc")) -> int:
    """Field 22 of proc_pid_stat(5). Raises OSError."""
    process = os.open(f"{proc}/{pid}", _DIRECTORY)
    try:
        return _started(process)
    finally:
        os.close(process)


def _started(process: int) -> int:
    return int(_read(process, "stat", 4096).rpartition(b")")[2].split()[19])


def _read(process: int, name: str, limit: int) -> bytes:
    """A file of a process, up to `limit` bytes."""
    return b"".join(_parts(process, name, limit))


def _parts(process: int, name: str, limit: int) -> Iterator[bytes]:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        # /proc gives a page at a time.
        while limit > 0 and (part := os.read(descriptor, min(limit, 65536))):
            yield part
            limit -= len(part)
    finally:
        os.close(descriptor)


def _with_files_of_their_own(pid: int, process: int) -> Iterator[str]:
    """One thread for each table of descriptors; the first thread may have ended before others."""
    for name in _listed(process, "task"):
        if name == str(pid) or not _share_files(pid, int(name)):
            yield name


def _listed(process: int, name: str) -> Iterator[str]:
    descriptor = os.open(name, _DIRECTORY, dir_fd=process)
    try:
        yield from _names(descriptor)
    finally:
        os.close(descriptor)


def _names(directory: Path | int) -> Iterator[str]:
    """One after the other: a process may have a million descriptors."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name


def _share_files(one: int, other: int) -> bool:
    return _KCMP is not None and _libc.syscall(_KCMP, one, other, _KCMP_FILES, 0, 0) == 0


def _descriptors(process: int, thread: str) -> Iterator[tuple[str, int, Number]]:
    """Name, kind and device number of each; the kind is 0 for what is in no file system."""
    directory = os.open(f"task/{thread}/fd", _DIRECTORY, dir_fd=process)
    try:
        names, to_ask = tee(_names(directory))
        statuses = _kinds_and_numbers(directory, map(os.fsencode, to_ask))
        for name, (kind, number) in zip(names, statuses, strict=True):
            yield name, kind, number
    finally:
        os.close(directory)


def _kinds_and_numbers(directory: int, names: Iterable[bytes]) -> Iterator[tuple[int, Number]]:
    """Kind and device number of each; the kind is -1 if it has been closed."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    statx = _libc.statx
    for name in names:
        if statx(directory, name, _AT_STATX_DONT_SYNC, _STATX_TYPE_AND_MODE, buffer) < 0:
            yield -1, (0, 0)
        else:
            mode, major, minor = _STATX.unpack_from(buffer)
            yield stat.S_IFMT(mode), (major, minor)


def _hiding(process: int, thread: str, descriptor: str) -> set[str]:
    with contextlib.suppress(OSError):
        if _HIDING.search(_read(process, f"task/{thread}/fdinfo/{descriptor}", 65536)):
            link = os.readlink(f"task/{thread}/fd/{descriptor}", dir_fd=process)
            return {f"{link} {descriptor}"}
    return set()


def _mapped(process: int) -> Numbers:
    """The devices that are mapped, of all kinds."""
    each: dict[int, bytes] = {}
    for thread in _listed(process, "task"):
        with contextlib.suppress(OSError):
            for text in _lines(_parts(process, f"task/{thread}/maps", MAX_MAPS_BYTES)):
                # Most mappings are of the same few libraries; a name may have pages.
                each |= {hash(match[2]): match[1] for match in _MAPPING.finditer(text)}
        if each:
            break
    if not each:
        return frozenset()
    directory = os.open("map_files", _DIRECTORY, dir_fd=process)
    try:
        statuses = _kinds_and_numbers(directory, each.values())
        return frozenset(number for kind, number in statuses if kind == stat.S_IFCHR)
    finally:
        os.close(directory)


def _lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same in whole lines."""
    rest = b""
    for part in parts:
        whole, newline, rest = (rest + part).rpartition(b"\n")
        yield whole + newline


def _is_init(process: int) -> bool:
    """Whether it is the first process of a PID namespace directly below ours."""
    return (
        re.search(rb"^NSpid:\s*\d+\s+1$", _read(process, "status", 65536), re.MULTILINE) is not None
    )


# --- All of them --------------------------------------------------------------------------------


class Holders:
    """The processes of pods that have a card open; tests have another `proc` and less time."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        *,
        patience: float = PATIENCE_SECONDS,
        hidden_seconds: float = HIDDEN_SECONDS,
    ) -> None:
        self._proc = proc
        self._hidden_seconds = hidden_seconds
        self._reader = Reader(proc, patience=patience)
        self._looks: dict[int, Look] = {}
        self._started: dict[int, int] = {}
        # When each process was last looked at, and since when and how often each place that may
        # hide a card has been seen.
        self._looked: dict[int, float] = {}
        self._places: dict[tuple[int, int, str], tuple[float, int]] = {}
        self._hiding: set[tuple[int, int]] = set()
        self._turn = 0

    async def holders(
        self,
        hierarchy: Hierarchy | None,
        payloads: Mapping[Path, Payload],
        cards: Numbers,
        withdrawn: Callable[[Payload], Numbers],
        had_none: Callable[[Payload], bool],
    ) -> list[Holder]:
        """Look at all processes of these pods; `withdrawn` are the cards that one may no longer
        have, `had_none` tells whether it never had any."""
        if hierarchy is None or not cards:
            return []
        loop = asyncio.get_running_loop()
        members = await loop.run_in_executor(
            None, members_of, hierarchy, frozenset(payloads), self._proc
        )
        pods = {pid: payloads[path] for path, pids in members.items() for pid in pids}
        kept: dict[int, Any]
        for kept in (self._looks, self._looked, self._started):
            for pid in set(kept) - set(pods):
                del kept[pid]
        withdrawn_of = {payload: withdrawn(payload) for payload in set(pods.values())}
        never_had = {payload for payload in withdrawn_of if had_none(payload)}
        self._turn += 1

        def has_turn(pid: int, every: int) -> bool:
            before = self._looks.get(pid)
            is_new = before is None or bool(before.open or before.mapped)
            return is_new or (self._turn + pid) % every == 0

        def see(pid: int) -> None:
            payload = pods[pid]
            if payload in never_had and not has_turn(pid, CLEAN_EVERY):
                return
            is_suspect = bool(withdrawn_of[payload])
            try:
                self._started[pid] = started(pid, self._proc)
                # Stored at once: a look that takes longer than the request counts for the next one.
                self._looks[pid] = look(
                    pid,
                    cards,
                    at_mappings=is_suspect or has_turn(pid, MAPPINGS_EVERY),
                    may_hide=is_suspect,
                    proc=self._proc,
                )
            except OSError:
                self._looks.pop(pid, None)
            self._looked[pid] = time.monotonic()

        hanging = self._reader.hanging("cards")
        # Pods from which no card was withdrawn must not occupy all threads with reads that hang.
        if len(hanging) >= MAX_STUCK // 2:
            members = {path: pids for path, pids in members.items() if withdrawn_of[payloads[path]]}
        await self._reader.ask("cards", see, self._in_turn(members, hanging))
        for pid in self._reader.hanging("cards") & set(pods) & set(self._started):
            if withdrawn_of[pods[pid]]:
                self._looks[pid] = Look(self._started[pid], hiding=frozenset({HANGS}))
        hidden = self._hidden(pods)
        holders = [
            self._holder_of(
                pid, seen, pods[pid], withdrawn_of[pods[pid]] if pid in hidden else frozenset()
            )
            for pid, seen in list(self._looks.items())
            if pid in pods and (seen.open or seen.mapped or pid in hidden)
        ]
        return _first(
            sorted(holders, key=lambda holder: _rank(holder, withdrawn_of[pods[holder.pid]]))
        )

    def _holder_of(self, pid: int, seen: Look, payload: Payload, hidden: Numbers) -> Holder:
        # A process that has a card open is not reported as having others that it might hide.
        open_now = seen.open | seen.mapped
        dormant = not open_now and HANGS not in seen.hiding
        numbers = frozenset(written(open_now or hidden))
        return Holder(payload.cgroup, pid, seen.started, numbers, seen.is_init, dormant)

    async def is_still(
        self,
        holder: tuple[int, int],
        hierarchy: Hierarchy,
        payloads: frozenset[Path],
        cards: Numbers,
    ) -> bool:
        """Whether a process, by pid and start time, is in one of these cgroups and has a card open,
        or was reported as hiding one."""
        pid, begun = holder

        def see(pid: int) -> bool:
            is_it = started(pid, self._proc) == begun
            if not is_it or payload_of(pid, hierarchy, payloads, self._proc) is None:
                return False
            seen = look(pid, cards, proc=self._proc)
            return bool(seen.open or seen.mapped) or holder in self._hiding

        seen = await self._reader.ask("cards", see, [pid])
        hangs = pid in self._reader.hanging("cards")
        return seen.get(pid, hangs and holder in self._hiding)

    def _in_turn(
        self, members: Mapping[Path, Iterable[int]], hanging: frozenset[int]
    ) -> Iterator[int]:
        """One process of each pod in turn, those first that were looked at longest ago."""
        each = [
            sorted(pids, key=lambda pid: self._looked.get(pid, 0.0))
            for pids in members.values()
            if len(hanging.intersection(pids)) < MAX_HANGING
        ]
        return (pid for pid in chain.from_iterable(zip_longest(*each)) if pid is not None)

    def _hidden(self, pods: Mapping[int, Payload]) -> set[int]:
        """The processes with places that may have hidden a card for `hidden_seconds`."""
        now = time.monotonic()
        seen = {
            (pid, item.started, place)
            for pid, item in list(self._looks.items())
            if pid in pods
            for place in item.hiding
        }
        places = {}
        for place in seen:
            since, looks = self._places.get(place, (now, 0))
            places[place] = since, looks + 1
        self._places = places
        self._hiding = {
            (pid, begun)
            for (pid, begun, _), (since, looks) in places.items()
            if looks >= HIDDEN_LOOKS and now - since >= self._hidden_seconds
        }
        return {pid for pid, _ in self._hiding}


def _rank(holder: Holder, withdrawn: Numbers) -> tuple[bool, int]:
    """Those first from whose pod a card was withdrawn; among them, those with fewest cards."""
    return not withdrawn, len(holder.numbers)


def _first(holders: Iterable[Holder]) -> list[Holder]:
    first, room = [], MAX_HOLDER_NUMBERS
    for holder in islice(holders, MAX_HOLDERS):
        room -= len(holder.numbers)
        if room < 0:
            break
        first.append(holder)
    return first


def members_of(
    hierarchy: Hierarchy, payloads: frozenset[Path], proc: Path = Path("/proc")
) -> dict[Path, list[int]]:
    """The processes in these cgroups and in those below them."""
    members: dict[Path, list[int]] = defaultdict(list)
    for name in _names(proc):
        if name.isdigit():
            payload = payload_of(int(name), hierarchy, payloads, proc)
            if payload is not None:
                members[payload].append(int(name))
    return members


def payload_of(
    pid: int, hierarchy: Hierarchy, payloads: frozenset[Path], proc: Path = Path("/proc")
) -> Path | None:
    """Which of these cgroups a process is in, or in one below it."""
    directory = f"{proc}/{pid}"
    try:
        text = _cgroups(directory)
        path = hierarchy.path_in(text) if hierarchy.controller or _PAYLOAD in text else None
        # Cgroup v1 lists an ended task at the root, also a first thread that ended before others.
        if path == "/" and os.stat(f"{directory}/task").st_nlink > _LINKS_OF_ONE:  # noqa: PTH116
            threads = (name for name in _names(Path(directory, "task")) if name != str(pid))
            paths = (hierarchy.path_in(_cgroups(f"{directory}/task/{name}")) for name in threads)
            path = next(paths, None)
    except OSError:
        return None
    if path is None or _PAYLOAD not in path:
        return None
    top, _, rest = path.partition(_PAYLOAD)
    at = Path(f"{hierarchy.root}{top}", f"{_PAYLOAD[1:]}{rest.partition('/')[0]}")
    return at if at in payloads else None


def _cgroups(task: str) -> str:
    descriptor = os.open(f"{task}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536).decode(errors="replace")
    finally:
        os.close(descriptor)
