"""`podyd migrate`: a move that was interrupted, what is left of one, and the engine that pods have
left.

The engine that podyd does not use is asked where podyd has used it before, and as far as it
answers: nothing that podyd does depends on it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from podyd.admin.doctor.case import Case
from podyd.admin.doctor.finding import Remark, check, note, ok, warning
from podyd.admin.migration import lock
from podyd.admin.migration.limits import listed
from podyd.admin.migration.mark import Mark, mark_of
from podyd.admin.setup import fingerprint
from podyd.base.errors import SetupError
from podyd.engine.admin import ASIDE, Admin
from podyd.engine.dialect import DIALECTS, Dialect, Place, kept
from podyd.engine.rest import Credentials

SYSTEMCTL_SECONDS = 10.0
# The exit status of `systemctl is-active` for a unit that is there and not active (systemctl(1)).
INACTIVE = 3


@check
def interrupted_move(admin: Admin, case: Case, timeout: float) -> Iterator[Remark]:
    """No pod is on its way from one engine to the other, where members do not see it."""
    try:
        with lock.without(case.config.state_dir, SetupError):
            pass
    except SetupError as problem:
        yield note(str(problem))
        return
    here, there = _marks(admin), _marks_elsewhere(case, timeout)
    chosen = kept(Path(case.config.state_dir)) or case.dialect
    if here and chosen != case.dialect and _are_over(here):
        yield warning(
            f"{case.path.name} says 'engine: {case.dialect.key}', so members do not see the pods"
            f" that were moved to {chosen.name}: {listed(here)}.",
            f"write 'engine: {chosen.key}' into {case.path}, then: systemctl restart podyd; or"
            f" {case.podyd('migrate --back')}",
        )
    elif here or (there and not (chosen == case.dialect and _are_over(there))):
        yield warning(
            "'podyd migrate' has not come to its end, so members do not see all of their pods:"
            f" {listed({*here, *there})}.",
            f"systemctl mask --now podyd; {case.podyd('migrate')}, which goes on, or"
            f" {case.podyd('migrate --back')}, which takes all back; systemctl unmask podyd;"
            " systemctl start podyd",
        )
    elif there:
        yield from _not_started(admin, case, there)
        yield note(
            f"{case.dialect.name} has the pods that were moved there, and where they come from they"
            f" still use disk space: {listed(there)}.",
            f"{case.podyd('migrate --finish')}, when all is well",
        )
    yield ok("No pod is on its way from one engine to another.")


def _not_started(admin: Admin, case: Case, there: dict[str, Mark]) -> Iterator[Remark]:
    """That pods which ran were moved, were not started then, and still do not run."""
    stopped = {item.name for item in admin.as_podyd_reads_them() if item.status == "stopped"}
    names = [name for name, mark in there.items() if mark.stage == "moved" and name in stopped]
    if names:
        command = case.dialect.command
        yield warning(
            f"These pods ran when 'podyd migrate' moved them to {case.dialect.name}, and do not run"
            f" there: {listed(names)}.",
            f"{command} start POD --project {case.project}; where it does not start, {command} info"
            f" POD --show-log --project {case.project} says why",
        )


@check
def limits_aside(admin: Admin, case: Case) -> Iterator[Remark]:
    """No limit of the project has stayed aside after a move.

    While the project is not restricted, the move is not over, and brings them back itself.
    """
    config = admin.project_config() or {}
    aside = {key: value for key, value in sorted(config.items()) if key.startswith(ASIDE)}
    if aside and config.get("restricted") == "true":
        limits = (f"{key.removeprefix(ASIDE)}={value}" for key, value in aside.items())
        project_set = f"{case.dialect.command} project set {case.project}"
        yield warning(
            f"Project {case.project} is without {', '.join(limits)} since 'podyd migrate', as"
            f" {case.dialect.name} did not take that back: what is there may be more, or a pod may"
            " have no such limit of its own.",
            f"{case.podyd('setup')}, which sets it again or says what is too much; for another"
            f" value, first: {'; '.join(f'{project_set} {key}=NUMBER' for key in aside)}",
        )
    yield ok("No limit of the project is put aside.")


@check
def left_engine(case: Case, timeout: float) -> Iterator[Remark]:
    """An engine that podyd has used before trusts it no more."""
    for dialect, place in _used_before(case):
        path = Credentials.below(case.config.state_dir, dialect).certificate
        ours = fingerprint(path.read_text(encoding="ascii"))
        try:
            trust = Admin(dialect, case.project, timeout, place).trust(ours)
        except SetupError:
            yield note(
                f"{dialect.name}, which podyd has used before, does not answer at {place.socket}:"
                " whether it still trusts podyd's certificate is not known."
            )
            continue
        if trust is None:
            yield ok(f"{dialect.name}, which podyd has used before, trusts it no more.")
        else:
            yield warning(
                f"podyd uses {case.dialect.name}, and {dialect.name} still trusts podyd's"
                f" certificate: whoever breaks into podyd reaches {dialect.name}, too.",
                f"{dialect.command} config trust remove {ours[:12]}",
            )


def _used_before(case: Case) -> Iterator[tuple[Dialect, Place]]:
    """The engine for which podyd has a certificate and which it does not use, if it runs."""
    for dialect in DIALECTS:
        place = dialect.running()
        if (
            dialect != case.dialect
            and place is not None
            and not _is_stopped(place, case.places.path)
            and not place.is_left_behind()
            and Credentials.below(case.config.state_dir, dialect).certificate.exists()
        ):
            yield dialect, place


def _is_stopped(place: Place, path: str) -> bool:
    """Whether systemd has it stopped; it would start one whose socket it has, if that was asked."""
    program = shutil.which("systemctl", path=path)
    if program is None:
        return False
    command = [program, "is-active", "--quiet", place.unit]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SYSTEMCTL_SECONDS,
        check=False,
    )
    return done.returncode == INACTIVE


def _marks_elsewhere(case: Case, timeout: float) -> dict[str, Mark]:
    marks: dict[str, Mark] = {}
    for dialect, place in _used_before(case):
        with contextlib.suppress(SetupError):
            admin = Admin(dialect, case.project, timeout, place)
            if admin.project_config() is not None:
                marks |= _marks(admin)
    return marks


def _marks(admin: Admin) -> dict[str, Mark]:
    """How far the move of each instance is that has begun."""
    marks = {item.name: mark_of(item.name, item.config) for item in admin.as_podyd_reads_them()}
    return {name: mark for name, mark in marks.items() if mark is not None}


def _are_over(marks: dict[str, Mark]) -> bool:
    """Whether all have been moved, though they may not have been started."""
    return all(mark.stage != "here" for mark in marks.values())
