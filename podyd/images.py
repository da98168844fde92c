"""The images that members may make pods from: LXD's aliases, as far as podyd.yaml offers them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from podyd.errors import Forbidden, NotFound
from podyd.lxd.client import LxdClient
from podyd.lxd.instances import parse_time
from podyd.settings import Settings


@dataclass(frozen=True)
class Image:
    """An LXD image; `size` in bytes."""

    fingerprint: str
    aliases: tuple[str, ...]
    description: str
    size: int
    created: datetime
    architecture: str

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Image:
        return cls(
            fingerprint=data["fingerprint"],
            aliases=tuple(sorted(alias["name"] for alias in data["aliases"])),
            description=data["properties"].get("description", ""),
            size=data["size"],
            created=parse_time(data["created_at"]),
            architecture=data["architecture"],
        )


class Images:
    """What LXD has and `images.offer` lets through."""

    def __init__(self, client: LxdClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    async def names(self) -> list[str]:
        """The names offered, sorted."""
        return sorted(
            alias
            for image in await self._all()
            for alias in image.aliases
            if self._is_offered(alias)
        )

    async def offered(self, name: str) -> tuple[str, Image]:
        """The alias and the image that `name` means; `NAME:latest` also means `NAME`.

        Raises NotFound if there is none, Forbidden if it is not offered.
        """
        images = await self._all()
        for alias in (name, name.removesuffix(":latest")):
            for image in images:
                if alias in image.aliases:
                    if not self._is_offered(alias):
                        raise Forbidden(
                            f"Image {alias!r} is not offered; see /host/images.",
                            code="image_not_offered",
                        )
                    return alias, image
        raise NotFound(f"There is no image {name!r}; see /host/images.", code="no_such_image")

    async def _all(self) -> list[Image]:
        data = await self._client.get("/1.0/images", recursion=1)
        return [Image.of(item) for item in data if item["type"] == "container"]

    def _is_offered(self, alias: str) -> bool:
        offer = self._settings.current.images.offer
        return any(fnmatch.fnmatchcase(alias, pattern) for pattern in offer)
