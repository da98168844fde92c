"""Tokens: what a program has instead of its owner's password."""

from __future__ import annotations

import hashlib
import re
import secrets
import time

from podyd.auth.client import Account
from podyd.base.errors import Forbidden, NotFound, Unauthorized
from podyd.config.current import Settings
from podyd.model.token import Token, TokenScope
from podyd.store.tokens import TokenStore

# So that people, and programs that look for leaked secrets, know one when they see it.
PREFIX = "podyd_"
SECRET_BYTES = 32
DEFAULT_DAYS = 30.0
MAX_PER_USER = 50


def is_token(secret: str) -> bool:
    """Whether this is written as a token is; it is no password then, and never shown to PAM."""
    return re.fullmatch(PREFIX + r"[A-Za-z0-9_-]{43}", secret, re.ASCII) is not None


def refused() -> Unauthorized:
    """The same for a token that never was, has expired, is revoked, or is somebody else's."""
    return Unauthorized("This token does not work, or no longer.", code="token_refused")


class Tokens:
    """Makes, finds and revokes tokens."""

    def __init__(self, store: TokenStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    async def create(
        self, account: Account, name: str, days: float | None, scope: TokenScope
    ) -> tuple[str, Token]:
        """A new token of the account: the secret, which podyd does not keep, and the rest."""
        longest = self._settings.current.auth.token_days_max
        days = min(DEFAULT_DAYS, longest) if days is None else days
        if days > longest:
            raise Forbidden(
                f"Parameter 'days' may be {longest} at most.", code="days_too_many", limit=longest
            )
        now = time.time()
        token = Token(
            id=secrets.token_hex(8),
            owner=account.name,
            uid=account.uid,
            mark=account.mark,
            name=name,
            scope=scope,
            created=now,
            expires=now + days * 86400,
        )
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        if not await self._store.add(_digest(secret), token, most=MAX_PER_USER):
            raise Forbidden(
                f"You have {MAX_PER_USER} tokens already.",
                advice="Revoke one first.",
                code="quota_exceeded",
                limit=MAX_PER_USER,
                used=MAX_PER_USER,
            )
        return secret, token

    async def find(self, secret: str) -> Token:
        """The token with this secret. Raises Unauthorized if there is none, or none any more."""
        token = await self._store.find(_digest(secret))
        if token is None or token.expires <= time.time():
            raise refused()
        return token

    async def works(self, token: Token) -> bool:
        """Whether a token that was found works yet."""
        found = await self._store.of(token.owner, token.uid, token.mark, now=time.time())
        return token.id in {item.id for item in found}

    async def used(self, token: Token) -> None:
        """Note that a token is used now."""
        await self._store.used(token.id, time.time())

    async def of(self, account: Account) -> list[Token]:
        """The tokens of an account that work, the oldest first."""
        return await self._store.of(account.name, account.uid, account.mark, now=time.time())

    async def revoke(self, owner: str, id: str) -> None:
        """Revoke one token. Raises NotFound."""
        if not await self._store.remove(owner, id, now=time.time()):
            raise NotFound(f"{owner} has no token {id}.", code="no_such_token", id=id)

    async def revoke_all(self, owner: str) -> int:
        """Revoke every token of a user, and say how many worked."""
        return await self._store.remove(owner, None, now=time.time())


def _digest(secret: str) -> bytes:
    """What is kept of a secret.

    It has 256 random bits, which nobody finds by trying: a slow hash, as passwords need, would
    protect no better. Looked up by its digest, its time tells nothing about what is stored.
    """
    return hashlib.sha256(secret.encode()).digest()
