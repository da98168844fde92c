"""What is remembered of logins while passwords and tokens change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from podyd.authclient import Account, AuthClient
from podyd.config import Config
from podyd.errors import Unauthorized
from podyd.settings import Settings
from podyd.store import Database, TokenStore
from podyd.tokens import Tokens
from podyd.users import Login, Users

ALICE = Account("alice", 1000, 1000, frozenset(), "mark")


class FakeAuth(AuthClient):
    """A helper that lets everybody in, once `go` is set."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")
        self.go = asyncio.Event()
        self.go.set()
        self.reached = asyncio.Event()
        self.asked = 0

    async def login(self, user: str, password: str, address: str, *, known: bool) -> Account:
        return await self.account(user, address, known=known)

    async def account(self, user: str, address: str, *, known: bool) -> Account:
        self.asked += 1
        self.reached.set()
        await self.go.wait()
        return ALICE

    async def change_password(self, user: str, old: str, new: str) -> None:
        pass


Play = Callable[[Users, FakeAuth], Coroutine[Any, Any, None]]


def play(tmp_path: Path, what: Play) -> None:
    async def whole() -> None:
        settings = Settings(Config())
        database = Database(tmp_path / "db")
        auth = FakeAuth()
        try:
            await what(Users(auth, Tokens(TokenStore(database), settings), settings), auth)
        finally:
            await database.close()

    asyncio.run(whole())


async def begun(users: Users, auth: FakeAuth, secret: str) -> asyncio.Task[Login]:
    """A login by a secret, for which the helper has been asked and has not yet answered."""
    auth.reached.clear()
    task = asyncio.ensure_future(users.log_in("", secret, "192.0.2.7"))
    await auth.reached.wait()
    return task


def test_a_token_is_asked_for_once_and_then_remembered(tmp_path: Path) -> None:
    async def use(users: Users, auth: FakeAuth) -> None:
        owner = await users.log_in("alice", "password", "192.0.2.7")
        secret, token = await users.create_token(owner, "x", None, "all")
        for _ in range(3):
            assert (await users.log_in("", secret, "192.0.2.7")).token == token
        assert auth.asked == 2

    play(tmp_path, use)


def test_a_token_that_is_revoked_while_pam_is_asked_does_not_come_back(tmp_path: Path) -> None:
    async def use(users: Users, auth: FakeAuth) -> None:
        owner = await users.log_in("alice", "password", "192.0.2.7")
        secret, token = await users.create_token(owner, "x", None, "all")
        auth.go.clear()
        first = await begun(users, auth, secret)
        await users.revoke_token(owner, token.id, None)
        # It does not join the one that was begun before.
        second = asyncio.ensure_future(users.log_in("", secret, "192.0.2.7"))
        await asyncio.sleep(0)
        auth.go.set()
        await first
        with pytest.raises(Unauthorized):
            await second
        with pytest.raises(Unauthorized):
            await users.log_in("", secret, "192.0.2.7")

    play(tmp_path, use)


def test_a_new_password_ends_tokens_that_are_remembered(tmp_path: Path) -> None:
    async def use(users: Users, auth: FakeAuth) -> None:
        owner = await users.log_in("alice", "password", "192.0.2.7")
        secret, _ = await users.create_token(owner, "x", None, "all")
        await users.log_in("", secret, "192.0.2.7")
        assert await users.change_password(owner.member, "password", "new") == 1
        with pytest.raises(Unauthorized):
            await users.log_in("", secret, "192.0.2.7")

    play(tmp_path, use)
