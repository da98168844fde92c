"""What podyd asks of an engine, by subject: LXD's answers to it stand beside this file.

What an engine refuses is one of the kinds of `LxdRefused` in podyd/base/errors.py; that it cannot
be reached is `Unavailable`, and that it goes on for longer than it was given, `TimedOut`.
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
    File,
    Holes,
    Instance,
    LxdOperation,
    NewImage,
    NewInstance,
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

    What an engine is at with one is waited for a little, and then it is Busy. Under a bound name
    (see Instance), Gone is raised once another instance has the name.
    """

    @property
    def last_states(self) -> Mapping[str, State]:
        """As of the last look at the CPU times, by name."""

    async def all(self) -> tuple[Instance, ...]:
        """Every instance, as it is now."""

    async def state(self, name: str) -> State:
        """What an instance is at now, which takes some 15 ms if it runs. Raises Gone."""

    async def cpu_times(self) -> tuple[CpuTime, ...]:
        """Every instance with its CPU time, which takes as long for each that runs."""

    async def first_process(self, name: str) -> int:
        """The pid of an instance's first process, on the host; 0 or less where there is none."""

    async def console(self, name: str) -> str:
        """What an instance has written to its console. Raises LxdRefused if it has none."""

    async def why_not_started(self, name: str) -> str:
        """What an instance's last start failed for. Raises LxdRefused if nobody can tell."""

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Call `subscriber` whenever something has changed, or may have."""

    async def watch(self, connected: Callable[[], Awaitable[None]]) -> None:
        """Follow what others change, for good; `connected` is called whenever the engine is there
        (again)."""

    def close(self) -> None:
        """Let go of what is open; nothing is asked for any more."""

    async def create(self, new: NewInstance, *, timeout: float) -> None:
        """Make an instance, which is stopped then. Raises NameTaken, DiskFull, Slipped.

        One that is a copy has the configuration and devices of its source besides its own.
        """

    async def delete(self, name: str, *, timeout: float) -> None:
        """Delete an instance that is stopped. Raises Gone, Running, Busy."""

    async def set_status(
        self, name: str, action: Action, *, timeout: float, force: bool = False
    ) -> None:
        """Start, stop or unfreeze an instance within `timeout` seconds.

        Raises Gone, Busy, Running, NotRunning, DidNotShutDown, DiskFull, Slipped.
        """

    async def edit(
        self,
        name: str,
        *,
        config: Mapping[str, str | None],
        devices: Callable[[Devices], Devices],
        patience: float = UPDATE_SECONDS,
    ) -> None:
        """Set these keys of an instance (None takes one away), and make its own devices anew.

        What others change meanwhile is kept. In a running instance it takes effect at once. What
        the engine is at is waited for `patience` seconds at most. Raises Gone, Busy, Changed.
        """

    async def remove_key(self, name: str, key: str) -> None:
        """Take a key of an instance away, and change nothing else. Raises Gone, Busy."""

    async def reset(self, name: str, config: Mapping[str, str], devices: Devices) -> None:
        """Leave an instance this configuration and these own devices alone. Raises Gone."""

    async def has_room(self, name: str) -> bool:
        """Whether an instance's disk has room for what the engine writes there at a start, or for
        a snapshot. True where nobody knows."""

    def check_free(self, name: str) -> None:
        """Raises Busy while a snapshot of an instance is being restored."""

    async def begin_restore(self, name: str) -> None:
        """Keep an instance's settings until `end_restore` and `settle`, and others from it.

        Raises Busy if it is being restored already.
        """

    async def restore(self, name: str, snapshot: str, *, timeout: float) -> None:
        """Make a stopped instance's disk as it was at a snapshot.

        Its settings are those of then, too, until `settle`, and nobody is shown that. Raises
        Missing, Busy, Running, NotNewest, DiskFull.
        """

    def end_restore(self, name: str) -> None:
        """Let others change an instance again."""

    @property
    def unsettled(self) -> list[str]:
        """The instances that have not got their settings back after a restore, which is over."""

    async def settle(self, name: str) -> None:
        """Give an instance its settings of before the restore back, if they are still to come.

        Raises Busy while it is being restored, Unsettled if the engine does not take them.
        """


class Profiles(Protocol):
    """What instances have in common."""

    async def all(self) -> Mapping[str, Profile]:
        """The project's profiles by name."""

    async def of(self, instance: Instance) -> list[Profile]:
        """An instance's profiles, in the order in which they are applied."""


