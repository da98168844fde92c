"""Logins on the page: a browser has a cookie in place of the password.

A browser sends a cookie to every port of its host name, also to what a pod serves there. So the
cookie is half of a session's secret; the other half, the key, is in the page's storage, which is of
its origin alone, and the page sends it with each request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from podyd.auth.client import Account
from podyd.base.errors import NotFound, Unauthorized
from podyd.config.current import Settings
from podyd.model.web_session import WebSession
from podyd.store.web_sessions import WebSessionStore

# As with tokens; no token begins with it, and it is no token.
PREFIX = "podydweb_"
SECRET_BYTES = 32
DAYS = 30.0
MAX_PER_USER = 20
# How exactly the database has when a session was last used.
WRITE_SECONDS = 60.0
MAX_REMEMBERED = 10_000


_HALF = r"[A-Za-z0-9_-]{43}"


def is_web_secret(secret: str) -> bool:
    """Whether this has the form of a session's secret, which is accepted from the page alone."""
    return re.fullmatch(rf"{PREFIX}{_HALF}\.{_HALF}", secret, re.ASCII) is not None


def is_web_cookie(value: str) -> bool:
    """Whether this has the form of the half that is in the cookie."""
    return re.fullmatch(PREFIX + _HALF, value, re.ASCII) is not None


def joined(cookie: str, key: str) -> str:
    """The secret of which these are the halves."""
    return f"{cookie}.{key}"


def halves(secret: str) -> tuple[str, str]:
    """The cookie and the key of a secret."""
    cookie, _, key = secret.partition(".")
    return cookie, key


def ended() -> Unauthorized:
    """The same error for a session that is unknown, expired, idle, logged out, or whose account or
    password is another by now."""
    return Unauthorized(
        "The login on this page has ended.", advice="Log in again.", code="session_ended"
    )


def page_off() -> NotFound:
    """The error where podyd.yaml turns the page off."""
    return NotFound(
        "The page of podyd is turned off on this server.",
        advice="Use 'pody', or the API with your password or a token.",
        code="page_off",
    )


@dataclass
class _Use:
    """When a session was last used, and when the database was told so: seconds since 1970."""

    last: float
    written: float


class WebSessions:
    """Makes, finds and ends logins on the page."""

    def __init__(self, store: WebSessionStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._uses: OrderedDict[bytes, _Use] = OrderedDict()

    async def create(self, account: Account, address: str = "") -> tuple[str, WebSession, int]:
        """Begin a session; returns its secret, of which only a digest is stored, itself, and how
        many older ones of the account have ended for it. Raises NotFound if there is no page."""
        if self._settings.current.web is None:
            raise page_off()
        now = time.time()
        cookie = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        secret = joined(cookie, secrets.token_urlsafe(SECRET_BYTES))
        session = WebSession(
            digest=_digest(secret),
            owner=account.name,
            uid=account.uid,
            mark=account.mark,
            created=now,
            expires=now + DAYS * 86400,
            address=address,
        )
        count = await self._store.add(
            session, most=MAX_PER_USER, idle_since=now - self._idle_seconds()
        )
        return secret, session, count

    async def find(self, secret: str) -> WebSession:
        """The session with this secret. Raises Unauthorized if there is none, or it has ended."""
        stored = await self._store.find(_digest(secret))
        if stored is None:
            raise ended()
        session, used = stored
        self._remember(session, used)
        self.check(session)
        return session

    async def first_of(self, secrets: Sequence[str]) -> str | None:
        """The first of these with which there is a session, ended or not."""
        by_digest = {_digest(secret): secret for secret in secrets}
        there = await self._store.among(list(by_digest))
        return next((secret for digest, secret in by_digest.items() if digest in there), None)

    def check(self, session: WebSession) -> None:
        """Raises Unauthorized if a session has expired or is idle, as far as memory knows."""
        use, now = self._uses.get(session.digest), time.time()
        is_idle = use is not None and use.last <= now - self._idle_seconds()
        if is_idle or session.expires <= now:
            raise ended()

    def noticed(self, session: WebSession) -> None:
        """A session's user does something; `write` stores it."""
        if (use := self._uses.get(session.digest)) is not None:
            use.last = time.time()

    async def write(self, session: WebSession) -> None:
        """Store when a session was last used, once in `WRITE_SECONDS`."""
        use = self._uses.get(session.digest)
        if use is not None and abs(use.last - use.written) >= WRITE_SECONDS:
            use.written = use.last
            await self._store.used(session.digest, use.last)

    async def works(self, session: WebSession) -> bool:
        """Whether a session goes on."""
        await self.write(session)
        stored = await self._store.find(session.digest)
        if stored is None:
            return False
        self._remember(*stored)
        try:
            self.check(session)
        except Unauthorized:
            return False
        return True

    async def of(self, account: Account) -> list[tuple[WebSession, float]]:
        """An account's sessions that go on, and when each was last used, in seconds since 1970; the
        last one used comes first."""
        now = time.time()
        stored = await self._store.of(account.name, now=now, idle_since=now - self._idle_seconds())
        return [
            (session, used)
            for session, used in stored
            if (session.uid, session.mark) == (account.uid, account.mark)
        ]

    async def end(self, session: WebSession) -> None:
        """End one session."""
        await self._store.remove(session.digest)

    async def end_all(self, owner: str) -> int:
        """End all sessions of a user; returns how many there were."""
        now = time.time()
        return await self._store.remove_all(owner, now=now, idle_since=now - self._idle_seconds())

    def _remember(self, session: WebSession, used: float) -> None:
        self._uses.setdefault(session.digest, _Use(used, used))
        self._uses.move_to_end(session.digest)
        while len(self._uses) > MAX_REMEMBERED:
            self._uses.popitem(last=False)

    def _idle_seconds(self) -> float:
        web = self._settings.current.web
        return 0.0 if web is None else web.idle_hours * 3600


def _digest(secret: str) -> bytes:
    """What is stored of a secret, which nobody can guess; as with tokens."""
    return hashlib.sha256(secret.encode()).digest()
