"""How much room the host has left where LXD packs images.

LXD writes an image into `images` of its own directory, and a squashfs into /tmp before. podyd may
look into neither, and need not: statvfs takes no right on a directory itself. It tells what is free
for everybody, and not whose the rest is: pods in a loop file beside the images grow there, too. So
it says when there is room for nobody any more, and not how large one image is by now: growth.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from podyd.base.errors import Conflict
from podyd.engine.packing import MOUNTED, image_places

# What images leave to LXD's own database, to logs and to everybody else.
FLOOR_BYTES = 1024**3
WATCH_SECONDS = 1.0
# With PrivateTmp=, too, it is on the filesystem that LXD's is on.
SCRATCH = Path("/tmp")  # noqa: S108 - nothing is written there
# In a /tmp that is not with the images: it may be in memory.
MAX_APART_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Filesystem:
    """One that is seen, with what is free for others than root."""

    device: int
    free_bytes: int

    @property
    def left_bytes(self) -> int:
        """What images may take of it."""
        return max(0, self.free_bytes - FLOOR_BYTES)


def filesystems(places: Sequence[Path]) -> list[Filesystem]:
    """Those of directories, as far as they can be seen; may block."""
    found = []
    for place in places:
        with contextlib.suppress(OSError):
            if place in MOUNTED and not place.is_mount():
                continue
            said = os.statvfs(place)
            found.append(Filesystem(place.stat().st_dev, said.f_bavail * said.f_frsize))
    return found


class HostRoom:
    """The filesystems that LXD packs images on, as far as podyd can tell which these are."""

    def __init__(self, seen: Callable[[Sequence[Path]], list[Filesystem]] = filesystems) -> None:
        self._images = image_places()
        self._seen = seen

    async def left(self) -> int | None:
        """How many bytes images may take; None where podyd cannot tell."""
        found = await asyncio.to_thread(self._seen, self._images)
        return min((item.left_bytes for item in found), default=None)

    async def for_squashfs(self) -> int:
        """How large an image may become that LXD has in /tmp first, and then in both places."""
        images, scratch = [
            await asyncio.to_thread(self._seen, places) for places in (self._images, [SCRATCH])
        ]
        least = min((item.left_bytes for item in [*images, *scratch]), default=0) // 2
        together = {item.device for item in images} == {item.device for item in scratch}
        return least if together else min(least, MAX_APART_BYTES)

    async def watch(self, *, scratch: bool) -> None:
        """Goes on until there is no room left: raises Conflict then. `scratch`: in /tmp neither."""
        places = [*self._images, *([SCRATCH] if scratch else [])]
        while True:
            for item in await asyncio.to_thread(self._seen, places):
                if not item.left_bytes:
                    raise Conflict(
                        f"The host has less than {FLOOR_BYTES} bytes left where LXD makes"
                        " images, so this one is ended and deleted.",
                        advice="Tell your admin.",
                        code="disk_full",
                        free=item.free_bytes,
                    )
            await asyncio.sleep(WATCH_SECONDS)
