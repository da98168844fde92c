"""Known holes of the installed engine and of NVIDIA's container toolkit (data/advisories.yaml).

Neither root nor a network is needed.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from podyd.admin.advisories import FILE, Advisory, Installed, Reach, Table, load, plain
from podyd.admin.doctor.case import HostPaths
from podyd.admin.doctor.finding import Remark, check, error, note, ok, warning
from podyd.base.engine_words import ENGINE
from podyd.engine.admin import Admin
from podyd.engine.dialect import INCUS, LXD, Dialect, Place

QUERY_SECONDS = 10.0
MAX_CHANGELOG_BYTES = 4 * 1024 * 1024
MAX_SNAP_BYTES = 256 * 1024
SNAP = "lxd"
# What the kernel adds in /proc/PID/exe.
_REPLACED = " (deleted)"
_FORMAT = r"${Package} ${db:Status-Status} ${Version}\n"
_NAME = re.compile(r"CVE-\d{4}-\d{4,}|GHSA(?:-[0-9a-z]{4}){3}")
_LEVELS = {
    Reach.HOST: error,
    Reach.POD: error,
    Reach.PROJECTS: warning,
    Reach.UNKNOWN: warning,
    Reach.STOPS: note,
}
_MEANINGS = {
    Reach.HOST: "whoever breaks into podyd can become root on this host",
    Reach.POD: "root of a pod can get more than the pod",
    Reach.PROJECTS: "whoever breaks into podyd can reach other projects than podyd's",
    Reach.UNKNOWN: "something may be let through that is not published",
    Reach.STOPS: "whoever breaks into podyd can end {name} or fill the host",
}
# Where those are whose table does not have a version.
_ADVISORIES = {
    LXD.key: "https://github.com/canonical/lxd/security/advisories",
    INCUS.key: "https://github.com/lxc/incus/security/advisories",
}
_SERIOUS = (Reach.HOST, Reach.POD, Reach.PROJECTS, Reach.UNKNOWN)


@check
def lxd_advisories(places: HostPaths, used: Dialect) -> Iterator[Remark]:
    """No known hole is open in LXD, as far as podyd uses it."""
    yield from _of_engine(LXD, places, used)


@check
def incus_advisories(places: HostPaths, used: Dialect) -> Iterator[Remark]:
    """The same of Incus."""
    yield from _of_engine(INCUS, places, used)


def _of_engine(engine: Dialect, places: HostPaths, used: Dialect) -> Iterator[Remark]:
    table = load()
    installed = package_of(engine, table, places)
    if engine != used:
        yield from _beside(engine, table, installed)
    elif installed is not None:
        yield from about(table, engine.key, installed)
    elif (place := engine.running()) is not None:
        yield warning(
            f"{engine.name} at {place.socket} is from no package that podyd's table knows, so podyd"
            " cannot tell which known holes are open in it.",
            f"install {engine.name} from a package, or compare its source with"
            f" {_ADVISORIES[engine.key]}",
        )


def _beside(engine: Dialect, table: Table, installed: Installed | None) -> Iterator[Remark]:
    """The holes of one that podyd does not use: they concern who uses it otherwise."""
    if installed is None or (standing := table.standing(engine.key, installed)) is None:
        return
    of_it = [item for item in standing.fixable if item.reach in _SERIOUS]
    number = len(of_it) + sum(item.reach in _SERIOUS for item in standing.unfixed)
    what = f"{engine.name} ({installed.package} {installed.version})"
    if number:
        yield note(
            f"podyd does not use {what}, which is installed too and has {_count(number)}.",
            _update(table, engine.key, installed) if of_it else "",
        )
    yield ok(f"podyd does not use {what}; no hole that podyd's table knows is open in it.")


@check
def engine_program(admin: Admin, places: HostPaths) -> Iterator[Remark]:
    """What runs is the program that the package has on disk now."""
    unit = admin.place.unit
    program = places.files.process(admin.server().pid).program()
    if program.endswith(_REPLACED):
        yield warning(
            f"{ENGINE}'s program has been replaced on disk since {ENGINE} was started, so holes"
            " that the package has fixed are still open.",
            f"systemctl restart {unit}; the pods go on",
        )
    elif not _is_snaps(admin.place) and program != admin.dialect.program:
        yield warning(
            f"{ENGINE} runs from {program}, which is not Debian's package: podyd cannot tell which"
            " known holes are open in it.",
            f"systemctl cat {unit}",
        )
    yield ok(f"{ENGINE} runs from {program}.")


@check
def nvidia_advisories(places: HostPaths, used: Dialect) -> Iterator[Remark]:
    """The same of NVIDIA's container toolkit, with which the engine gives pods their cards."""
    table = load()
    engine = package_of(used, table, places)
    if engine is not None and engine.is_snap:
        yield from about(table, "nvidia", engine)
    elif (toolkit := _of_debian(table.products["nvidia"].packages, places)) is not None:
        yield from about(table, "nvidia", toolkit)


