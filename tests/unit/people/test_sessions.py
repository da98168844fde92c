"""What is under way ends with the login that it was begun with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from podyd.auth.client import Account, AuthClient
from podyd.base.errors import Forbidden, PodydError, Unauthorized, Unavailable
from podyd.config.current import Settings
from podyd.config.schema import AuthConfig, Config
from podyd.people import sessions
from podyd.people.login import Login, Logins
from podyd.people.origins import Origins
from podyd.people.sessions import Sessions
from podyd.people.tokens import Tokens
from podyd.people.web_sessions import WebSessions
from podyd.store.database import MAX_WAITING, Database
from podyd.store.tokens import TokenStore
from podyd.store.web_sessions import WebSessionStore
from tests.unit.node.fake import FakeSockets
from tests.unit.people.test_login import HERE

ALICE = Account("alice", 1000, 1000, frozenset({"lab"}), "mark")


class FakeAuth(AuthClient):
    """A helper that knows one account."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")
        self.answer: Account | PodydError = ALICE
        # What comes before that.
        self.first: list[Account | PodydError] = []
        self.asked = asyncio.Semaphore(0)

    async def login(
        self, user: str, password: str, address: str, *, key: Hashable, known: bool
    ) -> Account:
        return await self.account(user, address, key=key, known=known)

    async def account(self, user: str, address: str, *, key: Hashable, known: bool) -> Account:
        self.asked.release()
        answer = self.first.pop(0) if self.first else self.answer
        if isinstance(answer, PodydError):
            raise answer
        return answer

    async def change_password(self, user: str, old: str, new: str) -> None:
        pass


class Rig:
    """Logins and what they have going on."""

    def __init__(self, directory: Path) -> None:
        self.auth = FakeAuth()
        self.settings = Settings(Config(auth=AuthConfig(member_groups=("lab",))))
        self.database = Database(directory / "db")
        tokens = Tokens(TokenStore(self.database), self.settings)
        web_sessions = WebSessions(WebSessionStore(self.database), self.settings)
        origins = Origins(FakeSockets())
        self.logins = Logins(self.auth, origins, tokens, web_sessions, self.settings)
        self.sessions = Sessions(self.logins)

    async def begin(self, login: Login, address: str = HERE.address) -> Session:
        return Session(self.sessions, login, address)


class Session:
    """Something under way, until it is ended."""

    def __init__(self, all_of_them: Sessions, login: Login, address: str) -> None:
        self.why: PodydError | None = None
        self.task = asyncio.ensure_future(asyncio.Event().wait())
        all_of_them.add(self.task, login, address, self._end)

    def _end(self, why: PodydError) -> None:
        self.why = why
        self.task.cancel()

    async def code(self) -> str:
        """Why it was ended, once it is."""
        await asyncio.wait({self.task}, timeout=5)
        assert self.why is not None, "it goes on"
        return self.why.code


Play = Callable[[Rig], Coroutine[Any, Any, None]]


def play(directory: Path, what: Play) -> None:
    async def whole() -> None:
        rig = Rig(directory)
        running = asyncio.ensure_future(rig.sessions.run())
        try:
            await what(rig)
        finally:
            running.cancel()
            await asyncio.wait({running})
            await rig.database.close()
        assert running.cancelled()

    asyncio.run(whole())


async def password(rig: Rig) -> Login:
    return await rig.logins.log_in("alice", "password", HERE)


async def goes_on_for(rig: Rig, session: Session, *, looks: int) -> None:
    for _ in range(looks):
        asked = asyncio.ensure_future(rig.auth.asked.acquire())
        await asyncio.wait({asked, session.task}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        assert session.why is None


async def goes_on(rig: Rig, session: Session) -> None:
    """It outlives some looks."""
    await goes_on_for(rig, session, looks=5)
    session.task.cancel()
    await asyncio.wait({session.task})


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "CHECK_SECONDS", 0.02)


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (Unauthorized("User name or password is wrong."), "unauthorized"),
        (Forbidden("It is locked.", code="account_refused"), "account_refused"),
        (Account("alice", 1000, 1000, frozenset(), "mark"), "not_a_member"),
        (Account("alice", 1001, 1000, frozenset({"lab"}), "mark"), "password_changed"),
        (Account("alice", 1000, 1000, frozenset({"lab"}), "new"), "password_changed"),
        (Account("alice", 1000, 1000, frozenset({"lab"}), "mark", True), "password_expired"),
    ],
    ids=["removed", "locked", "left the group", "another account", "new password", "expired"],
)
@pytest.mark.usefixtures("often")
def test_what_ends_it(tmp_path: Path, now: Account | PodydError, code: str) -> None:
    async def use(rig: Rig) -> None:
        session = await rig.begin(await password(rig))
        rig.auth.answer = now
        assert await session.code() == code

    play(tmp_path, use)


