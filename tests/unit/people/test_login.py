"""What is remembered of logins while passwords and tokens change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from podyd.auth.client import Account, AuthClient
from podyd.base.errors import TooMany, Unauthorized, Unavailable
from podyd.config.current import Settings
from podyd.config.schema import Config
from podyd.node.sockdiag import SocketAddress
from podyd.people.login import Login, Logins
from podyd.people.origins import Origins, Source
from podyd.people.tokens import Tokens
from podyd.people.web_sessions import WebSessions
from podyd.store.database import Database
from podyd.store.tokens import TokenStore
from podyd.store.web_sessions import WebSessionStore
from tests.unit.node.fake import FakeSockets

ALICE = Account("alice", 1000, 1000, frozenset(), "mark")
PASSWORD = "password"


def at(address: str) -> Source:
    """Where a request of another host comes from."""
    return Source(address, (SocketAddress(address, 40000), SocketAddress("192.0.2.1", 8799)))


HERE = at("192.0.2.7")


class FakeAuth(AuthClient):
    """A helper that lets alice in with her password, once `go` is set."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")
        self.go = asyncio.Event()
        self.go.set()
        self.reached = asyncio.Event()
        self.asked = 0

    async def login(
        self, user: str, password: str, address: str, *, key: Hashable, known: bool
    ) -> Account:
        account = await self.account(user, address, key=key, known=known)
        if (user, password) != ("alice", PASSWORD):
            raise Unauthorized("no")
        return account

    async def account(self, user: str, address: str, *, key: Hashable, known: bool) -> Account:
        self.asked += 1
        self.reached.set()
        await self.go.wait()
        return ALICE

    async def accounts(self) -> list[Account]:
        self.asked += 1
        await self.go.wait()
        return [replace(ALICE, mark=""), Account("bob", 1001, 1001, frozenset({"staff"}))]

    async def change_password(self, user: str, old: str, new: str) -> None:
        pass


Play = Callable[[Logins, FakeAuth], Coroutine[Any, Any, None]]


def play(tmp_path: Path, what: Play) -> None:
    async def whole() -> None:
        settings = Settings(Config())
        database = Database(tmp_path / "db")
        auth = FakeAuth()
        # These addresses are other hosts'.
        origins = Origins(FakeSockets())
        try:
            tokens = Tokens(TokenStore(database), settings)
            web_sessions = WebSessions(WebSessionStore(database), settings)
            await what(Logins(auth, origins, tokens, web_sessions, settings), auth)
        finally:
            await database.close()

    asyncio.run(whole())


async def begun(logins: Logins, auth: FakeAuth, secret: str) -> asyncio.Task[Login]:
    """A login by a secret, for which the helper has been asked and has not yet answered."""
    auth.reached.clear()
    task = asyncio.ensure_future(logins.log_in("", secret, HERE))
    await auth.reached.wait()
    return task


