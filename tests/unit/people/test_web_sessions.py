"""Logins on the page: how they are kept, and what ends them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from podyd.auth.client import Account
from podyd.base.errors import Forbidden, NotFound, Unauthorized
from podyd.config.current import Settings
from podyd.config.loader import parse
from podyd.people.login import Login, Logins
from podyd.people.origins import Origins, Source
from podyd.people.tokens import Tokens
from podyd.people.web_sessions import (
    DAYS,
    MAX_PER_USER,
    PREFIX,
    WRITE_SECONDS,
    WebSessions,
    halves,
    joined,
)
from podyd.store.database import MAX_WAITING, Database
from podyd.store.tokens import TokenStore
from podyd.store.web_sessions import WebSessionStore
from tests.unit.node.fake import FakeSockets
from tests.unit.people.test_login import ALICE, HERE, PASSWORD, FakeAuth

HOUR = 3600.0
FAILURE_SECONDS = 0.05


class Helper(FakeAuth):
    """One whose account may change, beside any number of others."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Account | Exception = ALICE

    async def account(self, user: str, *args: Any, **more: Any) -> Account:
        if isinstance(self.now, Exception):
            raise self.now
        return replace(self.now, name=user)


@dataclass
class Clock:
    """The wall clock of the logins on the page."""

    now: float = 1_800_000_000.0

    def time(self) -> float:
        return self.now


@dataclass(frozen=True)
class Rig:
    auth: Helper
    settings: Settings
    logins: Logins
    clock: Clock

    async def enter(self) -> str:
        """Log in on the page; the secret."""
        owner = await self.logins.log_in("alice", PASSWORD, HERE)
        secret, _ = await self.logins.open_page(owner)
        return secret

    async def come_back(self, secret: str) -> Login:
        """A request with the cookie, that counts as use."""
        login = await self.logins.log_in("", secret, HERE)
        self.logins.noticed(login)
        await self.logins.write_use(login)
        return login

    async def is_out(self, secret: str) -> bool:
        """Whether the cookie is refused, by a podyd that remembers no login."""
        self.logins._logins.clear()
        try:
            await self.logins.log_in("", secret, HERE)
        except Unauthorized as error:
            assert error.code == "session_ended"
            return True
        return False


@contextlib.asynccontextmanager
async def logins_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    clock = Clock()
    monkeypatch.setattr("podyd.people.web_sessions.time", clock)
    monkeypatch.setattr("podyd.people.login.FAILURE_SECONDS", FAILURE_SECONDS)
    settings = Settings(parse(""))
    database = Database(path)
    auth = Helper()
    web_sessions = WebSessions(WebSessionStore(database), settings)
    tokens = Tokens(TokenStore(database), settings)
    try:
        logins = Logins(auth, Origins(FakeSockets()), tokens, web_sessions, settings)
        yield Rig(auth, settings, logins, clock)
    finally:
        await database.close()


def test_a_cookie_stands_for_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            secret = await rig.enter()
            login = await rig.come_back(secret)
            assert login.member.name == "alice"
            assert (login.token, login.web and login.web.owner) == (None, "alice")
            assert secret.encode() not in (tmp_path / "db").read_bytes()
            assert await rig.is_out(secret[:-1] + "x") != (secret[-1] == "x")

    asyncio.run(play())


def test_many_members_come_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            count = 3 * MAX_WAITING
            owner = await rig.logins.log_in("alice", PASSWORD, HERE)
            accounts = [replace(ALICE, name=f"m{number}") for number in range(count)]
            entered = await asyncio.gather(
                *(rig.logins.open_page(replace(owner, account=account)) for account in accounts)
            )
            rig.logins._logins.clear()
            # After a restart of podyd, say: all pages connect again.
            logins = await asyncio.gather(
                *(
                    rig.logins.log_in("", secret, replace(HERE, address=f"10.0.0.{number}"))
                    for number, (secret, _) in enumerate(entered)
                )
            )
            assert [login.member.name for login in logins] == [one.name for one in accounts]
            for token in [await rig.logins.create_token(owner, "x", None, "all")]:
                tokens = (
                    rig.logins.log_in("", token[0], replace(HERE, address=f"10.0.0.{number}"))
                    for number in range(count)
                )
                assert len(await asyncio.gather(*tokens)) == count

    asyncio.run(play())


def test_of_several_cookies_the_one_that_the_key_belongs_to_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            cookie, key = halves(await rig.enter())
            # A login of another podyd's, or of an earlier time, and what is none at all.
            others = [halves(await rig.enter())[0], *(f"{PREFIX}{n:043}" for n in range(30))]
            for place in (0, 7, len(others)):
                cookies = [*others[:place], cookie, *others[place:]]
                secrets = [joined(one, key) for one in cookies]
                assert await rig.logins.page_among(secrets, HERE) == joined(cookie, key)
            none = [joined(one, key) for one in others]
            assert await rig.is_out(await rig.logins.page_among(none, HERE))

    asyncio.run(play())


