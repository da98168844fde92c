"""What the host has left for images."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from podyd.base.errors import Conflict
from podyd.engine.packing import IMAGES, MOUNTED
from podyd.engine.room import SCRATCH, Filesystem, HostRoom, filesystems

GIB = 1024**3


class Host:
    """LXD's images and /tmp, with so many bytes free, on so many devices."""

    def __init__(self, images: int | None, scratch: int, *, apart: bool = False) -> None:
        self.images = images
        self.scratch = Filesystem(1 + apart, scratch)
        self.looks = 0
        self.looked_again = threading.Event()
        self.room = HostRoom(self.seen)

    def seen(self, places: Sequence[Path]) -> list[Filesystem]:
        self.looks += 1
        if self.looks == 2:
            self.looked_again.set()
        listed = [self.scratch] if SCRATCH in places else []
        is_there = IMAGES[0] in places and self.images is not None
        return listed + ([Filesystem(1, self.images or 0)] if is_there else [])


def test_what_is_left_above_the_floor() -> None:
    assert asyncio.run(Host(3 * GIB, 0).room.usable()) == 2 * GIB
    assert asyncio.run(Host(GIB // 2, 0).room.usable()) == 0
    assert asyncio.run(Host(None, 0).room.usable()) is None


def test_a_squashfs_is_there_twice() -> None:
    assert asyncio.run(Host(41 * GIB, 21 * GIB).room.usable_for_squashfs()) == 10 * GIB
    # A /tmp of its own may be in memory.
    assert asyncio.run(Host(41 * GIB, 21 * GIB, apart=True).room.usable_for_squashfs()) == 2 * GIB
    assert asyncio.run(Host(41 * GIB, 2 * GIB, apart=True).room.usable_for_squashfs()) == GIB // 2
    assert asyncio.run(Host(None, 21 * GIB).room.usable_for_squashfs()) == 2 * GIB


def test_it_is_watched_until_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podyd.engine.room.WATCH_SECONDS", 0.0)

    async def watched() -> None:
        host = Host(2 * GIB, 0)
        watching = asyncio.ensure_future(host.room.watch(scratch=False))
        assert await asyncio.to_thread(host.looked_again.wait, 10)
        host.images = GIB
        with pytest.raises(Conflict, match="ended and deleted") as ended:
            await watching
        assert (ended.value.code, ended.value.fields) == ("disk_full", {"free": GIB})

    asyncio.run(watched())
    with pytest.raises(Conflict):
        asyncio.run(Host(2 * GIB, 0).room.watch(scratch=True))


def test_what_the_service_is_given_of_lxds_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = (Path(__file__).parents[3] / "systemd/podyd.service").read_text().splitlines()
    for images, mounted in zip(IMAGES, MOUNTED, strict=True):
        assert f"BindReadOnlyPaths=-{images}:{mounted}" in unit
    # An empty directory of before, where LXD has none now.
    monkeypatch.setattr("podyd.engine.room.MOUNTED", (tmp_path,))
    assert filesystems([tmp_path]) == []


def test_what_is_not_there_does_not_count(tmp_path: Path) -> None:
    (status,) = filesystems([tmp_path / "none", tmp_path])
    assert status.device == tmp_path.stat().st_dev
    assert status.free_bytes > 0
