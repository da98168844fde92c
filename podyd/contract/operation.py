"""The declaration of one call of the API: its path, parameters, answer, and permissions.

Each group of calls (users, pods, gpus, ...) is a module beside this one, with its requests, its
answers and its operations; table.py lists them all, and the router, `/help`, `/openapi.json` and
the tests read it: nothing is declared twice. Sizes are in bytes, durations in seconds, times in
ISO 8601 in UTC; -1 is a limit that is not set.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from podyd.contract.answers import Answer, Events, WebSocket
from podyd.contract.kinds import Param, params_of
from podyd.model.token import TokenScope


class Access(enum.Enum):
    """Who may call an operation."""

    OPEN = "everybody, without a login"
    MEMBER = "every member"
    ADMIN = "admins"
    STATUS = "every member, and the addresses of podyd.yaml's web.status_allow without a login"
    SCRAPER = "admins, and the addresses of podyd.yaml's metrics.allow without a login"


class Proof(enum.Enum):
    """The credentials that an operation needs; the password is accepted by all."""

    READS = "a token of any scope: it tells what podyd knows, and nothing of what is in a pod"
    INSIDE = "a token of scope all: it reaches what is in a pod, also where it only looks at it"
    CHANGES = "a token of scope all: it changes something"
    ANY_TOKEN = "a token of any scope, though it changes something"  # noqa: S105 - no secret
    PASSWORD = "the password, and no token"  # noqa: S105 - no secret
    OLD_PASSWORD = "the password, also one that must be changed now, and no token"  # noqa: S105


@dataclass(frozen=True)
class Nothing:
    """No parameters."""


@dataclass(frozen=True)
class Log:
    log: str


class Ends(enum.Enum):
    """What ends the work for a request before it is done."""

    WHEN_DONE = "not before: it is carried through, and a podyd that stops waits for it"
    WITH_CALLER = "when the caller hangs up, or may do nothing any more; podyd waits for it"
    WITH_CALLER_OR_PODYD = "then, and when podyd stops: nobody needs a shell's end"


GET = ("GET",)
POST = ("POST",)
R = TypeVar("R")
A = TypeVar("A", bound=Answer)


@dataclass(frozen=True)
class Operation(Generic[R, A]):
    """One route. `methods` are all that it serves; `/help` shows only `advised`, one per route."""

    path: str
    methods: tuple[str, ...]
    request: type[R]
    answer: A
    summary: str
    # Who may call it, and with which credentials, has no default: a GET may be a shell.
    access: Access = field(kw_only=True)
    proof: Proof = field(kw_only=True)
    ends: Ends = field(kw_only=True, default=Ends.WHEN_DONE)
    # Whether it counts towards each user's limit of requests under way, as others may wait for it
    # at the engine, a lock or the database. Long operations have limits of their own, and so has
    # the helper for logins.
    takes_turns: bool = field(kw_only=True, default=True)

    def __post_init__(self) -> None:
        goes_on = self.proof is Proof.INSIDE or isinstance(self.answer, (Events, WebSocket))
        if goes_on and self.ends is Ends.WHEN_DONE:
            raise TypeError(f"{self.path} reaches into a pod, or lasts; it ends with its caller")

    @property
    def advised(self) -> str:
        """The method that a client should use: POST if it is served, as URLs may be logged."""
        return "POST" if "POST" in self.methods else self.methods[0]

    def accepts(self, scope: TokenScope) -> bool:
        """Whether a token of this scope is sufficient."""
        if self.proof in (Proof.INSIDE, Proof.CHANGES):
            return scope == "all"
        return self.proof not in (Proof.PASSWORD, Proof.OLD_PASSWORD)

    @property
    def params(self) -> tuple[Param, ...]:
        return params_of(self.request)


AnyOperation = Operation[Any, Any]
