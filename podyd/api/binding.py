"""Between an operation of the API table and the one call that it makes.

A method says with `serves` which operations call it, and mypy holds it to what they take and give:

    @serves(POD_EXEC)
    async def pod_exec(self, call: Call[Exec]) -> HeldAnswer[ExecResult]: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

from podyd.base.longtext import HeldAnswer
from podyd.contract.answers import Events, FileIn, FileOut, Json, JsonOrText, PlainText, WebSocket
from podyd.contract.operation import AnyOperation, Operation
from podyd.contract.pods import Ended, Start
from podyd.contract.table import OPERATIONS
from podyd.engine.streams import Streams
from podyd.model.member import Member
from podyd.people.login import Login

R = TypeVar("R")
A = TypeVar("A")
S = TypeVar("S")
A_co = TypeVar("A_co", covariant=True)


@dataclass(frozen=True)
class Call(Generic[R]):
    """The arguments of an operation; `password` is the caller's, if they logged in with it, and
    `address` from where they call."""

    request: R
    login: Login | None = None
    password: str = ""
    address: str = ""

    @property
    def proven(self) -> Login:
        """The caller's login; an operation that is open to everybody has none."""
        assert self.login is not None
        return self.login

    @property
    def caller(self) -> Member:
        """The member who calls."""
        return self.proven.member


Bound = Callable[[Call[Any]], Awaitable[Any]]


# --- What a call gives --------------------------------------------------------------------------


@dataclass(frozen=True)
class Headed(Generic[A]):
    """An answer with headers of its own."""

    body: A
    headers: Mapping[str, str]


@dataclass(frozen=True)
class WithSession(Generic[A]):
    """An answer with the cookie of a login on the page; the secret "" removes it."""

    body: A
    secret: str


@dataclass(frozen=True)
class Text:
    """Text in place of JSON, where the request asks for it."""

    body: str


@runtime_checkable
class Outgoing(Protocol):
    """A file to be sent to the caller; whoever gets this object closes it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The HTTP headers of the response."""

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send the whole file."""

    def close(self) -> None: ...


class Incoming(Protocol[A_co]):
    """Receives a file from the caller; whoever gets this object closes it."""

    async def run(self, receive: Callable[[], Awaitable[bytes | None]]) -> A_co:
        """Write what `receive` returns, until it returns None; returns the answer."""

    def close(self) -> None: ...


class Session(Protocol):
    """A session over a WebSocket; whoever gets this object closes it."""

    async def run(self, start: Start, streams: Streams) -> Ended:
        """Run what the first message asks for; returns how it ended."""

    def close(self) -> None: ...


class Watching(Protocol):
    """A stream of messages to the caller, who says nothing; whoever gets this object closes it."""

    async def run(self, send: Callable[[bytes], asyncio.Future[None]]) -> str:
        """Send messages until cancelled, or until there is no room for this caller; returns why, as
        a code. What `send` returns is done once the caller's connection has taken the message."""

    def close(self) -> None: ...


# --- Who gives it -------------------------------------------------------------------------------


class Mark(Generic[R, A]):
    """Marks a method as what some operations call."""

    def __init__(self, *operations: AnyOperation) -> None:
        self._operations = operations

    def __call__(
        self, method: Callable[[S, Call[R]], Awaitable[A]]
    ) -> Callable[[S, Call[R]], Awaitable[A]]:
        method.serves = self._operations  # type: ignore[attr-defined]
        return method


@overload
def serves(
    *operations: Operation[R, Json[A]],
) -> Mark[R, A | Headed[A] | WithSession[A] | HeldAnswer[A]]: ...
@overload
def serves(*operations: Operation[R, PlainText]) -> Mark[R, str]: ...
@overload
def serves(*operations: Operation[R, JsonOrText[A]]) -> Mark[R, A | Text]: ...
@overload
def serves(*operations: Operation[R, FileOut[A]]) -> Mark[R, A | HeldAnswer[A] | Outgoing]: ...
@overload
def serves(*operations: Operation[R, FileIn[A]]) -> Mark[R, Incoming[A]]: ...
@overload
def serves(*operations: Operation[R, WebSocket[Start, Ended]]) -> Mark[R, Session]: ...
@overload
def serves(*operations: Operation[R, Events[A]]) -> Mark[R, Watching]: ...
def serves(*operations: AnyOperation) -> Mark[Any, Any]:
    """Mark a method as what these operations call; its types are theirs."""
    return Mark(*operations)


def bound(*families: object) -> dict[AnyOperation, Bound]:
    """What each operation of the table calls: one method of these, or podyd does not start."""
    methods: dict[AnyOperation, Bound] = {}
    for family in families:
        for name in dir(family):
            method = getattr(family, name)
            for operation in getattr(method, "serves", ()):
                if operation in methods:
                    raise TypeError(f"{operation.path} is bound twice")
                methods[operation] = method
    unknown = [operation.path for operation in methods if operation not in OPERATIONS]
    if unknown:
        raise TypeError(f"not in the table: {', '.join(unknown)}")
    missing = [operation.path for operation in OPERATIONS if operation not in methods]
    if missing:
        raise TypeError(f"bound to nothing: {', '.join(missing)}")
    return methods
