"""Tornado's handlers for operations that are WebSockets: what all have in common, and sessions.

All up to the upgrade is as for any other operation: the login, the parameters, the refusals in
JSON. Then a task runs what the caller asks for, and ends with the connection, as that ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from podyd.api.binding import Session
from podyd.api.cross_site import PROTOCOL
from podyd.api.frames import WINDOW_BYTES, Frames
from podyd.api.handler import Endpoint, going_down
from podyd.base.errors import BadRequest, PodydError, UpgradeRequired
from podyd.contract.operation import Ends
from podyd.contract.pods import Ended
from podyd.engine.streams import STDIN

log = logging.getLogger(__name__)

PING_SECONDS = 20.0
SILENT_SECONDS = 60.0
# A command may be as long as Linux allows, and JSON writes some characters as six.
MAX_MESSAGE_BYTES = 1024**2
# What begins with it was typed.
_INPUT = bytes([STDIN])
assert MAX_MESSAGE_BYTES > WINDOW_BYTES


class Upgraded(Endpoint, WebSocketHandler):
    """Serves one operation over a WebSocket."""

    is_over = False
    # What a client that calls it without an upgrade is advised to do.
    clients = "Use any client for WebSockets."
    _given: Any = None
    _pinging: asyncio.Future[None] | None = None

    def _need_upgrade(self) -> None:
        headers = self.request.headers
        connection = [part.strip().lower() for part in headers.get("Connection", "").split(",")]
        if (
            headers.get("Upgrade", "").lower() != "websocket"
            or "upgrade" not in connection
            or headers.get("Sec-WebSocket-Version") != "13"
            or not headers.get("Sec-WebSocket-Key")
        ):
            raise UpgradeRequired(f"{self.operation.path} is a WebSocket.", advice=self.clients)
        if self.requests.ending:
            raise going_down()

    async def _give(self, answer: Any) -> None:
        self._given = answer
        try:
            self._need_upgrade()
            # It returns when the connection is closed.
            await WebSocketHandler.get(self)
        except PodydError as error:
            self.refuse(error)
        finally:
            answer.close()

    def refuse(self, error: PodydError) -> None:
        self.is_over = True
        super().refuse(error)

    # --- The connection --------------------------------------------------------------------------

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """The page names protocols, one of which has the key of its login."""
        return PROTOCOL if PROTOCOL in subprotocols else None

    def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        self._heard = asyncio.get_running_loop().time()
        self._pinging = asyncio.ensure_future(self._ping())
        self._begin(
            self._run_opened(), waited_for=self.operation.ends is not Ends.WITH_CALLER_OR_PODYD
        )

    async def _run_opened(self) -> None:
        """What runs until the connection is closed; it closes it."""
        raise NotImplementedError

    def _received(self, message: str | bytes) -> None:
        """Take a message of the client's. Raises BadRequest, which ends it."""
        raise NotImplementedError

    def on_message(self, message: str | bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        if self._refusal is not None:
            return
        try:
            self._received(message)
        except BadRequest as error:
            self._end(error)
        except Exception as error:  # Whatever it is, the caller gets an end message.
            self._end(self.crash(error))

    def on_pong(self, data: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()

    def on_connection_close(self) -> None:
        if self._pinging is not None:  # Else the caller has hung up before the upgrade.
            WebSocketHandler.on_connection_close(self)
        self._end()

    def on_close(self) -> None:
        if self._pinging is not None:
            self._pinging.cancel()
        self.is_over = True
        self.application.log_request(self)

    async def _ping(self) -> None:
        """Notice a client that has gone without closing the connection."""
        loop = asyncio.get_running_loop()
        try:
            while loop.time() - self._heard < SILENT_SECONDS:
                with contextlib.suppress(WebSocketClosedError):
                    self.ping(b"")
                self._check()
                await asyncio.sleep(PING_SECONDS)
            assert self.ws_connection is not None
            self.ws_connection.on_connection_close()
        except PodydError as error:
            self._end(error)
        except Exception as error:  # Without pings the session would never end.
            self._end(self.crash(error))

    def _check(self) -> None:
        """Called with each ping; raises a PodydError if the client may not be here any more."""


class Socket(Upgraded):
    """Serves an operation whose answer is a session."""

    clients = "Use 'pody exec' or 'pody shell', or any client for WebSockets."

    @property
    def max_message_size(self) -> int:
        return MAX_MESSAGE_BYTES

    def open(self, *args: str, **kwargs: str) -> None:
        self._frames = Frames(self._send)
        super().open(*args, **kwargs)

    def _received(self, message: str | bytes) -> None:
        if self._login is not None and message[:1] == _INPUT:
            self.logins.noticed(self._login)
        self._frames.received(message)

    async def _send(self, frame: bytes) -> None:
        await self.write_message(frame, binary=True)

    # --- What runs -------------------------------------------------------------------------------

    async def _run_opened(self) -> None:
        session: Session = self._given
        try:
            end = await self._run(session)
            session.close()
            with contextlib.suppress(WebSocketClosedError, StreamClosedError):
                await self._frames.end(end)
        finally:
            session.close()
            self.close(1000)

    async def _run(self, session: Session) -> dict[str, Any]:
        """Run the session to its end; returns the end message."""
        try:
            await self._frames.control({"window": WINDOW_BYTES})
            return vars(await session.run(await self._frames.start(), self._frames))
        except PodydError as error:
            if error.status >= 500:
                log.warning("%s: %s", self.operation.path, error)
            return _cut_off(error)
        except (asyncio.CancelledError, WebSocketClosedError, StreamClosedError):
            # The client has disconnected and does not get it; or it has sent a malformed message,
            # its login has ended, or podyd is shutting down.
            return _cut_off(self._refusal or going_down())
        except Exception as error:  # Whatever it is, the socket must not stay open.
            return _cut_off(self.crash(error))


def _cut_off(error: PodydError) -> dict[str, Any]:
    return {**vars(Ended()), **error.body()}
