"""The table of known holes, and what `podyd doctor` says of the versions that are installed."""

from __future__ import annotations

import gzip
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml

from podyd.admin import advisories
from podyd.admin.advisories import (
    DPKG,
    OPEN,
    UNAFFECTED,
    UNKNOWN,
    Advisory,
    Installed,
    Line,
    Product,
    Reach,
    Table,
    load,
    older,
    plain,
)
from podyd.admin.doctor import advisories as doctor
from podyd.admin.doctor.case import HostPaths
from podyd.admin.doctor.finding import Finding, Level, Remark
from podyd.engine.admin import Admin
from podyd.engine.dialect import INCUS, LXD, Dialect
from podyd.engine.refresh import REFUSES
from podyd.node.host_files import HostFiles
from tests.unit.admin.test_doctor import only, program, put

TABLE = load()
WORDS = {OPEN, UNAFFECTED, UNKNOWN}
KNOWN = {"changelog", "source", "notes", "text", "title", "others"}
ID = re.compile(r"CVE-20\d\d-\d{4,}|GHSA(-[23456789cfghjmpqrvwx]{4}){3}")
URL = re.compile(r"https://[a-z0-9.-]+/[\w./%+-]+")
ROWS = pytest.mark.parametrize("row", TABLE.advisories, ids=lambda row: f"{row.product}-{row.id}")
LINES = pytest.mark.parametrize("line", TABLE.lines, ids=lambda line: f"{line.product}-{line.name}")


def of_line(line: Line) -> list[Advisory]:
    return [row for row in TABLE.advisories if row.product == line.product]


# --- The form of the table ----------------------------------------------------------------------


def test_every_row_is_whole() -> None:
    keys = {"id", "product", "reach", "what", "fixed", "known", "source"}
    data = yaml.safe_load(advisories.FILE.read_text(encoding="utf-8"))
    assert set(data) == {"checked", "products", "lines", "advisories"}
    assert [row for row in data["advisories"] if set(row) - {"also"} != keys] == []


@ROWS
def test_a_row(row: Advisory) -> None:
    assert ID.fullmatch(row.id)
    assert row.also == "" or ID.fullmatch(row.also)
    # Whoever looks for the advisory finds it by the name in its address.
    assert URL.fullmatch(row.source)
    assert (row.also or row.id) in row.source or row.product == "nvidia"
    assert row.what
    assert not row.what.endswith(".")
    assert row.known
    assert set(row.known) <= KNOWN
    assert set(row.fixed) == {line.name for line in TABLE.lines if line.product == row.product}


def test_the_names_of_holes_are_unique() -> None:
    names = [(row.product, name) for row in TABLE.advisories for name in (row.id, row.also) if name]
    assert len(names) == len(set(names))


@LINES
def test_a_line(line: Line) -> None:
    assert line.product in TABLE.products
    assert URL.fullmatch(line.source)
    assert line.newest.startswith(line.begins)
    assert bool(line.otherwise) is any(row.fixed[line.name] == OPEN for row in of_line(line))


@LINES
def test_the_versions_of_a_line(line: Line) -> None:
    for version in {row.fixed[line.name] for row in of_line(line)} - WORDS:
        assert version.startswith(line.begins), version
        assert not older(line.newest, version), version
        subprocess.run([DPKG, "--validate-version", version], check=True)


def test_a_version_is_of_one_line() -> None:
    for line in TABLE.lines:
        others = [
            other.name
            for other in TABLE.lines
            if (other.product, other.is_snap) == (line.product, line.is_snap)
            and line.newest.startswith(other.begins)
        ]
        assert others == [line.name]


def test_the_file_says_what_its_words_mean() -> None:
    head = advisories.FILE.read_text(encoding="utf-8").partition("\nchecked:")[0]
    explained = set(re.findall(r"^#   (\w+)  ", head, re.MULTILINE))
    assert explained == {reach.value for reach in Reach} | KNOWN
    assert all(word in head for word in WORDS)


