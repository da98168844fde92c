"""Members' own directories: that pods can mount them, and that their owners are right."""

from __future__ import annotations

import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path

from podyd.admin.doctor.case import Case
from podyd.admin.doctor.finding import Remark, check, error, note, ok, warning
from podyd.admin.ids import has_newuidmap, lines_of, ranges_of_root
from podyd.admin.setup import openings
from podyd.base.engine_words import ENGINE
from podyd.engine.admin import Admin
from podyd.node.directories import Directory, directories, is_mappable, to_make, unfit, unsafe
from podyd.node.host_files import ProcessFiles

SHOWN = 5
# Debian's range of ids for people.
PEOPLE = (1000, 59999)


@check
def own_directories(case: Case) -> Iterator[Remark]:
    """The directories of 'pods.mounts' exist, only root may change them, and owners are right."""
    for mount in case.config.pods.mounts:
        prefix = Path(mount.prefix)
        problem = unsafe(prefix)
        if problem:
            yield error(
                f"Members' pods cannot start: {mount} is to be mounted, and {problem}.",
                f"let root own each directory down to {prefix}, none be a link, and nobody else"
                f" write there: install -d -m 755 -o root -g root {prefix}",
            )
            continue
        for directory in directories(prefix):
            problem = unfit(directory) if is_mappable(directory.uid, directory.gid) else ""
            if problem:
                yield warning(
                    f"Pods of {directory.owner} cannot start: {problem}.",
                    f"{to_make(directory)} && {case.podyd('setup')}",
                )
        missing = [directory for directory in _accounts(prefix) if not directory.path.exists()]
        if missing:
            names = ", ".join(directory.owner for directory in missing[:SHOWN])
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            yield note(
                f"These accounts cannot start pods, as they have no directory below {prefix}:"
                f" {names}{more}.",
                f"{to_make(missing[0])} && {case.podyd('setup')}",
            )
    yield ok(f"Members' own directories: {', '.join(map(str, case.config.pods.mounts)) or 'none'}.")


def _accounts(prefix: Path) -> list[Directory]:
    """The expected directory of each member, as far as accounts can be listed."""
    return [
        Directory(prefix / entry.pw_name, entry.pw_name, entry.pw_uid, entry.pw_gid)
        for entry in sorted(pwd.getpwall())
        if is_mappable(entry.pw_uid, entry.pw_gid)
    ]


@check
def own_ids(admin: Admin, case: Case) -> Iterator[Remark]:
    """The engine can map the root of members' pods to their own ids."""
    opened = openings(case.config)
    process = case.places.files.process(admin.server().pid)
    yield from about_own_ids(process, sorted(map(int, opened.uids)), sorted(map(int, opened.gids)))


def about_own_ids(
    process: ProcessFiles, uids: Sequence[int], gids: Sequence[int]
) -> Iterator[Remark]:
    """The same for an engine that is this process.

    newuidmap, which liblxc uses if it is installed, maps only ids of /etc/subuid, even for root.
    """
    for kind, ids in (("uid", uids), ("gid", gids)) if has_newuidmap(process) else ():
        ranges = ranges_of_root(lines_of(process.root / f"etc/sub{kind}"))
        missing = [
            item for item in ids if not any(low <= item < low + size for low, size in ranges)
        ]
        if missing:
            wanted = dict.fromkeys(
                PEOPLE if PEOPLE[0] <= item <= PEOPLE[1] else (item, item) for item in missing
            )
            options = " ".join(f"--add-sub{kind}s {low}-{high}" for low, high in wanted)
            yield error(
                f"Pods with members' own directories cannot start: root has no range in"
                f" /etc/sub{kind} for the {kind}s {', '.join(map(str, missing))}.",
                f"usermod {options} root",
            )
    yield ok(f"{ENGINE} can give members' own ids to their pods.")
