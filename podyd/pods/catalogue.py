"""The images that members may make pods from: the engine's aliases, as far as podyd.yaml offers
them."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from podyd.base.engine_words import ENGINE
from podyd.base.errors import Forbidden, Missing, NotFound
from podyd.config.current import Settings
from podyd.engine.interface import ImageStore
from podyd.engine.types import StoredImage
from podyd.model.member import Member
from podyd.model.pod import MADE_AS, OWNER, PROJECT, owns, uid_of

log = logging.getLogger(__name__)

DELETE_TIMEOUT = 120.0


@dataclass(frozen=True)
class Image:
    """An image and its owner; `size` in bytes."""

    fingerprint: str
    aliases: tuple[str, ...]
    description: str
    size: int
    created: datetime
    architecture: str
    owner: str = ""
    # The owner's uid, from `uid_of`.
    uid: str = ""
    # The name of the instance that it was published from, which is deleted by now.
    made_as: str = ""
    # The project of that instance; "" for images of older versions.
    project: str = ""

    @classmethod
    def of(cls, stored: StoredImage) -> Image:
        return cls(
            fingerprint=stored.fingerprint,
            aliases=stored.aliases,
            description=stored.properties.get("description", ""),
            size=stored.size_bytes,
            created=stored.created,
            architecture=stored.architecture,
            owner=stored.properties.get(OWNER, ""),
            uid=uid_of(stored.properties),
            made_as=stored.properties.get(MADE_AS, ""),
            project=stored.properties.get(PROJECT, ""),
        )

    def is_of(self, member: Member) -> bool:
        """Whether a member has committed it."""
        return owns(member, self.owner, self.uid)


class Catalogue:
    """The engine's images, as far as `images.offer` lets members see them."""

    def __init__(self, store: ImageStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    async def names(self, member: Member) -> list[str]:
        """The names offered to a member, sorted."""
        return self._offered(await self.all(), member)

    async def hint(self) -> str:
        """If no image is offered, how to change that; else ""."""
        return self._hint(await self.all())

    async def offered(self, member: Member, name: str) -> tuple[str, Image]:
        """The alias and the image of a `name` for a member; `NAME:latest` is the same as `NAME`.

        Raises NotFound if there is none, or another member's; Forbidden if it is not offered.
        """
        images = [image for image in await self.all() if not image.owner or image.is_of(member)]
        for alias in (name, name.removesuffix(":latest")):
            for image in images:
                if alias in image.aliases:
                    if not self._is_offered(alias, image, member):
                        raise Forbidden(
                            f"Image {alias!r} is not offered.",
                            advice=self._advice(images),
                            code="image_not_offered",
                        )
                    return alias, image
        raise NotFound(
            f"There is no image {name!r}.",
            advice=self._advice(images),
            code="no_such_image",
        )

    async def delete(self, member: Member, name: str) -> str:
        """Delete an image that the member has committed. Returns what was done.

        Raises NotFound, for another member's too; Forbidden for an admin's.
        """
        for image in await self.all():
            if not {name, name.removesuffix(":latest")} & set(image.aliases):
                continue
            if image.is_of(member):
                await self.remove(image)
                log.info("%s deleted image %s", member.name, image.aliases[0])
                return f"Image {image.aliases[0]} is deleted; pods made from it stay."
            if not image.owner:
                raise Forbidden(
                    f"Image {name!r} is an admin's.",
                    advice="You can delete those that you have committed.",
                    code="not_your_image",
                )
        raise NotFound(
            f"You have no image {name!r}.",
            advice="See /host/images.",
            code="no_such_image",
        )

    async def remove(self, image: Image) -> None:
        """Delete an image, if it still exists."""
        with contextlib.suppress(Missing):
            await self._store.delete(image.fingerprint, timeout=DELETE_TIMEOUT)

    async def all(self) -> list[Image]:
        """Every image, of all owners."""
        return [Image.of(item) for item in await self._store.all()]

    def _offered(self, images: Sequence[Image], member: Member | None = None) -> list[str]:
        return sorted(
            alias
            for image in images
            for alias in image.aliases
            if self._is_offered(alias, image, member)
        )

    def _advice(self, images: Sequence[Image]) -> str:
        return self._hint(images) or "See /host/images."

    def _hint(self, images: Sequence[Image]) -> str:
        if self._offered(images):
            return ""
        if any(image.aliases and not image.owner for image in images):
            return "No image is offered: an admin changes 'images.offer' in podyd.yaml."
        return (
            f"{ENGINE} has no image: an admin makes one ('podyd image build') or brings one"
            f" ('{self._store.copy_command}')."
        )

    def _is_offered(self, alias: str, image: Image, member: Member | None) -> bool:
        if image.owner:
            return member is not None and image.is_of(member)
        offer = self._settings.current.images.offer
        return any(fnmatch.fnmatchcase(alias, pattern) for pattern in offer)
