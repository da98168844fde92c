"""The client of `podyd ports`, the unprivileged process that relays TCP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from podyd import __version__
from podyd.base.errors import Unavailable
from podyd.node.line_client import LineClient, connected

# The request that changes nothing, and only asks for an answer.
QUESTION = b"null\n"

# Host ports with the address and port of their targets; None reserves a port without a target.
Table = Mapping[int, tuple[str, int] | None]


@dataclass(frozen=True)
class RelayAnswer:
    """Why the relay could not forward a port, by host port, and the version of podyd that started
    it."""

    refused: Mapping[int, str]
    version: str

    @classmethod
    def of(cls, answer: Any) -> RelayAnswer:
        """From the decoded JSON. Raises LookupError, TypeError, ValueError or AttributeError if it
        is no answer of a relay."""
        refused = {int(port): str(why) for port, why in answer["refused"].items()}
        return cls(refused, str(answer["version"]))

    @property
    def is_old(self) -> bool:
        """Whether the relay was started by another version of podyd."""
        return self.version != __version__


class RelayClient:
    """A connection to the relay."""

    def __init__(self, lines: LineClient) -> None:
        self._lines = lines

    @property
    def gone(self) -> asyncio.Future[Any]:
        """Done once the relay has ended."""
        return self._lines.gone

    async def put(self, table: Table) -> RelayAnswer:
        """Forward the ports as in this table, and close all others. Raises Unavailable."""
        sent = {str(port): target and list(target) for port, target in table.items()}
        answer = await self._lines.ask(sent)
        with self._lines.understood():
            return RelayAnswer.of(answer)


@contextlib.asynccontextmanager
async def relay_at(path: str) -> AsyncIterator[RelayClient]:
    """The relay behind the unix socket at `path`. Raises Unavailable."""
    async with connected(path, _away) as lines:
        yield RelayClient(lines)


def _away(why: str) -> Unavailable:
    return Unavailable(f"'podyd ports' does not answer ({why})", code="ports_unreachable")
