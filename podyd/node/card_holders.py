"""Which processes of pods have a card open: as a descriptor of any of their threads or as a
mapping, or maybe where nobody can look.

Root of a pod is hostile. So nothing here trusts a name, and a file's own server, such as that of
FUSE, is never asked anything. What it may do is to make a read of one of its processes hang, or to
have more of them than can be read: then this reads on where it has stopped, the pods in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import platform
import re
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from podyd.node.card_access import Holder
from podyd.node.card_rules import Number, Numbers, written
from podyd.node.payloads import Hierarchy, Payload
from podyd.node.procs import Reader

_libc = ctypes.CDLL(None, use_errno=True)
_KCMP = {"x86_64": 312, "aarch64": 272}.get(platform.machine())
_KCMP_FILES = 2
# statx(2): what the kernel knows itself, without asking a file server; struct statx.
_AT_STATX_DONT_SYNC, _STATX_TYPE_AND_MODE = 0x4000, 0x3
_STATX_BYTES, _MODE_AT, _MAJOR_AT = 256, 28, 128

# For one process: this many descriptors are read in a tenth of it.
PATIENCE_SECONDS = 2.0
# Of one pod's processes so many may hang before no others of it are read.
MAX_HANGING = 4
# A place that could hide a card is taken for one that does after so long, seen each time.
HIDDEN_SECONDS, HIDDEN_LOOKS = 2.0, 3
MAX_MAPS_BYTES = 32 * 1024**2
MAX_TOLD = 1000

_MAPPING = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) \S+ \S+ (\S+ [1-9][0-9]*) +(.*)$", re.MULTILINE)
# Descriptors on their way to a socket's reader (Linux 5.12), or registered in an io_uring.
_HIDING = re.compile(rb"^(?:scm_fds|UserFiles):\s*[1-9]", re.MULTILINE)


@dataclass(frozen=True)
class Look:
    """What was seen of a process: the cards that it has open, and where it might have others."""

    started: int
    numbers: Numbers = frozenset()
    hiding: frozenset[str] = frozenset()
    is_init: bool = False


def look(pid: int, cards: Numbers, *, may_hide: bool = False, proc: Path = Path("/proc")) -> Look:
    """Look at a process; at places that hide cards only if it `may_hide`. Raises OSError."""
    own = proc / str(pid)
    begun = started(pid, proc)
    numbers: set[Number] = set()
    hiding: set[str] = set()
    for thread in _with_files_of_their_own(pid, own):
        with contextlib.suppress(OSError):  # It has ended.
            for descriptor, kind, number in _descriptors(thread):
                if kind == stat.S_IFCHR and number in cards:
                    numbers.add(number)
                elif may_hide and kind in (stat.S_IFSOCK, 0):
                    hiding |= _hiding(thread, descriptor)
    numbers |= cards & _mapped(own)
    is_init = bool(numbers or hiding) and _is_init(own)
    if started(pid, proc) != begun:
        raise ProcessLookupError
    return Look(begun, frozenset(numbers), frozenset(hiding), is_init)


def started(pid: int, proc: Path = Path("/proc")) -> int:
    """Field 22 of proc_pid_stat(5). Raises OSError."""
    with (proc / str(pid) / "stat").open("rb", buffering=0) as file:
        return int(file.read(4096).rpartition(b")")[2].split()[19])


def _with_files_of_their_own(pid: int, own: Path) -> Iterator[Path]:
    """One thread for each table of descriptors; the first thread may have ended before others."""
    yield own / "task" / str(pid)
    for name in _names(own / "task"):
        if name != str(pid) and not _share_files(pid, int(name)):
            yield own / "task" / name


def _names(directory: Path | int) -> list[str]:
    return os.listdir(directory)  # noqa: PTH208 - of thousands, and of a descriptor


def _share_files(one: int, other: int) -> bool:
    return _KCMP is not None and _libc.syscall(_KCMP, one, other, _KCMP_FILES, 0, 0) == 0


def _descriptors(thread: Path) -> Iterator[tuple[str, int, Number]]:
    """Name, kind and device number of each; the kind of what has no file system is 0."""
    directory = os.open(thread / "fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in _names(directory):
            found = _kind_and_number(directory, os.fsencode(name))
            if found is not None:
                yield name, *found
    finally:
        os.close(directory)


def _kind_and_number(directory: int, name: bytes) -> tuple[int, Number] | None:
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(directory, name, _AT_STATX_DONT_SYNC, _STATX_TYPE_AND_MODE, buffer) < 0:
        return None
    raw = buffer.raw
    mode = int.from_bytes(raw[_MODE_AT : _MODE_AT + 2], "little")
    major, minor = (int.from_bytes(raw[at : at + 4], "little") for at in (_MAJOR_AT, _MAJOR_AT + 4))
    return stat.S_IFMT(mode), (major, minor)


def _hiding(thread: Path, descriptor: str) -> set[str]:
    with contextlib.suppress(OSError), (thread / "fdinfo" / descriptor).open("rb") as file:
        if _HIDING.search(file.read(65536)):
            return {f"{(thread / 'fd' / descriptor).readlink()} {descriptor}"}
    return set()


def _mapped(own: Path) -> Numbers:
    """The devices that are mapped, of all kinds."""
    for thread in _names(own / "task"):
        with contextlib.suppress(OSError), (own / "task" / thread / "maps").open("rb") as file:
            text = file.read(MAX_MAPS_BYTES)
            if text:
                break
    else:
        return frozenset()
    # Most mappings are of the same few libraries.
    each = {match[2] + match[3]: match[1] for match in _MAPPING.finditer(text)}
    if not each:
        return frozenset()
    directory = os.open(own / "map_files", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = [_kind_and_number(directory, name) for name in each.values()]
    finally:
        os.close(directory)
    return frozenset(item[1] for item in found if item is not None and item[0] == stat.S_IFCHR)


def _is_init(own: Path) -> bool:
    """Whether it is the first process of a PID namespace directly below ours."""
    status = (own / "status").read_bytes()
    match = re.search(rb"^NSpid:\s*\d+\s+1$", status, re.MULTILINE)
    return match is not None


# --- All of them --------------------------------------------------------------------------------


class Holders:
    """The processes of pods that have a card open; `proc` is for tests."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._reader = Reader(proc, patience=PATIENCE_SECONDS)
        self._looks: dict[int, Look] = {}
        # When each process was last looked at, and since when and how often each place that may
        # hide a card has been seen.
        self._looked: dict[int, float] = {}
        self._places: dict[tuple[int, int, str], tuple[float, int]] = {}
        self._told_hidden: set[tuple[int, int]] = set()

    async def holders(
        self,
        hierarchy: Hierarchy | None,
        payloads: Mapping[Path, Payload],
        cards: Numbers,
        withdrawn: Callable[[Payload], Numbers],
    ) -> list[Holder]:
        """Look at all processes of these pods."""
        if hierarchy is None or not cards:
            return []
        loop = asyncio.get_running_loop()
        members = await loop.run_in_executor(
            None, members_of, hierarchy, frozenset(payloads), self._proc
        )
        pods = {pid: payloads[path] for path, pids in members.items() for pid in pids}
        for kept in (self._looks, self._looked):
            for pid in set(kept) - set(pods):
                del kept[pid]
        suspects = {pid for pid, payload in pods.items() if withdrawn(payload)}

        def see(pid: int) -> None:
            # Kept at once: also what takes longer than anybody waits counts the next time.
            self._looks[pid] = look(pid, cards, may_hide=pid in suspects, proc=self._proc)
            self._looked[pid] = time.monotonic()

        hanging = self._reader.hanging("cards")
        await self._reader.ask("cards", see, self._in_turn(members, hanging))
        for pid in suspects & self._reader.hanging("cards"):
            with contextlib.suppress(OSError):
                self._looks[pid] = Look(started(pid, self._proc), hiding=frozenset({"hangs"}))
        hidden = self._hidden(pods)
        self._told_hidden = {(pid, self._looks[pid].started) for pid in hidden}
        found = []
        for pid, seen in list(self._looks.items()):
            numbers = seen.numbers | (withdrawn(pods[pid]) if pid in hidden else frozenset())
            if pid in pods and numbers:
                said = frozenset(written(numbers))
                found.append(Holder(pods[pid].cgroup, pid, seen.started, said, seen.is_init))
        return found[:MAX_TOLD]

    async def is_still(
        self,
        holder: tuple[int, int],
        hierarchy: Hierarchy,
        payloads: frozenset[Path],
        cards: Numbers,
    ) -> bool:
        """Whether a process, by pid and start time, is in one of these cgroups and has a card open,
        or was said to hide one."""
        pid, begun = holder

        def see(pid: int) -> bool:
            if payload_of(pid, hierarchy, payloads, self._proc) is None:
                return False
            return bool(look(pid, cards, proc=self._proc).numbers) or holder in self._told_hidden

        try:
            if started(pid, self._proc) != begun:
                return False
        except OSError:
            return False
        seen = await self._reader.ask("cards", see, [pid])
        hangs = pid in self._reader.hanging("cards")
        return seen.get(pid, hangs and holder in self._told_hidden)

    def _in_turn(
        self, members: Mapping[Path, Iterable[int]], hanging: frozenset[int]
    ) -> Iterator[int]:
        """One process of each pod after the other, first those not looked at for longest."""
        each = [
            sorted(pids, key=lambda pid: self._looked.get(pid, 0.0))
            for pids in members.values()
            if len(hanging.intersection(pids)) < MAX_HANGING
        ]
        return (pid for pid in chain.from_iterable(zip_longest(*each)) if pid is not None)

    def _hidden(self, pods: Mapping[int, Payload]) -> set[int]:
        """The processes with places that have hidden something for long."""
        now = time.monotonic()
        seen = {
            (pid, found.started, place)
            for pid, found in list(self._looks.items())
            if pid in pods
            for place in found.hiding
        }
        places = {}
        for place in seen:
            since, looks = self._places.get(place, (now, 0))
            places[place] = since, looks + 1
        self._places = places
        return {
            pid
            for (pid, _, _), (since, looks) in places.items()
            if looks >= HIDDEN_LOOKS and now - since >= HIDDEN_SECONDS
        }


