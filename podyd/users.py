"""Who the members are: logins, passwords, and what each of them may have."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from podyd.addresses import is_among, parse_address
from podyd.authclient import Account, AuthClient
from podyd.config import Auth, Quota
from podyd.errors import Forbidden, TooMany, Unauthorized, Unavailable
from podyd.quotas import profiles_of, quota_of
from podyd.settings import Settings
from podyd.spec import TokenScope
from podyd.store import Token
from podyd.tasks import seen
from podyd.throttle import Throttle
from podyd.tokens import Tokens, is_token, refused

# A login is remembered for so long before PAM is asked again.
REMEMBERED_SECONDS = 60.0
# Every failure takes at least so long, whatever its cause, so that its time tells nothing.
FAILURE_SECONDS = 0.5
MAX_REMEMBERED = 10_000


@dataclass(frozen=True)
class Member:
    """A user who has logged in, with what podyd.yaml grants them."""

    name: str
    is_admin: bool
    quota: Quota
    profiles: tuple[str, ...]
    uid: int
    gid: int


@dataclass(frozen=True)
class Login:
    """A member, and with what they have proven it: `token`, or the password if it is None."""

    member: Member
    account: Account
    token: Token | None


@dataclass(frozen=True)
class _Proven:
    account: Account
    token: Token | None = None


@dataclass(frozen=True)
class _Remembered:
    proven: _Proven
    expires: float


class Users:
    """Logs users in through PAM, which is asked as seldom as possible and never by an attacker
    who has failed too often."""

    def __init__(self, auth: AuthClient, tokens: Tokens, settings: Settings) -> None:
        self._auth = auth
        self._tokens = tokens
        self._settings = settings
        self._key = secrets.token_bytes(32)
        self._logins: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Proven]] = {}
        self._forgotten = 0
        # Where a user has logged in before: their own failures elsewhere do not lock them out.
        self._known: OrderedDict[tuple[Hashable, str], None] = OrderedDict()
        self._failures = Throttle()

    async def log_in(
        self, name: str, secret: str, address: str, *, may_be_expired: bool = False
    ) -> Login:
        """The member with this password or token; a token needs no name, "".

        `may_be_expired`: also with a password that must be changed, as nothing but a change of it
        may follow. Raises Unauthorized, Forbidden (not a member, account locked or expired,
        password expired), TooMany, or Unavailable.
        """
        digest = self._digest(name, secret)
        login = self._logins.get(digest)
        if login is None or login.expires <= time.monotonic():
            self._logins.pop(digest, None)
            proven = await self._ask_once(digest, name, secret, address)
        else:
            proven = login.proven
        member = self._member(proven.account)
        if proven.account.must_change and not may_be_expired:
            raise Forbidden(
                "Your password has expired; choose a new one with 'pody passwd', or with POST"
                " /user/ch-passwd and the old one.",
                code="password_expired",
            )
        return Login(member, proven.account, proven.token)

    def may_scrape(self, address: str) -> bool:
        """Whether podyd.yaml lets this address read /metrics without a login."""
        return is_among(parse_address(address), self._settings.current.metrics.allow)

    async def change_password(self, member: Member, old: str, new: str) -> int:
        """Change a member's own Linux password; the old one stops working at once.

        Their tokens do too, for it may be that somebody has learned it; the result is their number.
        """
        try:
            await self._auth.change_password(member.name, old, new)
            return await self._revoke_after_change(member.name)
        finally:
            self._forget(member.name)

    async def _revoke_after_change(self, owner: str) -> int:
        try:
            return await self._tokens.revoke_all(owner)
        except Unavailable as error:
            raise Unavailable(
                f"The password is changed, but your tokens may still work: {error.detail}",
                code=error.code,
            ) from error

    async def create_token(
        self, login: Login, name: str, days: float | None, scope: TokenScope
    ) -> tuple[str, Token]:
        """A new token of the caller's: the secret, and the rest."""
        return await self._tokens.create(login.account, name, days, scope)

    async def tokens(self, login: Login) -> list[Token]:
        """The caller's tokens that work, the oldest first."""
        return await self._tokens.of(login.account)

    async def revoke_token(self, login: Login, id: str, user: str | None) -> str:
        """Revoke a token or `all`, an admin also those of another `user`; what was done."""
        owner = user or login.member.name
        if login.token is not None and (owner, id) != (login.token.owner, login.token.id):
            raise Forbidden(
                "A token can revoke itself alone; for others, log in with the password.",
                code="password_needed",
            )
        if owner != login.member.name and not login.member.is_admin:
            raise Forbidden("Other users' tokens are for admins to revoke.", code="not_an_admin")
        try:
            if id == "all":
                return (
                    f"Tokens of {owner} that are revoked: {await self._tokens.revoke_all(owner)}."
                )
            await self._tokens.revoke(owner, id)
        finally:
            self._forget(owner)
        return f"Token {id} of {owner} is revoked."

    async def all(self) -> list[Member]:
        """Every member of this node, by name."""
        accounts = await self._auth.accounts()
        auth = self._settings.current.auth
        members = [account for account in accounts if _is_member(account, auth)]
        return sorted((self._member(account) for account in members), key=lambda item: item.name)

    def _digest(self, name: str, password: str) -> bytes:
        return hashlib.blake2b(f"{name}\0{password}".encode(), key=self._key).digest()

    def _forget(self, name: str) -> None:
        self._forgotten += 1
        # What is being asked was proven before; who comes now must not join it.
        self._asking.clear()
        for digest, login in list(self._logins.items()):
            if login.proven.account.name == name:
                del self._logins[digest]

    async def _ask_once(self, digest: bytes, name: str, secret: str, address: str) -> _Proven:
        """Ask PAM, once for all requests that come with the same secret meanwhile."""
        asking = self._asking.get(digest)
        if asking is None:
            asking = asyncio.ensure_future(self._ask(digest, name, secret, address))
            self._asking[digest] = asking
            asking.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(asking)

    def _asked(self, digest: bytes, done: asyncio.Task[_Proven]) -> None:
        if self._asking.get(digest) is done:
            del self._asking[digest]
        seen(done)

    async def _ask(self, digest: bytes, name: str, secret: str, address: str) -> _Proven:
        # A token counts by itself: whoever tries some in a user's name does not lock them out.
        who: Hashable = digest if is_token(secret) else name
        keys = self._throttled(who, address)
        started = time.monotonic()
        # An attempt counts as failed until it has succeeded, so that many at once count too.
        counted = [(key, self._failures.count(key)) for key in keys]
        forgotten = self._forgotten
        try:
            proven = await self._prove(name, secret, address, known=(who, address) in self._known)
        except Unauthorized:
            await asyncio.sleep(max(0.0, started + FAILURE_SECONDS - time.monotonic()))
            raise
        except (Forbidden, Unavailable):
            self._forgive(counted)
            raise
        self._forgive(counted)
        self._known[who, address] = None
        self._known.move_to_end((who, address))
        # A password or token that was changed or revoked meanwhile must not come back from this;
        # and an expired password, which may have been mended, is asked about each time.
        if self._forgotten == forgotten and not proven.account.must_change:
            self._logins[digest] = _Remembered(proven, time.monotonic() + _lasts(proven))
        for table in (self._logins, self._known):
            while len(table) > MAX_REMEMBERED:
                table.popitem(last=False)
        return proven

    async def _prove(self, name: str, secret: str, address: str, *, known: bool) -> _Proven:
        if not is_token(secret):
            return _Proven(await self._auth.login(name, secret, address, known=known))
        token = await self._tokens.find(secret)
        if name not in ("", token.owner):
            raise refused()
        try:
            account = await self._auth.account(token.owner, address, known=known)
        except Unauthorized:
            raise refused() from None
        # Another account may have the name by now, and even the uid; or there is a new password.
        if (account.uid, account.mark) != (token.uid, token.mark):
            raise refused()
        await self._tokens.used(token)
        return _Proven(account, token)

    def _throttled(self, who: Hashable, address: str) -> list[Hashable]:
        """The keys under which a failure counts; raises TooMany if one has failed too often."""
        auth = self._settings.current.auth
        limits: dict[Hashable, int]
        if (who, address) in self._known:
            limits = {("user at address", who, address): auth.failures_per_user}
        else:
            limits = {
                ("user", who): auth.failures_per_user,
                ("address", address): auth.failures_per_address,
            }
        for key, limit in limits.items():
            wait = self._failures.wait(key, limit, auth.failure_window)
            if wait > 0:
                raise TooMany(
                    f"Too many failed logins; wait {wait:.0f} s.",
                    retry_after=wait,
                    code="too_many_failed_logins",
                )
        return list(limits)

    def _forgive(self, counted: list[tuple[Hashable, float]]) -> None:
        for key, when in counted:
            self._failures.forgive(key, when)

    def _member(self, account: Account) -> Member:
        config = self._settings.current
        if not _is_member(account, config.auth):
            raise Forbidden(
                "This account is not a member; members are in one of the groups"
                f" {', '.join(config.auth.member_groups)}.",
                code="not_a_member",
            )
        return Member(
            name=account.name,
            is_admin=not account.groups.isdisjoint(config.auth.admin_groups),
            quota=quota_of(account, config),
            profiles=profiles_of(account, config),
            uid=account.uid,
            gid=account.gid,
        )


def _lasts(proven: _Proven) -> float:
    """For how many seconds it may be remembered."""
    if proven.token is None:
        return REMEMBERED_SECONDS
    return min(REMEMBERED_SECONDS, proven.token.expires - time.time())


def _is_member(account: Account, auth: Auth) -> bool:
    allowed = {*auth.member_groups, *auth.admin_groups}
    return not auth.member_groups or not account.groups.isdisjoint(allowed)
