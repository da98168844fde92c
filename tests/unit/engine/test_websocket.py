"""A websocket whose other end has gone already."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest
from tornado.httpclient import HTTPClientError

from podyd.engine.websocket import connect

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, PING = 0x81, 0x89


def frame(opcode: int, payload: bytes) -> bytes:
    return bytes([opcode, len(payload)]) + payload


async def greet(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    heard: asyncio.Future[bytes] | None = None,
) -> None:
    """Accept a websocket, and send everything at once; what comes then is heard."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    key = head.lower().partition("sec-websocket-key: ")[0]
    key = head[len(key) + len("sec-websocket-key: ") :].partition("\r\n")[0]
    accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        + frame(TEXT, b"one")
        + frame(TEXT, b"two")
        + frame(PING, b"keepalive")
        + frame(TEXT, b"three")
    )
    came = await reader.read()
    if heard is not None:
        heard.set_result(came)
    writer.close()


def test_what_came_before_the_end_is_read_though_a_ping_cannot_be_answered() -> None:
    async def talk() -> list[object]:
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection = await connect(f"ws://127.0.0.1:{port}/")
        # As when the end of the connection is seen before the ping is handled: the second message
        # waits for the first one to be taken.
        assert await connection.read_message() == "one"
        stream = connection.protocol.stream
        assert stream is not None
        stream.close()
        messages: list[object] = []
        while (message := await connection.read_message()) is not None:
            messages.append(message)
        connection.close()
        server.close()
        await server.wait_closed()
        return messages

    assert asyncio.run(talk()) == ["two", "three"]


@pytest.mark.parametrize("answers_pings", [True, False])
def test_who_does_not_read_is_sent_nothing(answers_pings: bool) -> None:
    async def talk() -> bytes:
        heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await greet(reader, writer, heard)

        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            connection = await connect(f"ws://127.0.0.1:{port}/", answers_pings=answers_pings)
            while await connection.read_message() != "three":
                pass
            stream = connection.protocol.stream
            assert stream is not None
            stream.close()
            ended = await heard
            connection.close()
            return ended

    assert (asyncio.run(talk()) != b"") == answers_pings


def test_a_refusal_is_an_error() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def talk() -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            await connect(f"ws://127.0.0.1:{port}/")

    with pytest.raises(HTTPClientError, match="404"):
        asyncio.run(talk())


def test_who_stops_connecting_leaves_no_connection() -> None:
    async def talk() -> bytes:
        heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await go_on.wait()
            await greet(reader, writer, heard)

        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            connecting = asyncio.ensure_future(connect(f"ws://127.0.0.1:{port}/"))
            await asked.wait()
            connecting.cancel()
            go_on.set()
            request = await asyncio.wait_for(heard, 10)
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=10)
            return request

    assert asyncio.run(talk())[:1] == b"\x88", "the frame that closes it"
