"""Tornado handlers for the operations whose answer, or whose body, is a file of any size.

All up to there is as for any other operation, and of a body nothing is read before the login and
the parameters are checked. Whoever is slow holds the other one back; who hangs up ends it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable
from typing import Any

from tornado.iostream import StreamClosedError

from podyd.api.binding import Incoming, Outgoing
from podyd.api.handler import Endpoint, going_down
from podyd.base.errors import PodydError

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 2**60
MAX_SECONDS = 7 * 86400.0
# So long the body of a refused upload is still read, so that the client sees the answer.
LINGER_SECONDS = 5.0
# A client that no longer answers is noticed after 30 + 3 * 10 seconds.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class Transfer(Endpoint):
    """Common to both directions."""

    def _watch(self) -> None:
        """Have TCP notice a client that has gone: a transfer may wait long for a pipe in the pod,
        without any data."""
        sock = self._stream.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Download(Transfer):
    """Serves one operation that answers with a file."""

    async def _give(self, answer: Any) -> None:
        if not isinstance(answer, Outgoing):
            await super()._give(answer)
            return
        for name, value in answer.headers.items():
            self.set_header(name, value)
        try:
            self._watch()
            self._begin(answer.run(self._send))
            assert self._task is not None
            await self._task
        except StreamClosedError:
            self._cut()
        except asyncio.CancelledError:
            self._fail(self._refusal or going_down())
        except PodydError as error:
            if self._headers_written:
                log.warning("%s: %s", self.operation.path, error)
            self._fail(error)
        except Exception as error:  # Tornado would end half a file as if it were whole.
            self._fail(self.crash(error))
        finally:
            answer.close()

    def _fail(self, error: PodydError) -> None:
        if self._headers_written:
            self._cut()
        else:
            self.clear()
            self.refuse(error)

    async def _send(self, data: bytes) -> None:
        self.write(data)
        await self.flush()


class Upload(Transfer):
    """Serves one operation whose body is a file."""

    _answer_to: Incoming[Any] | None = None
    _is_refused = False

    async def prepare(self) -> None:
        super().prepare()
        connection: Any = self.request.connection
        connection.set_max_body_size(MAX_FILE_BYTES)
        connection.set_body_timeout(MAX_SECONDS)
        await self._serve()

    async def _give(self, answer: Incoming[Any]) -> None:
        try:
            self._watch()
        except OSError:  # The client has disconnected already.
            answer.close()
            raise
        # One piece at a time, so that the client waits until the pod has taken it.
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._answer_to = answer
        self._begin(answer.run(self._pieces.get))
        assert self._task is not None
        self._task.add_done_callback(lambda _: answer.close())

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._hand_over(chunk)

    async def _hand_over(self, chunk: bytes | None) -> None:
        if self._answer_to is None or self._is_refused:
            return
        assert self._task is not None
        putting = asyncio.ensure_future(self._pieces.put(chunk))
        await asyncio.wait({putting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            # The pod takes no more.
            putting.cancel()
            await self._conclude()

    async def _ended(self) -> None:
        """The whole body has been received."""
        await self._hand_over(None)
        if self._is_refused:
            self._leave()
        elif not self._finished:
            await self._conclude()

    get = post = head = put = patch = delete = options = _ended

    async def _conclude(self) -> None:
        assert self._task is not None
        try:
            answer = await self._task
        except PodydError as error:
            self.refuse(error)
        except asyncio.CancelledError:
            self.refuse(self._refusal or going_down())
        except Exception as error:  # Tornado would hang up where a body is still coming.
            self.refuse(self.crash(error))
        else:
            await Endpoint._give(self, answer)

    def refuse(self, error: PodydError) -> None:
        """Answer now, and read on for `LINGER_SECONDS`: a client that is disconnected while it
        sends does not see the answer."""
        if self._is_refused:
            return
        self._is_refused = True
        body = self.refusal(error)
        self.set_header("Content-Length", str(len(body)))
        self.set_header("Connection", "close")
        self.write(body)
        self.flush()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._leave)

    def _leave(self) -> None:
        if not self._finished:
            self.finish()
