"""The engine's images, and how one is made of an instance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from podyd.engine.rest import RestClient, members_of
from podyd.engine.times import parse_time
from podyd.engine.types import NewImage, PackProgress, StoredImage
from podyd.engine.websocket import Websocket

_IMAGES, _ALIASES = "/1.0/images", "/1.0/images/aliases"
# How long an event with progress may take; while there is some, one comes every second.
TOLD_SECONDS = 1.5
# The engine packs with tar2sqfs then, which makes holes of zeros. It has it use xz, which takes as
# long as gzip at this level, and six times as long at its own. Incus with the fix of CVE-2026-28384
# refuses options here, as only "squashfs" alone stands for tar2sqfs among the programs that it then
# allows (IsCompressionAlgorithm of shared/validate; 6.0.4-2+deb13u5): holes are filled there.
_WITH_HOLES = {"compression_algorithm": "squashfs -X level=0"}


class RestImageStore:
    """The engine's images, without a cache."""

    def __init__(self, client: RestClient) -> None:
        self._client = client

    @property
    def copy_command(self) -> str:
        """What an admin types to bring an image of another server."""
        return self._client.dialect.copy_image(self._client.project)

    @property
    def longest_name(self) -> int | None:
        """The most characters of an image's name; None if there is no limit."""
        return self._client.dialect.longest_alias

    async def all(self) -> list[StoredImage]:
        """Every image that a container can be made of."""
        images = await members_of(self._client, _IMAGES)
        return [image_of(item) for item in images if item["type"] == "container"]

    async def delete(self, fingerprint: str, *, timeout: float) -> None:
        """Delete an image. Raises Missing."""
        await self._client.change("DELETE", f"{_IMAGES}/{fingerprint}", timeout=timeout)

    async def pack(
        self, new: NewImage, *, timeout: float, began: Callable[[str], None] = lambda packing: None
    ) -> None:
        """Make an image of an instance that does not run; `began` gets what `progress` takes.

        The engine cannot be made to stop. Raises DiskFull, Slipped, Lacks (it packs no holes),
        TimedOut.
        """
        body = {
            "source": {"type": "instance", "name": new.instance},
            "properties": new.properties,
            **(_WITH_HOLES if new.keeps_holes else {}),
        }
        await self._client.change("POST", _IMAGES, body, timeout=timeout, began=began)

    async def progress(self, packing: str) -> PackProgress:
        """The progress of an image that is being packed, or unpacked for an instance. Raises
        Missing if that has ended."""
        operation = await self._client.get(packing)
        progress = _progress_of(operation)
        if not progress and await self._tells_in_events():
            progress = await self._told(operation["id"])
        return PackProgress(_whole(progress, "percent"), _whole(progress, "speed"))

    async def _tells_in_events(self) -> bool:
        """Whether the engine tells of progress in events alone: LXD from 6.8 on, the first with
        this extension (RenderWithoutProgress in lxd/operations/operations.go)."""
        return "bulk_operations" in (await self._client.get("/1.0"))["api_extensions"]

    async def _told(self, operation: str) -> Mapping[str, str]:
        """The progress in the next event of an operation; none if none comes soon."""
        stream = await self._client.websocket("/1.0/events", type="operation")
        try:
            return await asyncio.wait_for(_next_progress(stream, operation), TOLD_SECONDS)
        except asyncio.TimeoutError:
            return {}
        finally:
            stream.close()

    async def name(self, alias: str, fingerprint: str) -> None:
        """Give an image a name that no other one has. Raises NameTaken."""
        await self._client.change("POST", _ALIASES, {"name": alias, "target": fingerprint})

    async def rename(self, alias: str, fingerprint: str) -> None:
        """Move a name from another image to this one. Raises Missing."""
        path = f"{_ALIASES}/{quote(alias, safe='')}"
        await self._client.change("PUT", path, {"target": fingerprint})


def _progress_of(operation: Mapping[str, Any]) -> Mapping[str, str]:
    progress: Mapping[str, str] = (operation["metadata"] or {}).get("progress", {})
    return progress


async def _next_progress(stream: Websocket, operation: str) -> Mapping[str, str]:
    while (message := await stream.read_message()) is not None:
        told = json.loads(message)["metadata"]
        if told["id"] == operation and (progress := _progress_of(told)):
            return progress
    return {}


def _whole(progress: Mapping[str, str], key: str) -> int | None:
    """A number in the engine's progress; None if the engine leaves it out."""
    text = progress.get(key, "")
    return int(text) if text.isdecimal() else None


def image_of(data: Mapping[str, Any]) -> StoredImage:
    """From the engine's JSON of an image."""
    return StoredImage(
        fingerprint=data["fingerprint"],
        aliases=tuple(sorted(alias["name"] for alias in data["aliases"] or ())),
        properties=data["properties"],
        size_bytes=data["size"],
        created=parse_time(data["created_at"]),
        architecture=data["architecture"],
    )
