"""The size so far of an image that the engine packs, as `podyd packing` reports it.

It reports all images that the engine packs, without their owners. An image is the one that appeared
when the engine was asked for it; if several did, its size is taken as that of the smallest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from podyd.base.engine_words import ENGINE
from podyd.engine.packing import MAX_LINE_BYTES

log = logging.getLogger(__name__)

TIMEOUT = 5.0


@dataclass(frozen=True)
class Unfinished:
    """The images that the engine is packing, by name, with their bytes so far.

    An image that is queued has None. `scratch` are squashfs files that become images; None if they
    are not known.
    """

    images: Mapping[str, int | None]
    scratch: Mapping[str, int] | None


class Packing:
    """The helper behind the unix socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_said = False

    async def look(self) -> Unfinished | None:
        """The present state; None if the helper does not answer, which is logged once."""
        try:
            unfinished = parsed(await asyncio.wait_for(self._ask(), TIMEOUT))
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            if not self._is_said:
                log.warning(
                    f"images can exceed members' image_size until {ENGINE} has packed them: 'podyd"
                    " packing' does not answer at %s (%s)",
                    self._path,
                    error or type(error).__name__,
                )
            self._is_said = True
            return None
        self._is_said = False
        return unfinished

    async def _ask(self) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE_BYTES)
        try:
            return await reader.readline()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def begin(self) -> Growth:
        """A Growth of a new image; to be called before the engine is asked for it."""
        return Growth(self, await self.look())


def parsed(line: bytes) -> Unfinished:
    """The helper's answer. Raises ValueError."""
    match json.loads(line):
        case {"images": dict(images), "scratch": dict() | None as scratch} if all(
            isinstance(size, int) or (size is None and name in images)
            for name, size in [*images.items(), *(scratch or {}).items()]
        ):
            return Unfinished(images, scratch)
        case {"error": str(error)}:
            raise ValueError(error)
        case {"images": None}:
            raise ValueError(f"it does not see {ENGINE}'s images")
    raise ValueError("it is of another version")


class Growth:
    """An image that the engine has been asked for, or is about to be."""

    def __init__(self, packing: Packing, before: Unfinished | None) -> None:
        self._packing = packing
        self._before = before
        self._ours: frozenset[str] = frozenset()
        # None: not known.
        self._others = None if before is None or before.scratch is None else {*before.scratch}
        self._squashed: frozenset[str] = frozenset()

    async def asked(self) -> None:
        """To be called once the engine has been asked and has created its files."""
        now = await self._packing.look()
        if self._before is not None and now is not None:
            self._ours = frozenset(now.images.keys() - self._before.images.keys())

    async def size(self, uncertain: int | None = None) -> int:
        """The bytes that it has at least; 0 if that is not known.

        `uncertain`: it is a squashfs, which may lose so many bytes again before it is an image.
        """
        now = await self._packing.look() if self._ours else None
        if now is None:
            return 0
        sizes = [now.images.get(name) for name in self._ours]
        begun = [size for size in sizes if size is not None]
        if len(begun) < len(sizes):
            # The squashfs that is written now belongs to another image, packed before it.
            if self._others is not None:
                self._others.update(now.scratch or ())
            return 0
        packed = 0 if uncertain is None else self._scratch(now) - uncertain
        return max(packed, min(begun))

    def _scratch(self, now: Unfinished) -> int:
        """The bytes of the squashfs that becomes this image."""
        if now.scratch is None or self._others is None:
            self._others = None
            return 0
        if not self._squashed:
            self._squashed = frozenset(now.scratch.keys() - self._others)
        return min((now.scratch.get(name, 0) for name in self._squashed), default=0)
