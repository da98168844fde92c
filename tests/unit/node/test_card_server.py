"""The root helper where something fails; what it does in the kernel is in the integration tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from podyd.cli.main import main
from podyd.node import card_enforcement, card_server
from podyd.node.card_enforcement import PROGRAM_NAME, Bpf, Enforcer
from podyd.node.card_rules import Kept, Numbers
from podyd.node.card_server import _Server
from podyd.node.payloads import Hierarchy, Payload

CARD = (195, 0)
TABLE = {"alice": ["195:0"]}


class Kernel:
    """Refuses cards in a directory in place of a cgroup; `fails` once for each that is there."""

    name = "bpf"

    def __init__(self) -> None:
        self.refused: dict[str, Numbers] = {}
        self.fails: list[OSError] = []

    def check(self) -> None:
        pass

    def refuse(self, payload: Payload, refused: Numbers, cards: Numbers) -> None:
        if self.fails:
            raise self.fails.pop()
        self.refused[payload.cgroup] = refused


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel()
    hierarchy = Hierarchy(tmp_path, "")
    monkeypatch.setattr(card_enforcement, "hierarchies", lambda _: {"": hierarchy})
    monkeypatch.setattr(card_enforcement, "_KINDS", {"bpf": ("", lambda _: fake)})
    monkeypatch.setattr(card_enforcement, "WAYS", "bpf")
    monkeypatch.setattr(card_enforcement, "card_numbers", lambda: frozenset({CARD}))
    for name in ("alice", "bob"):
        (tmp_path / f"lxc.payload.podyd_{name}").mkdir()
    return fake


def test_a_table_that_cannot_be_kept_counts(kernel: Kernel, tmp_path: Path) -> None:
    """As on a full disk."""
    (tmp_path / "full").write_text("")
    server = _Server(Enforcer("podyd", Kept()), tmp_path / "full/table", os.geteuid())
    answer = asyncio.run(server._answer({"permit": TABLE}))
    assert answer == {"way": "bpf", "problem": ""}
    assert kernel.refused == {"alice": frozenset(), "bob": {CARD}}


@pytest.mark.parametrize("kept", [None, "", '{"permit": {}, "had": {}}', Kept({})])
def test_a_broken_podyd_yaml_keeps_none_away_that_knows_its_project(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kept: str | Kept | None,
) -> None:
    """As at boot, when pods start whatever is in that file."""
    served: list[dict[str, Any]] = []
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(card_server, "serve", lambda *_, **how: served.append(how))
    config = tmp_path / "podyd.yaml"
    config.write_text("pods: [")
    if isinstance(kept, Kept):
        kept = replace(kept, project="lab").packed()
    if kept is not None:
        (tmp_path / "permit.json").write_text(kept)
    user = pwd.getpwuid(os.geteuid()).pw_name
    status = main(["cards", "--config", str(config), "--user", user])
    assert "podyd.yaml is not valid YAML" in capsys.readouterr().err
    if kept and "lab" in kept:
        assert (status, [how["project"] for how in served]) == (0, ["lab"])
    else:
        assert (status, served) == (os.EX_CONFIG, [])


def test_what_the_kernel_could_not_do_is_done_again(kernel: Kernel) -> None:
    enforcer = Enforcer("podyd", Kept({}))
    kernel.fails = [OSError(12, "no memory")]
    assert enforcer.enforce().way == ""
    assert len(kernel.refused) == 1
    again = enforcer.look_again()
    assert again is not None
    assert again.way == "bpf"
    assert len(kernel.refused) == 2
    assert enforcer.look_again() is None


def test_a_pod_of_which_nothing_was_heard_has_rules_at_the_next_look(
    kernel: Kernel, tmp_path: Path
) -> None:
    """As where the kernel watches no more directories."""
    enforcer = Enforcer("podyd", Kept({}))
    enforcer.enforce()
    (tmp_path / "lxc.payload.podyd_late").mkdir()
    assert enforcer.look_again() is not None
    assert "late" in kernel.refused
    assert enforcer.look_again() is None


def test_a_program_that_its_owner_replaces_just_then_keeps_no_rule_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached: list[int] = []

    @contextlib.contextmanager
    def loaded(code: bytes, name: str) -> Iterator[int]:
        assert name == PROGRAM_NAME
        yield 7

    @contextlib.contextmanager
    def opened(identity: int) -> Iterator[int]:
        raise FileNotFoundError(2, "no such program")
        yield

    for name, fake in {
        "loaded": loaded,
        "opened": opened,
        "name_and_tag": lambda _: (PROGRAM_NAME, b"tag"),
        "attached": lambda _: [99],
        "attach": lambda _, program: attached.append(program),
    }.items():
        monkeypatch.setattr(f"podyd.node.card_enforcement.bpf.{name}", fake)
    payload = Payload(tmp_path, 1, "alice")
    Bpf(Hierarchy(tmp_path, "")).refuse(payload, frozenset({CARD}), frozenset({CARD}))
    assert attached == [7]