# --- Versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5.0.2-5", "5.0.2-5+deb12u1"),
        ("5.0.2-5+deb12u6", "5.0.2-5+deb12u10"),
        ("5.0.2-5+deb12u6", "5.0.2+git20231211.1364ae4-9"),
        ("6.0.4-2+deb13u12~bpo12+1", "6.0.4-2+deb13u12"),
        ("5.0.9", "5.0.10"),
        ("6.9", "6.10.0"),
        ("1.17.8~rc.1-1", "1.17.8"),
        ("1.17.7-1", "1.17.8"),
        ("9.9", "1:0.1"),
    ],
)
def test_versions_are_compared_as_dpkg_does(one: str, other: str) -> None:
    assert older(one, other)
    assert not older(other, one)
    assert not older(one, one)


def test_versions_are_read_as_the_table_has_them() -> None:
    assert plain(Installed("lxd", "5.0.6-e49d9f4", is_snap=True)) == "5.0.6"
    assert plain(Installed("incus", "7.0.2-3~bpo13+1")) == "7.0.2-3"
    assert plain(Installed("incus", "7.0.2~rc1-3")) == "7.0.2~rc1-3"


# --- Which holes are open -----------------------------------------------------------------------


def hole(number: int, fixed: str, reach: Reach = Reach.HOST, product: str = "lxd") -> Advisory:
    name = f"CVE-2026-{number}"
    return Advisory(name, "", product, reach, "", {"debian12": fixed}, ("text",), "https://a/b")


def table(*holes: Advisory) -> Table:
    line = Line("debian12", "lxd", "Debian 12", False, "5.0.2-", "5.0.2-5+deb12u6", "wait", "")
    return Table("2026-11-28", {"lxd": Product("LXD", ("lxd",), True)}, (line,), holes)


def numbers(holes: tuple[Advisory, ...]) -> list[int]:
    return [int(item.id.rpartition("-")[2]) for item in holes]


def test_holes_are_open_until_the_version_with_the_fix() -> None:
    known = table(
        hole(1001, "5.0.2-5+deb12u5"),
        hole(1002, "5.0.2-5+deb12u6"),
        hole(1003, OPEN),
        hole(1004, UNKNOWN),
        hole(1005, UNAFFECTED),
        hole(1006, OPEN, product="incus"),
    )
    standing = known.standing("lxd", Installed("lxd", "5.0.2-5+deb12u5"))
    assert standing is not None
    assert numbers(standing.fixable) == [1002]
    assert numbers(standing.unfixed) == [1003]
    assert numbers(standing.not_known) == [1004]


def test_a_later_version_than_the_table_has_says_itself_what_it_fixes() -> None:
    known = table(hole(1001, OPEN), hole(1002, OPEN), hole(1003, UNKNOWN))
    names = {"CVE-2026-1001", "CVE-2026-1003"}
    standing = known.standing("lxd", Installed("lxd", "5.0.2-5+deb12u7", named=names))
    assert standing is not None
    assert (numbers(standing.unfixed), numbers(standing.not_known)) == ([1002], [])
    # One that the table has may name a hole for another reason.
    standing = known.standing("lxd", Installed("lxd", "5.0.2-5+deb12u6", named=names))
    assert standing is not None
    assert numbers(standing.unfixed) == [1001, 1002]


@pytest.mark.parametrize(
    ("fixed", "version", "is_fixed"),
    [
        ("5.0.2-5+deb12u5", "5.0.2-5+deb12u4", False),
        ("5.0.2-5+deb12u5", "5.0.2-5+deb12u5", True),
        (OPEN, "5.0.2-5+deb12u6", False),
        # Later than the table, and its changelog names it.
        (OPEN, "5.0.2-5+deb12u7", True),
        (UNKNOWN, "5.0.2-5+deb12u6", None),
        (UNKNOWN, "5.0.2-5+deb12u7", True),
        (UNAFFECTED, "5.0.2-5+deb12u6", False),
        ("5.0.2-5+deb12u5", "5.0.3-1", None),
    ],
)
def test_whether_a_version_has_a_fix(fixed: str, version: str, is_fixed: bool | None) -> None:
    known = table(hole(1001, fixed), hole(1002, OPEN))
    installed = Installed("lxd", version, named={"CVE-2026-1001"})
    assert known.has_fix("lxd", installed, "CVE-2026-1001") is is_fixed


def test_the_fix_that_refresh_is_for_is_in_the_table() -> None:
    for product in ("lxd", "incus"):
        assert [item for item in TABLE.advisories if (item.product, item.id) == (product, REFUSES)]


