"""What one call of the API is: its path, what it takes and answers, and who may make it.

Each family of calls (users, pods, gpus, ...) is a module beside this one, with its requests, its
answers and its operations; table.py has them all, and the router, `/help`, `/openapi.json` and the
tests read that: nothing is declared twice. Sizes are bytes, durations seconds, times ISO 8601 in
UTC; -1 is a limit that is not set.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Literal

from podyd.contract.kinds import Param, params_of
from podyd.model.token import TokenScope


class Access(enum.Enum):
    """Who may call an operation."""

    OPEN = "everybody, without a login"
    MEMBER = "every member"
    ADMIN = "admins"
    SCRAPER = "admins, and the addresses of podyd.yaml's metrics.allow without a login"


class Proof(enum.Enum):
    """With what its caller must have logged in; the password serves for all."""

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


GET = ("GET",)
POST = ("POST",)
# What asks LXD or the database.
_BEHIND = ("/pod/", "/gpu/", "/host/", "/image/", "/stat/", "/metrics")


@dataclass(frozen=True)
class Operation:
    """One route. `methods` are all that it serves; `/help` shows `advised` alone, one per route."""

    path: str
    methods: tuple[str, ...]
    request: type
    answer: Any
    summary: str
    # What it takes is never taken for granted: a GET may well be a shell.
    proof: Proof = field(kw_only=True)
    access: Access = Access.MEMBER
    # What the request does ends when the caller hangs up; everything else is carried through.
    ends_with_caller: bool = False
    media: str = "application/json"
    # The first message of a WebSocket; `answer` is its last one, in between is FRAMES.
    first: type | None = None
    # Beside JSON, its answer may be, or its body is, a file or a tar file of any size.
    streamed: Literal["answer", "body"] | None = None
    # Nobody needs a shell's end: a podyd that stops does not wait for it.
    ends_with_podyd: bool = False

    @property
    def websocket(self) -> bool:
        """Whether it is talked to as long as it lasts."""
        return self.first is not None

    @property
    def holds_others_up(self) -> bool:
        """Whether others wait behind it, for LXD, a lock or the database.

        What goes on for long has a limit of its own, and so has the helper that knows the users.
        """
        goes_on = self.first is not None or self.streamed is not None or self.path == "/pod/exec"
        return not goes_on and self.path.startswith(_BEHIND)

    @property
    def advised(self) -> str:
        """The method that a client should choose: POST wherever it is served, for secrets' sake."""
        return "POST" if "POST" in self.methods else self.methods[0]

    def accepts(self, scope: TokenScope) -> bool:
        """Whether a token of this scope will do."""
        if self.proof in (Proof.INSIDE, Proof.CHANGES):
            return scope == "all"
        return self.proof not in (Proof.PASSWORD, Proof.OLD_PASSWORD)

    @property
    def params(self) -> tuple[Param, ...]:
        return params_of(self.request)
