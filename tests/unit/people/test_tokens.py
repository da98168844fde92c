"""Tokens without accounts: what they look like, what they may do, and how they are kept."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from podyd.api.credentials import credentials
from podyd.base.errors import ConfigError, Unauthorized
from podyd.config.loader import parse
from podyd.config.schema import AuthConfig, Config
from podyd.contract.table import OPERATIONS
from podyd.contract.users import USER_CH_PASSWD, USER_TOKEN
from podyd.contract.web import USER_LOGIN
from podyd.model.token import Token
from podyd.people.tokens import is_token
from podyd.store.database import SCHEMA, Database
from podyd.store.tokens import TokenStore

SECRET = "podyd_" + "aB3-_" * 8 + "xyz"
TOKEN = Token("0" * 16, "alice", 1000, "mark", "laptop", "all", 100.0, 200.0)


# --- What it looks like -------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "podyd_", SECRET + "x", SECRET[:-1], SECRET + "\n", "x" * 49])
def test_what_is_no_token(text: str) -> None:
    assert is_token(SECRET)
    assert not is_token(text)


def test_a_token_in_the_header() -> None:
    assert credentials(f"Bearer {SECRET}") == ("", SECRET)
    assert credentials(f"bearer  {SECRET}") == ("", SECRET)
    basic = base64.b64encode(f"alice:{SECRET}".encode()).decode()
    assert credentials(f"Basic {basic}") == ("alice", SECRET)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", f"Token {SECRET}", "Basic Og=="])
def test_what_is_no_login(header: str) -> None:
    with pytest.raises(Unauthorized):
        credentials(header)


# --- What it may do -----------------------------------------------------------------------------


def test_what_a_token_that_reads_may_call() -> None:
    """All else, and whatever comes to it, needs one of scope all."""
    assert sorted(item.path for item in OPERATIONS if item.accepts("read")) == [
        "/admin/doctor",
        "/admin/log",
        "/admin/people",
        "/events",
        "/gpu/history",
        "/gpu/line",
        "/help",
        "/host/gpu-ps",
        "/host/gpus",
        "/host/images",
        "/host/spec",
        "/image/inspect",
        "/image/list",
        "/metrics",
        "/openapi.json",
        "/pod/history",
        "/pod/info",
        "/pod/inspect",
        "/pod/list",
        "/pod/listall",
        "/pod/ports",
        "/pod/progress",
        "/pod/snapshots",
        "/stat/cputime",
        "/stat/gpu-hours",
        "/stat/gputime",
        "/status.txt",
        "/user/info",
        "/user/list",
        "/user/logins",
        "/user/logout",
        "/user/notices",
        "/user/token-revoke",
        "/user/tokens",
        "/version",
    ]


def test_what_needs_the_password_itself() -> None:
    assert {item for item in OPERATIONS if not item.accepts("all")} == {
        USER_CH_PASSWD,
        USER_TOKEN,
        USER_LOGIN,
    }


@pytest.mark.parametrize("days", ["0", "true", "1.5", "36526", "-1"])
def test_days_that_cannot_be_meant(days: str) -> None:
    with pytest.raises(ConfigError, match="from 1 to"):
        parse(f"auth: {{token_days_max: {days}}}")


def test_the_longest_is_a_year() -> None:
    assert Config().auth.token_days_max == AuthConfig().token_days_max == 365


# --- How it is kept -----------------------------------------------------------------------------


def play(path: Path, what: Callable[[TokenStore], Coroutine[Any, Any, None]]) -> None:
    """Use the store at a path and close it."""

    async def whole() -> None:
        database = Database(path)
        try:
            await what(TokenStore(database))
        finally:
            await database.close()

    asyncio.run(whole())


def test_a_token_is_found_by_its_digest(tmp_path: Path) -> None:
    async def use(store: TokenStore) -> None:
        assert await store.add(b"digest", TOKEN, most=1)
        assert await store.find(b"digest") == TOKEN
        assert await store.find(b"other") is None
        await store.used(TOKEN.id, 150.0)
        assert await store.find(b"digest") == dataclasses.replace(TOKEN, last_used=150.0)

    play(tmp_path / "db", use)


@pytest.mark.parametrize("other", [{"owner": "bob"}, {"uid": 1001}, {"mark": "new"}], ids=str)
def test_another_account_has_none_of_them(tmp_path: Path, other: dict[str, Any]) -> None:
    async def use(store: TokenStore) -> None:
        stranger = dataclasses.replace(TOKEN, id="1" * 16, **other)
        assert await store.add(b"digest", TOKEN, most=1)
        assert await store.of(stranger.owner, stranger.uid, stranger.mark, now=150.0) == []
        assert await store.add(b"other", stranger, most=1), "its own limit"
        assert not await store.add(b"third", dataclasses.replace(TOKEN, id="2" * 16), most=1)

    play(tmp_path / "db", use)


def test_what_has_expired_is_removed_when_another_is_made(tmp_path: Path) -> None:
    async def use(store: TokenStore) -> None:
        assert await store.add(b"digest", TOKEN, most=1)
        assert await store.of("alice", 1000, "mark", now=200.0) == []
        assert await store.remove("alice", None, now=200.0) == 0
        assert await store.add(b"digest", TOKEN, most=1)
        later = dataclasses.replace(TOKEN, id="1" * 16, created=200.0, expires=300.0)
        assert await store.add(b"other", later, most=1)
        assert await store.find(b"digest") is None

    play(tmp_path / "db", use)


def test_the_database_of_a_podyd_without_tokens(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "db") as before:
        for statement in SCHEMA[0]:
            before.execute(statement)
        before.execute("INSERT INTO usage VALUES ('gpu', 10, 1000010, 'alice', 5)")
        before.execute("PRAGMA user_version = 1")
    before.close()

    async def use(store: TokenStore) -> None:
        assert await store.add(b"digest", TOKEN, most=1)

    play(tmp_path / "db", use)
    with sqlite3.connect(tmp_path / "db") as after:
        assert after.execute("SELECT seconds FROM usage").fetchall() == [(5.0,)]
    after.close()
