"""The client of `podyd ports`, the unprivileged process that relays TCP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from podyd import __version__
from podyd.base.errors import Unavailable

TIMEOUT = 10.0
# The request that changes nothing, and only asks for an answer.
QUESTION = b"null\n"
NOT_ITS_ANSWER = (LookupError, TypeError, ValueError, AttributeError)
MAX_ANSWER_BYTES = 1024**2

# Host ports with the address and port of their targets; None reserves a port without a target.
Table = Mapping[int, tuple[str, int] | None]


@dataclass(frozen=True)
class RelayAnswer:
    """Why the relay could not forward a port, by host port, and the version of podyd that started
    it."""

    refused: Mapping[int, str]
    version: str

    @classmethod
    def of(cls, said: Any) -> RelayAnswer:
        """From the decoded JSON. Raises LookupError, TypeError, ValueError or AttributeError if it
        is no answer of a relay."""
        refused = {int(port): str(why) for port, why in said["refused"].items()}
        return cls(refused, str(said["version"]))

    @property
    def is_old(self) -> bool:
        """Whether the relay was started by another version of podyd."""
        return self.version != __version__


class RelayClient:
    """A connection to the relay, which only its end closes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # At rest this ends when the relay does.
        self.gone: asyncio.Future[Any] = asyncio.ensure_future(reader.readline())

    async def put(self, table: Table) -> RelayAnswer:
        """Forward the ports as in this table, and close all others. Raises Unavailable."""
        sent = {str(port): target and list(target) for port, target in table.items()}
        try:
            self._writer.write(json.dumps(sent).encode() + b"\n")
            answer = json.loads(await asyncio.wait_for(asyncio.shield(self.gone), TIMEOUT))
            self.gone = asyncio.ensure_future(self._reader.readline())
            return RelayAnswer.of(answer)
        except (*NOT_ITS_ANSWER, OSError, asyncio.TimeoutError) as error:
            raise _away(error) from error

    async def close(self) -> None:
        self.gone.cancel()
        with contextlib.suppress(OSError, ValueError, asyncio.CancelledError):
            await self.gone
        self._writer.close()


@contextlib.asynccontextmanager
async def relay_at(path: str) -> AsyncIterator[RelayClient]:
    """The relay behind the unix socket at `path`. Raises Unavailable."""
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_unix_connection(path, limit=MAX_ANSWER_BYTES), TIMEOUT
        )
    except (OSError, asyncio.TimeoutError) as error:
        raise _away(error) from error
    relay = RelayClient(reader, writer)
    try:
        yield relay
    finally:
        await relay.close()


def _away(error: BaseException) -> Unavailable:
    why = getattr(error, "strerror", None) or type(error).__name__
    return Unavailable(f"'podyd ports' does not answer ({why})", code="ports_unreachable")
