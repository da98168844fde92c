"""What a command in an instance is given and what it gives, whoever is at its other end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

STDIN, STDOUT, STDERR = range(3)


@dataclass(frozen=True)
class Size:
    """A terminal's, in characters."""

    rows: int
    cols: int


@dataclass(frozen=True)
class Signal:
    """One for all that the command has started; `name` is one of kill(1)'s, such as INT."""

    name: str


Wish = Size | Signal


class Streams(Protocol):
    """The other end of a command's streams."""

    async def input(self) -> bytes | None:
        """The next of the input; None at its end."""

    async def output(self, stream: int, data: bytes) -> None:
        """Take what came on STDOUT or STDERR; the command waits as long. At a terminal, all is
        STDOUT.
        """

    async def wish(self) -> Wish:
        """What is wanted beside that, once it is."""


async def no_wish() -> Wish:
    """The wish of one who has none: never there."""
    nothing: asyncio.Future[Wish] = asyncio.get_running_loop().create_future()
    return await nothing
