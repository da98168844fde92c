"""How far an image is that is being made of a pod, and what ends it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from podyd.commits import Cancelled, Commits, Room, _UnderWay
from podyd.config import UNLIMITED, Quota
from podyd.disks import Disks
from podyd.errors import (
    Conflict,
    Forbidden,
    Lacks,
    Missing,
    NotFound,
    Slipped,
    TimedOut,
    Unavailable,
)
from podyd.images import Image, Images
from podyd.lxd.client import LxdClient
from podyd.lxd.tree import File
from podyd.pods import Pods
from podyd.spec import Progress
from podyd.tasks import Tasks
from podyd.users import Member

MEMBER, OTHER = (Member(name, False, Quota(), (), 1000, 1000) for name in ("alice", "bob"))
NOTHING = Progress(None, None, None)


class Lxd(LxdClient):
    """Has one operation, with this metadata; None: it has ended."""

    def __init__(self, metadata: dict[str, Any] | None) -> None:
        self.metadata = metadata

    async def get(self, path: str, **query: Any) -> Any:
        assert path == "/1.0/operations/1"
        if self.metadata is None:
            raise Missing("Image not found")
        return self.metadata


class Found(Pods):
    """Each member has a pod `main` and a pod `other`."""

    def __init__(self) -> None:
        pass

    async def find(self, member: Member, ins: str) -> Any:
        if ins not in ("main", "other"):
            raise NotFound("none", code="no_such_pod")


def commits(metadata: dict[str, Any] | None) -> Commits:
    client = Lxd(metadata)
    return Commits(
        client=client,
        images=cast(Images, SimpleNamespace()),
        pods=Found(),
        disks=cast(Disks, SimpleNamespace()),
        tasks=Tasks(),
    )


@pytest.mark.parametrize(
    ("operation", "progress"),
    [
        # As LXD 5.0.2 writes it.
        (
            {"metadata": {"progress": {"percent": "43", "speed": "31457280", "stage": "x"}}},
            Progress("packing", 43, 31457280),
        ),
        ({"metadata": {"progress": {"processed": "9"}}}, Progress("packing", None, None)),
        ({"metadata": {"fingerprint": "f"}}, Progress("packing", None, None)),
        ({"metadata": None}, Progress("packing", None, None)),
        (None, Progress("packing", None, None)),
    ],
)
def test_what_lxd_says_of_an_image(operation: dict[str, Any] | None, progress: Progress) -> None:
    made = commits(operation)
    assert asyncio.run(made.progress(MEMBER, "main")) == NOTHING
    with made._alone(MEMBER, "main") as under_way:
        assert asyncio.run(made.progress(MEMBER, "main")) == Progress("copying", None, None)
        under_way.packs("/1.0/operations/1")
        assert asyncio.run(made.progress(MEMBER, "main")) == progress
        assert asyncio.run(made.progress(MEMBER, "other")) == NOTHING
        assert asyncio.run(made.progress(OTHER, "main")) == NOTHING
        with pytest.raises(NotFound):
            asyncio.run(made.progress(MEMBER, "none"))
    assert asyncio.run(made.progress(MEMBER, "main")) == NOTHING


def test_what_an_image_has_room_for() -> None:
    large = tuple(File(f"/f{number}".encode(), 100 - number) for number in range(9))
    room = Room("main", quota_bytes=100, used_bytes=70, free_bytes=500)
    room.check(300)
    with pytest.raises(Forbidden, match="has 30 left") as refused:
        room.check(301, large)
    assert refused.value.fields == {"limit": 100, "used": 70, "files": 301}
    assert "'/f0' (100), '/f1' (99), '/f2' (98); holes" in refused.value.detail
    # What the others have may be more by now than the quota is.
    with pytest.raises(Forbidden, match="has 0 left"):
        Room("main", 100, 170, None).check(1)
    unlimited = Room("main", UNLIMITED, 70, 500)
    unlimited.check(500)
    with pytest.raises(Conflict, match="room for 500") as full:
        unlimited.check(501)
    assert full.value.code == "disk_full"
    Room("main", UNLIMITED, 0, None).check(1 << 70)


def test_without_the_program_for_holes_there_are_none() -> None:
    asked = []

    class WithoutSquashfs(Lxd):
        async def change(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
            asked.append(body)
            if "compression_algorithm" in body:
                raise Lacks('exec: "tar2sqfs": executable file not found in $PATH')

    made = Commits(
        client=WithoutSquashfs(None),
        images=cast(Images, SimpleNamespace()),
        pods=Found(),
        disks=cast(Disks, SimpleNamespace()),
        tasks=Tasks(),
    )
    asyncio.run(made._pack_with_holes({"source": "x"}, _UnderWay("main")))
    assert asked == [{"source": "x", "compression_algorithm": "squashfs"}, {"source": "x"}]


class Slips(Lxd):
    """Fails to pack with these errors, in turn, and then packs."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.seen: list[str | None] = []
        self.commits = Commits(
            client=self,
            images=cast(Images, SimpleNamespace()),
            pods=Found(),
            disks=cast(Disks, SimpleNamespace()),
            tasks=Tasks(),
        )

    async def get(self, path: str, **query: Any) -> Any:
        return {"metadata": {"progress": {"percent": "7"}}}

    async def change(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        assert (method, path, body) == ("POST", "/1.0/images", {"source": "x"})
        options["began"]("/1.0/operations/1")
        self.seen.append((await self.commits.progress(MEMBER, "main")).doing)
        if self.errors:
            raise self.errors.pop(0)

    def pack(self) -> None:
        with self.commits._alone(MEMBER, "main") as under_way:
            asyncio.run(self.commits._pack({"source": "x"}, under_way))


SLIP = Slipped("Failed to copy file content /etc/passwd: bad file descriptor")


def test_what_lxd_spoils_is_packed_once_more() -> None:
    client = Slips(SLIP)
    client.pack()
    assert client.seen == ["packing", "packing again"]


def test_what_lxd_spoils_again_is_an_error() -> None:
    client = Slips(SLIP, SLIP)
    with pytest.raises(Slipped):
        client.pack()
    assert client.seen == ["packing", "packing again"]


def test_another_failure_of_lxd_is_not_tried_again() -> None:
    client = Slips(Unavailable("LXD cannot be reached at the moment."))
    with pytest.raises(Unavailable):
        client.pack()
    assert client.seen == ["packing"]


def test_a_slip_is_no_second_chance_for_what_is_cancelled() -> None:
    client = Slips(SLIP)
    with client.commits._alone(MEMBER, "main") as under_way:
        under_way.cancelled.set()
        with pytest.raises(Cancelled):
            asyncio.run(client.commits._pack({"source": "x"}, under_way))
    assert client.seen in ([], ["packing"])


def test_what_is_cancelled_or_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both() -> None:
        under_way = _UnderWay("main")
        work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr("podyd.commits.TIMEOUT", 0.01)
        with pytest.raises(TimedOut, match="given up"):
            await under_way.first(work)
        monkeypatch.setattr("podyd.commits.TIMEOUT", 60.0)
        waiting = asyncio.ensure_future(under_way.first(work))
        await asyncio.sleep(0)
        under_way.cancelled.set()
        with pytest.raises(Cancelled):
            await waiting
        assert not work.done(), "LXD is told in another way"
        # Also where it has just come to its end.
        work.set_result(1)
        with pytest.raises(Cancelled):
            await under_way.first(work)
        assert await _UnderWay("main").first(work) == 1

    asyncio.run(both())


def test_what_another_podyd_is_about_to_name_stays() -> None:
    def image(made_as: str, project: str | None, *aliases: str) -> Image:
        mark = {} if project is None else {"user.podyd.project": project}
        return Image.of(
            {
                "fingerprint": f"{made_as}-{project}",
                "aliases": [{"name": name} for name in aliases],
                "properties": {"user.podyd.made_as": made_as, **mark} if made_as else {},
                "size": 1,
                "created_at": "2026-01-01T00:00:00Z",
                "architecture": "x86_64",
            }
        )

    class Listed(Images):
        def __init__(self) -> None:
            self.removed: list[str] = []

        async def all(self) -> list[Image]:
            return [
                image("left", "ours"),
                image("left", None),
                image("left", "another"),
                image("named", "ours", "alice-x"),
                image("under-way", "ours"),
                image("", None),
            ]

        async def remove(self, image: Image) -> None:
            self.removed.append(image.fingerprint)

    client, images, pods = Lxd(None), Listed(), Found()
    client.project = "ours"
    pods.templates = {"under-way"}
    made = Commits(
        client=client,
        images=images,
        pods=pods,
        disks=cast(Disks, SimpleNamespace()),
        tasks=Tasks(),
    )
    asyncio.run(made.sweep())
    assert images.removed == ["left-ours", "left-None"]
