"""Between an operation of the API table and the one call that it makes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from podyd.contract.operation import Operation
from podyd.contract.table import OPERATIONS
from podyd.model.member import Member
from podyd.people.login import Login

A = TypeVar("A")
M = TypeVar("M", bound=Callable[..., Any])


@dataclass(frozen=True)
class Call:
    """What an operation is called with; `password` is the caller's, if they logged in with it."""

    request: Any
    login: Login | None = None
    password: str = ""

    @property
    def proven(self) -> Login:
        """The caller's login; an operation that is open to everybody has none."""
        assert self.login is not None
        return self.login

    @property
    def caller(self) -> Member:
        """The member who calls."""
        return self.proven.member


Bound = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True)
class Headed(Generic[A]):
    """An answer with headers of its own."""

    body: A
    headers: Mapping[str, str]


def serves(*operations: Operation) -> Callable[[M], M]:
    """Mark a method as what these operations call."""

    def mark(method: M) -> M:
        method.serves = operations  # type: ignore[attr-defined]
        return method

    return mark


def bound(*families: object) -> dict[Operation, Bound]:
    """What each operation of the table calls: one method of these, or podyd does not start."""
    found: dict[Operation, Bound] = {}
    for family in families:
        for name in dir(family):
            method = getattr(family, name)
            for operation in getattr(method, "serves", ()):
                if operation in found:
                    raise TypeError(f"{operation.path} is bound twice")
                found[operation] = method
    missing = [operation.path for operation in OPERATIONS if operation not in found]
    if missing:
        raise TypeError(f"bound to nothing: {', '.join(missing)}")
    return found
