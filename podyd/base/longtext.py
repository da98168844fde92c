"""Long answers: encoded while they are sent, so that only their source is held in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

A = TypeVar("A")


class LongText:
    """Text that is generated anew at each iteration.

    As a whole it can take many times the bytes of its source: four for a character, and six in JSON
    for a byte that is not printable.
    """

    def __init__(self, pieces: Callable[[], Iterator[str]]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        return self._pieces()

    def __str__(self) -> str:
        return "".join(self._pieces())


@dataclass(frozen=True)
class HeldAnswer(Generic[A]):
    """An answer; `close` releases its source once it is sent."""

    body: A
    close: Callable[[], None]


def json_pieces(answer: Any) -> Iterator[str]:
    """The JSON of a dataclass, its long texts and lists piece by piece."""
    before = "{"
    for name, value in vars(answer).items():
        yield f"{before}{json.dumps(name)}: "
        if isinstance(value, LongText):
            yield '"'
            for piece in value:
                yield _dump(piece)[1:-1]
            yield '"'
        elif isinstance(value, list) and value:
            for number, item in enumerate(value):
                yield f"{', ' if number else '['}{_dump(item)}"
            yield "]"
        else:
            yield _dump(value)
        before = ", "
    yield "}"


def _dump(value: Any) -> str:
    return json.dumps(value, default=vars, ensure_ascii=False)
