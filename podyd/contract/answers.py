"""The ways in which an operation is answered.

A further one is a class here, what it is served with in api/binding.py and who serves it in
api/application.py. Refusals are JSON, whichever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

JSON = "application/json"
T = TypeVar("T")
First = TypeVar("First")
Last = TypeVar("Last")


@dataclass(frozen=True)
class Answer:
    """One way."""


@dataclass(frozen=True)
class Json(Answer, Generic[T]):
    """One JSON value."""

    body: type[T]


@dataclass(frozen=True)
class PlainText(Answer):
    """Text of this media type."""

    media: str


@dataclass(frozen=True)
class FileOut(Answer, Generic[T]):
    """A file or a tar file of any size, or JSON about one: what was asked for says which."""

    about: type[T]


@dataclass(frozen=True)
class FileIn(Answer, Generic[T]):
    """JSON once the request's body, a file or a tar file of any size, is taken."""

    taken: type[T]


@dataclass(frozen=True)
class WebSocket(Answer, Generic[First, Last]):
    """Messages both ways, as `protocol` has them: at first the client's, at last podyd's."""

    first: type[First]
    last: type[Last]
    protocol: str
