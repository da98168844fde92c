"""A websocket to the engine that delivers everything the engine has sent."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.queues import QueueEmpty
from tornado.websocket import WebSocketClientConnection, WebSocketProtocol13

# A frame of command output is small; this bounds what one message may make podyd hold.
MAX_MESSAGE_BYTES = 16 * 1024**2
# Up to the answer that it is a websocket from now on.
HANDSHAKE_TIMEOUT = 20.0
_PING = 0x9


class _Protocol(WebSocketProtocol13):
    """Reads to the end, whether or not a ping can still be answered.

    The engine begins each websocket with a ping and closes it when the command has ended. Tornado
    (6.2 to 6.5) drops what it has received and not yet delivered when the pong comes too late.
    """

    answers_pings = True

    def _handle_message(self, opcode: int, data: bytes) -> Any:
        if opcode == _PING and (not self.answers_pings or self.stream.closed()):
            return None
        return super()._handle_message(opcode, data)


class Websocket(WebSocketClientConnection):
    """Tornado's client; made by `connect`."""

    answers_pings = True
    _is_left = False

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Let go of it. What still comes is dropped: Tornado would wait for somebody to read it."""
        self._is_left = True
        super().close(code, reason)
        with contextlib.suppress(QueueEmpty):
            while True:
                self.read_queue.get_nowait()

    def on_message(self, message: Any) -> Any:
        if self._is_left and message is not None:
            return None
        return super().on_message(message)

    def get_websocket_protocol(self) -> _Protocol:
        protocol = _Protocol(self, mask_outgoing=True, params=self.params)
        protocol.answers_pings = self.answers_pings
        return protocol


async def connect(
    url: str,
    *,
    tls: ssl.SSLContext | None = None,
    timeout: float = HANDSHAKE_TIMEOUT,
    ping_interval: float | None = None,
    answers_pings: bool = True,
) -> Websocket:
    """As Tornado's `websocket_connect`, whose class cannot be chosen; `timeout` is for TCP and TLS.

    Where the engine only writes and never reads (a command's stdout and stderr), pings must not be
    answered: closing a connection with a pong in it that nobody has read resets it, and what of the
    output is still on its way is lost.
    """
    request = HTTPRequest(
        url,
        ssl_options=tls,
        connect_timeout=timeout,
        request_timeout=HANDSHAKE_TIMEOUT,
        # What else Tornado's own functions fill in, and its class takes for granted.
        follow_redirects=False,
        max_redirects=0,
        decompress_response=False,
        proxy_password="",
        allow_nonstandard_methods=False,
        validate_cert=True,
    )
    connection = Websocket(request, ping_interval=ping_interval, max_message_size=MAX_MESSAGE_BYTES)
    connection.answers_pings = answers_pings
    connected = connection.connect_future
    try:
        # Shielded, because Tornado goes on connecting all the same.
        await asyncio.shield(connected)
    except asyncio.CancelledError:
        connected.add_done_callback(lambda _: connection.close())
        raise
    return connection
