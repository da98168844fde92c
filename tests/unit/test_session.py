"""How the end of a command is told from its output."""

from __future__ import annotations

from podyd.lxd.session import MarkedStream


def test_what_is_held_is_given_once() -> None:
    marked = MarkedStream("n")
    assert marked.feed(b"a\0") == b"a"
    assert marked.is_holding
    assert marked.rest() == b"\0"
    assert not marked.is_holding
    assert marked.rest() == b""
    assert marked.feed(b"b\0") == b"b"
    assert marked.rest() == b"\0"


def test_a_mark_that_comes_late_is_one_all_the_same() -> None:
    marked = MarkedStream("n")
    assert marked.feed(b"a\0pod") == b"a"
    assert marked.rest() == b"\0pod"
    assert marked.feed(b"yd-n:3") == b""
    assert marked.feed(b";") == b""
    assert marked.exit_code == 3
