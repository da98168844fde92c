"""The interface of an engine, by subject; the modules beside this file implement it.

An engine raises the kinds of `EngineRefused` in podyd/base/errors.py for what it refuses,
`Unavailable` if it cannot be reached, and `TimedOut` if something takes longer than its timeout.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from podyd.engine.types import (
    Action,
    Allowed,
    CpuTime,
    Devices,
    EngineOperation,
    File,
    Holes,
    Instance,
    NewImage,
    NewInstance,
    NewKeys,
    PackProgress,
    PciCard,
    PoolUse,
    Profile,
    Snapshot,
    State,
    StoredImage,
    Tree,
)

# How long an engine may change an instance's settings, in seconds.
UPDATE_SECONDS = 35.0


class Instances(Protocol):
    """The project's instances.

    While an engine is busy with an instance, a change waits a little, and then raises Busy. With a
    bound name (see Instance), Gone is raised if another instance has the name now.
    """

    @property
    def last_states(self) -> Mapping[str, State]:
        """As of the last look at the CPU times, by name."""

    async def all(self) -> tuple[Instance, ...]:
        """Every instance, as it is now; in a cluster, within a second, as last known where its
        member does not answer."""

    async def state(self, name: str) -> State:
        """The state of an instance, which takes some 15 ms if it runs. Raises Gone."""

    async def cpu_times(self) -> tuple[CpuTime, ...]:
        """Every instance with its CPU time, which takes some 15 ms for each that runs."""

    async def first_process(self, name: str) -> int:
        """The pid of an instance's init on the host; 0 or less if there is none."""

    async def console(self, name: str) -> str:
        """The text of an instance's console. Raises EngineRefused if it has none."""

    async def why_not_started(self, name: str) -> str:
        """Why an instance's last start failed. Raises EngineRefused if that is not known."""

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Call `subscriber` whenever something has changed, or may have."""

    async def watch(self, connected: Callable[[], Awaitable[None]]) -> None:
        """Follow the engine's events until cancelled; `connected` is called after each
        connection."""

    def close(self) -> None:
        """Release all resources; no other method may be called after this."""

    async def create(
        self, new: NewInstance, *, timeout: float, began: Callable[[str], None] = ...
    ) -> None:
        """Create an instance, which is stopped at first. Raises NameTaken, DiskFull, Slipped.

        A copy also has the configuration and devices of its source. `began` is called with the id
        for `ImageStore.progress`.
        """

    async def delete(self, name: str, *, timeout: float) -> None:
        """Delete an instance that is stopped. Raises Gone, Running, Busy."""

    async def set_status(
        self, name: str, action: Action, *, timeout: float, force: bool = False
    ) -> None:
        """Start, stop or unfreeze an instance within `timeout` seconds.

        Raises Gone, Busy, Running, NotRunning, DidNotShutDown, DiskFull, NotLimited, Slipped.
        """

    async def clean_up(self, name: str, *, has_ended: bool) -> None:
        """Wait, some seconds at most, until the engine has cleaned up behind an instance that ended
        while it was to be stopped; `has_ended` is whether the engine has said that it has.

        For one that ran until then: of others it may wait for nothing.
        """

    async def edit(
        self,
        name: str,
        *,
        config: NewKeys,
        devices: Callable[[Devices], Devices],
        patience: float = UPDATE_SECONDS,
    ) -> None:
        """Set these keys of an instance (None removes one), which may depend on those that it has
        at that moment, and replace its own devices.

        Concurrent changes by others are kept. In a running instance it takes effect at once. While
        the engine is busy with the instance, it waits `patience` seconds at most. Raises Gone,
        Busy, Changed, NotLimited.
        """

    async def remove_key(self, name: str, key: str) -> None:
        """Remove a key of an instance, and change nothing else. Raises Gone, Busy."""

    async def reset(self, name: str, config: Mapping[str, str], devices: Devices) -> None:
        """Replace an instance's whole configuration and its own devices. Raises Gone."""

    async def has_room(self, name: str) -> bool:
        """Whether an instance's disk has room for what the engine writes there at a start, or for
        a snapshot. True if that is not known."""

    def check_free(self, name: str) -> None:
        """Raises Busy while a snapshot of an instance is being restored."""

    async def begin_restore(self, name: str) -> None:
        """Store an instance's settings until `settle`, and lock it until `end_restore`.

        Raises Busy if it is being restored already.
        """

    async def restore(self, name: str, snapshot: str, *, timeout: float) -> None:
        """Restore a stopped instance's disk from a snapshot.

        Its settings are restored too, until `settle`; meanwhile the stored ones are shown. Raises
        Missing, Busy, Running, NotNewest, NotRestorable, HalfRestored, DiskFull.
        """

    def end_restore(self, name: str) -> None:
        """Unlock an instance after a restore."""

    @property
    def unsettled(self) -> list[str]:
        """The instances whose settings are not written back yet after a restore that has ended."""

    async def settle(self, name: str) -> None:
        """Write an instance's settings of before the restore back, if that is not done yet.

        Raises Busy while it is being restored, Unsettled if the engine refuses them.
        """


