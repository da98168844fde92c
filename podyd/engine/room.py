"""The free space of the host's filesystems on which the engine packs images.

The engine writes an image into `images` of its own directory, and a squashfs into /tmp first. podyd
has no access to either and needs none: statvfs requires no permission on the directory itself. It
has the free space, and not what uses the rest: pods in a loop file beside the images grow there,
too. So it shows that the disk is full, and not the size of one image so far, which is in growth.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from podyd.base.engine_words import ENGINE
from podyd.base.errors import Conflict
from podyd.engine.packing import MOUNTED, image_places

# The reserve that images leave for the engine's own database, for logs and for all else.
FLOOR_BYTES = 1024**3
WATCH_SECONDS = 1.0
# Also with PrivateTmp=, it is on the same filesystem as the engine's.
SCRATCH = Path("/tmp")  # noqa: S108 - nothing is written there
# The limit in a /tmp on another filesystem than the images, as that may be in memory.
MAX_APART_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Filesystem:
    """A filesystem, with its free bytes for other users than root."""

    device: int
    free_bytes: int

    @property
    def usable_bytes(self) -> int:
        """How many bytes images may use of it."""
        return max(0, self.free_bytes - FLOOR_BYTES)


def filesystems(places: Sequence[Path]) -> list[Filesystem]:
    """The filesystems of directories, without those that cannot be read; may block."""
    usable = []
    for place in places:
        with contextlib.suppress(OSError):
            if place in MOUNTED and not place.is_mount():
                continue
            status = os.statvfs(place)
            usable.append(Filesystem(place.stat().st_dev, status.f_bavail * status.f_frsize))
    return usable


class HostRoom:
    """The filesystems that the engine packs images on, as far as podyd knows them."""

    def __init__(self, read: Callable[[Sequence[Path]], list[Filesystem]] = filesystems) -> None:
        self._images = image_places()
        self._filesystems = read

    async def usable(self) -> int | None:
        """How many bytes images may use; None if that is not known."""
        disks = await asyncio.to_thread(self._filesystems, self._images)
        return min((item.usable_bytes for item in disks), default=None)

    async def usable_for_squashfs(self) -> int:
        """The largest size, in bytes, of an image that the engine writes to /tmp first and then
        copies."""
        images, scratch = [
            await asyncio.to_thread(self._filesystems, places)
            for places in (self._images, [SCRATCH])
        ]
        least = min((item.usable_bytes for item in [*images, *scratch]), default=0) // 2
        together = {item.device for item in images} == {item.device for item in scratch}
        return least if together else min(least, MAX_APART_BYTES)

    async def watch(self, *, scratch: bool) -> None:
        """Raises Conflict once no space is left, with `scratch` also in /tmp; never returns."""
        places = [*self._images, *([SCRATCH] if scratch else [])]
        while True:
            for item in await asyncio.to_thread(self._filesystems, places):
                if not item.usable_bytes:
                    raise Conflict(
                        f"The host has less than {FLOOR_BYTES} bytes left where {ENGINE} makes"
                        " images, so this one is ended and deleted.",
                        advice="Tell your admin.",
                        code="disk_full",
                        free=item.free_bytes,
                    )
            await asyncio.sleep(WATCH_SECONDS)
