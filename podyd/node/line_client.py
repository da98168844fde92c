"""A connection to a helper on this host that answers lines of JSON on a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from podyd.base.errors import Unavailable

TIMEOUT = 10.0
MAX_ANSWER_BYTES = 1024**2
# What the decoding of another program's answer may raise.
NOT_ITS_ANSWER = (LookupError, TypeError, ValueError, AttributeError)


class LineClient:
    """A connection that lasts until it ends or a request fails; `away` makes the error for a helper
    that does not answer, from the reason."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        away: Callable[[str], Unavailable],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._away = away
        # Between requests this is done when the helper ends.
        self.gone: asyncio.Future[Any] = asyncio.ensure_future(reader.readline())

    async def ask(self, request: Any) -> Any:
        """The decoded answer to a request. Raises Unavailable; the connection has then ended, also
        if the caller is cancelled."""
        with self.understood():
            try:
                self._writer.write(json.dumps(request).encode() + b"\n")
                answer = json.loads(await asyncio.wait_for(asyncio.shield(self.gone), TIMEOUT))
            except BaseException:
                # What comes later would be taken for the answer to the next request.
                self._writer.close()
                raise
            self.gone = asyncio.ensure_future(self._reader.readline())
            return answer

    @contextlib.contextmanager
    def understood(self) -> Iterator[None]:
        """Raise Unavailable for what fails within, such as decoding another program's answer."""
        try:
            yield
        except (*NOT_ITS_ANSWER, OSError, asyncio.TimeoutError) as error:
            raise self._away(_reason(error)) from error

    async def close(self) -> None:
        self.gone.cancel()
        with contextlib.suppress(OSError, ValueError, asyncio.CancelledError):
            await self.gone
        self._writer.close()


@contextlib.asynccontextmanager
async def connected(path: str, away: Callable[[str], Unavailable]) -> AsyncIterator[LineClient]:
    """A connection to the unix socket at `path`. Raises Unavailable."""
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_unix_connection(path, limit=MAX_ANSWER_BYTES), TIMEOUT
        )
    except (OSError, asyncio.TimeoutError) as error:
        raise away(_reason(error)) from error
    client = LineClient(reader, writer, away)
    try:
        yield client
    finally:
        await client.close()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