def about(table: Table, product: str, installed: Installed) -> Iterator[Remark]:
    """Remarks about a product in this version."""
    name = table.products[product].name
    what = f"{name} ({installed.package} {installed.version})"
    standing = table.standing(product, installed)
    if standing is None:
        yield warning(
            f"podyd's table of known holes, of {table.checked}, does not have {what}, so podyd"
            " cannot tell which are open.",
            "install a version of Debian's or of the snap's, or compare its changelog with the"
            " advisories",
        )
        return
    for reach, level in _LEVELS.items():
        meaning = _MEANINGS[reach].format(name=name)
        if holes := _of(reach, standing.fixable):
            yield level(
                f"{what}: {meaning}, by {_listed(holes)}; newer versions have the fix.",
                _update(table, product, installed),
            )
        if holes := _of(reach, standing.unfixed):
            yield level(
                f"{what}: {meaning}, by {_listed(holes)}; {standing.line.title} has no fix.",
                f"{standing.line.otherwise}; {FILE} says what each is",
            )
    if holes := [item for item in standing.not_known if item.reach in _SERIOUS]:
        yield note(
            f"{what}: podyd's table of {table.checked} does not say whether {standing.line.title}"
            f" has the fix of {_listed(holes)}."
        )
    yield ok(f"{what} has no open hole that podyd's table of {table.checked} knows.")


def _of(reach: Reach, holes: Sequence[Advisory]) -> list[Advisory]:
    return [item for item in holes if item.reach is reach]


def _listed(holes: Sequence[Advisory]) -> str:
    return f"{_count(len(holes))} ({', '.join(item.id for item in holes)})"


def _count(number: int) -> str:
    return "a known hole" if number == 1 else f"{number} known holes"


def _update(table: Table, product: str, installed: Installed) -> str:
    if installed.is_snap:
        return f"snap refresh {installed.package}"
    command = f"apt update; apt install --only-upgrade {' '.join(table.products[product].packages)}"
    if plain(installed) != installed.version:
        command += "; if the backports have no newer one, the release that they are of has"
    return command


def package_of(engine: Dialect, table: Table, places: HostPaths) -> Installed | None:
    """The one that runs, else one that is installed."""
    product = table.products[engine.key]
    of_debian = _of_debian(product.packages, places)
    of_snap = _of_snap(places) if product.is_in_snap else None
    place = engine.running()
    if place is None:
        return of_debian or of_snap
    return (of_snap if _is_snaps(place) else None) or of_debian


def _is_snaps(place: Place) -> bool:
    return "snap" in place.directory.parts


def _of_snap(places: HostPaths) -> Installed | None:
    """The snap of LXD in the revision that is in use: what `snap list lxd` says, without snapd."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        with (places.snaps / SNAP / "current/meta/snap.yaml").open(encoding="utf-8") as file:
            # As text, or 6.10 would be the number 6.1; it makes strings, lists and mappings alone.
            about_it = yaml.load(file.read(MAX_SNAP_BYTES), Loader=yaml.BaseLoader)  # noqa: S506
        return Installed(SNAP, about_it["version"], is_snap=True)
    return None


def _of_debian(packages: Sequence[str], places: HostPaths) -> Installed | None:
    """The first of these packages that dpkg has installed."""
    program = shutil.which("dpkg-query", path=places.path)
    if program is None:
        return None
    done = subprocess.run(
        [program, "--show", f"--showformat={_FORMAT}", *packages],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=QUERY_SECONDS,
        check=False,
    )
    for line in done.stdout.splitlines():
        package, status, version = line.split(" ")
        if status == "installed":
            return Installed(package, version, named=_named(places.docs / package))
    return None


def _named(docs: Path) -> frozenset[str]:
    """The advisories that a package's own changelog names; none if it is not there."""
    try:
        with gzip.open(docs / "changelog.Debian.gz") as file:
            text = file.read(MAX_CHANGELOG_BYTES)
    except (OSError, EOFError):
        return frozenset()
    return frozenset(_NAME.findall(text.decode(errors="replace")))
