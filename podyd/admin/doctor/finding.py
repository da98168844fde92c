"""What a check may say, and what makes a function a check."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec

from podyd.base.errors import PodydError

P = ParamSpec("P")
# What to type where this account may not look.
AS_ROOT = "sudo podyd doctor"


class Level(enum.Enum):
    """How bad it is, the worst first."""

    ERROR = "error"  # something does not work, or is not safe
    WARNING = "warning"  # it works in part, or will soon not work
    NOTE = "note"  # good to know
    OK = "ok"


@dataclass(frozen=True)
class Remark:
    """One sentence with its evidence; `do` is what to type, or ""."""

    level: Level
    what: str
    do: str = ""


@dataclass(frozen=True)
class Finding:
    """What the check of this stable name has found."""

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
    """An error of the system or of a library, in its own words and without numbers."""
    words = problem.strerror if isinstance(problem, OSError) else None
    return words or str(problem) or type(problem).__name__


def check(function: Callable[P, Iterator[Remark]]) -> Callable[P, list[Finding]]:
    """A check, named as its function: it never fails, and an `ok` counts only by itself."""
    name = function.__name__
    what = name.replace("_", " ")

    @functools.wraps(function)
    def findings(*args: P.args, **kwargs: P.kwargs) -> list[Finding]:
        remarks: list[Remark] = []
        try:
            remarks.extend(function(*args, **kwargs))
        except PermissionError as problem:
            where = f" ({problem.filename})" if problem.filename else ""
            remarks.append(note(f"Only root can look at the {what}{where}.", AS_ROOT))
        except PodydError as problem:
            remarks.append(warning(f"Not looked at: {what}. {problem}", ""))
        except Exception as problem:  # Also a mistake of ours: the other checks are worth having.
            remarks.append(warning(f"Not looked at: {what}. {reason(problem)}.", ""))
        alone = all(remark.level is Level.OK for remark in remarks)
        return [
            Finding(name, remark.level, remark.what, remark.do)
            for remark in remarks
            if alone or remark.level is not Level.OK
        ]

    return findings
