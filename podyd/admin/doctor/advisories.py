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

from podyd.admin.advisories import FILE, Advisory, Installed, Reach, Table, load
from podyd.admin.doctor.case import HostPaths
from podyd.admin.doctor.finding import Remark, check, error, note, ok, warning
from podyd.engine.admin import Admin
from podyd.engine.dialect import LXD, Place

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
_SERIOUS = (Reach.HOST, Reach.POD, Reach.PROJECTS, Reach.UNKNOWN)


@check
def lxd_advisories(places: HostPaths) -> Iterator[Remark]:
    """No known hole is open in the LXD that runs here."""
    table = load()
    installed = _lxd(table, places)
    if installed is not None:
        yield from about(table, "lxd", installed)
        return
    if (place := LXD.running()) is not None:
        yield warning(
            f"LXD at {place.socket} is from no package that dpkg or snap knows, so podyd cannot"
            " tell which known holes are open in it.",
            "install LXD from a package, or compare its source with"
            " https://github.com/canonical/lxd/security/advisories",
        )


@check
def lxd_program(admin: Admin, places: HostPaths) -> Iterator[Remark]:
    """What runs is the program that the package has on disk now."""
    unit = admin.place.unit
    program = places.files.process(admin.server().pid).program()
    if program.endswith(_REPLACED):
        yield warning(
            "LXD's program has been replaced on disk since LXD was started, so holes that the"
            " package has fixed are still open.",
            f"systemctl restart {unit}; the pods go on",
        )
    elif not _is_snaps(admin.place) and program != admin.dialect.program:
        yield warning(
            f"LXD runs from {program}, which is not Debian's package: podyd cannot tell which known"
            " holes are open in it.",
            f"systemctl cat {unit}",
        )
    yield ok(f"LXD runs from {program}.")


@check
def incus_advisories(places: HostPaths) -> Iterator[Remark]:
    """The same of an Incus, which podyd does not use."""
    table = load()
    installed = _of_debian(table.products["incus"].packages, places)
    if installed is not None:
        for remark in about(table, "incus", installed):
            if remark.do:
                yield note(f"podyd does not use Incus. {remark.what}", remark.do)
            else:
                yield remark


@check
def nvidia_advisories(places: HostPaths) -> Iterator[Remark]:
    """The same of NVIDIA's container toolkit, with which LXD gives pods their cards."""
    table = load()
    lxd = _lxd(table, places)
    if lxd is not None and lxd.is_snap:
        yield from about(table, "nvidia", lxd)
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
    number = "a known hole" if len(holes) == 1 else f"{len(holes)} known holes"
    return f"{number} ({', '.join(item.id for item in holes)})"


def _update(table: Table, product: str, installed: Installed) -> str:
    if installed.is_snap:
        return f"snap refresh {installed.package}"
    return f"apt update; apt install --only-upgrade {' '.join(table.products[product].packages)}"


def _lxd(table: Table, places: HostPaths) -> Installed | None:
    """The LXD that runs, else one that is installed."""
    packages = table.products["lxd"].packages
    place = LXD.running()
    if place is None:
        return _of_debian(packages, places) or _of_snap(places)
    return (_of_snap(places) if _is_snaps(place) else None) or _of_debian(packages, places)


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
