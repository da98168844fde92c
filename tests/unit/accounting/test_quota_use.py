"""What members use of their quotas is counted without holding others up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from podyd.accounting.quota_use import QuotaUses
from podyd.config.schema import Quota
from podyd.model.member import Member

MEMBERS = [Member(f"user{n}", False, Quota(), (), 1000 + n, 100) for n in range(100)]


def answering(name: str, value: Any) -> Any:
    """Something whose only method gives this."""

    async def method() -> Any:
        return value

    return SimpleNamespace(**{name: method})


def test_others_have_their_turn_while_many_members_are_counted() -> None:
    async def play() -> None:
        uses = QuotaUses(
            logins=answering("all", MEMBERS),
            instances=answering("all", []),
            images=answering("all", []),
            scheduler=answering("view", SimpleNamespace(counted=lambda member: 0)),
        )
        counting = asyncio.ensure_future(uses.all())
        turns = 0
        while not counting.done():
            await asyncio.sleep(0)
            turns += 1
        assert [member for member, _ in counting.result()] == MEMBERS
        assert turns >= len(MEMBERS)

    asyncio.run(play())
