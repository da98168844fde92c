"""The kinds of an operation's answer.

A new kind needs a class here, its binding in api/binding.py and its handler in
api/application.py. Errors are JSON for every kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

JSON = "application/json"
T = TypeVar("T")
First = TypeVar("First")
Last = TypeVar("Last")


@dataclass(frozen=True)
class Answer:
    """A kind of answer."""


@dataclass(frozen=True)
class Json(Answer, Generic[T]):
    """One JSON value."""

    body: type[T]


@dataclass(frozen=True)
class PlainText(Answer):
    """Text of this media type."""

    media: str


@dataclass(frozen=True)
class JsonOrText(Answer, Generic[T]):
    """One JSON value, or text of this media type, as the request asks for."""

    body: type[T]
    media: str


@dataclass(frozen=True)
class FileOut(Answer, Generic[T]):
    """A file or a tar file of any size, or JSON about one, as the request asks for."""

    about: type[T]


@dataclass(frozen=True)
class FileIn(Answer, Generic[T]):
    """JSON after the request's body, a file or a tar file of any size, is stored."""

    taken: type[T]


@dataclass(frozen=True)
class WebSocket(Answer, Generic[First, Last]):
    """Messages both ways, by `protocol`: the first is the client's, the last is podyd's."""

    first: type[First]
    last: type[Last]
    protocol: str


@dataclass(frozen=True)
class Events(Answer, Generic[T]):
    """JSON messages of podyd's over a WebSocket, by `protocol`; `values` has what stands under each
    kind of key in them."""

    message: type[T]
    protocol: str
    values: tuple[tuple[str, Any], ...] = ()
