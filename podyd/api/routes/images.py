"""About images."""

from __future__ import annotations

from podyd.api.binding import Call, Headed, serves
from podyd.base.clock import iso
from podyd.contract.images import (
    HOST_IMAGES,
    IMAGE_DELETE,
    IMAGE_INSPECT,
    IMAGE_LIST,
    ImageInfo,
    OneImage,
)
from podyd.contract.operation import Log, Nothing
from podyd.pods.catalogue import Catalogue


class ImageRoutes:
    def __init__(self, *, images: Catalogue) -> None:
        self._images = images

    @serves(HOST_IMAGES, IMAGE_LIST)
    async def images(self, call: Call[Nothing]) -> Headed[list[str]]:
        names = await self._images.names(call.caller)
        # The body is a list of names, and stays one.
        return Headed(names, {} if names else {"X-Podyd-Hint": await self._images.hint()})

    @serves(IMAGE_INSPECT)
    async def image_inspect(self, call: Call[OneImage]) -> ImageInfo:
        alias, image = await self._images.offered(call.caller, call.request.image)
        return ImageInfo(
            name=alias,
            aliases=list(image.aliases),
            description=image.description,
            size=image.size,
            created=iso(image.created),
            architecture=image.architecture,
            fingerprint=image.fingerprint,
            owner=image.owner or None,
        )

    @serves(IMAGE_DELETE)
    async def image_delete(self, call: Call[OneImage]) -> Log:
        return Log(await self._images.delete(call.caller, call.request.image))
