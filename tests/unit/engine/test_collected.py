"""What is kept of a command's output, and what is answered of it."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass

import pytest

from podyd.base.longtext import LongText, json_pieces
from podyd.engine.collected import MAX_TURNS, Collected
from podyd.engine.streams import STDERR, STDOUT


def kept(limit: int, *pieces: tuple[int, bytes]) -> Collected:
    output = Collected(limit)
    for stream, data in pieces:
        output.add(stream, data)
    return output


def texts(output: Collected) -> tuple[str, str, str]:
    return str(output.stdout), str(output.stderr), str(output.log)


def test_the_log_has_both_streams_as_they_came() -> None:
    output = kept(99, (STDERR, b"1"), (STDOUT, b"2"), (STDOUT, b"3"), (STDERR, b"4"))
    assert texts(output) == ("23", "14", "1234")


def test_a_character_that_the_other_stream_cuts_stands_where_it_is_whole() -> None:
    output = kept(99, (STDOUT, b"a\xe2\x82"), (STDERR, b"E"), (STDOUT, b"\xac\xff"))
    assert texts(output) == ("a€\ufffd", "E", "aE€\ufffd")


@pytest.mark.parametrize("limit", [-1, 0, 3])
def test_no_limit_spoils_what_is_kept(limit: int) -> None:
    output = kept(limit, (STDOUT, b"hello\n"), (STDOUT, b"world\n"), (STDERR, b"ab"))
    most = max(0, limit)
    assert texts(output)[:2] == ("hello\nworld\n"[:most], "ab"[:most])
    assert output.truncated


def test_streams_that_change_all_the_time_cost_little_more_than_their_bytes() -> None:
    count = 10 * MAX_TURNS
    tracemalloc.start()
    output = Collected(count)
    for _ in range(count):
        output.add(STDOUT, b"o")
        output.add(STDERR, b"e")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 3 * count + 10 * MAX_TURNS
    ordered = MAX_TURNS // 2
    rest = count - ordered
    assert texts(output) == ("o" * count, "e" * count, "oe" * ordered + "o" * rest + "e" * rest)


def test_the_longest_text_is_given_in_small_pieces() -> None:
    output = kept(2**20, (STDOUT, b"\0" * 2**20), (STDERR, b"\xff" * 2**20))
    for text in (output.stdout, output.stderr, output.log):
        assert max(map(len, text)) <= 2**15


@dataclass(frozen=True)
class Answer:
    """All that an answer can have."""

    text: LongText
    entries: list[dict[str, str]]
    none: list[int]
    number: float


def test_json_in_pieces_is_the_same() -> None:
    parts = ['a"b', "\x01\n", "", "€🚀\ufffd"]
    answer = Answer(LongText(lambda: iter(parts)), [{"a": "b"}, {}], [], 1.5)
    assert json.loads("".join(json_pieces(answer))) == {
        "text": "".join(parts),
        "entries": [{"a": "b"}, {}],
        "none": [],
        "number": 1.5,
    }
