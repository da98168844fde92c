"""What a migration will do, by what both engines have now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from podyd.admin.migration.limits import Project
from podyd.admin.migration.mark import Mark, mark_of
from podyd.admin.migration.translation import GUEST_API, Translation
from podyd.base.errors import SetupError
from podyd.base.quantities import UNITS
from podyd.engine.moving import MovedImage, Original
from podyd.engine.types import Profile
from podyd.model.pod import MADE_AS, PROJECT, TEMPLATE

# What one engine fetches from the other in a second, seen on a disk of an ordinary server; and how
# long it takes for a pod besides.
BYTES_PER_SECOND = 100 * 1000**2
SECONDS_PER_POD = 3
# Of what is left free on the new pool.
RESERVE = 0.05


@dataclass(frozen=True)
class Pod:
    """A pod of the old engine, and whether the new one has it whole, as `copied`, or in part."""

    original: Original
    mark: Mark | None
    copied: bool = False
    partial: bool = False

    @property
    def name(self) -> str:
        return self.original.name

    @property
    def runs(self) -> bool:
        """Whether it is to run in the end."""
        if self.mark is not None:
            return self.mark.ran
        return self.original.status in ("running", "frozen")

    @property
    def is_moved(self) -> bool:
        """Whether the new engine has it, and the old one's is known to be left behind."""
        return self.mark is not None and self.mark.stage != "here"


@dataclass(frozen=True)
class Room:
    """Bytes that are free for the new engine: in its pool, and on its own disk, where images are;
    `together` if that is where the pool's are, too."""

    pool_bytes: int
    disk_bytes: int
    together: bool

    @property
    def for_pods(self) -> int:
        return min(self.pool_bytes, self.disk_bytes) if self.together else self.pool_bytes


@dataclass(frozen=True)
class Stock:
    """What the pools of the old engine say of all pods: how much is used, 0 where they do not say,
    and whether what a pod `shares` with its image is left out of how large it is."""

    used_bytes: int = 0
    shares: bool = False


@dataclass(frozen=True)
class Plan:
    """What there is to do; `refusals` are sentences, each a reason not to begin."""

    pods: Sequence[Pod] = ()
    images: Sequence[MovedImage] = ()
    # Those of them that the new engine has, without their names.
    unnamed: frozenset[str] = frozenset()
    refusals: Sequence[str] = ()
    # None where the new engine has no pool yet.
    room: Room | None = None
    stock: Stock = Stock()
    # How large images are at least in a pod, by fingerprint: as they are packed.
    packed_bytes: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def to_copy(self) -> list[Pod]:
        return [pod for pod in self.pods if not pod.copied]

    @property
    def to_start(self) -> list[Pod]:
        return [
            pod for pod in self.pods if pod.runs and not (pod.mark and pod.mark.stage == "done")
        ]

    @property
    def pod_bytes(self) -> int:
        """On the new pool, about: a snapshot that shares nothing is as large as its pod. A copy
        shares nothing with its image."""
        each = [pod.original for pod in self.to_copy]
        own = sum(item.used_bytes * (1 + len(item.snapshots)) for item in each)
        if self.stock.used_bytes:
            own = min(own, self.stock.used_bytes)
        unseen = [item for item in each if self.stock.shares or not item.used_bytes]
        return own + sum(self.packed_bytes.get(item.base_image, 0) for item in unseen)

    @property
    def image_bytes(self) -> int:
        """On the new engine's own disk."""
        return sum(
            image.size_bytes for image in self.images if image.fingerprint not in self.unnamed
        )

    @property
    def is_bound(self) -> bool:
        """Whether it needs no more than that: a pool of kind dir says nothing of its pods."""
        return not self.stock.shares and all(pod.original.used_bytes for pod in self.to_copy)

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        needed = self.pod_bytes + self.image_bytes
        return needed / BYTES_PER_SECOND + SECONDS_PER_POD * len(self.to_copy)

    def lines(self, old: str, new: str) -> Iterator[str]:
        """What it says to the admin, the engines by their names."""
        for pod in self.pods:
            yield f"  {pod.name}: {self._what(pod, old, new)}"
        for image in self.images:
            done = "named" if image.fingerprint in self.unnamed else "copied"
            yield f"  image {', '.join(image.aliases) or image.fingerprint[:12]}: {done}"
        free = "" if self.room is None else f" of {_about(self.room.for_pods)} that are free"
        images = f" and {_about(self.image_bytes)} for images" if self.image_bytes else ""
        most = "at most" if self.is_bound else "more than"
        yield (
            f"{len(self.to_copy)} of {len(self.pods)} pods are to be copied, {len(self.to_start)}"
            f" to be started again; {new} needs {most} {_about(self.pod_bytes)}{free}"
            f"{images}, and it takes about {_duration(self.seconds)}. Pods are stopped one by one"
            " meanwhile."
        )
        yield (
            f"{old} keeps each pod, stopped and without an owner, until 'podyd migrate --finish'."
            " Pods get new addresses; host ports, leases, snapshots and limits stay."
        )
        yield from self.notes

    @staticmethod
    def _what(pod: Pod, old: str, new: str) -> str:
        if pod.copied:
            return f"is in {new}" + (
                "" if pod.mark and pod.mark.stage == "done" else ", not finished"
            )
        count = len(pod.original.snapshots)
        snapshots = f", {count} snapshot{'s' if count > 1 else ''}" if count else ""
        again = " again, as a copy of it was interrupted" if pod.partial else ""
        how = "stopped, copied and started" if pod.runs else "copied"
        size = f"{_about(pod.original.used_bytes)}" if pod.original.used_bytes else "size unknown"
        return f"{how}{again} ({size}{snapshots})"


