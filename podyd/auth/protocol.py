"""The protocol of `podyd auth`: one JSON line in, one JSON line out.

Requests and their answers (`ACCOUNT` is {name, uid, gid, groups, home, shell}):

    {"op": "ping"}                                    {"ok": true}
    {"op": "login", "user", "password", "remote"}     {"ok": true, "account": ACCOUNT, "mark"}
    {"op": "passwd", "user", "old", "new"}            {"ok": true}
    {"op": "account", "user", "remote"}               {"ok": true, "account": ACCOUNT, "mark"}
    {"op": "accounts"}                                {"ok": true, "accounts": [ACCOUNT, ...]}

or {"error": WORD}, with a sentence for the user in `reason` in some cases; the words are in Error.
"expired" also has `account` and `mark`, those of the account that must change its password. `mark`
changes with each new password, and is absent if this host does not store the password.
"""

from __future__ import annotations

import enum
import json
import socket
import time
from dataclasses import MISSING, asdict, dataclass, field, fields

REQUEST_MAX_BYTES = 16 * 1024
REQUEST_TIMEOUT_S = 5.0


class Error(enum.Enum):
    """Why a request failed."""

    DENIED = "denied"  # wrong password, unknown user, system account
    REFUSED = "refused"  # the password is right, but the account may not log in now
    EXPIRED = "expired"  # the password is right, and must be changed by `passwd` first
    WEAK = "weak"  # the new password breaks a rule; nothing was changed
    INVALID = "invalid"  # the request itself is wrong; nothing was done
    UNAVAILABLE = "unavailable"  # PAM could not be asked, or took too long
    BUSY = "busy"  # the limit of children is reached
    FORBIDDEN = "forbidden"  # this peer may not use the helper


@dataclass(frozen=True)
class AccountEntry:
    """A Linux account, as NSS has it; `groups` are names, sorted, the primary one included."""

    name: str
    uid: int
    gid: int
    groups: tuple[str, ...]
    home: str
    shell: str


@dataclass(frozen=True)
class Reply:
    """The answer to a request; without an error it has succeeded."""

    error: Error | None = None
    reason: str = ""
    account: AccountEntry | None = None
    accounts: tuple[AccountEntry, ...] | None = None
    mark: str = ""

    def to_line(self) -> bytes:
        """The answer as a line."""
        body: dict[str, object] = {"error": self.error.value} if self.error else {"ok": True}
        if self.reason:
            body["reason"] = self.reason
        if self.account is not None:
            body["account"] = asdict(self.account)
        if self.accounts is not None:
            body["accounts"] = [asdict(account) for account in self.accounts]
        if self.mark:
            body["mark"] = self.mark
        return json.dumps(body).encode() + b"\n"


@dataclass(frozen=True)
class LoginRequest:
    """Check a password, and whether the account may log in now."""

    user: str
    password: str = field(repr=False)
    remote: str = ""


@dataclass(frozen=True)
class Passwd:
    """Change a password, authenticated by the old one."""

    user: str
    old: str = field(repr=False)
    new: str = field(repr=False)


@dataclass(frozen=True)
class OneAccount:
    """Check whether an account may log in now, without authentication."""

    user: str
    remote: str = ""


@dataclass(frozen=True)
class AllAccounts:
    """List every account that could log in."""


@dataclass(frozen=True)
class Ping:
    """Check that the helper answers."""


Request = LoginRequest | Passwd | OneAccount | AllAccounts | Ping

_OPERATIONS: dict[object, type[Request]] = {
    "login": LoginRequest,
    "passwd": Passwd,
    "account": OneAccount,
    "accounts": AllAccounts,
    "ping": Ping,
}


class RequestError(ValueError):
    """A malformed request; the text never has any of its contents."""


def read_line(connection: socket.socket) -> bytes:
    """One line, within REQUEST_TIMEOUT_S. Raises RequestError."""
    end = time.monotonic() + REQUEST_TIMEOUT_S
    received = b""
    while b"\n" not in received:
        if len(received) > REQUEST_MAX_BYTES:
            raise RequestError(f"A request has at most {REQUEST_MAX_BYTES} bytes.")
        connection.settimeout(max(0.001, end - time.monotonic()))
        try:
            part = connection.recv(REQUEST_MAX_BYTES + 1)
        except TimeoutError as error:
            raise RequestError(f"No request within {REQUEST_TIMEOUT_S:g} seconds.") from error
        except ConnectionError as error:
            raise RequestError("The connection broke.") from error
        if not part:
            raise RequestError("A request is one line.")
        received += part
    line, rest = received.split(b"\n", 1)
    if rest or len(line) > REQUEST_MAX_BYTES:
        raise RequestError(f"A request is one line of at most {REQUEST_MAX_BYTES} bytes.")
    return line


def parse(line: bytes) -> Request:
    """The request in a line. Raises RequestError."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        # Without `from`: the JSON error has the request's text.
        raise RequestError("The request is not JSON.") from None
    if not isinstance(body, dict):
        raise RequestError("The request is not an object.")
    op = body.pop("op", None)
    kind = _OPERATIONS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise RequestError(f"`op` is one of {', '.join(map(str, _OPERATIONS))}.")
    known = {item.name for item in fields(kind)}
    needed = {item.name for item in fields(kind) if item.default is MISSING}
    texts = {name: value for name, value in body.items() if isinstance(value, str)}
    if len(texts) != len(body) or not needed <= set(texts) <= known:
        raise RequestError(f"`{op}` takes these, all texts: {', '.join(sorted(known)) or '-'}.")
    return kind(**texts)
