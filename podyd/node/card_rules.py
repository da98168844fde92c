"""Which device numbers the kernel is to refuse, and how the kernel is given them.

Only the numbers of NVIDIA's cards are ever refused, whatever is requested.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

# Major and minor number of a character device.
Number = tuple[int, int]
Numbers = frozenset[Number]
# By the name of a pod's cgroup, as in card_access.Permissions.
Table = Mapping[str, Numbers]

# In /proc/devices; drivers before version 340 had the second one too.
_DRIVER_NAMES = ("nvidia", "nvidia-frontend")
# 254 is modeset, 255 nvidiactl: no cards, and every program on any card needs the latter.
_CARD_MINORS = range(254)
_VENDOR = "0x10de"
_NODE = re.compile(r"nvidia[0-9]{1,3}")
_CGROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
_NUMBER = re.compile(r"([0-9]{1,4}):([0-9]{1,7})")
MAX_PODS = 10_000
MAX_NUMBERS = 256


def card_numbers(root: Path = Path("/")) -> Numbers:
    """The numbers of this host's NVIDIA cards, and of those that its driver may yet add."""
    return frozenset(
        {(major, minor) for major in _majors(root) for minor in _CARD_MINORS}
        | set(_nodes(root))
        | set(_drm(root))
    )


def _majors(root: Path) -> Iterator[int]:
    characters = (root / "proc/devices").read_text().partition("Block devices:")[0]
    for line in characters.splitlines():
        words = line.split()
        if len(words) == 2 and words[1] in _DRIVER_NAMES:
            yield int(words[0])


def _nodes(root: Path) -> Iterator[Number]:
    for path in (root / "dev").iterdir():
        if _NODE.fullmatch(path.name):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISCHR(status.st_mode):
                    yield os.major(status.st_rdev), os.minor(status.st_rdev)


def _drm(root: Path) -> Iterator[Number]:
    for path in (root / "sys/class/drm").glob("*/dev"):
        with contextlib.suppress(OSError):
            if (path.parent / "device/vendor").read_text().strip() == _VENDOR:
                yield _number(path.read_text().strip())


def _number(text: Any) -> Number:
    """Raises ValueError."""
    parts = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    if parts is None:
        raise ValueError(f"no device number: {str(text)[:40]!r}")
    return int(parts[1]), int(parts[2])


def table_of(data: Any) -> dict[str, Numbers]:
    """The table that was sent or kept. Raises ValueError."""
    if not isinstance(data, dict) or len(data) > MAX_PODS:
        raise ValueError("no table of cgroups")
    return {_cgroup(name): _numbers(numbers) for name, numbers in data.items()}


def _cgroup(name: str) -> str:
    if not _CGROUP.fullmatch(name):
        raise ValueError(f"no name of a pod's cgroup: {name[:40]!r}")
    return name


def _numbers(data: Any) -> Numbers:
    if not isinstance(data, list) or len(data) > MAX_NUMBERS:
        raise ValueError("no list of device numbers")
    return frozenset(map(_number, data))


def written(numbers: Iterable[Number]) -> list[str]:
    """As text, `major:minor`, in order."""
    return [f"{major}:{minor}" for major, minor in sorted(numbers)]


@dataclass(frozen=True)
class Kept:
    """What is stored for the next helper: the last table, if there was one, the cards that each pod
    was ever permitted, by the inode of its cgroup (None stands for all cards), and podyd's project
    in the engine, if it is known."""

    table: Table | None = None
    had: Mapping[int, Numbers | None] = field(default_factory=dict)
    project: str = ""

    def packed(self) -> str:
        """As `kept_of` reads it."""
        table = {name: written(numbers) for name, numbers in (self.table or {}).items()}
        had = {
            inode: None if numbers is None else written(numbers)
            for inode, numbers in self.had.items()
        }
        permit = None if self.table is None else table
        return json.dumps({"permit": permit, "had": had, "project": self.project})


def kept_of(text: str) -> Kept:
    """Raises ValueError."""
    match json.loads(text):
        case {"permit": table, "had": dict(had), **others}:
            return Kept(
                None if table is None else table_of(table),
                {
                    int(key): None if value is None else _numbers(value)
                    for key, value in had.items()
                },
                str(others.get("project", "")),
            )
        case _:
            raise ValueError("not what podyd cards stores")


def permitted(table: Table, cgroup: str) -> Numbers:
    """What a pod may open: nothing, unless the table names it.

    liblxc calls a cgroup NAME-1 where NAME is still there; see cgroups.py.
    """
    plain = re.sub(r"-[0-9]+$", "", cgroup)
    return table.get(cgroup, table.get(plain, frozenset()))


# --- For cgroup v1 ------------------------------------------------------------------------------


def lines(numbers: Iterable[Number]) -> list[bytes]:
    """What is written to devices.deny or devices.allow, one line at a time."""
    return [f"c {major}:{minor} rwm".encode() for major, minor in sorted(numbers)]


# --- For cgroup v2 ------------------------------------------------------------------------------

# struct bpf_insn; opcodes of linux/bpf.h. The context is struct bpf_cgroup_dev_ctx: access_type
# (the kind of device in the lower half), major, minor.
_INSTRUCTION = struct.Struct("<BBhi")
_LOAD, _AND, _MOVE, _EXIT = 0x61, 0x57, 0xB7, 0x95
_UNLESS, _BELOW, _UP_TO, _GO = 0x55, 0xA5, 0xB5, 0x05
_CHARACTER = 2
_RESULT, _CONTEXT, _KIND, _MAJOR, _MINOR = range(5)


def program(refused: Numbers) -> bytes:
    """A BPF program for a cgroup's devices that refuses these, and nothing else."""
    if not refused:
        # The verifier takes no code that is never reached.
        return _instruction(_MOVE, _RESULT, value=1) + _instruction(_EXIT)
    code = [
        _instruction(_LOAD, _KIND, _CONTEXT, 0),
        _instruction(_AND, _KIND, value=0xFFFF),
        _instruction(_LOAD, _MAJOR, _CONTEXT, 4),
        _instruction(_LOAD, _MINOR, _CONTEXT, 8),
        # Skips the two instructions that refuse.
        _instruction(_UNLESS, _KIND, offset=3, value=_CHARACTER),
        _instruction(_GO, offset=4),
        _instruction(_MOVE, _RESULT, value=0),
        _instruction(_EXIT),
        _instruction(_MOVE, _RESULT, value=1),
        _instruction(_EXIT),
    ]
    refuse, allow = 6, 8
    for major, spans in _spans(refused):
        # To the next major, over two instructions for each span and the last one.
        code.append(_instruction(_UNLESS, _MAJOR, offset=2 * len(spans) + 1, value=major))
        for low, high in spans:
            code.append(_instruction(_BELOW, _MINOR, offset=1, value=low))
            code.append(_instruction(_UP_TO, _MINOR, offset=refuse - len(code) - 1, value=high))
        code.append(_instruction(_GO, offset=allow - len(code) - 1))
    code.append(_instruction(_GO, offset=allow - len(code) - 1))
    return b"".join(code)


def _instruction(
    opcode: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return _INSTRUCTION.pack(opcode, source << 4 | target, offset, value)


def _spans(numbers: Numbers) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """For each major number the first and last minor number of what is contiguous."""
    for major, group in groupby(sorted(numbers), key=lambda number: number[0]):
        spans: list[tuple[int, int]] = []
        for _, minor in group:
            if spans and spans[-1][1] == minor - 1:
                spans[-1] = spans[-1][0], minor
            else:
                spans.append((minor, minor))
        yield major, spans