class SnapshotStore(Protocol):
    """Instances' disks as they were."""

    async def all(self, instance: str) -> list[Snapshot]:
        """An instance's snapshots, the oldest first. Raises Gone."""

    async def one(self, instance: str, name: str) -> Snapshot:
        """A snapshot of an instance. Raises Missing."""

    async def take(self, instance: str, name: str, *, timeout: float) -> None:
        """Keep an instance's disk. Raises NameTaken, DiskFull, Busy."""

    async def delete(self, instance: str, name: str, *, timeout: float) -> None:
        """Delete a snapshot. Raises Missing; DiskFull also where it is deleted all the same."""


class ImageStore(Protocol):
    """What instances are made of."""

    async def all(self) -> list[StoredImage]:
        """Every image, whoever's it is."""

    async def delete(self, fingerprint: str, *, timeout: float) -> None:
        """Delete an image. Raises Missing."""

    async def pack(
        self, new: NewImage, *, timeout: float, began: Callable[[str], None] = ...
    ) -> None:
        """Make an image of an instance that does not run; `began` is told what `progress` takes.

        It goes on if this is cancelled. Raises DiskFull, Slipped, Lacks (no holes can be kept).
        """

    async def progress(self, packing: str) -> PackProgress:
        """How far that is. Raises Missing where it has ended."""

    async def name(self, alias: str, fingerprint: str) -> None:
        """Give an image a name that no other one has. Raises NameTaken."""

    async def rename(self, alias: str, fingerprint: str) -> None:
        """Let a name that another image has mean this one. Raises Missing."""


class Pools(Protocol):
    """Where the disks of instances are."""

    async def driver(self, name: str) -> str:
        """A pool's kind, such as btrfs, zfs or dir. Raises Missing."""

    async def use(self, name: str) -> PoolUse:
        """How large a pool is and what of it is used. Raises Missing."""


class Operations(Protocol):
    """What the engine is at."""

    async def under_way(self) -> list[LxdOperation]:
        """What has not ended in the project, but for commands that somebody talks to."""


class Server(Protocol):
    """The engine itself, and the host that it is on."""

    @property
    def project(self) -> str:
        """Where podyd's instances are."""

    async def version(self) -> str | None:
        """The engine's own version; None where it does not say."""

    async def cards(self) -> tuple[PciCard, ...]:
        """The host's graphics cards, whoever's make; which takes some 28 ms."""

    async def allowed(self) -> Allowed:
        """What of the host the project's instances may have."""


class Files(Protocol):
    """Files of instances that are stopped: in one that runs, its root may be in the way."""

    async def kind(self, name: str, path: str) -> str:
        """What a path is: file (a pipe, too), directory or symlink. Raises Missing, or LxdRefused
        where a part of the path is no directory."""

    async def delete(self, name: str, path: str) -> None:
        """Delete a file, or a directory that has nothing in it. Raises Missing."""

    async def make_empty(self, name: str, path: str, mode: int) -> None:
        """Make a file of root's with nothing in it."""

    async def delete_all(self, name: str, directory: str, prefix: str) -> None:
        """Delete what is in a directory and begins so. Raises Conflict if that cannot be."""

    async def look(self, name: str) -> Tree:
        """All files. Raises Conflict (too many, or one that cannot be shown)."""

    async def holes(self, name: str, seen: Tree) -> Holes:
        """What of these files is holes, by samples of the largest ones."""

    async def cut(self, name: str, files: Sequence[File]) -> None:
        """Make files empty, so that who packs them fails instead of going on."""

    async def end_packing(self, name: str) -> None:
        """Let an image that is still being made of an instance fail soon; its files are lost."""


@dataclass(frozen=True)
class Engine:
    """All of it, of one engine."""

    instances: Instances
    profiles: Profiles
    snapshots: SnapshotStore
    images: ImageStore
    files: Files
    pools: Pools
    operations: Operations
    server: Server
