"""Images that members make from their pods.

A pod is not published itself, as LXD publishes no instance that runs, and as its ssh host keys and
machine-id must not be in an image: a copy of it is, which never runs and is deleted again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from podyd.config import UNLIMITED
from podyd.errors import Conflict, Forbidden, LxdRefused, PodydError, lxd_could_not
from podyd.identity import forget_identity
from podyd.images import Image, Images
from podyd.lxd.client import LxdClient
from podyd.pod import MADE_AS, OWNER, Pod
from podyd.pods import Pods
from podyd.spec import Committed, Progress
from podyd.tasks import Tasks
from podyd.users import Member

log = logging.getLogger(__name__)

TIMEOUT = 1800.0
REMOVE_TIMEOUT = 10.0
ALIASES = "/1.0/images/aliases"


@dataclass
class _UnderWay:
    """An image that is being made of a pod, and LXD's operation that packs it, once it does."""

    ins: str
    operation: str = ""

    def packs(self, operation: str) -> None:
        self.operation = operation


class Commits:
    """Publishes pods; half-made images have no name, and are deleted."""

    def __init__(self, *, client: LxdClient, images: Images, pods: Pods, tasks: Tasks) -> None:
        self._client = client
        self._images = images
        self._pods = pods
        self._tasks = tasks
        # One image at a time for each member: that is the quota's, and the processors' due.
        self._under_way: dict[str, _UnderWay] = {}

    async def commit(self, member: Member, ins: str, tag: str, description: str) -> Committed:
        """Make an image of a pod, which goes on as it is; it replaces the member's of that tag.

        Raises Conflict (the name is somebody else's), Forbidden (quota). If anything fails, an
        older image stays as it was, and nothing of the new one is left.
        """
        pod = await self._pods.find(member, ins)
        name = f"{member.name}-{tag}"
        with self._alone(member, ins) as under_way:
            old = await self._replaced(member, name)
            await self._check_room(member, old)
            async with self._template(pod) as template:
                properties = {OWNER: member.name, MADE_AS: template, "description": description}
                image = await self._publish(template, properties, under_way.packs)
                try:
                    await self._check_size(member, image, old)
                    await self._name(name, image, old)
                except PodydError:
                    await self._images.remove(image)
                    raise
            if old is not None:
                await self._images.remove(old)
        log.info("%s made image %s of pod %s", member.name, name, pod.name)
        replaced = ", in place of the older one" if old else ""
        return Committed(name, f"Pod {ins} is image {name} ({image.size} bytes){replaced}.")

    async def progress(self, member: Member, ins: str) -> Progress:
        """How far the image of a pod is. Raises NotFound."""
        await self._pods.find(member, ins)
        under_way = self._under_way.get(member.name)
        if under_way is None or under_way.ins != ins:
            return Progress(None, None, None)
        if not under_way.operation:
            return Progress("copying", None, None)
        try:
            operation = await self._client.get(under_way.operation)
        except LxdRefused:  # It has ended.
            return Progress("packing", None, None)
        said = (operation["metadata"] or {}).get("progress", {})
        return Progress("packing", _whole(said, "percent"), _whole(said, "speed"))

    async def sweep(self) -> None:
        """Delete the images that a podyd which was killed has left without a name."""
        for image in await self._images.all():
            if image.made_as and not image.aliases and image.made_as not in self._pods.templates:
                log.warning("removing half-made image %s", image.fingerprint)
                await self._images.remove(image)

    @contextlib.contextmanager
    def _alone(self, member: Member, ins: str) -> Iterator[_UnderWay]:
        if member.name in self._under_way:
            raise Conflict(
                "An image is being made of a pod of yours already; wait until it is there.",
                code="commit_under_way",
            )
        self._under_way[member.name] = _UnderWay(ins)
        try:
            yield self._under_way[member.name]
        finally:
            del self._under_way[member.name]

    async def _replaced(self, member: Member, name: str) -> Image | None:
        for image in await self._images.all():
            if name in image.aliases:
                if image.owner == member.name:
                    return image
                raise Conflict(
                    f"The name {name!r} is taken by an image that is not yours; take another tag.",
                    code="name_taken",
                    image=name,
                )
        return None

    async def _others(self, member: Member, old: Image | None) -> list[Image]:
        """The member's images that stay."""
        gone = old.fingerprint if old else ""
        return [
            image
            for image in await self._images.all()
            if image.owner == member.name and image.fingerprint != gone
        ]

    async def _check_room(self, member: Member, old: Image | None) -> None:
        limit = member.quota.max_images
        used = len(await self._others(member, old))
        if limit != UNLIMITED and used >= limit:
            raise Forbidden(
                f"Your quota is {limit} images, and you have {used}; /image/delete one first.",
                code="quota_exceeded",
                limit=limit,
                used=used,
            )

    async def _check_size(self, member: Member, new: Image, old: Image | None) -> None:
        """How large an image is, LXD knows when it has made it."""
        limit = member.quota.image_size
        others = await self._others(member, old)
        used = sum(image.size for image in others if image.fingerprint != new.fingerprint)
        if limit != UNLIMITED and used + new.size > limit:
            raise Forbidden(
                f"Your quota is {limit} bytes of images; this one has {new.size}, and the others"
                f" have {used}.",
                code="quota_exceeded",
                limit=limit,
                used=used,
            )

    @contextlib.asynccontextmanager
    async def _template(self, pod: Pod) -> AsyncIterator[str]:
        """A copy of a pod without its identity, that is nobody's and never runs."""
        name = f"podyd-commit-{secrets.token_hex(8)}"
        body = {
            "name": name,
            "profiles": list(pod.instance.profiles),
            "config": {MADE_AS: name, OWNER: ""},
            "source": {"type": "copy", "source": pod.name, "instance_only": True},
        }
        self._pods.templates.add(name)
        try:
            with lxd_could_not("make the image", code="commit_failed"):
                await self._client.change("POST", "/1.0/instances", body, timeout=TIMEOUT)
                await forget_identity(self._client, name)
                yield name
        finally:
            removing = self._tasks.spawn(self._remove(name), f"removing {name}")
            await asyncio.wait({removing}, timeout=REMOVE_TIMEOUT)

    async def _remove(self, template: str) -> None:
        """Delete what was published from, and what LXD has finished although podyd gave up."""
        await self._pods.remove(template)
        self._pods.templates.discard(template)
        await self.sweep()

    async def _publish(
        self, template: str, properties: Mapping[str, str], began: Callable[[str], None]
    ) -> Image:
        body = {"source": {"type": "instance", "name": template}, "properties": properties}
        await self._client.change("POST", "/1.0/images", body, timeout=TIMEOUT, began=began)
        for image in await self._images.all():
            if image.made_as == template:
                return image
        raise PodydError("LXD has made the image and does not show it.", code="commit_failed")

    async def _name(self, name: str, image: Image, old: Image | None) -> None:
        """Let the name mean the new image; from then on it is whole."""
        target = {"target": image.fingerprint}
        if old is None:
            await self._client.change("POST", ALIASES, {"name": name, **target})
        else:
            await self._client.change("PUT", f"{ALIASES}/{quote(name, safe='')}", target)


def _whole(said: Mapping[str, str], key: str) -> int | None:
    """A number as LXD writes it, which it leaves out where it does not know it."""
    text = said.get(key, "")
    return int(text) if text.isdecimal() else None
