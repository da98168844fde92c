"""Known holes of the engine and of NVIDIA's container toolkit, by version.

The table is data/advisories.yaml, which also says what its words mean and where it is from.
Versions are compared by dpkg(1), whose rules those of the snap keep to as well.
"""

from __future__ import annotations

import enum
import re
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[1] / "data/advisories.yaml"
# What the table has where there is no version with the fix.
OPEN, UNAFFECTED, UNKNOWN = "open", "unaffected", "unknown"
# What a version is where there is one.
FIXABLE, FIXED = "fixable", "fixed"
DPKG = "/usr/bin/dpkg"
COMPARE_SECONDS = 10.0
# What a backport adds to the version that it is built of, whose fixes it has.
_BACKPORT = re.compile(r"~bpo\d+\+\d+$")


class Reach(enum.Enum):
    """What a hole means on a host with podyd, the worst first."""

    HOST = "host"
    POD = "pod"
    PROJECTS = "projects"
    UNKNOWN = "unknown"
    STOPS = "stops"
    NONE = "none"


@dataclass(frozen=True)
class Product:
    """`packages` are Debian's: the first that is installed has the version."""

    name: str
    packages: tuple[str, ...]
    is_in_snap: bool


@dataclass(frozen=True)
class Line:
    """Versions that begin alike and get their fixes together.

    `otherwise` is what to do where there is no fix, "" if there is no such hole.
    """

    name: str
    product: str
    title: str
    is_snap: bool
    begins: str
    newest: str
    otherwise: str
    source: str


@dataclass(frozen=True)
class Advisory:
    """A hole; `fixed` is by line."""

    id: str
    also: str
    product: str
    reach: Reach
    what: str
    fixed: Mapping[str, str]
    known: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Installed:
    """A version that is installed; `package` is Debian's, or the snap's name.

    `named` are the advisories that the package's own changelog names.
    """

    package: str
    version: str
    is_snap: bool = False
    named: Collection[str] = frozenset()


@dataclass(frozen=True)
class Standing:
    """The holes that are open in an installed version, or of which that is not known.

    `fixable` are those that a newer version of the same line closes, `unfixed` those that none
    does.
    """

    line: Line
    fixable: tuple[Advisory, ...]
    unfixed: tuple[Advisory, ...]
    not_known: tuple[Advisory, ...]


@dataclass(frozen=True)
class Table:
    """The table; `checked` is the day on which it was last compared with its sources."""

    checked: str
    products: Mapping[str, Product]
    lines: tuple[Line, ...]
    advisories: tuple[Advisory, ...]

    def standing(self, product: str, installed: Installed) -> Standing | None:
        """The holes of a product in this version; None if the table has no such versions.

        Raises OSError, TimeoutExpired if dpkg does not compare them.
        """
        line = self._line(product, installed)
        if line is None:
            return None
        found: dict[str, list[Advisory]] = {}
        for advisory in self.advisories:
            if advisory.product == product:
                found.setdefault(_state(advisory, line, installed), []).append(advisory)
        fixable, unfixed, not_known = (
            tuple(found.get(state, ())) for state in (FIXABLE, OPEN, UNKNOWN)
        )
        return Standing(line, fixable, unfixed, not_known)

    def has_fix(self, product: str, installed: Installed, name: str) -> bool | None:
        """Whether this version of a product has the fix of the advisory of this id; None if that is
        not known. Raises as `standing`."""
        line = self._line(product, installed)
        if line is None:
            return None
        states = [
            _state(advisory, line, installed)
            for advisory in self.advisories
            if (advisory.product, advisory.id) == (product, name)
        ]
        return None if UNKNOWN in states else FIXED in states

    def _line(self, product: str, installed: Installed) -> Line | None:
        version = plain(installed)
        for line in self.lines:
            is_it = (line.product, line.is_snap) == (product, installed.is_snap)
            if is_it and version.startswith(line.begins):
                return line
        return None


def _state(advisory: Advisory, line: Line, installed: Installed) -> str:
    """What an advisory is in a version of this line. Raises OSError, TimeoutExpired."""
    version, fixed = plain(installed), advisory.fixed[line.name]
    if fixed == UNAFFECTED:
        return UNAFFECTED
    if fixed not in (OPEN, UNKNOWN):
        return FIXABLE if older(version, fixed) else FIXED
    # The table does not know what a later version has fixed; that version's changelog does.
    is_named = not {advisory.id, advisory.also}.isdisjoint(installed.named)
    return FIXED if is_named and older(line.newest, version) else fixed


def plain(installed: Installed) -> str:
    """As the table has versions: 5.0.7 for the snap's 5.0.7-0123abc, a backport's without ~bpo."""
    if installed.is_snap:
        return installed.version.partition("-")[0]
    return _BACKPORT.sub("", installed.version)


@cache
def older(one: str, other: str) -> bool:
    """Whether a version is older than another one. Raises OSError, TimeoutExpired."""
    done = subprocess.run(
        [DPKG, "--compare-versions", one, "lt", other],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=COMPARE_SECONDS,
        check=False,
    )
    return done.returncode == 0


@cache
def load(path: Path = FILE) -> Table:
    """The table. Raises KeyError, ValueError if it is not one."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Table(
        checked=data["checked"].isoformat(),
        products={
            name: Product(item["name"], tuple(item["packages"]), item["snap"])
            for name, item in data["products"].items()
        },
        lines=tuple(_line_of(item) for item in data["lines"]),
        advisories=tuple(_advisory_of(item) for item in data["advisories"]),
    )


def _line_of(item: Mapping[str, Any]) -> Line:
    return Line(
        name=item["name"],
        product=item["product"],
        title=item["title"],
        is_snap=item.get("snap", False),
        begins=item["begins"],
        newest=item["newest"],
        otherwise=item.get("otherwise", ""),
        source=item["source"],
    )


def _advisory_of(item: Mapping[str, Any]) -> Advisory:
    return Advisory(
        id=item["id"],
        also=item.get("also", ""),
        product=item["product"],
        reach=Reach(item["reach"]),
        what=item["what"],
        fixed=item["fixed"],
        known=tuple(item["known"]),
        source=item["source"],
    )
