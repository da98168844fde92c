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
from podyd.throttle import Throttle

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


@dataclass(frozen=True)
class _Login:
    account: Account
    expires: float


class Users:
    """Logs users in through PAM, which is asked as seldom as possible and never by an attacker
    who has failed too often."""

    def __init__(self, auth: AuthClient, settings: Settings) -> None:
        self._auth = auth
        self._settings = settings
        self._key = secrets.token_bytes(32)
        self._logins: OrderedDict[tuple[str, bytes], _Login] = OrderedDict()
        self._asking: dict[tuple[str, bytes], asyncio.Task[Account]] = {}
        self._password_changes = 0
        # Where a user has logged in before: their own failures elsewhere do not lock them out.
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._failures = Throttle()

    async def log_in(self, name: str, password: str, address: str) -> Member:
        """The member with this password.

        Raises Unauthorized, Forbidden (not a member, account locked or expired), TooMany, or
        Unavailable.
        """
        digest = name, self._digest(name, password)
        login = self._logins.get(digest)
        if login is None or login.expires <= time.monotonic():
            self._logins.pop(digest, None)
            account = await self._ask_once(digest, name, password, address)
        else:
            account = login.account
        return self._member(account)

    def may_scrape(self, address: str) -> bool:
        """Whether podyd.yaml lets this address read /metrics without a login."""
        return is_among(parse_address(address), self._settings.current.metrics.allow)

    async def change_password(self, member: Member, old: str, new: str) -> None:
        """Change a member's own Linux password; the old one stops working at once."""
        try:
            await self._auth.change_password(member.name, old, new)
        finally:
            self._forget(member.name)

    async def all(self) -> list[Member]:
        """Every member of this node, by name."""
        accounts = await self._auth.accounts()
        auth = self._settings.current.auth
        members = [account for account in accounts if _is_member(account, auth)]
        return sorted((self._member(account) for account in members), key=lambda item: item.name)

    def _digest(self, name: str, password: str) -> bytes:
        return hashlib.blake2b(f"{name}\0{password}".encode(), key=self._key).digest()

    def _forget(self, name: str) -> None:
        self._password_changes += 1
        for digest, login in list(self._logins.items()):
            if login.account.name == name:
                del self._logins[digest]

    async def _ask_once(
        self, digest: tuple[str, bytes], name: str, password: str, address: str
    ) -> Account:
        """Ask PAM, once for all requests that come with the same password meanwhile."""
        asking = self._asking.get(digest)
        if asking is None:
            asking = asyncio.ensure_future(self._ask(digest, name, password, address))
            self._asking[digest] = asking
            asking.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(asking)

    def _asked(self, digest: tuple[str, bytes], done: asyncio.Task[Account]) -> None:
        del self._asking[digest]
        if not done.cancelled():
            done.exception()  # Seen here, even if every caller has hung up meanwhile.

    async def _ask(
        self, digest: tuple[str, bytes], name: str, password: str, address: str
    ) -> Account:
        keys = self._throttled(name, address)
        started = time.monotonic()
        # An attempt counts as failed until it has succeeded, so that many at once count too.
        counted = [(key, self._failures.count(key)) for key in keys]
        changes = self._password_changes
        try:
            known = (name, address) in self._known
            account = await self._auth.login(name, password, address, known=known)
        except Unauthorized:
            await asyncio.sleep(max(0.0, started + FAILURE_SECONDS - time.monotonic()))
            raise
        except (Forbidden, Unavailable):
            self._forgive(counted)
            raise
        self._forgive(counted)
        self._known[name, address] = None
        self._known.move_to_end((name, address))
        # A password changed meanwhile must not come back from this answer.
        if self._password_changes == changes:
            self._logins[digest] = _Login(account, time.monotonic() + REMEMBERED_SECONDS)
        for table in (self._logins, self._known):
            while len(table) > MAX_REMEMBERED:
                table.popitem(last=False)
        return account

    def _throttled(self, name: str, address: str) -> list[Hashable]:
        """The keys under which a failure counts; raises TooMany if one has failed too often."""
        auth = self._settings.current.auth
        limits: dict[Hashable, int]
        if (name, address) in self._known:
            limits = {("user at address", name, address): auth.failures_per_user}
        else:
            limits = {
                ("user", name): auth.failures_per_user,
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
        )


def _is_member(account: Account, auth: Auth) -> bool:
    allowed = {*auth.member_groups, *auth.admin_groups}
    return not auth.member_groups or not account.groups.isdisjoint(allowed)
