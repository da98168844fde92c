"""Tokens, with which programs log in instead of their owner's password."""

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

# So that people, and scanners for leaked secrets, recognise a token.
PREFIX = "podyd_"
SECRET_BYTES = 32
DEFAULT_DAYS = 30.0
MAX_PER_USER = 50


def is_token(secret: str) -> bool:
    """Whether this has the form of a token; it is then never passed to PAM as a password."""
    return re.fullmatch(PREFIX + r"[A-Za-z0-9_-]{43}", secret, re.ASCII) is not None


def refused() -> Unauthorized:
    """The same error for a token that is unknown, expired, revoked, or of another user."""
    return Unauthorized("This token does not work, or no longer.", code="token_refused")


class Tokens:
    """Makes, finds and revokes tokens."""

    def __init__(self, store: TokenStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    async def create(
        self, account: Account, name: str, days: float | None, scope: TokenScope
    ) -> tuple[str, Token]:
        """Create a token that expires after `days`; returns its secret, of which only a digest is
        stored, and itself. Raises Forbidden."""
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
        """The token with this secret. Raises Unauthorized if there is none, or it has expired."""
        token = await self._store.find(_digest(secret))
        if token is None or token.expires <= time.time():
            raise refused()
        return token

    async def works(self, token: Token) -> bool:
        """Whether a token is still valid."""
        valid = await self._store.of(token.owner, token.uid, token.mark, now=time.time())
        return token.id in {item.id for item in valid}

    async def used(self, token: Token) -> None:
        """Store that a token is used now."""
        await self._store.used(token.id, time.time())

    async def of(self, account: Account) -> list[Token]:
        """The valid tokens of an account, the oldest first."""
        return await self._store.of(account.name, account.uid, account.mark, now=time.time())

    async def revoke(self, owner: str, id: str) -> None:
        """Revoke one token. Raises NotFound."""
        if not await self._store.remove(owner, id, now=time.time()):
            raise NotFound(f"{owner} has no token {id}.", code="no_such_token", id=id)

    async def revoke_all(self, owner: str) -> int:
        """Revoke every token of a user; returns how many were valid."""
        return await self._store.remove(owner, None, now=time.time())


def _digest(secret: str) -> bytes:
    """What is stored of a secret.

    It has 256 random bits, which cannot be guessed: a slow hash, as passwords need, would protect
    no better. It is looked up by its digest, so the time taken reveals nothing of what is stored.
    """
    return hashlib.sha256(secret.encode()).digest()
