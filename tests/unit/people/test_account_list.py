"""The list of accounts: how old it may be, and what is in it meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from podyd.auth.client import Account
from podyd.base.errors import Unavailable
from podyd.people.account_list import SECONDS, AccountList

ALICE = Account("alice", 1000, 1000, frozenset({"users"}))


class Host:
    """Has these accounts, and counts how often it has listed them."""

    def __init__(self) -> None:
        self.accounts = [ALICE]
        self.listed = 0
        self.now = 0.0
        self.fails = False

    async def list(self) -> list[Account]:
        self.listed += 1
        accounts = list(self.accounts)
        await asyncio.sleep(0)
        if self.fails:
            raise Unavailable("no")
        return accounts


def test_it_is_as_old_as_it_may_be() -> None:
    async def play() -> None:
        host = Host()
        listed = AccountList(host.list, lambda: host.now)
        assert await listed.all() == {"alice": ALICE}
        host.accounts = []
        host.now = SECONDS - 1
        assert await listed.all() == {"alice": ALICE}
        assert host.listed == 1
        host.now = SECONDS
        assert await listed.all() == {}
        assert host.listed == 2

    asyncio.run(play())


def test_who_logs_in_is_in_it_as_they_are_now() -> None:
    async def play() -> None:
        host = Host()
        listed = AccountList(host.list, lambda: host.now)
        before = await listed.all()
        listed.saw(ALICE)
        assert await listed.all() is before, "nothing is new"
        boss = replace(ALICE, groups=frozenset({"users", "sudo"}))
        listed.saw(boss)
        listed.saw(replace(ALICE, name="bob"))
        assert set(await listed.all()) == {"alice", "bob"}
        assert (await listed.all())["alice"] == boss
        assert host.listed == 1
        # What NSS says later counts; what it said before somebody was seen does not.
        host.now = SECONDS
        listing = asyncio.ensure_future(listed.all())
        await asyncio.sleep(0)
        listed.saw(boss)
        assert await listing == {"alice": boss}

    asyncio.run(play())


def test_a_failure_is_everybodys_who_waits_and_is_not_kept() -> None:
    async def play() -> None:
        host = Host()
        host.fails = True
        listed = AccountList(host.list, lambda: host.now)
        answers = await asyncio.gather(*(listed.all() for _ in range(9)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable] * 9
        assert host.listed == 1
        host.fails = False
        assert await listed.all() == {"alice": ALICE}

    asyncio.run(play())


def test_a_failure_that_nobody_waits_for_is_no_loose_end() -> None:
    async def play() -> None:
        host = Host()
        host.fails = True
        listed = AccountList(host.list, lambda: host.now)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(listed.all(), 0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert listed._asking is None

    asyncio.run(play())
