"""The findings of checks, and the decorator of a check."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec

from podyd.base.errors import PodydError

P = ParamSpec("P")
# The command to run if this account lacks permissions.
AS_ROOT = "sudo podyd doctor"


class Level(enum.Enum):
    """The severity, the worst first."""

    ERROR = "error"  # something does not work, or is not safe
    WARNING = "warning"  # it works in part, or may stop working soon
    NOTE = "note"  # information only
    OK = "ok"


@dataclass(frozen=True)
class Remark:
    """One sentence with its evidence; `do` is the command to run, or ""."""

    level: Level
    what: str
    do: str = ""


@dataclass(frozen=True)
class Finding:
    """A result of the check with this stable name."""

    check: str
    level: Level
    what: str
    do: str = ""

    @property
    def is_problem(self) -> bool:
        return self.level in (Level.ERROR, Level.WARNING)


def ok(what: str) -> Remark:
    return Remark(Level.OK, what)


def note(what: str, do: str = "") -> Remark:
    return Remark(Level.NOTE, what, do)


def warning(what: str, do: str) -> Remark:
    return Remark(Level.WARNING, what, do)


def error(what: str, do: str) -> Remark:
    return Remark(Level.ERROR, what, do)


def reason(problem: Exception) -> str:
    """The text of an error of the system or of a library, without its number."""
    words = problem.strerror if isinstance(problem, OSError) else None
    return words or str(problem) or type(problem).__name__


def check(function: Callable[P, Iterator[Remark]]) -> Callable[P, list[Finding]]:
    """Make a check of a function: it never raises, and `ok` is dropped beside other remarks."""
    what = function.__name__.replace("_", " ")
    # What is asked of the engine has the name from when that was always LXD, for programs' sake.
    name = re.sub("^engine_", "lxd_", function.__name__)

    @functools.wraps(function)
    def findings(*args: P.args, **kwargs: P.kwargs) -> list[Finding]:
        remarks: list[Remark] = []
        try:
            remarks.extend(function(*args, **kwargs))
        except PermissionError as problem:
            where = f" ({problem.filename})" if problem.filename else ""
            remarks.append(note(f"Only root can check the {what}{where}.", AS_ROOT))
        except PodydError as problem:
            remarks.append(warning(f"Not checked: {what}. {problem}", ""))
        except Exception as problem:  # Also for a bug in podyd, so that the other checks run.
            remarks.append(warning(f"Not checked: {what}. {reason(problem)}.", ""))
        alone = all(remark.level is Level.OK for remark in remarks)
        return [
            Finding(name, remark.level, remark.what, remark.do)
            for remark in remarks
            if alone or remark.level is not Level.OK
        ]

    return findings
