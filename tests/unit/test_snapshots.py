"""Snapshots that LXD could not take, or delete, as a whole."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from podyd.config import Quota
from podyd.errors import Conflict
from podyd.lxd.refusals import refusal
from podyd.pod import pods_of
from podyd.snapshots import Snapshots
from podyd.tasks import Tasks
from podyd.users import Member
from tests.unit.test_stopping import POD

MEMBER = Member("ann", False, Quota(), (), 1000, 1000)


class Lxd:
    """Has the snapshot `s` of a pod whose disk has room or not, and notes what it is asked for."""

    def __init__(self, *, room: bool) -> None:
        self._room = room
        self.asked: list[str] = []

    async def has_room(self, name: str) -> bool:
        return self._room

    async def find(self, member: Member, ins: str) -> Any:
        return next(iter(pods_of([POD])))

    async def get(self, path: str, **query: Any) -> Any:
        taken = ["t"] if "POST" in self.asked else []
        return [{"name": f"a/{n}", "created_at": "2026-01-01T00:00:00.1Z"} for n in ("s", *taken)]

    async def change(self, method: str, path: str, body: Any = None, **options: Any) -> None:
        self.asked.append(method)
        if method == "DELETE":
            # As when it has slipped over the first of the two times.
            raise refusal("InstanceSnapshot not found", 404)
        assert options["is_repeatable"]


def snapshots(lxd: Lxd) -> Snapshots:
    parts = {"client": lxd, "instances": lxd, "pods": lxd, "tasks": Tasks()}
    return Snapshots(**cast(Any, parts))


def test_a_full_disk_has_no_snapshot_begun() -> None:
    """LXD leaves behind what it has begun, and deletes neither that nor the pod any more."""
    lxd = Lxd(room=False)
    with pytest.raises(Conflict) as refused:
        asyncio.run(snapshots(lxd).take(MEMBER, "main", "t"))
    assert refused.value.code == "disk_full"
    assert lxd.asked == []


def test_another_one_has() -> None:
    lxd = Lxd(room=True)
    assert asyncio.run(snapshots(lxd).take(MEMBER, "main", "t")).name == "t"
    assert lxd.asked == ["POST"]


def test_one_that_has_gone_is_deleted() -> None:
    assert "is deleted" in asyncio.run(snapshots(Lxd(room=True)).delete(MEMBER, "main", "s"))