def members_of(
    hierarchy: Hierarchy, payloads: frozenset[Path], proc: Path = Path("/proc")
) -> dict[Path, list[int]]:
    """The processes in these cgroups and in those below them."""
    found: dict[Path, list[int]] = defaultdict(list)
    for name in _names(proc):
        if name.isdigit():
            payload = payload_of(int(name), hierarchy, payloads, proc)
            if payload is not None:
                found[payload].append(int(name))
    return found


def payload_of(
    pid: int, hierarchy: Hierarchy, payloads: frozenset[Path], proc: Path = Path("/proc")
) -> Path | None:
    """Which of these cgroups a process is in, or in one below it."""
    own = f"{proc}/{pid}"
    try:
        path = _cgroup_of(own, hierarchy)
        if path == "/":
            # Where cgroup v1 has what has ended, as a first thread may have before others.
            threads = (name for name in _names(Path(own, "task")) if name != str(pid))
            path = next((_cgroup_of(f"{own}/task/{name}", hierarchy) for name in threads), path)
    except OSError:
        return None
    if path is None or "/lxc.payload." not in path:
        return None
    top, _, rest = path.partition("/lxc.payload.")
    at = Path(f"{hierarchy.root}{top}", f"lxc.payload.{rest.partition('/')[0]}")
    return at if at in payloads else None


def _cgroup_of(task: str, hierarchy: Hierarchy) -> str | None:
    with open(f"{task}/cgroup", errors="replace") as file:  # noqa: PTH123 - of hundreds
        return hierarchy.path_in(file.read())