@pytest.mark.parametrize("version", ["5.0.3-1", "1:5.0.2-5", "6.0", "5.0.2+git1-1"])
def test_other_versions_are_not_judged(version: str) -> None:
    assert table(hole(1001, OPEN)).standing("lxd", Installed("lxd", version)) is None


@pytest.mark.parametrize(
    ("version", "is_snap", "is_open", "is_closed"),
    [
        ("5.0.2-5+deb12u3", False, "CVE-2026-28384", "CVE-2026-23953"),
        ("5.0.2-5+deb12u6", False, "CVE-2026-48751", "CVE-2026-34179"),
        ("5.0.2+git20231211.1364ae4-9+deb13u7", False, "CVE-2026-63298", "CVE-2026-48751"),
        ("5.0.9-3a01e3e", True, "CVE-2026-87799", "CVE-2026-66897"),
        ("6.9-1f1234a", True, "CVE-2026-63294", "CVE-2026-48751"),
    ],
)
def test_the_real_table_of_real_versions(
    version: str, is_snap: bool, is_open: str, is_closed: str
) -> None:
    standing = TABLE.standing("lxd", Installed("lxd", version, is_snap=is_snap))
    assert standing is not None
    names = {item.id for item in (*standing.fixable, *standing.unfixed)}
    assert is_open in names
    assert is_closed not in names


def test_the_page_on_security_counts_as_the_table_does() -> None:
    page = (Path(advisories.__file__).parents[2] / "docs/security.md").read_text(encoding="utf-8")
    counted = re.findall(
        r"LXD\*\* \((\S+)\) lacks (?:the fixes|those) of (\d+) (?:of them )?and of (\d+)", page
    )
    assert len(counted) == 2
    for version, *said_there in counted:
        standing = TABLE.standing("lxd", Installed("lxd", version))
        assert standing is not None
        assert standing.line.newest == version
        reaches = [item.reach for item in standing.unfixed]
        assert [reaches.count(reach) for reach in (Reach.HOST, Reach.PROJECTS)] == [
            int(number) for number in said_there
        ]
    versions = re.findall(r"Incus\*\* \((\S+)\)", page)
    of_incus = [TABLE.standing("incus", Installed("incus-base", version)) for version in versions]
    assert [(item.fixable, item.unfixed) if item else None for item in of_incus] == [((), ())] * 2
    not_known = [item.reach for item in of_incus[0].not_known] if of_incus[0] else []
    serious = (Reach.HOST, Reach.PROJECTS, Reach.UNKNOWN)
    assert f"for {sum(map(not_known.count, serious))} of\n  Incus' advisories" in page


# --- What doctor says ---------------------------------------------------------------------------


def said(known: Table, version: str) -> list[Remark]:
    return [
        remark
        for remark in doctor.about(known, "lxd", Installed("lxd", version))
        if remark.level is not Level.OK
    ]


@pytest.mark.parametrize(
    ("reach", "level", "words"),
    [
        (Reach.HOST, Level.ERROR, "can become root on this host"),
        (Reach.POD, Level.ERROR, "root of a pod"),
        (Reach.PROJECTS, Level.WARNING, "other projects"),
        (Reach.UNKNOWN, Level.WARNING, "not published"),
        (Reach.STOPS, Level.NOTE, "can end LXD"),
    ],
)
def test_what_a_hole_means_is_said(reach: Reach, level: Level, words: str) -> None:
    known = table(hole(1001, "5.0.2-5+deb12u6", reach), hole(1002, OPEN, reach))
    fixable, unfixed = said(known, "5.0.2-5+deb12u5")
    assert fixable.level is unfixed.level is level
    assert words in fixable.what
    assert words in unfixed.what
    assert "CVE-2026-1001" in fixable.what
    assert fixable.do == "apt update; apt install --only-upgrade lxd"
    assert "CVE-2026-1002" in unfixed.what
    assert "Debian 12 has no fix" in unfixed.what
    assert unfixed.do == f"wait; {advisories.FILE} says what each is"


