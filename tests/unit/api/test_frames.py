"""The line to a command: what may be sent, and who waits for whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from podyd.api.frames import CONTROL, END, WINDOW_BYTES, Line
from podyd.base.errors import BadRequest
from podyd.engine.streams import STDERR, STDOUT, Signal, Size

Talk = Callable[[Line, list[bytes]], Awaitable[None]]


def converse(talk: Talk) -> list[bytes]:
    """What a line sends, while something is done with it."""

    async def both() -> list[bytes]:
        sent: list[bytes] = []

        async def send(frame: bytes) -> None:
            sent.append(frame)

        await talk(Line(send), sent)
        return sent

    return asyncio.run(both())


def control(message: object) -> bytes:
    return bytes([CONTROL]) + json.dumps(message).encode()


def test_input_comes_in_order_and_has_an_end() -> None:
    async def talk(line: Line, sent: list[bytes]) -> None:
        for frame in (control({"cmd": "cat"}), b"\0one", b"\0", b"\0two", control({"eof": True})):
            line.received(frame)
        assert (await line.start()).cmd == "cat"
        assert [await line.input() for _ in range(3)] == [b"one", b"two", None]

    assert converse(talk) == []


def test_what_was_taken_is_told_now_and_then() -> None:
    async def talk(line: Line, sent: list[bytes]) -> None:
        part = b"\0" + b"x" * (WINDOW_BYTES // 2)
        for _ in range(5):
            line.received(part)
            await line.input()

    told = [json.loads(frame[1:])["taken"] for frame in converse(talk)]
    assert told == [WINDOW_BYTES // 2 * count for count in range(1, 5)]


def test_more_input_than_a_window_is_refused() -> None:
    async def talk(line: Line, sent: list[bytes]) -> None:
        line.received(b"\0" + b"x" * WINDOW_BYTES)
        with pytest.raises(BadRequest, match=str(WINDOW_BYTES)):
            line.received(b"\0x")

    converse(talk)


def test_output_waits_for_room_in_their_window() -> None:
    async def talk(line: Line, sent: list[bytes]) -> None:
        line.received(control({"window": 4}))
        writing = asyncio.ensure_future(line.output(STDOUT, b"abcdefghij"))
        await asyncio.sleep(0.01)
        assert sent == [b"\1abcd"]
        line.received(control({"taken": 3}))
        await asyncio.sleep(0.01)
        assert sent[1:] == [b"\1efg"]
        line.received(control({"taken": 7}))
        await writing

    assert converse(talk)[2:] == [b"\1hij"]


def test_wishes_and_the_end() -> None:
    async def talk(line: Line, sent: list[bytes]) -> None:
        line.received(control({}))
        line.received(control({"resize": {"rows": 5, "cols": 6}}))
        line.received(control({"signal": "INT"}))
        assert [await line.wish(), await line.wish()] == [Size(5, 6), Signal("INT")]
        await line.output(STDERR, b"e")
        await line.end({"exit_code": 0})

    assert converse(talk) == [b"\2e", bytes([END]) + b'{"exit_code": 0}']


@pytest.mark.parametrize(
    "frame",
    [
        "text",
        b"",
        b"\1x",
        b"\4{",
        b"\4[]",
        b"\4{}",
        control({"a": 1, "b": 2}),
        control({"signal": ["INT"]}),
        control({"signal": "SEGV"}),
        control({"taken": "1"}),
        control({"resize": {"rows": 1}}),
        control({"resize": {"rows": 0, "cols": 1}}),
        b"\4" + b"[" * 100_000,
    ],
)
def test_what_is_no_message(frame: bytes | str) -> None:
    async def talk(line: Line, sent: list[bytes]) -> None:
        line.received(control({}))
        with pytest.raises(BadRequest):
            line.received(frame)

    converse(talk)


def test_signals_that_nobody_takes_are_bounded() -> None:
    async def talk(line: Line, sent: list[bytes]) -> None:
        line.received(control({}))
        with pytest.raises(BadRequest):
            for _ in range(1000):
                line.received(control({"signal": "INT"}))

    converse(talk)
