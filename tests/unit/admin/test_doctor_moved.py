"""What `podyd doctor` says of moves by `podyd migrate`, and of the engine that pods have left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from podyd.admin.doctor import moved
from podyd.admin.doctor.case import Case, HostPaths
from podyd.admin.doctor.finding import Finding, Level
from podyd.admin.migration.lock import alone
from podyd.admin.migration.mark import KEY, Mark, Stage
from podyd.admin.setup import fingerprint, make_certificate
from podyd.config.schema import Config
from podyd.engine.admin import ASIDE, Admin
from podyd.engine.dialect import CHOICE, INCUS, LXD, Dialect
from podyd.engine.rest import Credentials
from podyd.engine.types import Status
from tests.unit.engine.test_moving import INSTANCE, Stub, serving
from tests.unit.pods.test_power import POD

SECONDS = 5.0


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """podyd uses Incus, and LXD does not run here."""
    for dialect in (LXD, INCUS):
        monkeypatch.setenv(dialect.directory_variable, str(tmp_path / f"{dialect.key}-engine"))
    choose(tmp_path, INCUS)
    (tmp_path / "bin").mkdir()
    return Case(Config(state_dir=str(tmp_path)), places=HostPaths(path=str(tmp_path / "bin")))


@pytest.fixture
def lxd(case: Case, tmp_path: Path) -> Iterator[Stub]:
    """LXD, which podyd has used before, and which has one instance of podyd's project."""
    credentials = Credentials.below(case.config.state_dir, LXD)
    credentials.directory.mkdir()
    credentials.certificate.write_text(make_certificate()[1])
    (tmp_path / "lxd-engine").mkdir()
    with serving(tmp_path / "lxd-engine/unix.socket") as stub:
        yield stub


def choose(state_dir: Path, dialect: Dialect) -> None:
    (state_dir / CHOICE).write_text(f"{dialect.key}\n")


def mark(stage: Stage) -> str:
    text = Mark(stage, ran=True, owner="ann", autostart=None).keys()[KEY]
    assert text is not None
    return text


def has(**marks: Stage) -> Admin:
    """An engine in use with these instances, and one that is just a pod."""
    pods = [
        dataclasses.replace(POD, name=name, config={KEY: mark(stage)})
        for name, stage in marks.items()
    ]
    return cast(Admin, SimpleNamespace(as_podyd_reads_them=lambda: [POD, *pods]))


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_without_a_move_all_is_well(case: Case) -> None:
    assert only(moved.interrupted_move(has(), case, SECONDS)).level is Level.OK
    assert moved.left_engine(case, SECONDS) == []


@pytest.mark.parametrize("used", [LXD, INCUS])
def test_a_move_that_was_interrupted_is_told(case: Case, tmp_path: Path, used: Dialect) -> None:
    choose(tmp_path, used)
    finding = only(moved.interrupted_move(has(p="here", q="here"), case, SECONDS))
    assert finding.level is Level.WARNING
    assert "'podyd migrate' has not come to its end" in finding.what
    assert finding.what.endswith(": p, q.")
    assert "podyd migrate --back" in finding.do


def test_of_many_pods_some_are_named(case: Case) -> None:
    many: dict[str, Stage] = {f"p{number}": "here" for number in range(7)}
    finding = only(moved.interrupted_move(has(**many), case, SECONDS))
    assert finding.what.endswith(": p0, p1, p2, p3, p4 and 2 more.")


def test_one_that_is_under_way_is_no_problem(case: Case) -> None:
    with alone(case.config.state_dir):
        finding = only(moved.interrupted_move(has(p="here"), case, SECONDS))
    assert finding.level is Level.NOTE
    assert "is moving pods" in finding.what


@pytest.mark.parametrize("stage", ["moved", "done"])
def test_pods_that_podyd_yaml_looks_for_where_they_were(case: Case, stage: Stage) -> None:
    config = dataclasses.replace(case.config, engine="lxd")
    finding = only(
        moved.interrupted_move(has(p=stage), dataclasses.replace(case, config=config), SECONDS)
    )
    assert finding.level is Level.WARNING
    assert "the pods that were moved to Incus: p." in finding.what
    assert "engine: incus" in finding.do


@pytest.mark.parametrize(
    ("stage", "chosen", "level", "do"),
    [
        ("here", INCUS, Level.WARNING, "podyd migrate, which goes on"),
        # Told of nobody: it has been deleted, or runs.
        ("moved", INCUS, Level.NOTE, "podyd migrate --finish"),
        ("moved", LXD, Level.WARNING, "podyd migrate, which goes on"),
        # podyd.yaml says Incus, and the move has not come to its last step.
        ("done", LXD, Level.WARNING, "podyd migrate, which goes on"),
        ("done", INCUS, Level.NOTE, "podyd migrate --finish"),
    ],
)
def test_what_the_engine_that_pods_leave_says_of_it(
    case: Case, lxd: Stub, tmp_path: Path, stage: Stage, chosen: Dialect, level: Level, do: str
) -> None:
    lxd.instance = {**INSTANCE, "config": {**INSTANCE["config"], KEY: mark(stage)}}
    choose(tmp_path, chosen)
    case = dataclasses.replace(case, config=dataclasses.replace(case.config, engine="incus"))
    finding = only(moved.interrupted_move(has(), case, SECONDS))
    assert (finding.level, do in finding.do) == (level, True)
    assert finding.what.endswith(": p.")


