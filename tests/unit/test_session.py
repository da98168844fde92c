"""How the end of a command is told from its output."""

from __future__ import annotations

import pytest

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


def fed(marked: MarkedStream, *pieces: bytes) -> bytes:
    return b"".join(marked.feed(piece) for piece in pieces)


MARK = b"\0podyd-n:"


@pytest.mark.parametrize("forged", [MARK, MARK + b"12", MARK + b"1234", MARK + b"x7;", MARK + b";"])
def test_what_only_begins_like_the_mark_is_output(forged: bytes) -> None:
    marked = MarkedStream("n")
    more = b"x" * 100_000
    assert fed(marked, forged, more, more) == forged + more + more
    assert not marked.is_holding
    assert fed(marked, MARK + b"3;") == b""
    assert marked.exit_code == 3


def test_no_more_is_held_than_the_mark_is_long() -> None:
    marked = MarkedStream("n")
    came = (MARK + b"123" + MARK[:-1] + b"\0\0") * 50
    given = b""
    for number in range(len(came)):
        given += marked.feed(came[number : number + 1])
        assert len(came[: number + 1]) - len(given) <= len(MARK) + 20
    assert given + marked.rest() == came


def test_the_mark_behind_forged_ones_is_found() -> None:
    marked = MarkedStream("n")
    assert fed(marked, MARK + MARK + b"1", MARK, b"4", b"2;behind") == MARK + MARK + b"1"
    assert marked.exit_code == 42
