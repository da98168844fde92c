"""Asks `podyd auth`, the small root process that alone talks to PAM.

One connection a request. The helper ends a PAM module that hangs; here, a bounded number of
requests may be under way and each has a deadline, so that a hanging LDAP stops nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from podyd.errors import BadRequest, Forbidden, Unauthorized, Unavailable

MAX_UNDER_WAY = 32
TIMEOUT = 20.0
MAX_ANSWER_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class Account:
    """A Linux account as NSS has it."""

    name: str
    uid: int
    groups: frozenset[str]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Account:
        return cls(data["name"], data["uid"], frozenset(data["groups"]))


class AuthClient:
    """The helper behind the unix socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._under_way = 0

    async def login(self, user: str, password: str, address: str) -> Account:
        """Check a password and the account behind it through PAM.

        Raises Unauthorized (unknown user and wrong password alike), Forbidden if the account may
        not log in at present, Unavailable if PAM or what is behind it does not answer.
        """
        answer = await self._ask(op="login", user=user, password=password, remote=address)
        return Account.of(answer["account"])

    async def change_password(self, user: str, old: str, new: str) -> None:
        """Change a password as the user themselves would with passwd(1).

        Raises BadRequest, with PAM's own words, for a password that PAM does not take.
        """
        await self._ask(op="passwd", user=user, old=old, new=new)

    async def accounts(self) -> list[Account]:
        """Every account that could log in, as far as NSS lists them."""
        return [Account.of(item) for item in (await self._ask(op="accounts"))["accounts"]]

    async def _ask(self, **request: str) -> Mapping[str, Any]:
        if self._under_way >= MAX_UNDER_WAY:
            raise Unavailable("Too many logins are under way; try again shortly.", code="pam_busy")
        self._under_way += 1
        try:
            answer = await asyncio.wait_for(self._exchange(request), TIMEOUT)
        except asyncio.TimeoutError:
            raise Unavailable(
                "The login service did not answer in time; try again shortly.", code="pam_timeout"
            ) from None
        except (OSError, ValueError) as error:
            raise Unavailable(
                "The login service cannot be reached; tell your admin that 'podyd auth' does not"
                f" answer at {self._path} ({type(error).__name__}).",
                code="pam_unreachable",
            ) from error
        finally:
            self._under_way -= 1
        return _checked(answer)

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
        reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_ANSWER_BYTES)
        try:
            yield reader, writer
        finally:
            writer.close()


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
