"""Images that members make from their pods.

A pod is not published itself, as LXD publishes no instance that runs, and as its ssh host keys and
machine-id must not be in an image: a copy of it is, which never runs and is deleted again. As
nothing can change that copy, its files are looked at once, before LXD packs them.
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

from podyd.base.errors import (
    Conflict,
    DiskFull,
    Forbidden,
    LxdRefused,
    NotFound,
    PodydError,
    Slipped,
    TimedOut,
    Unavailable,
    lxd_could_not,
)
from podyd.base.quantities import UNLIMITED
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
# Until LXD has noticed that what it packs is gone; behind somebody else's packing, it is later.
END_TIMEOUT = 20.0
# For an operation that goes on when podyd has given it up; LXD packs one image after the other.
LATE_TIMEOUT = 24 * 3600.0
# No image is taken for smaller than a tenth of the files that it is made of, nor than half of what
# does not compress by itself (it may be there more than once).
MOST_PACKED, DENSE_PACKED = 10, 2
LARGEST_NAMED = 3
# From so many zeros on.
HOLES_BYTES = 64 * 1024**2
LESS = "Have less on the pod's disk, or delete another image with /image/delete."
FILLED = " The holes of its sparse files are zeros in the image."
Kept = Literal["kept", "filled"] | None


class Cancelled(Conflict):
    """Its maker has cancelled an image."""

    default_code = "commit_cancelled"


@dataclass
class _UnderWay:
    """An image that is being made of a pod."""

    ins: str
    # LXD's operation that packs it, once it does, and who waits for its end.
    operation: str = ""
    packing: asyncio.Task[Any] | None = None
    # LXD has spoiled it once.
    is_again: bool = False
    # What takes LXD long to read.
    large: Sequence[File] = ()
    # Raises Forbidden if an image of so many bytes is more than its maker may have.
    check_size: Callable[[int], Awaitable[None]] | None = None
    # From then on it is there.
    is_named: bool = False
    # What it was made of has been deleted, with all else.
    is_gone: bool = False
    # What takes too long counts from here, also what is packed twice.
    began: float = field(default_factory=time.monotonic)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def packs(self, operation: str) -> None:
        self.operation = operation

    @property
    def is_packing(self) -> bool:
        return self.packing is not None and not self.packing.done()

    def go_on(self) -> None:
        """Raises Cancelled if that is so."""
        if self.cancelled.is_set():
            raise Cancelled("The image was cancelled.")

    async def first(self, work: asyncio.Future[Any], *guards: Coroutine[Any, Any, None]) -> Any:
        """The result of something, which goes on if it is cancelled or takes too long, or if one
        of the `guards` raises an error, which is raised then."""
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
                f"The image was not made within {TIMEOUT / 60:.0f} minutes, and is given up.",
                advice="Have less on the pod's disk, or try again when others make no images.",
                code="commit_timed_out",
            )
        return work.result()


class Commits:
    """Publishes pods; half-made images have no name, and are deleted."""

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
        # LXD is asked for one image after the other, so that each is known by when it has come.
        self._asking = asyncio.Lock()
        self._images = images
        self._owned = owned
        self._half_made = half_made
        self._disks = disks
        self._tasks = tasks
        # One image at a time for each member: that is the quota's, and the processors' due.
        self._under_way: dict[str, _UnderWay] = {}

    async def commit(self, member: Member, ins: str, tag: str, description: str) -> Committed:
        """Make an image of a pod, which goes on as it is; it replaces the member's of that tag.

        Raises Conflict (the name is somebody else's), Forbidden (quota). If anything fails, an
        older image stays as it was, and nothing of the new one is left.
        """
        pod = await self._owned.find(member, ins)
        name = f"{member.name}-{tag}"
        with self._alone(member, ins) as under_way:
            old = await self._replaced(member, name)
            await self._check_room(member, old)
            room = await self._room(member, pod, old)
            # Which may leave out what the pod shares with its own image.
            room.check(await self._disks.used(pod.name, pod.instance.devices) or 0)
            async with self._template(pod, under_way) as template:
                if member.quota.image_size != UNLIMITED:
                    under_way.check_size = partial(self._check_size, member, old, template)
                tree: Tree = await self._seen(self._files.look(template), under_way)
                under_way.large = tree.large
                room.check(tree.size_bytes, tree.large)
                found: Holes = await self._seen(self._files.holes(template, tree), under_way)
                room.check(tree.size_bytes, tree.large, found.dense_bytes)
                keys = {**owner_keys(member), MADE_AS: template, PROJECT: self._project}
                properties = {**keys, "description": description}
                image, kept = await self._publish(template, found, properties, under_way)
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
        said = f"Pod {ins} is image {name} ({image.size} bytes){replaced}."
        return Committed(name, kept, said + (FILLED if kept == "filled" else ""))

    async def cancel(self, member: Member, ins: str) -> str:
        """End the making of an image; returns what came of it, when that is over.

        Raises NotFound (none is being made), Conflict (it is just there).
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
                "It is too late: the image is there.",
                advice="/image/delete deletes it.",
                code="commit_done",
            )
        under_way.cancelled.set()
        await under_way.ended.wait()
        log.info("%s cancelled an image of pod %s", member.name, ins)
        if not under_way.is_gone:
            return (
                f"The image of pod {ins} is cancelled; it is deleted when LXD lets go of it (it may"
                " be packing somebody else's before)."
            )
        return f"The image of pod {ins} is cancelled, and nothing of it is left."

    async def progress(self, member: Member, ins: str) -> Progress:
        """How far the image of a pod is. Raises NotFound."""
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
            said = await self._store.progress(under_way.operation)
        except LxdRefused:  # It has ended.
            return Progress(doing, None, None)
        return Progress(doing, said.percent, said.speed)

    async def sweep(self) -> None:
        """Delete the images that a podyd which was killed has left without a name.

        Those of another project are another podyd's, which may be about to name them.
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
                advice="Wait until it is there.",
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

    async def _others(self, member: Member, old: Image | None) -> list[Image]:
        """The member's images that stay."""
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
        """Raises Forbidden if an image of so many bytes is too large; LXD may have just finished
        it, made of `template`."""
        limit = member.quota.image_size
        others = await self._others(member, old)
        used = sum(image.size for image in others if image.made_as != template)
        if limit != UNLIMITED and used + size > limit:
            raise Forbidden(
                f"Your quota is {limit} bytes of images; this one has {size}, and the others have"
                f" {used}.",
                advice=LESS,
                code="quota_exceeded",
                limit=limit,
                used=used,
            )

    async def _room(self, member: Member, pod: Pod, old: Image | None) -> Room:
        used = sum(image.size for image in await self._others(member, old))
        free = None
        with contextlib.suppress(LxdRefused):
            for pool in await self._disks.pools([pod.instance.devices]):
                # LXD says 0 where it cannot tell.
                free = pool.total - pool.used if pool.total else None
        return Room(pod.ins, member.quota.image_size, used, free, await self._host.left())

    @contextlib.asynccontextmanager
    async def _template(self, pod: Pod, under_way: _UnderWay) -> AsyncIterator[str]:
        """A copy of a pod without its identity, that is nobody's and never runs."""
        name = f"{TEMPLATE}{secrets.token_hex(8)}"
        copy = NewInstance(
            name,
            CopyOf(pod.name),
            pod.instance.profiles,
            {MADE_AS: name, OWNER: ""},
            # A full disk has no room for what LXD itself writes there.
            without_limit(pod.instance.devices),
        )
        self._half_made.begin(name)
        try:
            with lxd_could_not("make the image", code="commit_failed"):
                await self._copy(copy, under_way)
                await forget_identity(self._files, name)
                yield name
        finally:
            timeout = END_TIMEOUT if under_way.is_packing else REMOVE_TIMEOUT
            removing = self._tasks.spawn(self._remove(name, under_way), f"removing {name}")
            await asyncio.wait({removing}, timeout=timeout)

    async def _copy(self, copy: NewInstance, under_way: _UnderWay) -> None:
        """LXD copies; it cannot be told to stop, and stumbles where files go while the pod runs."""
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
        """Delete what was published from, and what LXD has finished although podyd gave up."""
        if under_way.is_packing:
            with contextlib.suppress(PodydError):
                await self._files.cut(template, under_way.large)
        await self._half_made.removal(template)
        if under_way.packing is not None:
            await asyncio.wait({under_way.packing})
        self._half_made.end(template)
        await self.sweep()
        under_way.is_gone = True

    async def _seen(self, looking: Coroutine[Any, Any, Any], under_way: _UnderWay) -> Any:
        """What somebody sees who looks at the copy, unless that is cancelled."""
        task = self._tasks.spawn(looking, "looking at a copy")
        try:
            return await under_way.first(task)
        finally:
            task.cancel()

    async def _publish(
        self, template: str, found: Holes, properties: Mapping[str, str], under_way: _UnderWay
    ) -> tuple[Image, Kept]:
        new = NewImage(template, properties)
        kept = await self._pack_holes(new, found, under_way)
        for image in await self._images.all():
            if image.made_as == template:
                return image, kept
        raise PodydError("LXD has made the image and does not show it.", code="commit_failed")

    async def _pack_holes(self, new: NewImage, found: Holes, under_way: _UnderWay) -> Kept:
        """Pack what has holes with them, if that can be; what has become of them."""
        has_holes = found.zero_bytes >= HOLES_BYTES
        if has_holes and found.data_bytes <= await self._host.for_squashfs():
            try:
                await self._pack(
                    replace(new, keeps_holes=True), under_way, _written_twice(found, under_way)
                )
                return "kept"
            except LxdRefused as error:
                if isinstance(error, Slipped):
                    raise
                # There is no tar2sqfs, or it has failed, of which LXD does not say why.
                log.warning("files have no holes in an image without squashfs: %s", error.reason)
        await self._pack(new, under_way)
        return "filled" if has_holes else None

    async def _pack(
        self, new: NewImage, under_way: _UnderWay, uncertain: int | None = None
    ) -> None:
        """Pack the copy, which stays as it is: what LXD spoils is packed once more.

        So many bytes of it are `uncertain`, as of Growth.
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
        growth = await self._seen(self._ask(new, under_way), under_way)
        assert under_way.packing is not None
        guards = [self._host.watch(scratch=new.keeps_holes)]
        if under_way.check_size is not None:
            guards.append(_hold(growth, under_way.check_size, uncertain))
        try:
            await under_way.first(under_way.packing, *guards)
        except DiskFull as error:
            # The copy has no limit, so it is not the pod's disk.
            raise DiskFull(
                error.reason,
                f"The host has no room left where LXD makes images ({error.reason}), and nothing of"
                " this one is left.",
                advice="Tell your admin.",
            ) from error

    async def _ask(self, new: NewImage, under_way: _UnderWay) -> Growth:
        """Have LXD begin to pack, or fail at once."""
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
        """Let the name mean the new image; from then on it is whole."""
        if old is None:
            await self._store.name(name, image.fingerprint)
        else:
            await self._store.rename(name, image.fingerprint)


async def _hold(
    growth: Growth, check: Callable[[int], Awaitable[None]], uncertain: int | None
) -> None:
    """Goes on until an image is larger than it may be: raises Forbidden then."""
    while True:
        # What LXD does not say now is looked at again.
        with contextlib.suppress(LxdRefused, Unavailable, TimedOut):
            await check(await growth.size(uncertain))
        await asyncio.sleep(WATCH_SECONDS)


def _written_twice(found: Holes, under_way: _UnderWay) -> int:
    """How much tar2sqfs may take back: it writes a file before it sees that it has the same."""
    largest = max([LARGE_BYTES, *(file.size for file in under_way.large)])
    return min(largest, found.data_bytes // 2)


@dataclass(frozen=True)
class Room:
    """For how many bytes of files an image of a pod has room.

    LXD packs them one by one, says only how many it has read, and knows how large the image is when
    it is there. So `quota_bytes`, which is of images as they are stored, and `host_bytes`, where
    LXD keeps them, allow for ten times as much in files, but for twice as much of what does not
    compress; and `free_bytes`, which is what the pods' pool has left, for as much: a pod that is
    made of the image needs it. None: nobody knows.
    """

    ins: str
    quota_bytes: int
    used_bytes: int
    free_bytes: int | None
    host_bytes: int | None = None

    def check(self, size: int, large: Sequence[File] = (), dense: int = 0) -> None:
        """Raises Forbidden or Conflict if files of this size are too much; `large` are named.

        So much of them is `dense`: it does not compress.
        """
        files = f"The files of pod {self.ins!r} have {size} bytes"
        files += f", of which some {dense} do not compress" if dense else ""
        # As much as files that do compress, of which a tenth is as large.
        counted = size - dense + dense * MOST_PACKED // DENSE_PACKED
        taken = "an image is not taken for smaller than a tenth of them"
        taken += ", or half of what does not compress" if dense else ""
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
                advice=f"Have less on the pod's disk, or tell your admin.{_largest(large)}",
                code="disk_full",
                free=self.free_bytes,
                files=size,
            )
        if self.host_bytes is not None and counted >= self.host_bytes * MOST_PACKED:
            raise Conflict(
                f"{files}, and the host has {self.host_bytes} to spare for images; {taken}.",
                advice=f"Tell your admin.{_largest(large)}",
                code="disk_full",
                free=self.host_bytes,
                files=size,
            )


def _largest(large: Sequence[File]) -> str:
    """Which files to look at first."""
    named = ", ".join(f"{file.text[:200]!r} ({file.size})" for file in large[:LARGEST_NAMED])
    return f" The largest files: {named}; holes count, as LXD reads them all." if named else ""
