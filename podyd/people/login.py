"""Logins: who a caller is, proven by a password or a token, and what they may have."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from podyd.auth.client import MAX_WAITING, Account, AuthClient, too_many_logins
from podyd.base.errors import Forbidden, NotFound, PodydError, TooMany, Unauthorized, Unavailable
from podyd.base.fair_semaphore import FairSemaphore, QueueFull
from podyd.base.tasks import seen
from podyd.config.addresses import is_among, parse_address
from podyd.config.current import Settings
from podyd.config.schema import AuthConfig, Config
from podyd.model.member import Member
from podyd.model.token import Token, TokenScope
from podyd.model.web_session import WebSession
from podyd.people.account_list import AccountList
from podyd.people.guesses import Guesses, Try
from podyd.people.origins import Origins, Source
from podyd.people.quotas import profiles_of, quota_of
from podyd.people.tokens import Tokens, is_token, refused
from podyd.people.web_sessions import WebSessions, ended, is_web_secret

# A login is cached for so long before PAM is asked again.
REMEMBERED_SECONDS = 60.0
# Every failure takes at least so long, whatever its cause, so that its time reveals nothing.
FAILURE_SECONDS = 0.5
MAX_REMEMBERED = 10_000
# All sessions are checked at the same time, and all pages connect again at the same time: so many
# of each ask the database at once, which has a short queue for all that podyd does.
MAX_LOOKED_UP = 8


# Called with a user whose logins have changed, and the reason why all their sessions end; None if
# each session is to be checked.
Changed = Callable[[str, PodydError | None], None]


@dataclass(frozen=True)
class Login:
    """A member and their proof: `token`, `web` (a login on the page), or the password if both are
    None."""

    member: Member
    account: Account
    token: Token | None
    web: WebSession | None = None


@dataclass(frozen=True)
class _Proven:
    account: Account
    token: Token | None = None
    web: WebSession | None = None


@dataclass(frozen=True)
class _Remembered:
    proven: _Proven
    expires: float


@dataclass(frozen=True)
class _Attempt:
    """A login as `name` with `secret`; a failure counts against `origin`."""

    digest: bytes
    name: str
    secret: str = field(repr=False)
    address: str
    origin: Hashable


@dataclass(frozen=True)
class _Listed:
    """The members among accounts under a configuration; both are compared by identity."""

    accounts: Mapping[str, Account]
    config: Config
    members: Sequence[Member]


class Logins:
    """Logs users in through PAM. Logins are cached, and attempts beyond the limits of failures
    never reach PAM."""

    def __init__(
        self,
        auth: AuthClient,
        origins: Origins,
        tokens: Tokens,
        web_sessions: WebSessions,
        settings: Settings,
    ) -> None:
        self._auth = auth
        self._origins = origins
        self._subscribers: list[Changed] = []
        self._tokens = tokens
        self._web_sessions = web_sessions
        self._settings = settings
        self._key = secrets.token_bytes(32)
        self._logins: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._asking: dict[_Attempt, asyncio.Task[_Proven]] = {}
        # By user, when their cached logins were last dropped: numbers of a counter.
        self._forgotten: dict[str, int] = {}
        self._numbers = itertools.count(1)
        # Users and the origins from which they have logged in: failures elsewhere do not lock them
        # out there.
        self._known: OrderedDict[tuple[Hashable, Hashable], None] = OrderedDict()
        self._changing: set[str] = set()
        # How often each user's tokens and logins on the page have become others.
        self._changes: Counter[str] = Counter()
        self._guesses = Guesses(lambda: settings.current.auth)
        self._accounts = AccountList(auth.accounts)
        self._listed: _Listed | None = None
        self._looking_up = asyncio.Semaphore(MAX_LOOKED_UP)
        self._turns = FairSemaphore(width=MAX_LOOKED_UP, length=MAX_WAITING)

    def subscribe(self, subscriber: Changed) -> None:
        """Call `subscriber` whenever podyd itself has changed a password or revoked tokens."""
        self._subscribers.append(subscriber)

    async def log_in(
        self, name: str, secret: str, source: Source, *, may_be_expired: bool = False
    ) -> Login:
        """The member with this password or token; a token, or the secret of a login on the page,
        needs no name, "".

        `may_be_expired`: also with a password that must be changed, as nothing but a change of it
        may follow. Raises Unauthorized, Forbidden (not a member, account locked or expired,
        password expired), TooMany, or Unavailable.
        """
        digest = self._digest(name, secret)
        login = self._logins.get(digest)
        if login is None or login.expires <= time.monotonic():
            self._logins.pop(digest, None)
            origin = await self._origins.of(source)
            attempt = _Attempt(digest, name, secret, source.address, origin)
            proven = await self._ask_once(attempt)
        else:
            proven = login.proven
        member = self._member(proven.account)
        if proven.account.must_change and not may_be_expired:
            raise _expired()
        if proven.web is not None:
            self._web_sessions.check(proven.web)
        return Login(member, proven.account, proven.token, proven.web)

    async def page_among(self, secrets: Sequence[str], source: Source) -> str:
        """The first of these that is the secret of a login on the page; or of none the first."""
        if len(secrets) == 1:
            return secrets[0]
        async with self._turn(await self._origins.of(source)):
            return await self._web_sessions.first_of(secrets) or secrets[0]

    def noticed(self, login: Login) -> None:
        """The user of a login on the page does something, so that it does not end as idle."""
        if login.web is not None:
            self._web_sessions.noticed(login.web)

    async def write_use(self, login: Login) -> None:
        """Store when a login on the page was last used, now and then. Raises Unavailable."""
        if login.web is not None:
            await self._web_sessions.write(login.web)

    def changes(self, name: str) -> int:
        """A number that is another one after a user's tokens or logins on the page have changed."""
        return self._changes[name]

    async def open_page(self, login: Login, address: str = "") -> tuple[str, WebSession]:
        """Begin a login on the page, from an address; returns its secret and itself. Raises
        NotFound if there is no page."""
        async with self._turn(self._who(login.account.name)):
            secret, session, over = await self._web_sessions.create(login.account, address)
        self._changes[session.owner] += 1
        if over:
            self._forget(session.owner)
            self._tell(session.owner, None)
        return secret, session

    async def pages(self, login: Login) -> list[tuple[WebSession, float]]:
        """The caller's logins on the page, and when each was last used; the last one used comes
        first."""
        return await self._web_sessions.of(login.account)

    async def close_pages(self, login: Login, id: str) -> int:
        """End one login of the caller's on the page, or with `others` all but the one that they
        call with; returns how many have ended. Raises NotFound; Forbidden with a token, which
        proves no more than itself."""
        if login.token is not None:
            raise Forbidden(
                "A token ends no login on the page.",
                advice="Log in with the password.",
                code="password_needed",
            )
        ended = [
            session
            for session, _ in await self.pages(login)
            if (session != login.web if id == "others" else session.id == id)
        ]
        if not ended and id != "others":
            raise NotFound(
                "You have no such login on the page.",
                advice="See /user/logins.",
                code="no_such_login",
            )
        for session in ended:
            await self.close_page(session)
        return len(ended)

    async def close_page(self, session: WebSession) -> None:
        """End a login on the page."""
        try:
            await self._web_sessions.end(session)
        finally:
            self._forget(session.owner)
            self._tell(session.owner, None)

    async def ended(self, login: Login, address: str) -> PodydError | None:
        """Why a login is no longer valid; None if it is, or if that cannot be checked at
        present."""
        before = login.account
        try:
            async with self._looking_up:
                if login.token is not None and not await self._tokens.works(login.token):
                    return refused()
                if login.web is not None and not await self._web_sessions.works(login.web):
                    return ended()
            account = await self._auth.account(
                before.name, address, key=self._who(before.name), known=True
            )
            is_admin = self._member(account).is_admin
        except (Unauthorized, Forbidden) as error:
            return error
        except PodydError:
            return None
        if (account.uid, account.mark) != (before.uid, before.mark):
            return _changed()
        if login.member.is_admin and not is_admin:
            return Unauthorized(
                "You are no admin any more.", advice="Log in again.", code="not_an_admin"
            )
        return _expired() if account.must_change else None

    def may_scrape(self, address: str) -> bool:
        """Whether podyd.yaml lets this address read /metrics without a login."""
        return is_among(parse_address(address), self._settings.current.metrics.allow)

    def may_see_status(self, address: str) -> bool:
        """Whether podyd.yaml lets this address see cards and queue without a login."""
        web = self._settings.current.web
        return web is not None and is_among(parse_address(address), web.status_allow)

    async def change_password(self, member: Member, old: str, new: str) -> int:
        """Change a member's own Linux password; the old one stops working at once.

        Their tokens and logins on the page end too, as the old password may have leaked; returns
        the number of tokens.
        Raises TooMany while another change of theirs is under way.
        """
        if member.name in self._changing:
            raise TooMany("Your password is being changed already.", retry_after=1)
        self._changing.add(member.name)
        try:
            await self._auth.change_password(member.name, old, new)
            self._tell(member.name, _changed())
            return await self._revoke_after_change(member.name)
        finally:
            self._changing.discard(member.name)
            self._forget(member.name)

    async def _revoke_after_change(self, owner: str) -> int:
        try:
            await self._web_sessions.end_all(owner)
            return await self._tokens.revoke_all(owner)
        except Unavailable as error:
            raise Unavailable(
                f"The password is changed, but your tokens may still work: {error.detail}",
                advice=f"{error.advice} Revoke your tokens later: /user/token-revoke with id=all.",
                code=error.code,
            ) from error

    async def create_token(
        self, login: Login, name: str, days: float | None, scope: TokenScope
    ) -> tuple[str, Token]:
        """Create a token of the caller that expires after `days`; returns its secret and itself."""
        created = await self._tokens.create(login.account, name, days, scope)
        self._changes[login.member.name] += 1
        return created

    async def tokens(self, login: Login) -> list[Token]:
        """The caller's tokens that work, the oldest first."""
        return await self._tokens.of(login.account)

    async def revoke_token(self, login: Login, id: str, user: str | None) -> str:
        """Revoke a token or `all`, an admin also those of another `user`; returns what was done, as
        a sentence."""
        owner = user or login.member.name
        if login.token is not None and (owner, id) != (login.token.owner, login.token.id):
            raise Forbidden(
                "A token can revoke itself alone.",
                advice="Log in with the password for others.",
                code="password_needed",
            )
        if owner != login.member.name and not login.member.is_admin:
            raise Forbidden("Other users' tokens are for admins to revoke.", code="not_an_admin")
        try:
            if id == "all":
                return await self._revoke_all(owner)
            await self._tokens.revoke(owner, id)
        finally:
            self._forget(owner)
            self._tell(owner, None)
        return f"Token {id} of {owner} is revoked."

    async def _revoke_all(self, owner: str) -> str:
        pages, tokens = (
            await self._web_sessions.end_all(owner),
            await self._tokens.revoke_all(owner),
        )
        also = f" Logins on the page that are ended: {pages}." if pages else ""
        return f"Tokens of {owner} that are revoked: {tokens}.{also}"

    async def all(self) -> Sequence[Member]:
        """Every member of this node, by name; a new one may be missing for a minute."""
        accounts, config = await self._accounts.all(), self._settings.current
        listed = self._listed
        if listed is None or listed.accounts is not accounts or listed.config is not config:
            members = [
                self._member(account)
                for _, account in sorted(accounts.items())
                if _is_member(account, config.auth)
            ]
            self._listed = listed = _Listed(accounts, config, members)
        return listed.members

    def _digest(self, name: str, password: str) -> bytes:
        return hashlib.blake2b(f"{name}\0{password}".encode(), key=self._key).digest()

    def _who(self, name: str) -> Hashable:
        """The key of a user: of fixed length, and in one case, as LDAP ignores case."""
        return self._digest(name.casefold(), "")

    def _tell(self, name: str, why: PodydError | None) -> None:
        for subscriber in self._subscribers:
            subscriber(name, why)

    def _forget(self, name: str) -> None:
        self._changes[name] += 1
        self._forgotten[name] = next(self._numbers)
        # A request to PAM that is under way began before the change; a new login must not share
        # it. All are dropped, as one may be for the same user in another spelling.
        self._asking.clear()
        for digest, login in list(self._logins.items()):
            if login.proven.account.name == name:
                del self._logins[digest]

    async def _ask_once(self, attempt: _Attempt) -> _Proven:
        """Ask PAM, once for all requests that come with the same secret meanwhile."""
        asking = self._asking.get(attempt)
        if asking is None:
            asking = asyncio.ensure_future(self._ask(attempt))
            self._asking[attempt] = asking
            asking.add_done_callback(lambda done: self._asked(attempt, done))
        return await asyncio.shield(asking)

    def _asked(self, attempt: _Attempt, done: asyncio.Task[_Proven]) -> None:
        if self._asking.get(attempt) is done:
            del self._asking[attempt]
        seen(done)

    async def _ask(self, attempt: _Attempt) -> _Proven:
        began = next(self._numbers)
        if is_token(attempt.secret):
            proven = await self._prove_token(attempt)
        elif is_web_secret(attempt.secret):
            proven = await self._prove_web_session(attempt)
        else:
            proven = await self._prove_password(attempt)
        account = proven.account
        self._accounts.saw(replace(account, mark="", must_change=False))
        # A password or token that was changed or revoked meanwhile must not be cached; nor an
        # expired password, which may have been changed elsewhere.
        if self._forgotten.get(account.name, 0) < began and not account.must_change:
            self._logins[attempt.digest] = _Remembered(proven, time.monotonic() + _lasts(proven))
            _shorten(self._logins)
        return proven

    async def _prove_password(self, attempt: _Attempt) -> _Proven:
        who = self._who(attempt.name)
        one = Try(who, attempt.origin, known=(who, attempt.origin) in self._known)
        async with self._counting(one):
            account = await self._auth.login(
                attempt.name,
                attempt.secret,
                attempt.address,
                key=who if one.known else attempt.origin,
                known=one.known,
            )
        self._known[who, attempt.origin] = None
        self._known.move_to_end((who, attempt.origin))
        _shorten(self._known)
        return _Proven(account)

    async def _prove_token(self, attempt: _Attempt) -> _Proven:
        """A token cannot be guessed: failures of others do not delay it."""
        async with _slow_failure():
            try:
                async with self._turn(attempt.origin):
                    token = await self._tokens.find(attempt.secret)
            except Unauthorized:
                self._guesses.failed_token(attempt.digest, attempt.origin)
                raise
        account = await self._owner(attempt, token, refused)
        async with self._turn(attempt.origin):
            await self._tokens.used(token)
        return _Proven(account, token)

    async def _prove_web_session(self, attempt: _Attempt) -> _Proven:
        """Nor can the secret of a login on the page be guessed; but each try asks the database."""
        async with _slow_failure(), self._turn(attempt.origin):
            session = await self._web_sessions.find(attempt.secret)
        return _Proven(await self._owner(attempt, session, ended), web=session)

    @contextlib.asynccontextmanager
    async def _turn(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a turn at the database. Raises Unavailable."""
        try:
            async with self._turns.turn(key, share=MAX_LOOKED_UP // 2):
                yield
        except QueueFull:
            raise too_many_logins() from None

    async def _owner(
        self, attempt: _Attempt, proof: Token | WebSession, refusal: Callable[[], Unauthorized]
    ) -> Account:
        """The account that a token or a login on the page was made for, as it is now."""
        async with self._counting(Try(attempt.digest, attempt.origin, known=True)):
            if attempt.name not in ("", proof.owner):
                raise refusal()
            try:
                account = await self._auth.account(
                    proof.owner,
                    attempt.address,
                    key=self._who(proof.owner),
                    known=True,
                )
            except Unauthorized:
                raise refusal() from None
            # The name, even the uid, may belong to another account by now; or the password changed.
            if (account.uid, account.mark) != (proof.uid, proof.mark):
                raise refusal()
            return account

    @contextlib.asynccontextmanager
    async def _counting(self, one: Try) -> AsyncIterator[None]:
        """Wait until an attempt may be made, and count it if it fails."""
        counted = await self._guesses.admit(one)
        try:
            async with _slow_failure():
                yield
        except (Forbidden, Unavailable):
            self._guesses.forgive(counted)
            raise
        self._guesses.forgive(counted)

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


@contextlib.asynccontextmanager
async def _slow_failure() -> AsyncIterator[None]:
    started = time.monotonic()
    try:
        yield
    except Unauthorized:
        await asyncio.sleep(max(0.0, started + FAILURE_SECONDS - time.monotonic()))
        raise


def _shorten(table: OrderedDict[Any, Any]) -> None:
    while len(table) > MAX_REMEMBERED:
        table.popitem(last=False)


def _expired() -> Forbidden:
    return Forbidden(
        "Your password has expired.",
        advice="Choose a new one with 'pody passwd', or with POST /user/ch-passwd and the old one.",
        code="password_expired",
    )


def _changed() -> Unauthorized:
    return Unauthorized(
        "The password has been changed.",
        advice="Log in again.",
        code="password_changed",
    )


def _lasts(proven: _Proven) -> float:
    """For how many seconds a login may be cached."""
    proof = proven.token or proven.web
    if proof is None:
        return REMEMBERED_SECONDS
    return min(REMEMBERED_SECONDS, proof.expires - time.time())


def _is_member(account: Account, auth: AuthConfig) -> bool:
    allowed = {*auth.member_groups, *auth.admin_groups}
    return not auth.member_groups or not account.groups.isdisjoint(allowed)
