"""Checks of members' own directories on the host, which the engine mounts into their pods as root.

Only root may be able to change any part of the path above a directory: so what was checked is still
true when the engine opens it, and no member can put a symbolic link in its place.
"""

from __future__ import annotations

import pwd
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Below are the system's own; of Debian's fixed groups, people are in this one.
FIRST_ID = 1000
USERS_GID = 100
NOBODY = 65534


@dataclass(frozen=True)
class Directory:
    """A directory, and the account that it is for."""

    path: Path
    owner: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Fitness:
    """Why a directory cannot be mounted, in one clause; both are "" if it can.

    `unsafe`: others than root could change the path above it. `unfit`: what is wrong with itself.
    """

    unsafe: str = ""
    unfit: str = ""


def fitness(directory: Directory) -> Fitness:
    """Whether it can be mounted; may block."""
    problem = unsafe(directory.path.parent)
    return Fitness(unsafe=problem) if problem else Fitness(unfit=unfit(directory))


def unsafe(prefix: Path) -> str:
    """Why others than root could change entries of `prefix`, in one clause; "" if they cannot."""
    for path in (*reversed(prefix.parents), prefix):
        try:
            status = path.lstat()
        except OSError as error:
            return f"{path} cannot be looked at ({error.strerror})"
        if not stat.S_ISDIR(status.st_mode):
            return f"{path} is not a directory itself"
        if status.st_uid != 0:
            return f"{path} does not belong to root"
        if status.st_mode & 0o022:
            return f"others than root may write to {path}"
    return ""


def unfit(directory: Directory) -> str:
    """Why it cannot be mounted itself, in one clause; "" if it can."""
    path, owner = directory.path, directory.owner
    if not is_mappable(directory.uid, directory.gid):
        return f"{owner}, or the group {directory.gid}, is one of the system's own"
    # No account is named so; it would lead elsewhere.
    if path.name != owner or owner in (".", ".."):
        return f"{owner!r} is not the name of a directory"
    try:
        status = path.lstat()
    except FileNotFoundError:
        return f"{path} is not there"
    except (OSError, ValueError) as error:
        return f"{path} cannot be looked at ({error})"
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is not a directory itself"
    if status.st_uid != directory.uid:
        return f"{path} does not belong to {owner}"
    return ""


def to_make(directory: Directory) -> str:
    """The command with which an admin creates or repairs it."""
    path, owner = shlex.quote(str(directory.path)), shlex.quote(directory.owner)
    return f"install -d -m 700 -o {owner} -g {directory.gid} {path}"


def is_mappable(uid: int, gid: int) -> bool:
    """Whether root of a pod may be this account on the host, in this group."""
    is_group = gid >= FIRST_ID or gid == USERS_GID
    return uid >= FIRST_ID and is_group and NOBODY not in (uid, gid)


def directories(prefix: Path) -> Iterator[Directory]:
    """Those of accounts below `prefix`, fit or not; what bears no account's name is none."""
    try:
        names = sorted(path.name for path in prefix.iterdir())
    except OSError:
        return
    for name in names:
        try:
            account = pwd.getpwnam(name)
        except (KeyError, UnicodeEncodeError):
            continue
        yield Directory(prefix / name, name, account.pw_uid, account.pw_gid)


def fit_directories(prefix: Path) -> list[Directory]:
    """Those that pods can have; none where others than root could change them."""
    if unsafe(prefix):
        return []
    return [directory for directory in directories(prefix) if not unfit(directory)]
