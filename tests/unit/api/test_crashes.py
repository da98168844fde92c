"""What nobody has foreseen ends what it was in, and its caller is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

from podyd.api.frames import END, Frames
from podyd.api.socket import Socket
from podyd.contract.answers import Answer, FileIn, FileOut, WebSocket
from podyd.contract.operation import GET, POST, Access, Ends, Nothing, Operation, Proof
from podyd.contract.pods import Ended, Start
from podyd.engine.streams import Streams
from podyd.pods.files import Incoming, Outgoing
from tests.unit.api.test_handler import serving

SOCKET = WebSocket(Start, Ended, "")
# Not as it stands in a line of the code, which a traceback may show.
SECRET = "sEcret-" + str(1)
TALKING = (b'\x04{"cmd": "true"}',)
Ask = Callable[[int], Awaitable[None]]


def play(kind: Answer, answer: object, ask: Ask) -> None:
    """Ask a server, by its port, that has one operation, which answers in this way."""
    crashing = Operation(
        "/crash",
        GET + POST,
        Nothing,
        kind,
        "Crashes.",
        access=Access.OPEN,
        proof=Proof.READS,
        ends=Ends.WITH_CALLER,
    )

    async def bound(call: object) -> Any:
        return answer

    async def whole() -> None:
        async with serving(bound, crashing) as port:
            await asyncio.wait_for(ask(port), 10)

    asyncio.run(whole())


async def end_of(port: int, frames: tuple[bytes, ...] = TALKING) -> dict[str, Any]:
    """podyd's last message on a WebSocket on which these were sent; nothing comes after it."""
    connection = await websocket_connect(f"ws://127.0.0.1:{port}/crash")
    for frame in frames:
        await connection.write_message(frame, binary=True)
    ended: dict[str, Any] = {}
    while (message := await connection.read_message()) is not None:
        assert isinstance(message, bytes)
        assert not ended, message
        if message[0] == END:
            ended = json.loads(message[1:])
    connection.close()
    assert ended, "closed without a word"
    return ended


class Slot:
    """What a route answers with, which has to be given back."""

    is_open = True

    def close(self) -> None:
        self.is_open = False


class CrashingShell(Slot):
    async def run(self, start: Start, streams: Streams) -> Ended:
        return Ended(exit_code=int(SECRET), timed_out=False)


class WaitingShell(Slot):
    async def run(self, start: Start, streams: Streams) -> Ended:
        await asyncio.Event().wait()
        raise AssertionError


def check_log(text: str) -> None:
    assert "/crash crashed: ValueError" in text
    assert SECRET not in text


def test_a_shell_that_crashes_ends_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    slot = CrashingShell()

    async def ask(port: int) -> None:
        ended = await end_of(port)
        assert (ended["exit_code"], ended["code"]) == (-1, "internal_error")
        assert SECRET not in str(ended)

    play(SOCKET, slot, ask)
    assert not slot.is_open
    check_log(caplog.text)
    assert "in run" in caplog.text, "the traceback"


def crash(*_: object) -> None:
    raise ValueError(SECRET)


@pytest.mark.parametrize("where", ["ping", "received"])
def test_what_goes_on_beside_a_shell_crashes(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Socket if where == "ping" else Frames, where, crash)
    slot = WaitingShell()

    async def ask(port: int) -> None:
        assert (await end_of(port))["code"] == "internal_error"

    play(SOCKET, slot, ask)
    assert not slot.is_open
    check_log(caplog.text)


def test_a_last_word_that_cannot_be_said_ends_the_socket_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Frames, "end", crash)
    slot = CrashingShell()

    async def ask(port: int) -> None:
        with pytest.raises(AssertionError, match="closed without a word"):
            await end_of(port)

    play(SOCKET, slot, ask)
    assert not slot.is_open


class CrashingFile(Outgoing):
    """A tar file that breaks off; its length is not known."""

    def __init__(self, *, begins: bool) -> None:
        self.headers = {"Content-Type": "application/x-tar"}
        self._begins = begins
        self.is_open = True

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        if self._begins:
            await send(b"half")
        crash()

    def close(self) -> None:
        self.is_open = False


@pytest.mark.parametrize("begins", [True, False])
def test_half_a_file_is_not_taken_for_a_whole_one(
    begins: bool, caplog: pytest.LogCaptureFixture
) -> None:
    outgoing = CrashingFile(begins=begins)

    async def ask(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /crash HTTP/1.1\r\nHost: x\r\n\r\n")
        if begins:
            output = await reader.read()
            assert b"half" in output
            assert not output.endswith(b"0\r\n\r\n"), "the end of a whole one"
        else:
            assert b" 500 " in await reader.readline()
        writer.close()

    play(FileOut(Ended), outgoing, ask)
    assert not outgoing.is_open
    check_log(caplog.text)


class CrashingUpload(Incoming):
    def __init__(self) -> None:
        self.is_open = True

    async def run(self, receive: Callable[[], Awaitable[bytes | None]]) -> Any:
        await receive()
        crash()

    def close(self) -> None:
        self.is_open = False


def test_a_file_that_comes_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    incoming = CrashingUpload()

    async def ask(port: int) -> None:
        client = AsyncHTTPClient(force_instance=True)
        url, body = f"http://127.0.0.1:{port}/crash", b"x" * 300_000
        answer = await client.fetch(url, method="POST", body=body, raise_error=False)
        client.close()
        assert (answer.code, json.loads(answer.body)["code"]) == (500, "internal_error")

    play(FileIn(Ended), incoming, ask)
    assert not incoming.is_open
    check_log(caplog.text)
