"""Calls about the images that pods are made from."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.contract.answers import Json
from podyd.contract.kinds import Text, param
from podyd.contract.operation import GET, POST, Access, Log, Nothing, Operation, Proof


@dataclass(frozen=True)
class OneImage:
    image: str = param(Text(200), "the name of an image, from /host/images")


@dataclass(frozen=True)
class ImageInfo:
    """An image. `name` is the one that was asked for, `aliases` all of its names in the engine.
    `size` is the size as stored, in bytes; a pod made from it needs more. `fingerprint` is the
    engine's id of it. `owner` is the member who made it with /pod/commit; null if it is an
    admin's."""

    name: str
    aliases: list[str]
    description: str
    size: int
    created: str
    architecture: str
    fingerprint: str
    owner: str | None


HOST_IMAGES = Operation(
    "/host/images",
    GET,
    Nothing,
    Json(list[str]),
    "The names of the images that a pod can be created from; if there are none, header X-Podyd-Hint"
    " says how to get one.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
IMAGE_LIST = Operation(
    "/image/list",
    GET,
    Nothing,
    Json(list[str]),
    "The same as /host/images.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
IMAGE_INSPECT = Operation(
    "/image/inspect",
    GET,
    OneImage,
    Json(ImageInfo),
    "Information on an image.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
IMAGE_DELETE = Operation(
    "/image/delete",
    POST,
    OneImage,
    Json(Log),
    "Delete an image that the caller made with /pod/commit.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
