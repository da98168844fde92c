"""`podyd doctor`: the findings on a terminal, or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from podyd.admin.doctor.diagnosis import diagnose
from podyd.admin.doctor.finding import AS_ROOT, Finding, Level
from podyd.base.clock import iso, now
from podyd.base.errors import ConfigError, SetupError
from podyd.config.loader import load
from podyd.config.schema import Config


def run(path: Path, *, as_json: bool, keep: bool) -> int:
    """Make and print all findings; returns 1 if there is a problem among them.

    `keep`: also write them where `podyd serve` reads them. Raises SetupError.
    """
    findings = diagnose(path)
    if keep:
        _keep(findings, path)
    return show(findings, as_json=as_json)


def _keep(findings: Sequence[Finding], path: Path) -> None:
    try:
        place = load(path).findings
    except ConfigError:  # One of the findings says so.
        place = Config().findings
    kept = {"time": iso(now()), "findings": _rows(findings)}
    new = place.with_name(f"{place.name}.new")
    try:
        # Sentences of doctor's have no secrets.
        new.write_text(json.dumps(kept))
        new.chmod(0o644)
        new.replace(place)
    except OSError as error:
        raise SetupError(f"The findings cannot be written to {place}: {error.strerror}.") from error


def show(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print findings; returns 1 if there is a problem among them."""
    print(_as_json(findings) if as_json else _as_text(findings))
    return int(any(finding.is_problem for finding in findings))


def _as_json(findings: Sequence[Finding]) -> str:
    well = not any(finding.is_problem for finding in findings)
    return json.dumps({"well": well, "findings": _rows(findings)}, indent=2)


def _rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [{**dataclasses.asdict(item), "level": item.level.value} for item in findings]


def _as_text(findings: Sequence[Finding]) -> str:
    """Findings as text, the worst first; those that are in order are only counted."""
    lines = []
    for level in (Level.ERROR, Level.WARNING, Level.NOTE):
        for item in findings:
            if item.level is level:
                lines.append(f"{level.value}: {item.what}")
                if item.do:
                    lines.append(f"    {item.do}")
    problems = sum(item.is_problem for item in findings)
    in_order = sum(item.level is Level.OK for item in findings)
    if problems:
        some = "one thing is" if problems == 1 else f"{problems} things are"
        return "\n".join([*lines, f"{some.capitalize()} wrong; {in_order} checks found all well."])
    blind = any(item.do == AS_ROOT for item in findings)
    well = "All is well, as far as this account may look." if blind else "All is well."
    return "\n".join([well, *lines])