class Profiles(Protocol):
    """The profiles of instances."""

    async def all(self) -> Mapping[str, Profile]:
        """The project's profiles by name."""

    async def of(self, instance: Instance) -> list[Profile]:
        """An instance's profiles, in the order in which they are applied."""


class SnapshotStore(Protocol):
    """Snapshots of instances' disks."""

    async def all(self, instance: str) -> list[Snapshot]:
        """An instance's snapshots, the oldest first. Raises Gone."""

    async def one(self, instance: str, name: str) -> Snapshot:
        """A snapshot of an instance. Raises Missing."""

    async def take(self, instance: str, name: str, *, timeout: float) -> None:
        """Take a snapshot of an instance. Raises NameTaken, DiskFull, Busy."""

    async def delete(self, instance: str, name: str, *, timeout: float) -> None:
        """Delete a snapshot. Raises Missing; DiskFull, also if it was deleted all the same."""


class ImageStore(Protocol):
    """The images that instances are created from."""

    @property
    def copy_command(self) -> str:
        """What an admin types to bring an image of another server."""

    @property
    def longest_name(self) -> int | None:
        """The most characters of an image's name; None if there is no limit."""

    async def all(self) -> list[StoredImage]:
        """Every image, of all owners."""

    async def delete(self, fingerprint: str, *, timeout: float) -> None:
        """Delete an image. Raises Missing."""

    async def pack(
        self, new: NewImage, *, timeout: float, began: Callable[[str], None] = ...
    ) -> None:
        """Make an image of a stopped instance; `began` is called with the id for `progress`.

        It goes on if this is cancelled. Raises DiskFull, Slipped, Lacks (no holes can be kept).
        """

    async def progress(self, packing: str) -> PackProgress:
        """The progress of an image that is being packed, or unpacked for an instance. Raises
        Missing if that has ended."""

    async def name(self, alias: str, fingerprint: str) -> None:
        """Give an image a name that no other one has. Raises NameTaken."""

    async def rename(self, alias: str, fingerprint: str) -> None:
        """Move a name from another image to this one. Raises Missing."""


class Pools(Protocol):
    """The storage pools of instances' disks."""

    async def driver(self, name: str) -> str:
        """A pool's kind, such as btrfs, zfs or dir. Raises Missing."""

    async def use(self, name: str) -> PoolUse:
        """The size of a pool and how much of it is used. Raises Missing."""


class Operations(Protocol):
    """The operations of the engine."""

    async def under_way(self) -> list[EngineOperation]:
        """The project's operations that have not ended, without interactive commands."""


class Server(Protocol):
    """The engine itself, and the host that it runs on."""

    @property
    def project(self) -> str:
        """The name of podyd's project."""

    @property
    def kind(self) -> str:
        """Which engine it is, by its word in podyd.yaml."""

    async def version(self) -> str | None:
        """The engine's version; None if it does not report one."""

    async def cards(self) -> tuple[PciCard, ...]:
        """The host's graphics cards of all vendors; takes some 28 ms."""

    async def allowed(self) -> Allowed:
        """What the project's instances may use of the host."""


class Files(Protocol):
    """Files of stopped instances: in a running one, its root could interfere."""

    async def kind(self, name: str, path: str) -> str:
        """What a path is: file (also a pipe), directory or symlink. Raises Missing, or
        EngineRefused if a part of the path is no directory."""

    async def is_regular(self, name: str, path: str) -> bool:
        """Whether a path is a regular file, and no pipe, which `kind` calls a file, too."""

    async def delete(self, name: str, path: str) -> None:
        """Delete a file, or an empty directory. Raises Missing."""

    async def make_empty(self, name: str, path: str, mode: int) -> None:
        """Create an empty file that belongs to root."""

    async def delete_all(self, name: str, directory: str, prefix: str) -> None:
        """Delete the entries of a directory with this prefix. Raises Conflict if that fails."""

    async def look(self, name: str) -> Tree:
        """All files. Raises Conflict (too many, or one that cannot be shown)."""

    async def holes(self, name: str, seen: Tree) -> Holes:
        """Estimate the holes in these files, from samples of the largest ones."""

    async def cut(self, name: str, files: Sequence[File]) -> None:
        """Truncate files, so that packing them fails instead of going on."""

    async def end_packing(self, name: str) -> None:
        """Make an image fail soon that is still being packed of an instance; its files are lost."""


@dataclass(frozen=True)
class Engine:
    """All interfaces of one engine."""

    instances: Instances
    profiles: Profiles
    snapshots: SnapshotStore
    images: ImageStore
    files: Files
    pools: Pools
    operations: Operations
    server: Server
