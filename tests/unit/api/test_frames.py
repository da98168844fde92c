"""Frames to and from a command: what may be sent, and who waits for whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from podyd.api.frames import CONTROL, END, WINDOW_BYTES, Frames
from podyd.base.errors import BadRequest
from podyd.engine.streams import STDERR, STDOUT, Signal, TerminalSize

Talk = Callable[[Frames, list[bytes]], Awaitable[None]]


def converse(talk: Talk) -> list[bytes]:
    """What is sent, while something is done with it."""

    async def both() -> list[bytes]:
        sent: list[bytes] = []

        async def send(frame: bytes) -> None:
            sent.append(frame)

        await talk(Frames(send), sent)
        return sent

    return asyncio.run(both())


def control(message: object) -> bytes:
    return bytes([CONTROL]) + json.dumps(message).encode()


def test_input_comes_in_order_and_has_an_end() -> None:
    async def talk(frames: Frames, sent: list[bytes]) -> None:
        for frame in (control({"cmd": "cat"}), b"\0one", b"\0", b"\0two", control({"eof": True})):
            frames.received(frame)
        assert (await frames.start()).cmd == "cat"
        assert [await frames.input() for _ in range(3)] == [b"one", b"two", None]

    assert converse(talk) == []


def test_what_was_taken_is_told_now_and_then() -> None:
    async def talk(frames: Frames, sent: list[bytes]) -> None:
        part = b"\0" + b"x" * (WINDOW_BYTES // 2)
        for _ in range(5):
            frames.received(part)
            await frames.input()

    data = [json.loads(frame[1:])["taken"] for frame in converse(talk)]
    assert data == [WINDOW_BYTES // 2 * count for count in range(1, 5)]


def test_more_input_than_a_window_is_refused() -> None:
    async def talk(frames: Frames, sent: list[bytes]) -> None:
        frames.received(b"\0" + b"x" * WINDOW_BYTES)
        with pytest.raises(BadRequest, match=str(WINDOW_BYTES)):
            frames.received(b"\0x")

    converse(talk)


def test_output_waits_for_room_in_their_window() -> None:
    async def talk(frames: Frames, sent: list[bytes]) -> None:
        frames.received(control({"window": 4}))
        writing = asyncio.ensure_future(frames.output(STDOUT, b"abcdefghij"))
        await asyncio.sleep(0.01)
        assert sent == [b"\1abcd"]
        frames.received(control({"taken": 3}))
        await asyncio.sleep(0.01)
        assert sent[1:] == [b"\1efg"]
        frames.received(control({"taken": 7}))
        await writing

    assert converse(talk)[2:] == [b"\1hij"]


def test_wishes_and_the_end() -> None:
    async def talk(frames: Frames, sent: list[bytes]) -> None:
        frames.received(control({}))
        frames.received(control({"resize": {"rows": 5, "cols": 6}}))
        frames.received(control({"signal": "INT"}))
        assert [await frames.wish(), await frames.wish()] == [TerminalSize(5, 6), Signal("INT")]
        await frames.output(STDERR, b"e")
        await frames.end({"exit_code": 0})

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
    async def talk(frames: Frames, sent: list[bytes]) -> None:
        frames.received(control({}))
        with pytest.raises(BadRequest):
            frames.received(frame)

    converse(talk)


def test_signals_that_nobody_takes_are_bounded() -> None:
    async def talk(frames: Frames, sent: list[bytes]) -> None:
        frames.received(control({}))
        with pytest.raises(BadRequest):
            for _ in range(1000):
                frames.received(control({"signal": "INT"}))

    converse(talk)
