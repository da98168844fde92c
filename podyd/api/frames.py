"""The framed protocol between a command in a pod and its client.

Both ends send frames whose first byte is the channel, as in Kubernetes' v4 protocol. Each announces
its window, in bytes: the other one sends no more than that until some of it is acknowledged. So
memory is bounded at both ends, and a signal or a ping never waits behind data.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from podyd.base.errors import BadRequest
from podyd.contract.kinds import Whole, parse_json
from podyd.contract.pods import MAX_COLUMNS, MAX_ROWS, SIGNALS, Start
from podyd.engine.streams import STDIN, Signal, TerminalSize, Wish

# The channels beside those of the streams, which have their numbers.
END, CONTROL = 3, 4
# So much input podyd buffers for a command that does not read it.
WINDOW_BYTES = 256 * 1024
# Input is acknowledged a quarter of the window at a time, and not at each key.
ACKNOWLEDGE_BYTES = WINDOW_BYTES // 4
MAX_WISHES = 64
START_SECONDS = 10.0

Send = Callable[[bytes], Awaitable[None]]


class Frames:
    """podyd's end: frames come in by `received` and go out by `send`, which waits until sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: asyncio.Future[Start] = asyncio.get_running_loop().create_future()
        self._input: deque[bytes] = deque()
        self._ended = False
        # In bytes: in `_input`, taken from it, and acknowledged of that to the client.
        self._buffered = 0
        self._taken = 0
        self._reported = 0
        self._has_input = asyncio.Event()
        self._wishes: asyncio.Queue[Wish] = asyncio.Queue(MAX_WISHES)
        # The client's window in bytes; None if it uses TCP's flow control alone.
        self._window: int | None = None
        self._sent = 0
        self._acknowledged = 0
        self._room = asyncio.Event()

    # --- What comes in ---------------------------------------------------------------------------

    def received(self, frame: bytes | str) -> None:
        """Take a frame. Raises BadRequest if it is none, or if it is more than was agreed."""
        if not isinstance(frame, bytes) or not frame or frame[0] not in (STDIN, CONTROL):
            raise _malformed("begin with the byte of a channel: 0 for stdin, 4 for control")
        if frame[0] == STDIN:
            self._buffer(frame[1:])
        elif not self._start.done():
            self._begin(frame[1:])
        else:
            self._control(frame[1:])

    def _buffer(self, data: bytes) -> None:
        self._buffered += len(data)
        if self._buffered > WINDOW_BYTES:
            raise _malformed(f"be at most {WINDOW_BYTES} bytes ahead of what was taken")
        if data:
            self._input.append(data)
            self._has_input.set()

    def _begin(self, data: bytes) -> None:
        start = parse_json(Start, data, "The first control message")
        self._window = start.window
        self._start.set_result(start)

    def _control(self, data: bytes) -> None:
        try:
            ((name, value),) = json.loads(data).items()
        except (ValueError, AttributeError, RecursionError):
            raise _malformed("be one JSON object with one key where they are control") from None
        match name:
            case "eof":
                self._ended = True
                self._has_input.set()
            case "taken" if isinstance(value, int):
                self._acknowledged = value
                self._room.set()
            case "signal" if value in SIGNALS:
                self._wish(Signal(value))
            case "resize" if isinstance(value, dict):
                self._wish(_size(value))
            case _:
                raise _malformed("have resize, signal, eof or taken where they are control")

    def _wish(self, wish: Wish) -> None:
        try:
            self._wishes.put_nowait(wish)
        except asyncio.QueueFull:
            raise _malformed(f"leave at most {MAX_WISHES} signals and sizes waiting") from None

    async def start(self) -> Start:
        """The first message, with what to run. Raises BadRequest after `START_SECONDS`."""
        # Not wait_for, which up to Python 3.11 forgets a cancellation that comes with the message.
        done, _ = await asyncio.wait({self._start}, timeout=START_SECONDS)
        if not done:
            raise BadRequest(
                f"No control message with what to run has come within {START_SECONDS:g} s.",
                code="nothing_to_run",
            )
        return self._start.result()

    async def input(self) -> bytes | None:
        """The next piece of the input; None at its end. The pieces before it count as taken."""
        await self._acknowledge()
        while not self._input:
            if self._ended:
                return None
            self._has_input.clear()
            await self._has_input.wait()
        data = self._input.popleft()
        self._buffered -= len(data)
        self._taken += len(data)
        return data

    async def _acknowledge(self) -> None:
        if self._taken - self._reported >= ACKNOWLEDGE_BYTES:
            self._reported = self._taken
            await self.control({"taken": self._taken})

    async def wish(self) -> Wish:
        """The next signal or new size of the terminal."""
        return await self._wishes.get()

    # --- What goes out ---------------------------------------------------------------------------

    async def output(self, stream: int, data: bytes) -> None:
        """Send output; waits while the client's window is full."""
        while data:
            room = len(data)
            if self._window is not None:
                while (room := self._window - self._sent + self._acknowledged) <= 0:
                    self._room.clear()
                    await self._room.wait()
            self._sent += len(data[:room])
            await self._send(bytes([stream]) + data[:room])
            data = data[room:]

    async def control(self, message: Mapping[str, Any]) -> None:
        await self._send(bytes([CONTROL]) + json.dumps(message).encode())

    async def end(self, message: Mapping[str, Any]) -> None:
        """Send how the command has ended."""
        await self._send(bytes([END]) + json.dumps(message, ensure_ascii=False).encode())


def _size(value: Mapping[str, Any]) -> TerminalSize:
    try:
        rows = Whole(1, MAX_ROWS).parse(str(value["rows"]))
        return TerminalSize(rows, Whole(1, MAX_COLUMNS).parse(str(value["cols"])))
    except (KeyError, ValueError):
        raise _malformed("have rows and cols, whole numbers, in resize") from None


def _malformed(what: str) -> BadRequest:
    return BadRequest(f"Messages to a command must {what}.", code="malformed_message")
