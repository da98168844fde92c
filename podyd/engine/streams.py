"""Commands in instances, whatever runs them: what one is given, what it gives, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

STDIN, STDOUT, STDERR = range(3)

Afterwards = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Size:
    """A terminal's, in characters."""

    rows: int
    cols: int


@dataclass(frozen=True)
class Terminal:
    """What a command finds itself at; `name` is for $TERM."""

    size: Size
    name: str


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
        """Take what came on STDOUT or STDERR; the command waits as long.

        At a terminal, all is STDOUT.
        """

    async def wish(self) -> Wish:
        """What is wanted beside that, once it is."""


async def no_wish() -> Wish:
    """The wish of one who has none: never there."""
    nothing: asyncio.Future[Wish] = asyncio.get_running_loop().create_future()
    return await nothing


@dataclass(frozen=True)
class Exit:
    """How a command ended; `code` is None if time was up.

    `oom_killed` if the kernel has killed something for memory meanwhile.
    """

    code: int | None
    oom_killed: bool


@dataclass(frozen=True)
class Ending:
    """A command that ends something; exit status 0 says that it is done.

    `outlives_stop` if what it ends is still there after the instance was stopped.
    """

    instance: str
    words: tuple[str, ...]
    outlives_stop: bool = False


class Executor(Protocol):
    """Runs commands as root, and leaves nothing of them behind."""

    async def run(
        self,
        instance: str,
        words: Sequence[str],
        streams: Streams,
        *,
        timeout: float | None,
        terminal: Terminal | None = None,
        then: Afterwards | None = None,
    ) -> Exit:
        """Run a command to its end, for `timeout` seconds at most, at a terminal or at none.

        /bin/bash is /bin/sh in an instance that has none. When time is up, or when the caller is
        cancelled, all that the command started is killed; where the instance does not answer, as
        soon as it does again. `then` is called once all of a command is dead whose caller was
        cancelled.

        Raises NotRunning or Gone (nothing has run); OutputLost (it has ended, and not all that it
        wrote is there); Conflict (it was cut off, or there is no shell); Unavailable.
        """

    def end(self, ending: Ending) -> None:
        """End something in the background, now or as soon as the instance answers again."""


def bash(command: str) -> tuple[str, ...]:
    """The words that have bash run a line."""
    return ("/bin/bash", "-c", command)