def plan(
    old: Sequence[Original],
    new: Sequence[Original],
    images: Sequence[MovedImage],
    there: Sequence[MovedImage],
    *,
    project: Project,
    is_offered: Callable[[str], bool],
    names: tuple[str, str],
    room: Room | None,
    stock: Stock,
) -> Plan:
    """Compare the two engines' instances and images; `names` are the engines', and `is_offered` is
    whether members may have a pod of an image with this name."""
    copies = {item.name: item for item in new}
    pods, refusals = [], []
    for original in old:
        if _is_half_made(original):
            continue
        try:
            pod = _pod(original, copies.get(original.name), names)
        except SetupError as error:
            refusals.append(str(error))
        else:
            pods.append(pod)
            if not pod.copied:
                refusals += _refusals(original)
                refusals += _snapshot_refusals(original, project.name, names[1])
    wanted = [*_wanted(images, there, project.name, is_offered)]
    known = frozenset(image.fingerprint for image in there)
    made = Plan(
        pods,
        wanted,
        known.intersection(image.fingerprint for image in wanted),
        room=room,
        stock=stock,
        packed_bytes={image.fingerprint: image.size_bytes for image in images},
    )
    refusals += _lacking(made, names[1])
    if made.to_copy:
        refusals += project.refusals(_in_the_end(made, new, project.pool), names[1])
    notes = [
        f"The name {alias} is another image's in {names[1]}, and stays so."
        for alias in taken_names(images, there)
    ]
    return replace(made, refusals=refusals, notes=notes)


def _lacking(made: Plan, new: str) -> Iterator[str]:
    """Where there is too little room for it."""
    room, pods, images = made.room, made.pod_bytes, made.image_bytes
    if room is None:
        return
    if pods > room.for_pods * (1 - RESERVE):
        yield (
            f"{new}'s storage pool has {_about(room.for_pods)} free, and the copies need"
            f" {'up to' if made.is_bound else 'more than'} {_about(pods)}: make it larger, or"
            " delete pods and snapshots."
        )
    elif images + (pods if room.together else 0) > room.disk_bytes * (1 - RESERVE):
        yield (
            f"The disk of {new}'s images has {_about(room.disk_bytes)} free, and images"
            f"{' and copies' if room.together else ''} need"
            f" {_about(images + (pods if room.together else 0))}: make room there, or delete images"
            " that nobody needs."
        )


def _in_the_end(made: Plan, there: Sequence[Original], pool: str) -> Sequence[Original]:
    """The instances that the project will have; pods that come to it have this pool there."""
    moved = Translation(frozenset(), "", pool)
    coming = {pod.name: moved.original(pod.original) for pod in made.to_copy}
    return [*(item for item in there if item.name not in coming), *coming.values()]