def test_nobody_ends_or_sees_a_login_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            login = await rig.come_back(await rig.enter())
            before = rig.logins.changes("alice")
            ((session, used),) = await rig.logins.pages(login)
            assert (session, used) == (login.web, rig.clock.now)
            others = [
                replace(login, account=replace(ALICE, name="bob")),
                # An earlier account of the name, or with another password.
                replace(login, account=replace(ALICE, uid=7)),
                replace(login, account=replace(ALICE, mark="other")),
            ]
            for other in others:
                assert await rig.logins.pages(other) == []
                with pytest.raises(NotFound):
                    await rig.logins.close_pages(other, session.id)
            assert rig.logins.changes("alice") == before
            assert await rig.logins.close_pages(login, session.id) == 1
            assert rig.logins.changes("alice") > before
            rig.clock.now += 25 * HOUR
            await rig.enter()
            rig.clock.now += 25 * HOUR
            assert await rig.logins.pages(login) == [], "idle for too long"

    asyncio.run(play())


def test_an_unknown_one_is_not_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who tries one after another would keep the database busy."""

    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            started = time.monotonic()
            assert await rig.is_out(f"podydweb_{'x' * 43}.{'x' * 43}")
            assert time.monotonic() - started >= FAILURE_SECONDS

    asyncio.run(play())


def test_it_ends_by_logout_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            first, second = await rig.enter(), await rig.enter()
            login = await rig.come_back(first)
            assert login.web is not None
            assert await rig.logins.ended(login, "x") is None
            await rig.logins.close_page(login.web)
            assert await rig.is_out(first)
            assert not await rig.is_out(second)
            why = await rig.logins.ended(login, "x")
            assert why is not None
            assert why.code == "session_ended"

    asyncio.run(play())


@pytest.mark.parametrize("does", ["password", "revoke"])
def test_they_end_with_all_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            first, second = await rig.enter(), await rig.enter()
            owner = await rig.come_back(first)
            if does == "password":
                await rig.logins.change_password(owner.member, PASSWORD, "new")
            else:
                done = await rig.logins.revoke_token(owner, "all", None)
                assert done.endswith(" Logins on the page that are ended: 2.")
            assert await rig.is_out(first)
            assert await rig.is_out(second)

    asyncio.run(play())


@pytest.mark.parametrize(
    "now", [{"mark": "new"}, {"uid": 4711}, Unauthorized("No such account.")], ids=str
)
def test_they_end_with_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: dict[str, Any] | Exception
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            secret = await rig.enter()
            rig.auth.now = now if isinstance(now, Exception) else replace(ALICE, **now)
            assert await rig.is_out(secret)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("now", "code"),
    [({"must_change": True}, "password_expired"), (None, "account_locked")],
    ids=str,
)
def test_an_account_that_may_not_log_in_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: dict[str, Any] | None, code: str
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            secret = await rig.enter()
            locked = Forbidden("This account is locked.", code="account_locked")
            rig.auth.now = locked if now is None else replace(ALICE, **now)
            with pytest.raises(Forbidden) as refused:
                await rig.come_back(secret)
            assert refused.value.code == code

    asyncio.run(play())


def test_it_ends_without_use_and_what_the_page_does_by_itself_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            secret = await rig.enter()
            for _ in range(3):
                rig.clock.now += 11.9 * HOUR
                login = await rig.come_back(secret)
            rig.clock.now += 11.9 * HOUR
            await rig.logins.log_in("", secret, HERE)
            assert await rig.logins.ended(login, "x") is None
            rig.clock.now += 0.2 * HOUR
            with pytest.raises(Unauthorized):
                # Even where its login is remembered.
                await rig.logins.log_in("", secret, HERE)
            assert await rig.logins.ended(login, "x") is not None

    asyncio.run(play())


def test_a_restart_knows_to_a_minute_when_it_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            secret = await rig.enter()
            rig.clock.now += 10 * HOUR
            await rig.come_back(secret)
            rig.clock.now += WRITE_SECONDS / 2
            await rig.come_back(secret)
            when = rig.clock.now
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            rig.clock.now = when + 12 * HOUR - WRITE_SECONDS
            assert not await rig.is_out(secret)
            rig.clock.now = when + 12 * HOUR
            assert await rig.is_out(secret)

    asyncio.run(play())


def test_it_ends_after_a_month_however_much_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            secret = await rig.enter()
            for _ in range(int(DAYS * 24 / 10) - 1):
                rig.clock.now += 10 * HOUR
                await rig.come_back(secret)
            rig.clock.now += 10 * HOUR
            assert await rig.is_out(secret)

    asyncio.run(play())


def test_of_too_many_that_goes_which_is_idle_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            all_of_them = []
            for _ in range(MAX_PER_USER):
                all_of_them.append(await rig.enter())
                rig.clock.now += 2 * WRITE_SECONDS
            await rig.come_back(all_of_them[0])
            newest = await rig.enter()
            assert [item for item in all_of_them if await rig.is_out(item)] == [all_of_them[1]]
            assert not await rig.is_out(newest)

    asyncio.run(play())


def test_where_there_is_no_page_there_is_no_login_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            secret = await rig.enter()
            rig.settings.current = parse("web: false")
            with pytest.raises(NotFound) as refused:
                await rig.enter()
            assert refused.value.code == "page_off"
            assert await rig.is_out(secret)

    asyncio.run(play())


def test_another_clients_address_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook moves between networks."""

    async def play() -> None:
        async with logins_at(tmp_path / "db", monkeypatch) as rig:
            secret = await rig.enter()
            elsewhere = replace(HERE, address="203.0.113.9")
            assert isinstance(elsewhere, Source)
            assert (await rig.logins.log_in("", secret, elsewhere)).member.name == "alice"

    asyncio.run(play())
