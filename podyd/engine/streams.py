"""The interface for commands in instances: their streams, how they end, and what runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

STDIN, STDOUT, STDERR = range(3)

Afterwards = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class TerminalSize:
    """The size of a terminal, in characters."""

    rows: int
    cols: int


@dataclass(frozen=True)
class Terminal:
    """The terminal of a command; `name` is for $TERM."""

    size: TerminalSize
    name: str


@dataclass(frozen=True)
class Signal:
    """A signal for all processes of a command; `name` as of kill(1), such as INT."""

    name: str


Wish = TerminalSize | Signal


class Streams(Protocol):
    """The other end of a command's streams."""

    async def input(self) -> bytes | None:
        """The next piece of the input; None at its end."""

    async def output(self, stream: int, data: bytes) -> None:
        """Take output of STDOUT or STDERR; the command is blocked until this returns.

        At a terminal, all is STDOUT.
        """

    async def wish(self) -> Wish:
        """Wait for the next signal or new size of the terminal."""


async def no_wish() -> Wish:
    """A `wish` that never returns, for streams without signals."""
    nothing: asyncio.Future[Wish] = asyncio.get_running_loop().create_future()
    return await nothing


@dataclass(frozen=True)
class Exit:
    """How a command ended; the exit code is None if its time was up.

    `oom_killed` if the kernel has killed one of its processes for memory.
    """

    code: int | None
    oom_killed: bool


@dataclass(frozen=True)
class Ending:
    """A clean-up command; it is done when its exit status is 0.

    `outlives_stop` if it is still needed after the instance was stopped.
    """

    instance: str
    words: tuple[str, ...]
    outlives_stop: bool = False


class Executor(Protocol):
    """Runs commands as root, and leaves no process of them behind."""

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
        """Run a clean-up in the background, now or as soon as the instance answers again."""


def bash(command: str) -> tuple[str, ...]:
    """The words with which bash runs a command line."""
    return ("/bin/bash", "-c", command)