def profile_notes(
    wanted: Iterable[Profile], there: Iterable[Profile], *, names: tuple[str, str], stay: bool
) -> Iterator[str]:
    """Which profiles the new engine has otherwise than the old one's, `wanted`, would be in it; and
    whether they `stay` so."""
    known = {profile.name: profile for profile in there}
    old, new = names
    for profile in wanted:
        other = known.get(profile.name)
        if other is None or (other.config, other.devices) == (profile.config, profile.devices):
            continue
        then = (
            f"stays so, as {new} has pods already: what {old}'s has besides, edit into it"
            if stay
            else f"becomes as {old} has it"
        )
        yield f"Profile {profile.name} is another one in {new}, and {then}."


def _is_half_made(original: Original) -> bool:
    """Whether podyd would delete it: an image's template, or a pod that was never finished."""
    is_pod = original.has_run or original.config.get(MADE_AS) != original.name
    return original.name.startswith(TEMPLATE) or not is_pod


def _pod(original: Original, copy: Original | None, names: tuple[str, str]) -> Pod:
    mark = mark_of(original.name, original.config)
    if copy is None:
        if mark is not None and mark.stage != "here":
            raise SetupError(
                f"{original.name} has been moved to {names[1]}, which has it no more.",
                advice="If it is not wanted, delete it in"
                f" {names[0]} too; else type 'podyd migrate --back'.",
            )
        return Pod(original, mark)
    if mark is None or not (copy.uuid == original.uuid or mark_of(copy.name, copy.config)):
        raise SetupError(
            f"{names[1]} has another instance of the name {original.name}.",
            advice="Rename or delete one of the two.",
        )
    partial = mark_of(copy.name, copy.config) is not None
    return Pod(original, mark, copied=not partial, partial=partial)


def _refusals(original: Original) -> Iterator[str]:
    name = original.name
    if not original.is_container:
        yield f"{name} is a virtual machine: move or delete it by hand."
    if original.status == "error":
        yield f"{name} is in an error state: look at it first ('lxc info {name}')."
    if original.is_ephemeral:
        yield f"{name} is ephemeral, and would be gone when it is stopped: delete it."
    if not original.uuid:
        yield f"{name} is being created: wait until it is there, or delete it."
    for device, settings in original.expanded_devices.items():
        if is_volume(settings):
            yield (
                f"{name} has the storage volume {settings.get('source')} as {device}, which podyd"
                " does not move: detach it, and move it by hand."
            )


def _snapshot_refusals(original: Original, project: str, new: str) -> Iterator[str]:
    """A snapshot comes as it is: nobody may change its settings."""
    for snapshot, config in original.snapshot_configs.items():
        for key in sorted(config.keys() & GUEST_API.keys()):
            yield (
                f"{original.name}'s snapshot {snapshot} has the key {key}, and {new} takes it in no"
                f" snapshot: delete the snapshot ('lxc delete {original.name}/{snapshot} --project"
                f" {project}'), or copy it to a pod of its own first."
            )


def is_volume(device: Mapping[str, str]) -> bool:
    """Whether a device is a storage volume of its own."""
    return device["type"] == "disk" and "pool" in device and device.get("path") != "/"


def _wanted(
    images: Sequence[MovedImage],
    there: Sequence[MovedImage],
    project: str,
    is_offered: Callable[[str], bool],
) -> Iterator[MovedImage]:
    """The images that members may use or have made, and that the new engine lacks, or does not
    name. Where the old engine's default project has images of several podyds, each takes its own.
    """
    known = {image.fingerprint for image in there}
    for image in images:
        maker = image.properties.get(PROJECT)
        is_ours = maker == project if maker else any(map(is_offered, image.aliases))
        if is_ours and (image.fingerprint not in known or missing_names(image, there)):
            yield image


def missing_names(image: MovedImage, there: Sequence[MovedImage]) -> list[str]:
    """The names of an image that nothing has in the new engine."""
    taken = {alias for other in there for alias in other.aliases}
    return [alias for alias in image.aliases if alias not in taken]


def taken_names(images: Sequence[MovedImage], there: Sequence[MovedImage]) -> list[str]:
    """The names that another image has in the new engine."""
    owners = {alias: other.fingerprint for other in there for alias in other.aliases}
    return sorted(
        alias
        for image in images
        for alias in image.aliases
        if owners.get(alias, image.fingerprint) != image.fingerprint
    )


def _about(size: int) -> str:
    gib = size / UNITS["GiB"]
    return f"{gib:.1f} GiB" if gib >= 1 else f"{max(1, round(gib * 1024))} MiB"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes <= 1:
        return "a minute"
    return f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"
