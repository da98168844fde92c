"""The root helper where something fails; what it does in the kernel is in the integration tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from podyd.node import card_enforcement
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