def test_nothing_is_said_of_holes_that_do_not_matter() -> None:
    known = table(hole(1001, OPEN, Reach.NONE), hole(1002, UNKNOWN, Reach.NONE))
    assert said(known, "5.0.2-5+deb12u6") == []
    (remark,) = doctor.about(known, "lxd", Installed("lxd", "5.0.2-5+deb12u6"))
    assert remark.level is Level.OK
    assert "2026-11-28" in remark.what


def test_what_the_table_does_not_know_is_said() -> None:
    (remark,) = said(table(hole(1001, UNKNOWN)), "5.0.2-5+deb12u6")
    assert (remark.level, remark.do) == (Level.NOTE, "")
    assert "CVE-2026-1001" in remark.what
    (remark,) = said(table(), "5.0.3-1")
    assert remark.level is Level.WARNING
    assert "5.0.3-1" in remark.what


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostPaths:
    """A host without LXD."""
    monkeypatch.setenv("LXD_DIR", str(tmp_path / "lxd"))
    (tmp_path / "bin").mkdir()
    return HostPaths(
        files=HostFiles(tmp_path / "proc", tmp_path / "sys", tmp_path / "dev"),
        path=str(tmp_path / "bin"),
        docs=tmp_path / "doc",
        snaps=tmp_path / "snap",
    )


@pytest.fixture
def runs(tmp_path: Path, places: HostPaths) -> Iterator[None]:
    """LXD's socket is there."""
    (tmp_path / "lxd").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "lxd/unix.socket"))
        yield


def install(places: HostPaths, package: str, version: str, changelog: str = "") -> None:
    program(places, "dpkg-query", f"gone config-files 1\n{package} installed {version}\n")
    if changelog:
        put(places.docs / package / "changelog.Debian.gz").write_bytes(
            gzip.compress(changelog.encode())
        )


def test_without_any_of_them_nothing_is_said(places: HostPaths) -> None:
    assert doctor.lxd_advisories(places, LXD) == []
    assert doctor.incus_advisories(places, LXD) == []
    assert doctor.nvidia_advisories(places, LXD) == []


def test_the_package_is_looked_at(places: HostPaths, runs: None) -> None:
    install(places, "lxd", "5.0.2-5+deb12u2")
    findings = doctor.lxd_advisories(places, LXD)
    assert findings[0].level is Level.ERROR
    assert findings[0].do == "apt update; apt install --only-upgrade lxd"
    assert "CVE-2026-28384" in findings[0].what


def test_a_changelog_is_read(places: HostPaths, runs: None) -> None:
    text = "  * Fixes CVE-2026-48751 / GHSA-47w9-6r3f-938g, GHSA-vfh7-q59q-54v2\n"
    install(places, "lxd", "5.0.2-5+deb12u7", text)
    (worst, *_) = doctor.lxd_advisories(places, LXD)
    assert "CVE-2026-48750" in worst.what
    assert "CVE-2026-48751" not in worst.what
    assert "CVE-2026-63298" not in worst.what


@pytest.mark.parametrize(
    "broken", [b"no gzip", gzip.compress(b"x" * 9999)[:-12]], ids=["no gzip", "cut off"]
)
def test_a_broken_changelog_names_nothing(places: HostPaths, runs: None, broken: bytes) -> None:
    install(places, "lxd", "5.0.2-5+deb12u7", "CVE-2026-48751")
    (places.docs / "lxd/changelog.Debian.gz").write_bytes(broken)
    assert "CVE-2026-48751" in doctor.lxd_advisories(places, LXD)[0].what


def snap(places: HostPaths, version: str) -> None:
    put(places.snaps / "x1/meta/snap.yaml", f"name: lxd\nversion: {version}\nsummary: LXD\n")
    (places.snaps / "lxd").mkdir()
    (places.snaps / "lxd/current").symlink_to(places.snaps / "x1")


def test_the_snap_is_looked_at(places: HostPaths) -> None:
    snap(places, "5.0.6-e49d9f4")
    finding = doctor.lxd_advisories(places, LXD)[0]
    assert (finding.level, finding.do) == (Level.ERROR, "snap refresh lxd")
    assert "CVE-2026-34179" in finding.what
    # Its own toolkit.
    assert "CVE-2024-0132" in doctor.nvidia_advisories(places, LXD)[0].what


def test_a_snaps_version_is_no_number(places: HostPaths) -> None:
    snap(places, "6.10")
    assert any("6.10" in finding.what for finding in doctor.lxd_advisories(places, LXD))


