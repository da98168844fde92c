"""A websocket to LXD that delivers everything LXD has sent."""

from __future__ import annotations

from typing import Any

from tornado.httpclient import HTTPRequest, _RequestProxy
from tornado.websocket import WebSocketClientConnection, WebSocketProtocol13

# A frame of command output is small; this bounds what one message may make podyd hold.
MAX_MESSAGE_BYTES = 16 * 1024**2
_PING = 0x9


class _Protocol(WebSocketProtocol13):
    """Reads to the end, whether or not a ping can still be answered.

    LXD begins each websocket with a ping and closes it when the command has ended. Tornado (6.2 to
    6.5) drops what it has received and not yet delivered when the pong comes too late.
    """

    def _handle_message(self, opcode: int, data: bytes) -> Any:
        if opcode == _PING and self.stream.closed():
            return None
        return super()._handle_message(opcode, data)


class Websocket(WebSocketClientConnection):
    """Tornado's client; made by `connect`."""

    def get_websocket_protocol(self) -> _Protocol:
        return _Protocol(self, mask_outgoing=True, params=self.params)


async def connect(request: HTTPRequest, *, ping_interval: float | None = None) -> Websocket:
    """As Tornado's `websocket_connect`, whose class cannot be chosen."""
    defaults = HTTPRequest._DEFAULTS
    connection = Websocket(
        _RequestProxy(request, defaults),  # type: ignore[arg-type]
        ping_interval=ping_interval,
        max_message_size=MAX_MESSAGE_BYTES,
    )
    await connection.connect_future
    return connection
