"""Client of `podyd auth`, the small root process that alone uses PAM.

One connection per request. The helper ends a PAM module that hangs; here, the number of requests
under way is limited, others are queued, and each has a deadline, so that a hanging LDAP blocks
nothing else. Users who have logged in before have priority over unknown ones, who may be guessing;
the others are served in turn, and none may have all of the requests under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from podyd.base.errors import BadRequest, Forbidden, Unauthorized, Unavailable
from podyd.base.fair_semaphore import FairSemaphore, QueueFull

# Fewer than the helper serves at once.
MAX_UNDER_WAY = 16
MAX_OF_ONE = MAX_UNDER_WAY // 2
# A whole lab may come back to its pages at the same moment.
MAX_WAITING = 1024
# Seconds, for the wait in the queue and for the answer together.
TIMEOUT = 20.0
MAX_ANSWER_BYTES = 16 * 1024**2
# When to try again, in seconds: not all at the same moment.
AGAIN_FROM, AGAIN_TO = 5.0, 15.0


@dataclass(frozen=True)
class Account:
    """A Linux account as NSS has it.

    `mark` changes with each new password; "" if it is not known. `must_change`: the password must
    be changed before anything else.
    """

    name: str
    uid: int
    gid: int
    groups: frozenset[str]
    mark: str = ""
    must_change: bool = False

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Account:
        return cls(data["name"], data["uid"], data["gid"], frozenset(data["groups"]))


class AuthClient:
    """The helper behind the unix socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._turns = FairSemaphore(width=MAX_UNDER_WAY, length=MAX_WAITING)

    async def login(
        self, user: str, password: str, address: str, *, key: Hashable, known: bool
    ) -> Account:
        """Check a password and the account behind it through PAM.

        `key` is that of the fair queue, `known`: the user has logged in from this origin
        before. The caller must check whether the account `must_change` its password.

        Raises Unauthorized (unknown user and wrong password alike), Forbidden if the account may
        not log in now, Unavailable if PAM or its backend does not answer.
        """
        turn = self._turns.turn(key, share=MAX_OF_ONE, favoured=known)
        return _allowed(
            await self._ask(turn, op="login", user=user, password=password, remote=address)
        )

    async def account(self, user: str, address: str, *, key: Hashable, known: bool) -> Account:
        """An account that may log in now, by PAM's account rules, without a password.

        Raises as `login` does; Unauthorized if there is none of this name.
        """
        turn = self._turns.turn(key, share=MAX_OF_ONE, favoured=known)
        return _allowed(await self._ask(turn, op="account", user=user, remote=address))

    async def change_password(self, user: str, old: str, new: str) -> None:
        """Change a password with the user's own rights, as passwd(1) does.

        Raises BadRequest, with PAM's message, for a password that PAM refuses.
        """
        turn = self._turns.turn(("passwd", user), share=MAX_OF_ONE)
        _checked(await self._ask(turn, op="passwd", user=user, old=old, new=new))

    async def accounts(self) -> list[Account]:
        """Every account that could log in, as far as NSS lists them; one request at a time."""
        turn = self._turns.turn("accounts", share=1)
        answer = _checked(await self._ask(turn, op="accounts"))
        return [Account.of(item) for item in answer["accounts"]]

    async def _ask(
        self, turn: contextlib.AbstractAsyncContextManager[None], **request: str
    ) -> Mapping[str, Any]:
        is_asked = False

        async def in_turn() -> Mapping[str, Any]:
            nonlocal is_asked
            async with turn:
                is_asked = True
                return await self._exchange(request)

        try:
            return await asyncio.wait_for(in_turn(), TIMEOUT)
        # BlockingIOError: the helper hangs, and its listening socket's backlog is full.
        except (QueueFull, BlockingIOError):
            raise too_many_logins() from None
        except asyncio.TimeoutError:
            if not is_asked:
                raise too_many_logins() from None
            raise Unavailable(
                "The login service did not answer in time.",
                advice="Try again shortly.",
                code="pam_timeout",
                retry_after=_again(),
            ) from None
        except (OSError, ValueError) as error:
            raise Unavailable(
                "The login service cannot be reached.",
                advice=(
                    f"Tell your admin that 'podyd auth' does not answer at {self._path}"
                    f" ({type(error).__name__})."
                ),
                code="pam_unreachable",
            ) from error

    async def _exchange(self, request: Mapping[str, str]) -> Mapping[str, Any]:
        async with self._connection() as (reader, writer):
            writer.write(json.dumps(request).encode() + b"\n")
            await writer.drain()
            answer: Mapping[str, Any] = json.loads(await reader.readline())
            return answer

    @contextlib.asynccontextmanager
    async def _connection(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(
            sock=_connected(self._path), limit=MAX_ANSWER_BYTES
        )
        try:
            yield reader, writer
        finally:
            writer.close()


def too_many_logins() -> Unavailable:
    """The error for a login that has waited too long, or cannot wait, for its turn."""
    return Unavailable(
        "Too many logins are under way.",
        advice="Try again shortly.",
        code="pam_busy",
        retry_after=_again(),
    )


def _again() -> float:
    return random.uniform(AGAIN_FROM, AGAIN_TO)  # noqa: S311 - no secret


def _connected(path: str) -> socket.socket:
    """A connection to the helper. Raises BlockingIOError, which asyncio would take as a success."""
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _allowed(answer: Mapping[str, Any]) -> Account:
    must_change = answer.get("error") == "expired"
    account = Account.of((answer if must_change else _checked(answer))["account"])
    return replace(account, mark=answer.get("mark", ""), must_change=must_change)


def _checked(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    error = answer.get("error")
    reason = str(answer.get("reason", "")).strip().rstrip(".")
    if error is None:
        return answer
    if error == "denied":
        raise Unauthorized("User name or password is wrong.")
    if error == "refused":
        raise Forbidden(f"This account may not log in: {reason}.", code="account_refused")
    if error == "weak":
        raise BadRequest(f"The new password was not accepted: {reason}.", code="password_refused")
    if error == "invalid":
        raise BadRequest(f"Parameter 'passwd': {reason}.", code="malformed_parameter")
    raise Unavailable(
        f"The login service cannot answer at the moment: {reason or error}.", code="pam_unavailable"
    )
