"""Images that members make from their pods.

Not the pod itself is published, as the engine does not publish a running instance, and as its ssh
host keys and machine-id must not be in an image, but a copy of it, which never runs and is deleted
afterwards. As nothing can change that copy, its files are checked once, before the engine packs
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from podyd.base.engine_words import ENGINE
from podyd.base.errors import (
    BadRequest,
    Conflict,
    DiskFull,
    EngineRefused,
    Forbidden,
    NotFound,
    PodydError,
    Slipped,
    TimedOut,
    Unavailable,
    engine_could_not,
)
from podyd.base.quantities import UNLIMITED, shown_size
from podyd.base.tasks import Tasks, seen
from podyd.contract.pods import Committed, Progress
from podyd.engine.growth import Growth, Packing
from podyd.engine.interface import Files, ImageStore, Instances
from podyd.engine.room import WATCH_SECONDS, HostRoom
from podyd.engine.types import LARGE_BYTES, CopyOf, File, Holes, NewImage, NewInstance, Tree
from podyd.model.member import Member
from podyd.model.pod import MADE_AS, OWNER, PROJECT, TEMPLATE, Pod, owner_keys
from podyd.pods.catalogue import Catalogue, Image
from podyd.pods.deidentify import forget_identity
from podyd.pods.disks import Disks, without_limit
from podyd.pods.half_made import HalfMade
from podyd.pods.owned import Owned

log = logging.getLogger(__name__)

TIMEOUT = 1800.0
REMOVE_TIMEOUT = 10.0
COPY_TRIES = 5
# How long to wait until the engine's packing has failed as its files are gone; it is longer if
# another image is packed first.
END_TIMEOUT = 20.0
# The timeout of the engine's operation, which may go on after podyd's own timeout, as the engine
# packs one image after the other.
LATE_TIMEOUT = 24 * 3600.0
# The highest assumed ratio of files to image: of compressible files, and of others (which may be
# there more than once).
MOST_PACKED, DENSE_PACKED = 10, 2
LARGEST_NAMED = 3
# The least zeros for which an image is packed with holes.
HOLES_BYTES = 64 * 1024**2
LESS = "Delete files in the pod, or delete another image with /image/delete."
FILLED = " The holes of its sparse files are zeros in the image."
Kept = Literal["kept", "filled"] | None


class Cancelled(Conflict):
    """The member has cancelled the image."""

    default_code = "commit_cancelled"


@dataclass
class _UnderWay:
    """An image that is being made of a pod."""

    ins: str
    # The engine's operation that packs it, once it has started, and the task that waits for its
    # end.
    operation: str = ""
    packing: asyncio.Task[Any] | None = None
    # Packing was Slipped once, and is repeated.
    is_again: bool = False
    # Large files, which the engine takes long to read.
    large: Sequence[File] = ()
    # Raises Forbidden if an image of this size, in bytes, exceeds the member's quota.
    check_size: Callable[[int], Awaitable[None]] | None = None
    # The image has its name, and is complete.
    is_named: bool = False
    # The copy and all other remains are deleted.
    is_gone: bool = False
    # The start of the timeout, also if it is packed twice; of the monotonic clock, in seconds.
    began: float = field(default_factory=time.monotonic)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def packs(self, operation: str) -> None:
        self.operation = operation

    @property
    def is_packing(self) -> bool:
        return self.packing is not None and not self.packing.done()

    def go_on(self) -> None:
        """Raises Cancelled if the image was cancelled."""
        if self.cancelled.is_set():
            raise Cancelled("The image was cancelled.")

    async def first(self, work: asyncio.Future[Any], *guards: Coroutine[Any, Any, None]) -> Any:
        """The result of `work`, unless it is cancelled or times out, or one of the `guards` raises
        an error, which is raised then; `work` itself goes on."""
        tasks = [asyncio.ensure_future(item) for item in (self.cancelled.wait(), *guards)]
        try:
            left = max(0.0, self.began + TIMEOUT - time.monotonic())
            await asyncio.wait({work, *tasks}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.add_done_callback(seen)
                task.cancel()
        self.go_on()
        if not work.done():
            for task in tasks:
                if task.done():
                    task.result()
            raise TimedOut(
                f"The image was not made within {TIMEOUT / 60:.0f} minutes, and is cancelled.",
                advice="Delete files in the pod, or try again when nobody else makes an image.",
                code="commit_timed_out",
            )
        return work.result()


class Commits:
    """Publishes pods; half-made images have no alias, and are deleted."""

    def __init__(
        self,
        *,
        project: str,
        instances: Instances,
        store: ImageStore,
        files: Files,
        images: Catalogue,
        owned: Owned,
        half_made: HalfMade,
        disks: Disks,
        host: HostRoom,
        packing: Packing,
        tasks: Tasks,
    ) -> None:
        self._project = project
        self._instances = instances
        self._store = store
        self._files = files
        self._host = host
        self._packing = packing
        # Images are requested one after the other, so that each is identified by its time.
        self._asking = asyncio.Lock()
        self._images = images
        self._owned = owned
        self._half_made = half_made
        self._disks = disks
        self._tasks = tasks
        # One image at a time for each member, for the quota and to limit the CPU time.
        self._under_way: dict[str, _UnderWay] = {}

    async def commit(self, member: Member, ins: str, tag: str, description: str) -> Committed:
        """Make an image of a pod, which is not changed; it replaces the member's with that tag.

        Raises BadRequest (the engine has no such long names), Conflict (the name is not the
        member's), Forbidden (quota). If anything fails, an older image stays unchanged, and the new
        one is removed.
        """
        pod = await self._owned.find(member, ins)
        name = f"{member.name}-{tag}"
        with self._alone(member, ins) as under_way:
            old = await self._replaced(member, name)
            if old is None:
                self._check_name(name)
            await self._check_room(member, old)
            room = await self._room(member, pod, old)
            # This may not include what the pod shares with its own image.
            room.check(await self._disks.used(pod.name, pod.instance.devices) or 0)
            async with self._template(pod, under_way) as template:
                if member.quota.image_size != UNLIMITED:
                    under_way.check_size = partial(self._check_size, member, old, template)
                tree: Tree = await self._unless_cancelled(self._files.look(template), under_way)
                under_way.large = tree.large
                room.check(tree.size_bytes, tree.large)
                holes: Holes = await self._unless_cancelled(
                    self._files.holes(template, tree), under_way
                )
                room.check(tree.size_bytes, tree.large, holes.dense_bytes)
                keys = {**owner_keys(member), MADE_AS: template, PROJECT: self._project}
                properties = {**keys, "description": description}
                image, kept = await self._publish(template, holes, properties, under_way)
                try:
                    await self._check_size(member, old, template, image.size)
                    under_way.go_on()
                    under_way.is_named = True
                    await self._name(name, image, old)
                except PodydError:
                    await self._images.remove(image)
                    raise
            if old is not None:
                await self._images.remove(old)
        log.info("%s made image %s of pod %s", member.name, name, pod.name)
        replaced = ", in place of the older one" if old else ""
        done = f"Pod {ins} is image {name} ({image.size} bytes){replaced}."
        return Committed(name, kept, done + (FILLED if kept == "filled" else ""))

    async def cancel(self, member: Member, ins: str) -> str:
        """Cancel an image, wait for the end, and return what was done.

        Raises NotFound (none is being made), Conflict (it was just completed).
        """
        await self._owned.find(member, ins)
        under_way = self._under_way.get(member.name)
        if under_way is None or under_way.ins != ins:
            raise NotFound(
                f"No image is being made of pod {ins!r}; if it was, it is over (see /host/images).",
                code="no_commit",
            )
        if under_way.is_named:
            raise Conflict(
                "The image is already made.",
                advice="/image/delete deletes it.",
                code="commit_done",
            )
        under_way.cancelled.set()
        await under_way.ended.wait()
        log.info("%s cancelled an image of pod %s", member.name, ins)
        if not under_way.is_gone:
            return (
                f"The image of pod {ins} is cancelled; {ENGINE} deletes it later, as it may be"
                " packing another image first."
            )
        return f"The image of pod {ins} is cancelled, and nothing of it is left."

    async def progress(self, member: Member, ins: str) -> Progress:
        """The progress of a pod's image. Raises NotFound."""
        await self._owned.find(member, ins)
        under_way = self._under_way.get(member.name)
        if under_way is None or under_way.ins != ins:
            return Progress(None, None, None)
        if not under_way.operation:
            return Progress("copying", None, None)
        doing: Literal["packing again", "packing"] = (
            "packing again" if under_way.is_again else "packing"
        )
        try:
            progress = await self._store.progress(under_way.operation)
        except EngineRefused:  # It has ended.
            return Progress(doing, None, None)
        return Progress(doing, progress.percent, progress.speed)

    async def sweep(self) -> None:
        """Delete images without an alias, of a podyd that was killed.

        Those of another project belong to another podyd, which may be about to name them.
        """
        for image in await self._images.all():
            is_ours = image.made_as and image.project in ("", self._project)
            if is_ours and not image.aliases and not self._half_made.is_under_way(image.made_as):
                log.warning("removing half-made image %s", image.fingerprint)
                await self._images.remove(image)

    @contextlib.contextmanager
    def _alone(self, member: Member, ins: str) -> Iterator[_UnderWay]:
        if member.name in self._under_way:
            raise Conflict(
                "An image is being made of a pod of yours already.",
                advice="Wait until it is made.",
                code="commit_under_way",
            )
        under_way = self._under_way[member.name] = _UnderWay(ins)
        try:
            yield under_way
        finally:
            del self._under_way[member.name]
            under_way.ended.set()

    async def _replaced(self, member: Member, name: str) -> Image | None:
        for image in await self._images.all():
            if name in image.aliases:
                if image.is_of(member):
                    return image
                raise Conflict(
                    f"The name {name!r} is taken by an image that is not yours.",
                    advice="Take another tag.",
                    code="name_taken",
                    image=name,
                )
        return None

    def _check_name(self, name: str) -> None:
        """Raises BadRequest; the engine itself only looks at it when the image is packed."""
        longest = self._store.longest_name
        if longest is not None and len(name) > longest:
            raise BadRequest(
                f"The image would be {name!r}, and {ENGINE}'s names have {longest} characters at"
                " most.",
                advice="Give a shorter tag.",
                code="malformed_parameter",
                parameter="tag",
            )

    async def _others(self, member: Member, old: Image | None) -> list[Image]:
        """The member's images without the one that is replaced."""
        gone = old.fingerprint if old else ""
        return [
            image
            for image in await self._images.all()
            if image.is_of(member) and image.fingerprint != gone
        ]

    async def _check_room(self, member: Member, old: Image | None) -> None:
        limit = member.quota.max_images
        used = len(await self._others(member, old))
        if limit != UNLIMITED and used >= limit:
            raise Forbidden(
                f"Your quota is {limit} images, and you have {used}.",
                advice="Delete one first, with /image/delete.",
                code="quota_exceeded",
                limit=limit,
                used=used,
            )

    async def _check_size(
        self, member: Member, old: Image | None, template: str, size: int
    ) -> None:
        """Raises Forbidden if an image of `size` bytes is too large; the engine may have just
        finished it, from `template`."""
        limit = member.quota.image_size
        others = await self._others(member, old)
        used = sum(image.size for image in others if image.made_as != template)
        if limit != UNLIMITED and used + size > limit:
            raise Forbidden(
                f"Your quota is {shown_size(limit)} of images; this one has {shown_size(size)}, and"
                f" the others have {shown_size(used)}.",
                advice=LESS,
                code="quota_exceeded",
                limit=limit,
                used=used,
            )

    async def _room(self, member: Member, pod: Pod, old: Image | None) -> Room:
        used = sum(image.size for image in await self._others(member, old))
        free = None
        with contextlib.suppress(EngineRefused):
            for pool in await self._disks.pools([pod.instance.devices]):
                # The engine returns 0 if it is not known.
                free = pool.total - pool.used if pool.total else None
        return Room(pod.ins, member.quota.image_size, used, free, await self._host.usable())

    @contextlib.asynccontextmanager
    async def _template(self, pod: Pod, under_way: _UnderWay) -> AsyncIterator[str]:
        """A copy of a pod without its identity and owner, which never runs."""
        name = f"{TEMPLATE}{secrets.token_hex(8)}"
        copy = NewInstance(
            name,
            CopyOf(pod.name),
            pod.instance.profiles,
            {MADE_AS: name, OWNER: ""},
            # Without a limit, the engine can write its own files also if the pod's disk is full.
            without_limit(pod.instance.devices),
        )
        self._half_made.begin(name)
        try:
            with engine_could_not("make the image", code="commit_failed"):
                await self._copy(copy, under_way)
                await forget_identity(self._files, name)
                yield name
        finally:
            timeout = END_TIMEOUT if under_way.is_packing else REMOVE_TIMEOUT
            removing = self._tasks.spawn(self._remove(name, under_way), f"removing {name}")
            await asyncio.wait({removing}, timeout=timeout)

    async def _copy(self, copy: NewInstance, under_way: _UnderWay) -> None:
        """Copy a pod. The engine cannot stop a copy, and fails if files are deleted by the running
        pod."""
        for left in reversed(range(COPY_TRIES)):
            try:
                await self._instances.create(copy, timeout=TIMEOUT)
                return
            except Slipped as error:
                if not left:
                    raise
                log.info("copying once more: %s", error)
            finally:
                under_way.go_on()

    async def _remove(self, template: str, under_way: _UnderWay) -> None:
        """Delete the copy, and an image that the engine has finished after podyd's timeout."""
        if under_way.is_packing:
            with contextlib.suppress(PodydError):
                await self._files.cut(template, under_way.large)
        await self._half_made.removal(template)
        if under_way.packing is not None:
            await asyncio.wait({under_way.packing})
        self._half_made.end(template)
        await self.sweep()
        under_way.is_gone = True

    async def _unless_cancelled(
        self, looking: Coroutine[Any, Any, Any], under_way: _UnderWay
    ) -> Any:
        """The result of `looking` at the copy, unless the image is cancelled."""
        task = self._tasks.spawn(looking, "looking at a copy")
        try:
            return await under_way.first(task)
        finally:
            task.cancel()

    async def _publish(
        self, template: str, holes: Holes, properties: Mapping[str, str], under_way: _UnderWay
    ) -> tuple[Image, Kept]:
        new = NewImage(template, properties)
        kept = await self._pack_holes(new, holes, under_way)
        for image in await self._images.all():
            if image.made_as == template:
                return image, kept
        raise PodydError(f"{ENGINE} has made the image and does not show it.", code="commit_failed")

    async def _pack_holes(self, new: NewImage, holes: Holes, under_way: _UnderWay) -> Kept:
        """Pack the copy, with the holes of its sparse files if possible; returns whether they are
        kept or filled."""
        has_holes = holes.zero_bytes >= HOLES_BYTES
        if has_holes and holes.data_bytes <= await self._host.usable_for_squashfs():
            try:
                await self._pack(
                    replace(new, keeps_holes=True), under_way, _written_twice(holes, under_way)
                )
                return "kept"
            except EngineRefused as error:
                if isinstance(error, Slipped):
                    raise
                # tar2sqfs is missing, or has failed; the engine's error has no reason.
                log.warning("files have no holes in an image without squashfs: %s", error.reason)
        await self._pack(new, under_way)
        return "filled" if has_holes else None

    async def _pack(
        self, new: NewImage, under_way: _UnderWay, uncertain: int | None = None
    ) -> None:
        """Pack the copy, once more after Slipped; the copy does not change meanwhile.

        `uncertain` is in bytes, as in Growth.
        """
        try:
            await self._pack_once(new, under_way, uncertain)
        except Slipped as error:
            if under_way.is_again:
                raise
            log.info("packing once more: %s", error)
            under_way.is_again = True
            await self._pack_once(new, under_way, uncertain)

    async def _pack_once(self, new: NewImage, under_way: _UnderWay, uncertain: int | None) -> None:
        growth = await self._unless_cancelled(self._ask(new, under_way), under_way)
        assert under_way.packing is not None
        guards = [self._host.watch(scratch=new.keeps_holes)]
        if under_way.check_size is not None:
            guards.append(_hold(growth, under_way.check_size, uncertain))
        try:
            await under_way.first(under_way.packing, *guards)
        except DiskFull as error:
            # The copy's disk has no limit, so the host's disk is full.
            raise DiskFull(
                error.reason,
                f"The host has no room left where {ENGINE} makes images ({error.reason}), and"
                " nothing of this one is left.",
                advice="Tell your admin.",
            ) from error

    async def _ask(self, new: NewImage, under_way: _UnderWay) -> Growth:
        """Wait until the engine has started to pack, or has failed."""
        async with self._asking:
            growth = await self._packing.begin()
            has_begun = asyncio.Event()

            def began(operation: str) -> None:
                under_way.packs(operation)
                has_begun.set()

            packing = self._store.pack(new, timeout=LATE_TIMEOUT, began=began)
            under_way.packing = self._tasks.spawn(packing, "packing an image")
            waiting = asyncio.ensure_future(has_begun.wait())
            try:
                await asyncio.wait(
                    {under_way.packing, waiting}, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                waiting.cancel()
            await growth.asked()
            return growth

    async def _name(self, name: str, image: Image, old: Image | None) -> None:
        """Give the new image its name; from then on it is complete."""
        if old is None:
            await self._store.name(name, image.fingerprint)
        else:
            await self._store.rename(name, image.fingerprint)


async def _hold(
    growth: Growth, check: Callable[[int], Awaitable[None]], uncertain: int | None
) -> None:
    """Raises Forbidden once an image is larger than allowed; never returns."""
    while True:
        # After an error of the engine it is read again.
        with contextlib.suppress(EngineRefused, Unavailable, TimedOut):
            await check(await growth.size(uncertain))
        await asyncio.sleep(WATCH_SECONDS)


def _written_twice(holes: Holes, under_way: _UnderWay) -> int:
    """How many bytes tar2sqfs may remove again: it writes a file before it detects a duplicate."""
    largest = max([LARGE_BYTES, *(file.size for file in under_way.large)])
    return min(largest, holes.data_bytes // 2)


@dataclass(frozen=True)
class Room:
    """Limits of the files of an image, in bytes; None is not known.

    The engine reports only how many bytes of files it has read, and the size of the image at the
    end. So `quota_bytes`, which limits the stored images, and `host_bytes`, which is free where the
    engine stores them, allow ten times as much in compressible files, and twice as much in others.
    `free_bytes`, which is free in the pods' pool, allows as much in files, as a pod from the image
    needs that.
    """

    ins: str
    quota_bytes: int
    used_bytes: int
    free_bytes: int | None
    host_bytes: int | None = None

    def check(self, size: int, large: Sequence[File] = (), dense: int = 0) -> None:
        """Raises Forbidden or Conflict, which names `large` files, if `size` is too large.

        `size` is in bytes, of which `dense` do not compress.
        """
        files = f"The files of pod {self.ins!r} have {size} bytes"
        files += f", of which some {dense} do not compress" if dense else ""
        # The size of compressible files that would make an image as large.
        counted = size - dense + dense * MOST_PACKED // DENSE_PACKED
        taken = "podyd expects an image to have at least a tenth of them"
        taken += ", or half of those that do not compress" if dense else ""
        left = max(0, self.quota_bytes - self.used_bytes)
        if self.quota_bytes != UNLIMITED and counted > left * MOST_PACKED:
            raise Forbidden(
                f"{files}, and your quota of {self.quota_bytes} bytes of images has {left} left;"
                f" {taken}.",
                advice=f"{LESS}{_largest(large)}",
                code="quota_exceeded",
                limit=self.quota_bytes,
                used=self.used_bytes,
                files=size,
            )
        if self.free_bytes is not None and size > self.free_bytes:
            raise Conflict(
                f"{files}, and the pods' storage has room for {self.free_bytes}: no pod could be"
                " made of the image.",
                advice=f"Delete files in the pod, or tell your admin.{_largest(large)}",
                code="disk_full",
                free=self.free_bytes,
                files=size,
            )
        if self.host_bytes is not None and counted >= self.host_bytes * MOST_PACKED:
            raise Conflict(
                f"{files}, and the host has {self.host_bytes} left for images; {taken}.",
                advice=f"Tell your admin.{_largest(large)}",
                code="disk_full",
                free=self.host_bytes,
                files=size,
            )


def _largest(large: Sequence[File]) -> str:
    """A sentence that names the largest files."""
    named = ", ".join(f"{file.text[:200]!r} ({file.size})" for file in large[:LARGEST_NAMED])
    return f" The largest files: {named}; holes count, as {ENGINE} reads them all." if named else ""
