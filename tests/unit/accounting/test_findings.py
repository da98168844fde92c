"""What `podyd doctor --keep` leaves, and what podyd reads of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from podyd.accounting.findings import read
from podyd.admin.doctor.finding import Finding, Level
from podyd.cli import doctor
from podyd.contract.admin import FindingInfo


def test_what_doctor_keeps_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "podyd.yaml"
    config.write_text(f"auth: {{socket: {tmp_path}/auth.sock}}\n")
    finding = Finding("lxd_pool", Level.WARNING, "The pool is nearly full.", "lxc storage info")
    monkeypatch.setattr(doctor, "diagnose", lambda path: [finding])
    assert doctor.run(config, as_json=True, keep=True) == 1
    kept = asyncio.run(read(tmp_path / "findings.json"))
    row = FindingInfo("lxd_pool", "warning", "The pool is nearly full.", "lxc storage info")
    assert (kept.findings, kept.problem) == ([row], None)
    assert kept.time is not None and kept.time.endswith("Z")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"time": "", "findings": [{"check": 1}]}'])
def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "findings.json"
    path.write_text(text)
    output = asyncio.run(read(path))
    assert (output.time, output.findings) == (None, None)
    assert output.problem and str(path) in output.problem


def test_where_doctor_has_left_nothing(tmp_path: Path) -> None:
    output = asyncio.run(read(tmp_path / "none.json"))
    assert output.problem and "--keep" in output.problem
    assert json.dumps(vars(output))
