"""A stream of messages over a WebSocket, which a test gives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

from podyd.api import socket as module
from podyd.api.binding import Call
from podyd.board import live
from podyd.board.live import Live, Viewer
from podyd.config.loader import parse
from podyd.contract.events import EVENTS
from podyd.contract.operation import Nothing
from tests.unit.api.test_handler import serving
from tests.unit.board.test_live import FakeSources, until

FOR_ALL = parse("web: {status_allow: [127.0.0.1]}")
PATIENCE = 20.0
UPGRADE = (
    b"GET /events HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Giver:
    """Gives whoever comes a viewer, and knows them."""

    def __init__(self) -> None:
        self.sources = FakeSources()
        self.live = Live(self.sources)
        self.viewers: list[Viewer] = []

    async def __call__(self, call: Call[Nothing]) -> Viewer:
        assert call.login is None
        self.viewers.append(self.live.viewer(None))
        return self.viewers[-1]

    @contextlib.asynccontextmanager
    async def showing(self) -> AsyncIterator[None]:
        running = asyncio.ensure_future(self.live.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait({running})
            await asyncio.sleep(0)  # What it waited for ends a turn later.

    async def until_left(self) -> None:
        await until(lambda: not self.live._viewers)

    async def until_there(self) -> None:
        await until(lambda: bool(self.live._viewers))


async def connect(port: int) -> WebSocketClientConnection:
    return await websocket_connect(f"ws://127.0.0.1:{port}/events")


async def closed(connection: WebSocketClientConnection) -> tuple[int | None, str | None]:
    """Take what comes until podyd closes the connection; the code and the reason."""

    async def read() -> None:
        while await connection.read_message() is not None:
            pass

    await asyncio.wait_for(read(), PATIENCE)
    connection.close()
    return connection.close_code, connection.close_reason


def test_messages_are_text_and_end_with_the_connection() -> None:
    async def work() -> None:
        giver = Giver()
        async with giver.showing(), serving(giver, EVENTS, FOR_ALL) as port:
            connection = await connect(port)
            message = await asyncio.wait_for(connection.read_message(), PATIENCE)
            assert isinstance(message, str)
            assert json.loads(message)["whole"] is True
            connection.close()
            await giver.until_left()

    asyncio.run(work())


@pytest.mark.parametrize("message", ["hello", b"\0", "x" * 2000])
def test_who_sends_anything_is_disconnected(message: str | bytes) -> None:
    async def work() -> None:
        giver = Giver()
        async with serving(giver, EVENTS, FOR_ALL) as port:
            connection = await connect(port)
            await connection.write_message(message, binary=isinstance(message, bytes))
            code, reason = await closed(connection)
            assert (code, reason) in [(1008, "malformed_message"), (1009, "message too big")]
            await giver.until_left()

    asyncio.run(work())


def test_who_hangs_up_before_the_upgrade_crashes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        giver = Giver()
        async with serving(giver, EVENTS, FOR_ALL) as port:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(UPGRADE)
                # Closing it resets the connection.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await until(lambda: bool(giver.viewers) and not giver.live._known)

    asyncio.run(work())
    assert "crashed" not in caplog.text


def test_who_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_SECONDS", "GATHER_SECONDS"):
        monkeypatch.setattr(live, name, 0.001)
    monkeypatch.setattr(live, "PER_SECOND", 10_000)
    monkeypatch.setattr(live, "STUCK_SECONDS", 0.2)

    async def work() -> None:
        giver = Giver()
        async with giver.showing(), serving(giver, EVENTS, FOR_ALL) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(UPGRADE)
            await reader.readuntil(b"\r\n\r\n")
            number = 0
            await giver.until_there()
            while giver.live._viewers:
                assert number < 1000
                number += 1
                giver.sources.card = f"{number} " + "x" * 200_000
                giver.live.poke()
                await asyncio.sleep(0.01)
            writer.close()

    asyncio.run(work())


def test_who_is_not_logged_in_goes_when_the_status_is_not_for_all_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PING_SECONDS", 0.05)

    async def work() -> None:
        giver = Giver()
        async with serving(giver, EVENTS, FOR_ALL) as port:
            connection = await connect(port)
            reading = asyncio.ensure_future(closed(connection))
            await asyncio.sleep(0.2)
            assert not reading.done()
            monkeypatch.setattr(
                "podyd.people.login.Logins.may_see_status", lambda self, address: False
            )
            assert await reading == (1008, "unauthorized")

    asyncio.run(work())


def test_a_podyd_that_stops_says_so() -> None:
    async def work() -> None:
        giver = Giver()
        async with serving(giver, EVENTS, FOR_ALL) as port:
            connection = await connect(port)
            reading = asyncio.ensure_future(closed(connection))
            await giver.until_there()
            for task in asyncio.all_tasks():
                if "_run_opened" in repr(task.get_coro()):
                    task.cancel()
            assert await reading == (1001, "shutting_down")

    asyncio.run(work())


def test_without_an_upgrade_it_says_what_it_is() -> None:
    async def work() -> None:
        giver = Giver()
        async with serving(giver, EVENTS, FOR_ALL) as port:
            client = AsyncHTTPClient(force_instance=True)
            try:
                response = await client.fetch(f"http://127.0.0.1:{port}/events", raise_error=False)
            finally:
                client.close()
            assert response.code == 426
            assert json.loads(response.body)["code"] == "upgrade_required"
            # What was kept for it is free again.
            assert not giver.live._known

    asyncio.run(work())
