"""The ids of this host that an engine may give to pods."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from podyd.base.engine_words import ENGINE
from podyd.engine.dialect import Dialect
from podyd.node.host_files import ProcessFiles

# The engine accepts no smaller range: a pod needs the ids from root to nobody.
MIN_IDS = 65536
# Lower ids are the host's own accounts.
FIRST_FREE_ID = 100000


class Problem(NamedTuple):
    """A sentence, and what to type or do about it."""

    what: str
    do: str


def problems(process: ProcessFiles, dialect: Dialect) -> Iterator[Problem]:
    """Why no pod can start in an engine that is this process, if none can.

    As LXD 5 and 6 read it (shared/idmap, DefaultIdmapSet): the first big enough range of root's in
    its own /etc/subuid; without any, ids from 1000000 on. liblxc then leaves the mapping to
    newuidmap where that is installed, and newuidmap wants a range of root's. Incus takes all ranges
    that are big enough (internal/server/sys, getIdmapset).
    """
    shadow = has_newuidmap(process)
    for kind in ("uid", "gid"):
        file = f"/etc/sub{kind}"
        lines = lines_of(process.root / file[1:])
        ranges = ranges_of_root(lines)
        usable = [(first, count) for first, count in ranges if count >= MIN_IDS]
        kernel = process.ids(kind)
        do = _how_to_have(kernel, file)
        malformed = [line for line in lines if line.count(":") < 2]
        if malformed:
            yield Problem(
                f"Pods cannot start: {ENGINE} does not understand {malformed[0]!r} in {file}.",
                f"delete it from {file}, and restart {ENGINE}",
            )
        elif ranges and not usable:
            yield Problem(
                f"Pods cannot start: no range of root's in {file} has {MIN_IDS} ids.",
                f"delete root's lines from {file}; {do}",
            )
        elif not ranges and shadow:
            yield Problem(
                f"Pods cannot start: newuidmap is installed, and root has no range in {file}.",
                do,
            )
        elif usable and not _within(usable[0], kernel):
            first, count = usable[0]
            yield Problem(
                f"Pods cannot start: root's range {first}:{count} in {file} is more than this"
                " machine has itself, which is a container.",
                f"delete root's lines from {file}; {do}",
            )
        elif usable[1:] and dialect.gives_all_ranges:
            others = " and ".join(f"root:{first}:{count}" for first, count in usable[1:])
            yield Problem(
                f"Pods cannot start: root has {len(usable)} ranges for pods in {file}, and {ENGINE}"
                " maps the ids of a pod to all of them at once.",
                f"delete {others} from {file}, and restart {ENGINE}",
            )


def _how_to_have(kernel: Sequence[tuple[int, int]], file: str) -> str:
    """The command that gives root a range, of ids that exist."""
    wanted = [(1000000, 1000000000), *((max(FIRST_FREE_ID, low), MIN_IDS) for low, _ in kernel)]
    for first, count in wanted:
        if _within((first, count), kernel):
            return f"echo root:{first}:{count} >>{file}, and restart {ENGINE}"
    return f"give this container {MIN_IDS} ids above {FIRST_FREE_ID} first"


def lines_of(path: Path) -> list[str]:
    """The lines of a file such as /etc/subuid, without comments; none if there is no file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [text for line in lines if (text := line.partition("#")[0])]


def ranges_of_root(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Root's ranges: the first id and the count of each."""
    ranges = []
    for line in lines:
        owner, first, count = [*line.split(":"), "", ""][:3]
        if owner == "root" and first.isdigit() and count.isdigit():
            ranges.append((int(first), int(count)))
    return ranges


def _within(wanted: tuple[int, int], ranges: Sequence[tuple[int, int]]) -> bool:
    first, count = wanted
    return any(low <= first and first + count <= low + size for low, size in ranges)


def has_newuidmap(process: ProcessFiles) -> bool:
    """Whether the engine finds a newuidmap that has the right to map ids."""
    for directory in process.search_path():
        path = process.root / directory.lstrip("/") / "newuidmap"
        if path.is_file():
            if path.stat().st_mode & stat.S_ISUID:
                return True
            with contextlib.suppress(OSError):  # Not every filesystem has capabilities.
                return "security.capability" in os.listxattr(path)
    return False
