"""How far an image is that is being made of a pod, and what ends it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, cast

import pytest

from podyd.base.errors import (
    BadRequest,
    Conflict,
    DiskFull,
    EngineRefused,
    Forbidden,
    Lacks,
    Missing,
    NotFound,
    Slipped,
    TimedOut,
    Unavailable,
)
from podyd.base.quantities import UNLIMITED
from podyd.base.tasks import Tasks
from podyd.config.schema import Quota
from podyd.contract.pods import Progress
from podyd.engine.dialect import INCUS, LXD, Dialect
from podyd.engine.files import RestFiles
from podyd.engine.growth import Packing, Unfinished
from podyd.engine.images import RestImageStore
from podyd.engine.instances import RestInstances
from podyd.engine.rest import RestClient
from podyd.engine.room import HostRoom
from podyd.engine.types import LARGE_BYTES, File, Holes, NewImage, StoredImage
from podyd.model.member import Member
from podyd.pods.catalogue import Catalogue, Image
from podyd.pods.commits import Cancelled, Commits, Room, _UnderWay, _written_twice
from podyd.pods.disks import Disks
from podyd.pods.half_made import HalfMade
from podyd.pods.owned import Owned

MEMBER, OTHER = (Member(name, False, Quota(), (), 1000, 1000) for name in ("alice", "bob"))
NOTHING = Progress(None, None, None)
NEW = NewImage("x", {"a": "b"})


class Lxd(RestClient):
    """Has one operation, with this metadata; None: it has ended."""

    def __init__(self, metadata: dict[str, Any] | None) -> None:
        self.metadata = metadata

    async def get(self, path: str, **query: Any) -> Any:
        if path == "/1.0":
            return {"api_extensions": []}
        assert path == "/1.0/operations/1"
        if self.metadata is None:
            raise Missing("Image not found")
        return self.metadata


class Found(Owned):
    """Each member has a pod `main` and a pod `other`."""

    def __init__(self) -> None:
        pass

    async def find(self, member: Member, ins: str) -> Any:
        if ins not in ("main", "other"):
            raise NotFound("none", code="no_such_pod")


class Wide(HostRoom):
    """A host with so much room left."""

    def __init__(self, free: int = 2**50) -> None:
        super().__init__(lambda places: [])
        self.free = free

    async def usable_for_squashfs(self) -> int:
        return self.free


class Unseen(Packing):
    """Tells nothing."""

    def __init__(self) -> None:
        super().__init__("")

    async def look(self) -> Unfinished | None:
        return None


def half_made_on_nothing() -> HalfMade:
    return HalfMade(instances=cast(RestInstances, None), files=cast(RestFiles, None), tasks=Tasks())


def commits_of(
    client: RestClient,
    host: HostRoom | None = None,
    packing: Packing | None = None,
    images: Catalogue | None = None,
    half_made: HalfMade | None = None,
) -> Commits:
    return Commits(
        project="ours",
        instances=cast(RestInstances, SimpleNamespace()),
        store=RestImageStore(client),
        files=RestFiles(client),
        images=images or cast(Catalogue, SimpleNamespace()),
        owned=Found(),
        half_made=half_made or half_made_on_nothing(),
        disks=cast(Disks, SimpleNamespace()),
        host=host or Wide(),
        packing=packing or Unseen(),
        tasks=Tasks(),
    )


def commits(metadata: dict[str, Any] | None) -> Commits:
    return commits_of(Lxd(metadata))


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
    assert refused.value.advice == (
        "Delete files in the pod, or delete another image with /image/delete. The largest"
        " files: '/f0' (100), '/f1' (99), '/f2' (98); holes count, as LXD reads them all."
    )
    # What the others have may be more by now than the quota is.
    with pytest.raises(Forbidden, match="has 0 left"):
        Room("main", 100, 170, None).check(1)
    unlimited = Room("main", UNLIMITED, 70, 500)
    unlimited.check(500)
    with pytest.raises(Conflict, match="room for 500") as full:
        unlimited.check(501)
    assert full.value.code == "disk_full"
    assert full.value.advice == "Delete files in the pod, or tell your admin."
    Room("main", UNLIMITED, 0, None).check(1 << 70)
    # What does not compress takes half of itself at least, and the rest a tenth.
    room.check(130, large, 42)
    with pytest.raises(Forbidden, match="some 60 do not compress"):
        room.check(130, large, 60)
    hosts = Room("main", UNLIMITED, 0, None, host_bytes=10)
    hosts.check(99)
    with pytest.raises(Conflict, match="the host has 10 left") as full:
        hosts.check(100)
    assert full.value.code == "disk_full"
    with pytest.raises(Conflict, match="the host has 0 left"):
        Room("main", UNLIMITED, 0, None, host_bytes=0).check(1)


class Packs(Lxd):
    """Notes what it is asked to pack with; a squashfs may be refused."""

    def __init__(self, squashfs: EngineRefused | None = None) -> None:
        self.asked: list[str | None] = []
        self.squashfs = squashfs

    async def change(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        self.asked.append(body.get("compression_algorithm"))
        if self.asked[-1] and self.squashfs is not None:
            raise self.squashfs


SQUASHFS = "squashfs -X level=0"


@pytest.mark.parametrize(
    ("client", "free", "zeros", "asked", "kept"),
    [
        (Packs(), 100, 2**26, [SQUASHFS], "kept"),
        (Packs(), 99, 2**26, [None], "filled"),
        (Packs(), 100, 2**26 - 1, [None], None),
        (Packs(Lacks('exec: "tar2sqfs": not found')), 100, 2**26, [SQUASHFS, None], "filled"),
        (
            Packs(EngineRefused("tar2sqfs: exit status 1 ()")),
            100,
            2**26,
            [SQUASHFS, None],
            "filled",
        ),
    ],
    ids=["room", "no room", "no holes", "no program", "a program that fails"],
)
def test_holes_stay_where_there_is_room_for_a_squashfs(
    client: Packs, free: int, zeros: int, asked: list[str | None], kept: str | None
) -> None:
    made = commits_of(client, Wide(free))
    output = Holes(zeros, 100, 0)
    assert asyncio.run(made._pack_holes(NEW, output, _UnderWay("main"))) == kept
    assert client.asked == asked


def test_the_hosts_last_room_ends_an_image() -> None:
    class Full(HostRoom):
        async def watch(self, *, scratch: bool) -> None:
            raise Conflict("The host is full.", code="disk_full")

    class Slow(Lxd):
        async def change(self, *args: Any, **options: Any) -> Any:
            options["began"]("/1.0/operations/1")
            await asyncio.Event().wait()

    async def both() -> None:
        made, under_way = commits_of(Slow(None), Full()), _UnderWay("main")
        with pytest.raises(Conflict, match="The host is full"):
            await made._pack(NEW, under_way)
        assert under_way.is_packing, "LXD is told in another way"
        await made._tasks.cancel()

    asyncio.run(both())


class Grows(Packing):
    """Each look finds an image, that LXD has been asked for meanwhile, ten bytes larger."""

    def __init__(self) -> None:
        super().__init__("")
        self.size = -20

    async def look(self) -> Unfinished | None:
        self.size += 10
        return Unfinished({"new": self.size} if self.size >= 0 else {}, {})


def test_what_grows_too_large_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podyd.pods.commits.WATCH_SECONDS", 0.0)
    seen: list[int] = []

    class Packs(Lxd):
        async def change(self, *args: Any, **options: Any) -> Any:
            options["began"]("/1.0/operations/1")
            await asyncio.Event().wait()

    class Idle(Wide):
        async def watch(self, *, scratch: bool) -> None:
            await asyncio.Event().wait()

    async def check(size: int) -> None:
        seen.append(size)
        if size == 20:
            raise Unavailable("LXD does not say what the others have.")
        if size > 30:
            raise Forbidden("Too large.", code="quota_exceeded")

    async def both() -> None:
        made, under_way = commits_of(Packs(None), Idle(), Grows()), _UnderWay("main")
        under_way.check_size = check
        with pytest.raises(Forbidden, match="Too large"):
            await made._pack(NEW, under_way)
        assert under_way.is_packing, "LXD is told in another way"
        await made._tasks.cancel()

    asyncio.run(both())
    assert seen == [10, 20, 30, 40]


def test_an_image_that_lxd_has_just_finished_is_not_counted_twice() -> None:
    class Both(Catalogue):
        def __init__(self) -> None:
            pass

        async def all(self) -> list[Image]:
            created = datetime(2026, 11, 24, tzinfo=timezone.utc)
            old = Image("old", ("alice-old",), "", 30, created, "x86_64", "alice", "1000")
            return [old, replace(old, fingerprint="new", size=60, made_as="podyd-commit-1")]

    member = replace(MEMBER, quota=Quota(image_size=100))
    made = commits_of(Lxd(None), images=Both())
    asyncio.run(made._check_size(member, None, "podyd-commit-1", 70))
    with pytest.raises(Forbidden, match="this one has 71 bytes, and the others have 30"):
        asyncio.run(made._check_size(member, None, "podyd-commit-1", 71))


@pytest.mark.parametrize(
    ("dialect", "is_there", "is_refused"),
    [(LXD, False, False), (INCUS, False, True), (INCUS, True, False)],
)
def test_a_name_that_the_engine_does_not_take_is_refused_before_all_else(
    dialect: Dialect, is_there: bool, is_refused: bool
) -> None:
    class Reached(Exception):
        pass

    class Named(Catalogue):
        def __init__(self) -> None:
            self.asked = 0

        async def all(self) -> list[Image]:
            self.asked += 1
            if self.asked > 1:
                raise Reached
            names = (f"alice-{'t' * 59}",) if is_there else ()
            created = datetime(2026, 11, 24, tzinfo=timezone.utc)
            return [Image("old", names, "", 30, created, "x86_64", "alice", "1000")]

    async def commit(tag: str) -> None:
        client = Lxd(None)
        client.dialect = dialect
        await commits_of(client, images=Named()).commit(MEMBER, "main", tag, "")

    with pytest.raises(Reached):
        asyncio.run(commit("t" * 58))
    with pytest.raises(BadRequest if is_refused else Reached) as refused:
        asyncio.run(commit("t" * 59))
    if is_refused:
        assert "64 characters" in str(refused.value)


def test_what_tar2sqfs_may_take_back() -> None:
    under_way = _UnderWay("main", large=[File(b"/a", 2**40), File(b"/b", 2**30)])
    # The largest file, but no more than half of all that is no hole.
    assert _written_twice(Holes(0, 2**30, 0), under_way) == 2**29
    assert _written_twice(Holes(0, 2**50, 0), under_way) == 2**40
    assert _written_twice(Holes(0, 2**50, 0), _UnderWay("main")) == LARGE_BYTES


class Slips(Lxd):
    """Fails to pack with these errors, in turn, and then packs."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.seen: list[str | None] = []
        self.commits = commits_of(self)

    async def get(self, path: str, **query: Any) -> Any:
        return {"metadata": {"progress": {"percent": "7"}}}

    async def change(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        source = {"type": "instance", "name": "x"}
        assert (method, path) == ("POST", "/1.0/images")
        assert body == {"source": source, "properties": {"a": "b"}}
        options["began"]("/1.0/operations/1")
        self.seen.append((await self.commits.progress(MEMBER, "main")).doing)
        if self.errors:
            raise self.errors.pop(0)

    def pack(self) -> None:
        with self.commits._alone(MEMBER, "main") as under_way:
            asyncio.run(self.commits._pack(NEW, under_way))


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


def test_a_host_without_room_is_no_full_pod() -> None:
    client = Slips(DiskFull("write /var/lib/lxd/images/lxd_build_1/x: no space left on device"))
    with pytest.raises(DiskFull, match=r"The host has no room .* Tell your admin\.$"):
        client.pack()
    assert client.seen == ["packing"]


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
            asyncio.run(client.commits._pack(NEW, under_way))
    assert client.seen in ([], ["packing"])


def test_what_is_cancelled_or_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both() -> None:
        under_way = _UnderWay("main")
        work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr("podyd.pods.commits.TIMEOUT", 0.01)
        with pytest.raises(TimedOut, match="is cancelled"):
            await under_way.first(work)
        monkeypatch.setattr("podyd.pods.commits.TIMEOUT", 60.0)
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
        properties = {"user.podyd.made_as": made_as, **mark} if made_as else {}
        created = datetime(2026, 1, 1, tzinfo=timezone.utc)
        fingerprint = f"{made_as}-{project}"
        return Image.of(StoredImage(fingerprint, aliases, properties, 1, created, "x86_64"))

    class Listed(Catalogue):
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

    images, half_made = Listed(), half_made_on_nothing()
    half_made.begin("under-way")
    asyncio.run(commits_of(Lxd(None), images=images, half_made=half_made).sweep())
    assert images.removed == ["left-ours", "left-None"]
