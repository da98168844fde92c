"""Snapshots that LXD could not take, or delete, as a whole."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from podyd.base.errors import Conflict
from podyd.base.tasks import Tasks
from podyd.config.schema import Quota
from podyd.engine.interface import ImageStore
from podyd.engine.refusals import refusal
from podyd.engine.rest import RestClient
from podyd.engine.snapshots import RestSnapshotStore
from podyd.model.member import Member
from podyd.model.pod import pods_of
from podyd.pods.snapshots import Snapshots
from podyd.pods.stages import Stages
from tests.unit.pods.test_power import POD

MEMBER = Member("ann", False, Quota(), (), 1000, 1000)


class Lxd:
    """Has the snapshot `s` of a pod whose disk has room or not, and notes what it is asked for."""

    def __init__(self, *, room: bool, says: str = "", keeps: bool = False) -> None:
        self._room = room
        # What it says when it is to delete something, and whether that stays.
        self._says = says
        self._keeps = keeps
        self.asked: list[str] = []

    async def has_room(self, name: str) -> bool:
        return self._room

    async def find(self, member: Member, ins: str) -> Any:
        return next(iter(pods_of([POD])))

    async def get(self, path: str, **query: Any) -> Any:
        taken = ["t"] if "POST" in self.asked else []
        kept = [] if "DELETE" in self.asked and not self._keeps else ["s"]
        created = "2026-01-01T00:00:00.1Z"
        return [{"name": f"a/{name}", "created_at": created} for name in (*kept, *taken)]

    async def change(self, method: str, path: str, body: Any = None, **options: Any) -> None:
        self.asked.append(method)
        if method == "DELETE":
            raise refusal(self._says)
        assert options["is_repeatable"]


def snapshots(lxd: Lxd) -> Snapshots:
    parts = {
        "snapshots": RestSnapshotStore(cast(RestClient, lxd)),
        "instances": lxd,
        "owned": lxd,
        "power": lxd,
        "stages": Stages(cast(ImageStore, None)),
        "tasks": Tasks(),
    }
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


FULL = "Failed to create file backup.yaml: disk quota exceeded"


@pytest.mark.parametrize("says", ["InstanceSnapshot not found", FULL])
def test_one_that_has_gone_is_deleted_whatever_lxd_says(says: str) -> None:
    """As when it has slipped over the first of two times; or it cannot write what there is left."""
    lxd = Lxd(room=False, says=says)
    assert "is deleted" in asyncio.run(snapshots(lxd).delete(MEMBER, "main", "s"))


def test_one_that_is_still_there_is_not() -> None:
    lxd = Lxd(room=False, says=FULL, keeps=True)
    with pytest.raises(Conflict) as refused:
        asyncio.run(snapshots(lxd).delete(MEMBER, "main", "s"))
    assert refused.value.code == "disk_full"