def test_a_token_is_asked_for_once_and_then_remembered(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        owner = await logins.log_in("alice", PASSWORD, HERE)
        secret, token = await logins.create_token(owner, "x", None, "all")
        for _ in range(3):
            assert (await logins.log_in("", secret, HERE)).token == token
        assert auth.asked == 2

    play(tmp_path, use)


def test_a_token_that_is_revoked_while_pam_is_asked_does_not_come_back(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        owner = await logins.log_in("alice", PASSWORD, HERE)
        secret, token = await logins.create_token(owner, "x", None, "all")
        auth.go.clear()
        first = await begun(logins, auth, secret)
        await logins.revoke_token(owner, token.id, None)
        # It does not join the one that was begun before.
        second = asyncio.ensure_future(logins.log_in("", secret, HERE))
        await asyncio.sleep(0)
        auth.go.set()
        await first
        with pytest.raises(Unauthorized):
            await second
        with pytest.raises(Unauthorized):
            await logins.log_in("", secret, HERE)

    play(tmp_path, use)


def test_a_new_password_ends_tokens_that_are_remembered(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        owner = await logins.log_in("alice", PASSWORD, HERE)
        secret, _ = await logins.create_token(owner, "x", None, "all")
        await logins.log_in("", secret, HERE)
        assert await logins.change_password(owner.member, PASSWORD, "new") == 1
        with pytest.raises(Unauthorized):
            await logins.log_in("", secret, HERE)

    play(tmp_path, use)


def test_who_cannot_have_their_tokens_revoked_is_told_how_later(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()  # So that it can be no database.

    async def use(logins: Logins, auth: FakeAuth) -> None:
        with pytest.raises(Unavailable, match="The password is changed, but") as failed:
            await logins.change_password(logins._member(ALICE), PASSWORD, "new")
        assert failed.value.advice == (
            "Tell your admin. Revoke your tokens later: /user/token-revoke with id=all."
        )

    play(tmp_path, use)


def test_who_makes_podyd_forget_all_the_time_makes_it_forget_nobody_else(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        auth.go.clear()
        auth.reached.clear()
        task = asyncio.ensure_future(logins.log_in("alice", PASSWORD, HERE))
        await auth.reached.wait()
        mallory = replace(ALICE, name="mallory")
        await logins.change_password(logins._member(mallory), "x", "y")
        auth.go.set()
        await task
        await logins.log_in("alice", PASSWORD, HERE)
        assert auth.asked == 1

    play(tmp_path, use)


def test_the_members_are_listed_once_for_all_who_ask(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        auth.go.clear()
        waiting = [asyncio.ensure_future(logins.all()) for _ in range(100)]
        await asyncio.sleep(0)
        # One who hangs up takes nothing from the others.
        waiting.pop(0).cancel()
        await asyncio.sleep(0)
        auth.go.set()
        for listed in await asyncio.gather(*waiting):
            assert [member.name for member in listed] == ["alice", "bob"]
        await logins.all()
        assert auth.asked == 1

    play(tmp_path, use)


# --- Too many failures --------------------------------------------------------------------------


async def guess(logins: Logins, number: int, source: Source = HERE, name: str = "alice") -> None:
    with pytest.raises(Unauthorized):
        await logins.log_in(name, f"wrong{number}", source)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is answered at once, and nobody waits for a try."""
    monkeypatch.setattr("podyd.people.login.FAILURE_SECONDS", 0.0)
    monkeypatch.setattr("podyd.people.guesses.MAX_DELAY", 0.0)


@pytest.mark.usefixtures("hasty")
def test_who_guesses_keeps_nobody_out_who_comes_from_elsewhere(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        for number in range(4):
            await guess(logins, number)
        with pytest.raises(TooMany):
            await logins.log_in("alice", "wrong", HERE)
        await logins.log_in("alice", PASSWORD, at("192.0.2.8"))
        assert auth.asked == 5

    play(tmp_path, use)


@pytest.mark.usefixtures("hasty")
def test_another_spelling_is_no_other_user(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        for number, name in enumerate(("alice", "Alice", "ALICE", "aLICE")):
            await guess(logins, number, name=name)
        with pytest.raises(TooMany):
            await logins.log_in("alicE", "wrong", HERE)

    play(tmp_path, use)


@pytest.mark.usefixtures("hasty")
def test_a_known_origin_has_failures_of_its_own(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        await logins.log_in("alice", PASSWORD, HERE)
        for number in range(9):
            with pytest.raises((Unauthorized, TooMany)):
                await logins.log_in("alice", f"wrong{number}", at(f"192.0.2.{20 + number}"))
        assert auth.asked == 1 + 6, "six for all others"
        for number in range(6):
            await guess(logins, number)
        with pytest.raises(TooMany):
            await logins.log_in("alice", "wrong", HERE)
        assert auth.asked == 1 + 6 + 6

    play(tmp_path, use)


@pytest.mark.usefixtures("hasty")
def test_many_wrong_names_keep_no_token_out(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        owner = await logins.log_in("alice", PASSWORD, at("192.0.2.8"))
        secret, token = await logins.create_token(owner, "x", None, "all")
        for number in range(60):
            await guess(logins, 0, name=f"nobody{number}")
        with pytest.raises(TooMany):
            await logins.log_in("alice", "wrong", HERE)
        unknown = "podyd_" + "x" * 43
        with pytest.raises(TooMany):
            await logins.log_in("", unknown, HERE)
        assert (await logins.log_in("", secret, HERE)).token == token

    play(tmp_path, use)


@pytest.mark.usefixtures("hasty")
def test_whoever_takes_many_addresses_of_one_network_is_one(tmp_path: Path) -> None:
    async def use(logins: Logins, auth: FakeAuth) -> None:
        for number in range(4):
            await guess(logins, number, at(f"2001:db8::{number:x}"))
        with pytest.raises(TooMany):
            await logins.log_in("alice", "wrong", at("2001:db8::99"))
        await logins.log_in("alice", PASSWORD, at("2001:db8:1::1"))

    play(tmp_path, use)
