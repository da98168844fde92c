"""The images that members may make pods from: LXD's aliases, as far as podyd.yaml offers them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
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
        return self._offered(await self._all())

    async def hint(self) -> str:
        """Where nothing is offered, how that is mended; else ""."""
        return self._hint(await self._all())

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
                            f"Image {alias!r} is not offered; {self._advice(images)}",
                            code="image_not_offered",
                        )
                    return alias, image
        raise NotFound(f"There is no image {name!r}; {self._advice(images)}", code="no_such_image")

    async def _all(self) -> list[Image]:
        data = await self._client.get("/1.0/images", recursion=1)
        return [Image.of(item) for item in data if item["type"] == "container"]

    def _offered(self, images: Sequence[Image]) -> list[str]:
        return sorted(
            alias for image in images for alias in image.aliases if self._is_offered(alias)
        )

    def _advice(self, images: Sequence[Image]) -> str:
        return self._hint(images) or "see /host/images."

    def _hint(self, images: Sequence[Image]) -> str:
        if self._offered(images):
            return ""
        if any(image.aliases for image in images):
            return "no image is offered: an admin changes 'images.offer' in podyd.yaml."
        return (
            "LXD has no image: an admin makes one ('podyd image build') or brings one"
            " ('lxc image copy')."
        )

    def _is_offered(self, alias: str) -> bool:
        offer = self._settings.current.images.offer
        return any(fnmatch.fnmatchcase(alias, pattern) for pattern in offer)