def test_a_program_of_ones_own_is_not_judged(places: HostPaths, runs: None) -> None:
    finding = only(doctor.lxd_advisories(places, LXD))
    assert finding.level is Level.WARNING
    assert "no package" in finding.what


def test_an_incus_in_use_is_looked_at(places: HostPaths) -> None:
    install(places, "incus-base", "6.0.4-2+deb13u9")
    worst, *others = doctor.incus_advisories(places, INCUS)
    assert worst.level is Level.ERROR
    assert worst.do == "apt update; apt install --only-upgrade incus-base incus"
    assert any("GHSA-5pgx-q9xx-j3qv" in finding.what for finding in others)
    install(places, "incus-base", "6.0.4-2+deb13u7~bpo12+1")
    assert "if the backports have no newer one" in doctor.incus_advisories(places, INCUS)[0].do
    install(places, "incus-base", "7.0.2-3~bpo13+1")
    assert only(doctor.incus_advisories(places, INCUS)).level is Level.OK


def test_an_incus_of_ones_own_is_not_judged(
    places: HostPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INCUS_DIR", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "unix.socket"))
        finding = only(doctor.incus_advisories(places, INCUS))
        assert finding.level is Level.WARNING
        assert "https://github.com/lxc/incus/security/advisories" in finding.do
        assert doctor.incus_advisories(places, LXD) == []


@pytest.mark.parametrize(
    ("used", "beside", "package", "version", "do"),
    [
        (LXD, doctor.incus_advisories, "incus-base", "6.0.4-2+deb13u11", "incus-base incus"),
        (INCUS, doctor.lxd_advisories, "lxd", "5.0.2-5+deb12u2", "apt install --only-upgrade lxd"),
        # There is no version with a fix.
        (INCUS, doctor.lxd_advisories, "lxd", "5.0.2-5+deb12u6", ""),
    ],
)
def test_an_engine_that_podyd_does_not_use_is_no_problem(
    places: HostPaths,
    used: Dialect,
    beside: Callable[[HostPaths, Dialect], list[Finding]],
    package: str,
    version: str,
    do: str,
) -> None:
    install(places, package, version)
    finding = only(beside(places, used))
    assert finding.level is Level.NOTE
    assert "podyd does not use" in finding.what
    assert f"({package} {version})" in finding.what
    # It is not podyd by which somebody reaches it.
    assert "breaks into podyd" not in finding.what
    assert finding.do.endswith(do) and bool(finding.do) is bool(do)


def test_an_engine_beside_without_holes(places: HostPaths) -> None:
    install(places, "incus-base", "7.0.2-3")
    assert only(doctor.incus_advisories(places, LXD)).level is Level.OK


def test_the_toolkit_is_looked_at(places: HostPaths) -> None:
    install(places, "libnvidia-container1", "1.17.3-1")
    worst, *others = doctor.nvidia_advisories(places, LXD)
    assert worst.level is Level.ERROR
    assert "CVE-2025-23359" in worst.what
    assert "CVE-2024-0132" not in worst.what
    # Hooks of nvidia-ctk, which LXD does not run.
    assert all("CVE-2025-23266" not in finding.what for finding in (worst, *others))
    assert worst.do.endswith("libnvidia-container1 libnvidia-container-tools")
    install(places, "libnvidia-container1", "1.19.1-1")
    assert only(doctor.nvidia_advisories(places, LXD)).level is Level.OK


@pytest.mark.parametrize(
    ("exe", "level"),
    [
        ("/usr/bin/lxd", Level.OK),
        ("/usr/bin/lxd (deleted)", Level.WARNING),
        ("/usr/local/bin/lxd", Level.WARNING),
    ],
)
def test_what_runs_is_the_package(places: HostPaths, runs: None, exe: str, level: Level) -> None:
    process = places.files.process(7).directory
    process.mkdir(parents=True)
    (process / "exe").symlink_to(exe)
    of_lxd = {"dialect": LXD, "place": LXD.places[0]}
    admin = cast(Admin, SimpleNamespace(server=lambda: SimpleNamespace(pid=7), **of_lxd))
    finding: Finding = only(doctor.engine_program(admin, places))
    assert finding.level is level
