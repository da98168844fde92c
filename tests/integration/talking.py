"""A WebSocket client of the tests' own, for `/pod/exec-stream` and `/pod/shell`."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import websocket

from tests.integration.harness import Client

STDIN, STDOUT, STDERR, END, CONTROL = range(5)
PATIENCE = 20.0


def ended(exit_code: int, *, timed_out: bool = False) -> Mapping[str, Any]:
    """podyd's last message, where nothing was killed for memory."""
    return {
        "exit_code": exit_code,
        "timed_out": timed_out,
        "oom_killed": False,
        "memory_limit": None,
    }


@dataclass
class Talk:
    """A WebSocket to a command, and what has come of it so far."""

    connection: websocket.WebSocket
    out: bytes = b""
    err: bytes = b""
    controls: list[Mapping[str, Any]] = field(default_factory=list)
    ended: Mapping[str, Any] | None = None

    def control(self, **message: object) -> None:
        self.send(CONTROL, json.dumps(message).encode())

    def type(self, data: bytes) -> None:
        self.send(STDIN, data)

    def send(self, channel: int, data: bytes) -> None:
        self.connection.send_binary(bytes([channel]) + data)

    def step(self) -> int:
        """Take one message; its channel."""
        frame: bytes = self.connection.recv()
        assert frame, "the connection was closed before the end"
        channel, data = frame[0], frame[1:]
        if channel == STDOUT:
            self.out += data
        elif channel == STDERR:
            self.err += data
        elif channel == CONTROL:
            self.controls.append(json.loads(data))
        else:
            assert channel == END, frame
            self.ended = json.loads(data)
        return channel

    def wait_for(self, text: bytes) -> None:
        limit = time.monotonic() + PATIENCE
        while text not in self.out:
            assert time.monotonic() < limit, self.out
            assert self.step() != END, (self.out, self.ended)

    def end(self) -> Mapping[str, Any]:
        """Take everything; podyd's last message."""
        while self.ended is None:
            self.step()
        return self.ended

    def reset(self) -> None:
        """Vanish, with a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.sock.close()


def connect(client: Client, path: str, **params: object) -> websocket.WebSocket:
    """Open a WebSocket; websocket.WebSocketBadStatusException if podyd refuses."""
    return websocket.create_connection(
        f"ws://127.0.0.1:{client.port}{path}?{urlencode(params)}",
        header=[f"{name}: {value}" for name, value in client.login_header().items()],
        suppress_origin=True,
        timeout=PATIENCE,
        http_no_proxy=["127.0.0.1"],
    )


@contextlib.contextmanager
def talk(
    client: Client, path: str, ins: str, start: Mapping[str, Any], **more: object
) -> Iterator[Talk]:
    """Begin something in a pod; leaving closes the connection."""
    connection = connect(client, path, ins=ins, **more)
    try:
        session = Talk(connection)
        session.control(**start)
        yield session
    finally:
        connection.shutdown()


@contextlib.contextmanager
def streamed(client: Client, ins: str, cmd: str, **start: object) -> Iterator[Talk]:
    with talk(client, "/pod/exec-stream", ins, {"cmd": cmd, **start}) as session:
        yield session


@contextlib.contextmanager
def shell(
    client: Client, ins: str, *, rows: int = 24, cols: int = 80, **start: object
) -> Iterator[Talk]:
    with talk(client, "/pod/shell", ins, start, rows=rows, cols=cols) as session:
        yield session
