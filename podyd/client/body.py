"""Bodies of any size: one that is sent piece by piece, and one that comes so."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from typing import Any

PIECE_BYTES = 256 * 1024


class AnsweredEarly(Exception):
    """The server has answered, and wants no more of the body."""


class Sent:
    """The body of a request that is under way; without a size it is sent in chunks (RFC 9112)."""

    def __init__(self, connection: http.client.HTTPConnection, size: int | None) -> None:
        self._connection = connection
        self._is_chunked = size is None
        self._early = b""

    def write(self, data: bytes) -> int:
        """Send a piece, as a file would take it. Raises AnsweredEarly."""
        if self._has_answer():
            raise AnsweredEarly
        if data:
            self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
        return len(data)

    def end(self) -> None:
        """There is no more. Raises AnsweredEarly."""
        if self._is_chunked:
            self._send(b"0\r\n\r\n")

    def _send(self, data: bytes) -> None:
        try:
            self._connection.send(data)
        except (BrokenPipeError, ConnectionResetError):
            # The answer may have come just before.
            raise AnsweredEarly from None

    def _has_answer(self) -> bool:
        sock = self._connection.sock
        before = sock.gettimeout()
        sock.settimeout(0)
        try:
            # TLS has messages of its own, so what is readable need not be an answer.
            self._early = sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        finally:
            sock.settimeout(before)
        return True

    def response(self) -> http.client.HTTPResponse:
        """What the server answers."""
        source: Any = _Source(self._connection.sock, self._early)
        response = http.client.HTTPResponse(source, method="POST")
        response.begin()
        return response


class _Source(io.RawIOBase):
    """A socket, and the byte of it that has been read already."""

    def __init__(self, sock: socket.socket, early: bytes) -> None:
        self._sock = sock
        self._early = early

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        early, self._early = self._early, b""
        if early:
            buffer[:1] = early
            return 1
        return self._sock.recv_into(buffer)