@pytest.mark.usefixtures("often")
def test_who_cannot_be_asked_ends_nothing(tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        session = await rig.begin(await password(rig))
        rig.auth.answer = Unavailable("The login service did not answer in time.")
        await goes_on(rig, session)

    play(tmp_path, use)


@pytest.mark.parametrize(
    "blank",
    [
        Unauthorized("User name or password is wrong."),
        Account("alice", 1000, 1000, frozenset(), "mark"),
    ],
    ids=["no account", "no groups"],
)
@pytest.mark.usefixtures("often")
def test_a_directory_that_is_away_for_one_look_ends_nothing(
    tmp_path: Path, blank: Account | PodydError
) -> None:
    async def use(rig: Rig) -> None:
        session = await rig.begin(await password(rig))
        for _ in range(3):
            rig.auth.first = [blank, ALICE]
            await goes_on_for(rig, session, looks=3)
        session.task.cancel()

    play(tmp_path, use)


def test_tokens_that_are_revoked_keep_nobody_elses_session_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "CHECK_SECONDS", 0.2)

    async def use(rig: Rig) -> None:
        session = await rig.begin(await password(rig))
        rig.auth.answer = Forbidden("It is locked.", code="account_refused")

        async def revoke_often() -> None:
            while True:
                rig.sessions._hear("bob", None)
                await asyncio.sleep(0.02)

        revoking = asyncio.ensure_future(revoke_often())
        try:
            assert await session.code() == "account_refused"
        finally:
            revoking.cancel()

    play(tmp_path, use)


@pytest.mark.usefixtures("often")
def test_other_groups_that_are_members(tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        session = await rig.begin(await password(rig))
        rig.settings.current = Config(auth=AuthConfig(member_groups=("staff",)))
        assert await session.code() == "not_a_member"

    play(tmp_path, use)


@pytest.mark.usefixtures("often")
def test_an_admins_ends_when_they_are_none_any_more_and_not_when_they_become_one(
    tmp_path: Path,
) -> None:
    async def use(rig: Rig) -> None:
        session = await rig.begin(await password(rig))
        rig.auth.answer = boss = replace(ALICE, groups=frozenset({"lab", "sudo"}))
        await goes_on(rig, session)
        admins = await rig.begin(await rig.logins.log_in("alice", "other", HERE))
        # As a directory that is away says once.
        rig.auth.first = [ALICE, boss]
        await goes_on_for(rig, admins, looks=3)
        rig.auth.answer = ALICE
        assert await admins.code() == "not_an_admin"

    play(tmp_path, use)


@pytest.mark.usefixtures("often")
def test_a_token_that_expires(tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        owner = await password(rig)
        secret, _ = await rig.logins.create_token(owner, "x", 1 / 86400, "all")
        session = await rig.begin(await rig.logins.log_in("", secret, HERE))
        other = await rig.begin(owner)
        assert await session.code() == "token_refused"
        await goes_on(rig, other)

    play(tmp_path, use)


def test_a_token_that_is_revoked_ends_it_at_once(tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        owner = await password(rig)
        secret, token = await rig.logins.create_token(owner, "x", None, "all")
        session = await rig.begin(await rig.logins.log_in("", secret, HERE))
        other = await rig.begin(owner)
        await rig.logins.revoke_token(owner, token.id, None)
        assert await session.code() == "token_refused"
        assert other.why is None
        other.task.cancel()

    play(tmp_path, use)


def test_more_than_the_database_has_room_for_are_all_ended(tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        owner = await password(rig)
        secret, token = await rig.logins.create_token(owner, "x", None, "all")
        login = await rig.logins.log_in("", secret, HERE)
        count = 2 * MAX_WAITING
        sessions = [await rig.begin(login, f"192.0.2.{number}") for number in range(count)]
        await rig.logins.revoke_token(owner, token.id, None)
        assert [await session.code() for session in sessions] == ["token_refused"] * count

    play(tmp_path, use)


def test_a_new_password_ends_all_at_once_also_where_no_mark_is_known(tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        rig.auth.answer = Account("alice", 1000, 1000, frozenset({"lab"}), "")
        owner = await password(rig)
        sessions = [await rig.begin(owner) for _ in range(2)]
        await rig.logins.change_password(owner.member, "password", "new")
        assert [await session.code() for session in sessions] == ["password_changed"] * 2

    play(tmp_path, use)
