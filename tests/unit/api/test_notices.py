"""Notices as the API tells them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from podyd.api.binding import Call
from podyd.api.routes.users import UserRoutes
from podyd.auth.client import Account
from podyd.config.schema import Quota
from podyd.contract.operation import Log
from podyd.contract.users import ListNotices, NoticeInfo, NoticesRead
from podyd.model.member import Member
from podyd.people.login import Login, Logins
from podyd.people.notices import Notices
from podyd.store.database import Database
from podyd.store.notices import NoticeStore


def login(name: str, uid: int, *, is_admin: bool) -> Login:
    member = Member(name, is_admin, Quota(), (), uid, uid)
    return Login(member, Account(name, uid, uid, frozenset()), None)


ALICE = login("alice", 1001, is_admin=False)
ADMIN = login("root2", 1000, is_admin=True)


def test_an_admin_sees_which_are_for_all_admins(tmp_path: Path) -> None:
    async def use() -> None:
        database = Database(tmp_path / "db")
        notices = Notices(NoticeStore(database), lambda: 1_000_000_000.0)
        routes = UserRoutes(logins=cast(Logins, None), notices=notices)
        notices.tell(None, "x", pod="alice-main")
        notices.tell("root2:1000", "y")
        await notices.flush()
        answer = await routes.notices_read(Call(NoticesRead(1), ADMIN))
        assert answer == Log("Notices that are not read: 1.")
        time = "2001-09-09T01:46:40Z"
        assert await routes.notices(Call(ListNotices(), ADMIN)) == [
            NoticeInfo(1, time, "alice-main", "x", 1, "admins", True),
            NoticeInfo(2, time, "", "y", 1, "you", False),
        ]
        assert await routes.notices(Call(ListNotices(since=1_000_000_001.0), ADMIN)) == []
        assert await routes.notices(Call(ListNotices(), ALICE)) == []
        answer = await routes.notices_read(Call(NoticesRead(2), ADMIN))
        assert answer == Log("Notices that are not read: 0.")
        await database.close()

    asyncio.run(use())
