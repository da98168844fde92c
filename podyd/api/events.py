"""The handler of operations that send messages over a WebSocket and take none."""

from __future__ import annotations

import asyncio
import socket

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError

from podyd.api.binding import Watching
from podyd.api.socket import Upgraded
from podyd.base.errors import BadRequest, PodydError, Unauthorized

# Close codes of RFC 6455, 7.4.1; the last one is registered for "try again later".
GOING_AWAY, VIOLATION, TRY_LATER = 1001, 1008, 1013
# Nothing is to be sent; this is what a message may have before the connection is closed for it.
MAX_MESSAGE_BYTES = 1024
# What the kernel keeps of what a client has not read; by itself it grows to several MB.
SEND_BUFFER_BYTES = 64 * 1024


class EventStream(Upgraded):
    """Serves an operation whose answer is a stream of messages."""

    is_use = False

    @property
    def max_message_size(self) -> int:
        return MAX_MESSAGE_BYTES

    def open(self, *args: str, **kwargs: str) -> None:
        assert self.ws_connection is not None and self.ws_connection.stream is not None
        ours = self.ws_connection.stream.socket
        if ours is not None:  # Else the client has hung up before the upgrade was written.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().open(*args, **kwargs)

    def _received(self, message: str | bytes) -> None:
        raise BadRequest(f"{self.operation.path} takes no messages.", code="malformed_message")

    def _check(self) -> None:
        # podyd.yaml may have been changed.
        address = self.request.remote_ip or ""
        if self._login is None and not self.logins.may_see_status(address):
            raise Unauthorized("Without a login nothing is shown any more.", advice="Log in.")

    def _send(self, message: bytes) -> asyncio.Future[None]:
        try:
            return self.write_message(message)
        except (WebSocketClosedError, StreamClosedError):
            self._end()
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            gone.set_result(None)
            return gone

    async def _run_opened(self) -> None:
        watching: Watching = self._given
        code = TRY_LATER
        try:
            why = await watching.run(self._send)
        except asyncio.CancelledError:
            code, why = _said(self._refusal)
        except Exception as error:  # Whatever it is, the socket must not stay open.
            code, why = TRY_LATER, self.crash(error).code
        finally:
            watching.close()
            self.close(code, why)


def _said(refusal: PodydError | None) -> tuple[int, str]:
    """The code and the reason with which a connection is closed; without a refusal podyd stops, or
    the client has gone."""
    return (GOING_AWAY, "shutting_down") if refusal is None else (VIOLATION, refusal.code)