@pytest.mark.parametrize(("status", "is_told"), [("stopped", True), ("running", False)])
def test_pods_that_did_not_start_where_they_came_are_told(
    case: Case, lxd: Stub, status: Status, is_told: bool
) -> None:
    lxd.instance = {**INSTANCE, "config": {**INSTANCE["config"], KEY: mark("moved")}}
    pods = [dataclasses.replace(POD, name=name, status=status) for name in ("p", "q")]
    admin = cast(Admin, SimpleNamespace(as_podyd_reads_them=lambda: pods))
    *warnings, over = moved.interrupted_move(admin, case, SECONDS)
    assert (over.level, len(warnings)) == (Level.NOTE, int(is_told))
    for finding in warnings:
        assert finding.what == (
            "These pods ran when 'podyd migrate' moved them to Incus, and do not run there: p."
        )
        assert finding.do.startswith("incus start POD --project podyd")
        assert "mask" not in finding.do


@pytest.mark.parametrize("restricted", ["true", "false"])
def test_limits_that_are_still_aside(case: Case, restricted: str) -> None:
    def told(**limits: str) -> Finding:
        keys = {f"{ASIDE}limits.{name}": value for name, value in limits.items()}
        config = {"restricted": restricted, "limits.cpu": "9", **keys}
        admin = cast(Admin, SimpleNamespace(project_config=lambda: config))
        return only(moved.limits_aside(admin, case))

    assert told().level is Level.OK
    finding = told(memory="8GiB", instances="5")
    if restricted == "false":
        assert finding.level is Level.OK, "the move brings them back"
        return
    assert finding.level is Level.WARNING
    assert "without limits.instances=5, limits.memory=8GiB since 'podyd migrate'" in finding.what
    assert finding.do.startswith("podyd setup, which")
    for name in ("instances", "memory"):
        assert f"incus project set podyd {ASIDE}limits.{name}=NUMBER" in finding.do


def test_an_engine_that_was_left_and_trusts_podyd(case: Case, lxd: Stub) -> None:
    assert only(moved.left_engine(case, SECONDS)).level is Level.OK
    path = Credentials.below(case.config.state_dir, LXD).certificate
    ours = fingerprint(path.read_text())
    lxd.certificates = [{"fingerprint": ours, "restricted": True, "projects": ["podyd"]}]
    finding = only(moved.left_engine(case, SECONDS))
    assert finding.level is Level.WARNING
    assert "LXD still trusts podyd's certificate" in finding.what
    assert finding.do == f"lxc config trust remove {ours[:12]}"


def test_an_engine_that_podyd_never_used_is_not_asked(case: Case, lxd: Stub) -> None:
    Credentials.below(case.config.state_dir, LXD).certificate.unlink()
    assert moved.left_engine(case, SECONDS) == []
    assert moved.interrupted_move(has(), case, SECONDS)[0].level is Level.OK
    assert lxd.asked == []


@pytest.mark.parametrize(("status", "is_asked"), [(0, True), (3, False), (1, True), (4, True)])
def test_an_engine_that_was_stopped_is_not_started(
    case: Case, lxd: Stub, status: int, is_asked: bool
) -> None:
    """systemd starts Debian's LXD when somebody connects to its socket; systemctl(1), is-active."""
    systemctl = Path(case.places.path) / "systemctl"
    systemctl.write_text(f'#!/bin/sh\ntest "$*" = "is-active --quiet lxd" && exit {status}\n')
    systemctl.chmod(0o755)
    assert bool(moved.left_engine(case, SECONDS)) is is_asked
    assert bool(lxd.asked) is is_asked


def test_an_engine_that_was_left_and_runs_no_more_says_nothing(case: Case, lxd: Stub) -> None:
    lxd.shutdown()
    lxd.server_close()
    assert moved.left_engine(case, SECONDS) == []
    assert only(moved.interrupted_move(has(), case, SECONDS)).level is Level.OK


def test_one_that_does_not_answer_is_no_problem(case: Case, lxd: Stub) -> None:
    lxd.is_broken = True
    finding = only(moved.left_engine(case, SECONDS))
    assert finding.level is Level.NOTE
    assert "does not answer" in finding.what
    assert only(moved.interrupted_move(has(), case, SECONDS)).level is Level.OK
