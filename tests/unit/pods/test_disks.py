"""How large a pod's disk may become."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, cast

import pytest

from podyd.base.errors import Conflict, DiskFull, Forbidden, NotRunning
from podyd.config.schema import Quota
from podyd.engine.interface import Instances, Pools, Profiles
from podyd.engine.streams import Executor
from podyd.engine.types import Instance, State
from podyd.model.member import Member
from podyd.model.pod import DISK, Pod
from podyd.pods import disks

CREATED = datetime(2026, 11, 28, tzinfo=timezone.utc)
MIB, GIB = 1024**2, 1024**3
ROOT = {"type": "disk", "path": "/", "pool": "default"}


def member(**quota: int) -> Member:
    return Member(
        name="alice", is_admin=False, quota=Quota(**quota), profiles=(), uid=1000, gid=1000
    )


def given(size: str = "") -> Mapping[str, Mapping[str, str]]:
    return {"root": {**ROOT, **({"size": size} if size else {})}}


def size_of(
    quota: Mapping[str, int],
    size: str = "",
    asked: int | None = None,
    others: Mapping[str, int] | None = None,
) -> int:
    return disks._size(member(**quota), given(size), asked, others or {})


@pytest.mark.parametrize(
    ("quota", "size", "others", "expected"),
    [
        ({}, "", {}, -1),
        ({}, "20GiB", {}, 20 * GIB),
        ({"disk_limit": 5 * GIB}, "", {}, 5 * GIB),
        ({"disk_limit": 5 * GIB}, "20GiB", {}, 5 * GIB),
        ({"disk_limit": 5 * GIB}, "2GiB", {}, 2 * GIB),
        ({"disk_total": 10 * GIB, "max_pods": 4}, "", {}, 10 * GIB // 4),
        ({"disk_total": 10 * GIB, "max_pods": 4}, "", {"a": 8 * GIB}, 2 * GIB),
        ({"disk_total": 10 * GIB, "max_pods": 4}, "6GiB", {"a": 2 * GIB}, 6 * GIB),
        ({"disk_total": 10 * GIB, "max_pods": -1}, "", {"a": 2 * GIB}, 8 * GIB),
        ({"disk_total": 10 * GIB, "disk_limit": GIB, "max_pods": 2}, "", {}, GIB),
    ],
)
def test_a_new_pod(
    quota: Mapping[str, int], size: str, others: Mapping[str, int], expected: int
) -> None:
    assert size_of(quota, size, None, others) == expected
    assert size_of(quota, size, -1, others) == expected


def test_what_is_asked_for_counts_within_the_quota() -> None:
    quota = {"disk_limit": 5 * GIB, "disk_total": 6 * GIB}
    assert size_of(quota, "20GiB", 5 * GIB) == 5 * GIB
    assert size_of(quota, "", 2 * GIB, {"a": 4 * GIB}) == 2 * GIB
    for asked, others in ((6 * GIB, {}), (3 * GIB, {"a": 4 * GIB}), (GIB, {"a": -1})):
        with pytest.raises(Forbidden) as refused:
            size_of(quota, "", asked, others)
        assert refused.value.code == "quota_exceeded"


def test_a_pod_needs_some_room() -> None:
    with pytest.raises(Forbidden, match=r"they leave 1 MiB\."):
        size_of({"disk_total": GIB}, "", None, {"a": GIB - MIB})
    for quota in ({"disk_limit": 0}, {"disk_total": 0}, {"disk_limit": MIB}):
        with pytest.raises(Forbidden):
            size_of(quota)


@pytest.mark.parametrize(
    ("own", "size", "expected"),
    [
        ({}, 20 * GIB, {}),
        ({}, 5 * GIB, {"root": {**ROOT, "size": str(5 * GIB)}}),
        ({"root": {**ROOT, "size": "1GiB"}, "eth1": {}}, 20 * GIB, {"eth1": {}}),
        (
            {"root": {**ROOT, "size": "1GiB", "limits.read": "9"}},
            20 * GIB,
            {"root": {**ROOT, "size": str(20 * GIB), "limits.read": "9"}},
        ),
        ({}, -1, {"root": ROOT}),
    ],
)
def test_the_device_is_that_of_the_profiles_with_another_size(
    own: Any, size: int, expected: Any
) -> None:
    assert disks._resized(own, given("20GiB"), size) == expected


@pytest.mark.parametrize(
    ("state", "used"),
    [
        (None, None),
        (State(), None),
        (State(disk_bytes={"root": 0}), None),
        (State(disk_bytes={"root": 4096, "data": 1}), 4096),
    ],
)
def test_what_lxd_says_is_used(state: State | None, used: int | None) -> None:
    assert disks.used_bytes(given(), state) == used
    assert disks._held(given()) == -1
    assert disks._held(given("0")) == -1


@pytest.mark.parametrize(
    ("size", "used", "expected"),
    [
        ("17825792", 17825792, True),
        ("17825792", 9306112, False),
        ("17825792", 0, False),
        ("", 17825792, False),
    ],
)
def test_a_disk_that_is_full_by_what_lxd_says(size: str, used: int, expected: bool) -> None:
    instance = SimpleNamespace(name="a", devices=given(size))

    class Lxd:
        async def all(self) -> tuple[Any, ...]:
            return (instance,)

        async def state(self, name: str) -> State:
            return State(disk_bytes={"root": used})

    lxd = cast(Any, Lxd())
    of_all = disks.Disks(instances=lxd, pools=lxd, profiles=lxd, executor=lxd)
    assert asyncio.run(of_all.is_at_limit("a")) is expected
    assert not asyncio.run(of_all.is_at_limit("b"))


@pytest.mark.parametrize("has_room", [True, False])
def test_a_pod_that_is_frozen_while_it_is_looked_into_counts_as_frozen(has_room: bool) -> None:
    class Freezing:
        async def run(self, *words: object, **options: object) -> None:
            raise NotRunning("Instance is frozen", status="frozen")

    class Lxd:
        async def all(self) -> tuple[Instance, ...]:
            return (instance,)

        async def has_room(self, name: str) -> bool:
            return has_room

    held = given(str(100 * MIB + disks.RESERVE_BYTES))
    keys = {DISK: str(100 * MIB)}
    instance = Instance("a", "running", CREATED, CREATED, keys, keys, held, held, ())
    service = disks.Disks(
        instances=cast(Instances, Lxd()),
        profiles=cast(Profiles, None),
        pools=cast(Pools, None),
        executor=cast(Executor, Freezing()),
    )
    restart = service.check_restart(Pod("alice", "main", instance))
    if has_room:
        asyncio.run(restart)
    else:
        with pytest.raises(Conflict, match="disk is full"):
            asyncio.run(restart)


def test_less_than_what_is_used_is_refused_with_what_counts() -> None:
    class Lxd:
        async def state(self, name: str) -> State:
            return State(disk_bytes={"root": 26 * MIB})

        async def driver(self, pool: str) -> str:
            return disks.ZFS

    lxd = cast(Any, Lxd())
    held = given(str(60 * MIB))
    instance = Instance("a", "running", CREATED, CREATED, {}, {}, held, held, ())
    of_all = disks.Disks(instances=lxd, pools=lxd, profiles=lxd, executor=lxd)
    pod = Pod("alice", "main", instance)
    with pytest.raises(Conflict, match="is more than") as raised:
        asyncio.run(of_all._check_use(pod, 20 * MIB))
    # Deleting files makes no room while a snapshot has them.
    assert "its snapshots may count" in raised.value.advice
    asyncio.run(of_all._check_use(pod, 26 * MIB))


@pytest.mark.parametrize("driver", [disks.ZFS, disks.BTRFS])
def test_a_limit_that_zfs_refuses_leaves_the_old_one(driver: str) -> None:
    """LXD has removed that, and sets only what differs from what it had."""
    held = given(str(60 * MIB))
    instance = Instance("a", "running", CREATED, CREATED, {}, {}, held, held, ())
    sizes: list[str] = []

    class Lxd:
        async def all(self) -> tuple[Instance, ...]:
            return (instance,)

        async def of(self, instance: Instance) -> tuple[()]:
            return ()

        async def state(self, name: str) -> State:
            return State(disk_bytes={"root": MIB})

        async def driver(self, pool: str) -> str:
            return driver

        async def edit(self, name: str, *, config: object, devices: Any) -> None:
            sizes.append(devices(held)["root"]["size"])

    lxd = cast(Any, Lxd())
    of_all = disks.Disks(instances=lxd, pools=lxd, profiles=lxd, executor=lxd)

    async def change() -> None:
        async with of_all.resized(member(), Pod("alice", "main", instance), (), 20 * MIB):
            raise DiskFull("size is less than current used or reserved space")

    if driver == disks.BTRFS:  # Which would be looked at from inside.
        of_all._check_use = cast(Any, lambda pod, size: asyncio.sleep(0))  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="uses more of its disk than") as raised:
        asyncio.run(change())
    assert raised.value.code == "disk_in_use"
    again = [str(60 * MIB + 1), str(60 * MIB)]
    assert sizes == (again if driver == disks.ZFS else [])
