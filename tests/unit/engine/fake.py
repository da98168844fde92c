"""A fake engine in memory, with LXD's answers; both pass the tests of engine_cases.py.

Tests can inject errors and delays: `refuse` makes a call fail before or after its change, or with
the change later; `hold` makes it wait.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Literal

from podyd.base.errors import (
    Busy,
    Conflict,
    EngineRefused,
    Gone,
    Missing,
    NameTaken,
    NotRunning,
    PodydError,
    Running,
)
from podyd.engine.bound import bound, uuid_of
from podyd.engine.interface import UPDATE_SECONDS, Engine
from podyd.engine.types import (
    Action,
    Allowed,
    CpuTime,
    Devices,
    EngineOperation,
    File,
    FromImage,
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
    Status,
    StoredImage,
    Tree,
    profiles_of,
)

BORN = datetime(2026, 1, 1, tzinfo=timezone.utc)
IMAGE = StoredImage("f" * 64, ("small",), {"description": "small"}, 1024, BORN, "x86_64")
PROFILE = Profile("podyd-base", devices={"root": {"type": "disk", "path": "/", "pool": "default"}})
# When a call that fails makes its change: never, at once, or later.
When = Literal["before", "after", "later"]


@dataclass
class _Kept:
    """The files and settings of an instance or a snapshot."""

    config: dict[str, str]
    devices: dict[str, Mapping[str, str]]
    profiles: tuple[str, ...]
    files: dict[str, str]
    created: datetime


@dataclass
class _Instance(_Kept):
    name: str
    uuid: str
    status: Status = "stopped"
    started: datetime | None = None
    snapshots: dict[str, _Kept] = field(default_factory=dict)


@dataclass
class _Refusal:
    call: str
    of: str | None
    error: PodydError
    when: When
    times: int


class FakeEngine:
    """The engine's state, and the errors that it returns.

    `asked` has every call with its target, `done` those that have changed something, and `refused`
    those that have failed by `refuse`.
    """

    def __init__(self, *profiles: Profile, project: str = "podyd") -> None:
        self.project = project
        self.profiles = {item.name: item for item in profiles or (PROFILE,)}
        self.images = {IMAGE.fingerprint: IMAGE}
        self.pools = {"default": ("btrfs", PoolUse("default", 2**40, 2**30))}
        self.cards: tuple[PciCard, ...] = ()
        self.allowed = Allowed()
        self.operations: list[EngineOperation] = []
        self.stored: dict[str, _Instance] = {}
        self.states: dict[str, State] = {}
        self.full: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.done: list[tuple[str, str]] = []
        self.refused: list[tuple[str, str]] = []
        # Called after every change.
        self.checks: list[Callable[[], None]] = []
        self.subscribers: list[Callable[[], None]] = []
        self.running: dict[str, int] = {}
        # The largest number of concurrent calls of a kind.
        self.most: dict[str, int] = {}
        self.refusals: list[_Refusal] = []
        self._gates: dict[tuple[str, str | None], asyncio.Event] = {}
        self._late: list[Callable[[], None]] = []
        self._numbers = itertools.count(1)
        self.engine = Engine(
            instances=FakeInstances(self),
            profiles=_Profiles(self),
            snapshots=_Snapshots(self),
            images=_Catalogue(self),
            files=_Files(self),
            pools=_Pools(self),
            operations=_Operations(self),
            server=_Server(self),
        )

    # --- Errors and delays -----------------------------------------------------------------------

    def refuse(
        self,
        call: str,
        error: PodydError,
        *,
        of: str | None = None,
        when: When = "before",
        times: int = 1,
    ) -> None:
        """Make the next calls of this kind fail; `of` is their instance, None any."""
        self.refusals.append(_Refusal(call, of, error, when, times))

    def hold(self, call: str, of: str | None = None) -> asyncio.Event:
        """Make calls of this kind wait for the returned event."""
        self._gates[call, of] = gate = asyncio.Event()
        return gate

    def catch_up(self) -> None:
        """Make the changes that were postponed."""
        late, self._late = self._late, []
        for work in late:
            with suppress(PodydError):  # Its target may be gone.
                work()

    async def turn(self, call: str, about: str, work: Callable[[], None]) -> None:
        """Make a change, after a turn of the event loop; it may be refused."""
        with self._counted(call, about):
            await self.waited(call, about)
            refusal = self._next(call, about)
            if refusal is not None and refusal.when != "after":
                if refusal.when == "later":
                    self._late.append(lambda: self._do(call, about, work))
                raise refusal.error
            self._do(call, about, work)
            if refusal is not None:
                raise refusal.error

    async def look(self, call: str, about: str = "") -> None:
        """Record a read, which may be refused as well."""
        with self._counted(call, about):
            await self.waited(call, about)
            if refusal := self._next(call, about):
                raise refusal.error

    async def waited(self, call: str, about: str) -> None:
        await asyncio.sleep(0)
        for key in ((call, None), (call, about)):
            if gate := self._gates.get(key):
                await gate.wait()

    @contextmanager
    def _counted(self, call: str, about: str) -> Iterator[None]:
        self.asked.append((call, str(about)))
        self.running[call] = now = self.running.get(call, 0) + 1
        self.most[call] = max(now, self.most.get(call, 0))
        try:
            yield
        finally:
            self.running[call] -= 1

    def _do(self, call: str, about: str, work: Callable[[], None]) -> None:
        work()
        self.done.append((call, str(about)))
        for check in self.checks:
            check()
        for subscriber in self.subscribers:
            subscriber()

    def _next(self, call: str, about: str) -> _Refusal | None:
        for refusal in self.refusals:
            if refusal.call == call and refusal.of in (None, about) and refusal.times:
                refusal.times -= 1
                self.refused.append((call, str(about)))
                return refusal
        return None

    # --- State -----------------------------------------------------------------------------------

    def add(self, *instances: Instance) -> None:
        """Add instances, as if an admin had created them."""
        for item in instances:
            self.stored[item.name] = _Instance(
                config=dict(item.config),
                devices=dict(item.own_devices),
                profiles=item.profiles,
                files={},
                created=item.created,
                name=str(item.name),
                uuid=item.uuid,
                status=item.status,
                started=item.started,
            )

    def one(self, name: str) -> _Instance:
        """An instance. Raises Gone, also if the name is bound and another one has it now."""
        instance = self.stored.get(name)
        if instance is None or uuid_of(name) not in ("", instance.uuid):
            raise Gone("Instance not found")
        return instance

    def shown(self, item: _Instance) -> Instance:
        """An instance as an engine shows it."""
        profiles = [self.profiles[name] for name in item.profiles if name in self.profiles]
        config: dict[str, str] = {}
        devices: dict[str, Mapping[str, str]] = {}
        for profile in profiles:
            config |= profile.config
            devices |= profile.devices
        return Instance(
            name=bound(item.name, item.uuid),
            status=item.status,
            created=item.created,
            started=item.started,
            config=dict(item.config),
            expanded_config=config | item.config,
            own_devices=dict(item.devices),
            devices=devices | item.devices,
            profiles=item.profiles,
        )

    def instance(self, name: str) -> Instance:
        """An instance as an engine shows it, by name. Raises Gone."""
        return self.shown(self.one(name))

    def make(self, new: NewInstance) -> None:
        if new.name in self.stored:
            raise NameTaken(f'Instance "{new.name}" already exists')
        for name in new.profiles:
            if name not in self.profiles:
                raise Missing(f"Requested profile {name!r} doesn't exist")
        config, devices, files = dict(new.config), dict(new.devices), {"/etc": "directory"}
        if isinstance(new.source, FromImage):
            image = self.images.get(new.source.fingerprint)
            if image is None:
                raise EngineRefused("Image not provided for instance creation")
            config |= {f"image.{key}": value for key, value in image.properties.items()}
        else:
            source: _Kept = self.one(new.source.instance)
            if new.source.snapshot is not None:
                source = self._snapshot(new.source.instance, new.source.snapshot)
            config = {**_but_volatile(source.config), **config}
            devices, files = {**source.devices, **devices}, dict(source.files)
        uuid = f"uuid-{next(self._numbers)}"
        config["volatile.uuid"] = uuid
        self.stored[new.name] = _Instance(
            config, devices, new.profiles, files, datetime.now(timezone.utc), new.name, uuid
        )

    def _snapshot(self, instance: str, name: str) -> _Kept:
        try:
            return self.one(instance).snapshots[name]
        except KeyError:
            raise Missing("Snapshot not found") from None


def _but_volatile(config: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in config.items() if not key.startswith("volatile.")}


class FakeInstances:
    """See podyd.engine.interface.Instances."""

    def __init__(self, world: FakeEngine) -> None:
        self._world = world
        self._restoring: set[str] = set()
        self._kept: dict[str, _Kept] = {}

    @property
    def last_states(self) -> Mapping[str, State]:
        return self._world.states

    @property
    def unsettled(self) -> list[str]:
        return [name for name in self._kept if name not in self._restoring]

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        self._world.subscribers.append(subscriber)

    async def all(self) -> tuple[Instance, ...]:
        await self._world.look("all")
        return tuple(self._over(self._world.shown(item)) for item in self._world.stored.values())

    def _over(self, shown: Instance) -> Instance:
        kept = self._kept.get(shown.name)
        if kept is None:
            return shown
        return replace(shown, config=kept.config, own_devices=kept.devices, profiles=kept.profiles)

    async def watch(self, connected: Callable[[], Awaitable[None]]) -> None:
        await connected()
        await asyncio.Event().wait()

    def close(self) -> None: ...

    async def state(self, name: str) -> State:
        await self._world.look("state", name)
        item = self._world.one(name)
        is_up = item.status in ("running", "frozen")
        pid = 1000 + list(self._world.stored).index(item.name) if is_up else 0
        return self._world.states.get(item.name, State(pid))

    async def cpu_times(self) -> tuple[CpuTime, ...]:
        return tuple(
            CpuTime(item, 10**9 if item.status == "running" else None) for item in await self.all()
        )

    async def first_process(self, name: str) -> int:
        return (await self.state(name)).pid

    async def console(self, name: str) -> str:
        await self._world.look("console", name)
        self._world.one(name)
        return ""

    async def why_not_started(self, name: str) -> str:
        await self._world.look("why_not_started", name)
        self._world.one(name)
        raise Missing("open lxc.log: no such file or directory")

    async def create(
        self,
        new: NewInstance,
        *,
        timeout: float,
        began: Callable[[str], None] = lambda operation: None,
    ) -> None:
        began(f"creating-{new.name}")
        await self._world.turn("create", new.name, lambda: self._world.make(new))

    async def delete(self, name: str, *, timeout: float) -> None:
        def delete() -> None:
            if self._world.one(name).status != "stopped":
                raise Running("Instance is running")
            del self._world.stored[name]

        await self._world.turn("delete", name, delete)

    async def set_status(
        self, name: str, action: Action, *, timeout: float, force: bool = False
    ) -> None:
        def change() -> None:
            item = self._world.one(name)
            if action == "stop":
                if item.status == "stopped":
                    raise NotRunning("The instance is already stopped")
                item.status = "stopped"
                return
            if item.status == "running":
                raise Running("The instance is already running")
            item.status = "running"
            if action == "start":
                item.started = datetime.now(timezone.utc)

        self.check_free(name)
        if action != "stop":
            await self.settle(name)
        await self._world.turn(action, name, change)

    async def edit(
        self,
        name: str,
        *,
        config: NewKeys,
        devices: Callable[[Devices], Devices],
        patience: float = UPDATE_SECONDS,
    ) -> None:
        def change() -> None:
            item = self._kept.get(name) or self._world.one(name)
            keys = config(item.config) if callable(config) else config
            merged = {**item.config, **keys}
            item.config = {key: value for key, value in merged.items() if value is not None}
            item.devices = dict(devices(item.devices))

        self.check_free(name)
        await self._world.turn("edit", name, change)

    async def remove_key(self, name: str, key: str) -> None:
        def remove() -> None:
            self._world.one(name).config.pop(key, None)

        await self._world.turn("remove_key", name, remove)

    async def reset(self, name: str, config: Mapping[str, str], devices: Devices) -> None:
        def change() -> None:
            item = self._world.one(name)
            kept = {
                key: value
                for key, value in item.config.items()
                if key.startswith(("image.", "volatile."))
            }
            item.config, item.devices = {**kept, **config}, dict(devices)

        await self._world.turn("reset", name, change)

    async def has_room(self, name: str) -> bool:
        await self._world.look("has_room", name)
        return name not in self._world.full

    async def clean_up(self, name: str, *, has_ended: bool) -> None: ...

    def check_free(self, name: str) -> None:
        if name in self._restoring:
            raise Busy("a snapshot is being restored", operation="restore")

    async def begin_restore(self, name: str) -> None:
        self.check_free(name)
        item = self._world.one(name)
        self._restoring.add(name)
        self._kept[str(name)] = replace_kept(item)

    async def restore(self, name: str, snapshot: str, *, timeout: float) -> None:
        def change() -> None:
            item = self._world.one(name)
            if item.status != "stopped":
                raise Running("Instance is running")
            try:
                then = item.snapshots[snapshot]
            except KeyError:
                raise Missing("Snapshot not found") from None
            item.config = {**then.config, "volatile.uuid": item.uuid}
            item.devices, item.files = dict(then.devices), dict(then.files)

        await self._world.turn("restore", name, change)

    def end_restore(self, name: str) -> None:
        self._restoring.discard(name)

    async def settle(self, name: str) -> None:
        if name not in self._kept:
            return

        def change() -> None:
            kept = self._kept.pop(name)
            with suppress(Gone):
                item = self._world.one(name)
                item.config, item.devices = kept.config, kept.devices

        await self._world.turn("settle", name, change)


def replace_kept(item: _Kept) -> _Kept:
    """A copy of the current state."""
    return _Kept(
        dict(item.config),
        dict(item.devices),
        item.profiles,
        dict(item.files),
        datetime.now(timezone.utc),
    )


class _Part:
    def __init__(self, world: FakeEngine) -> None:
        self._world = world


class _Profiles(_Part):
    async def all(self) -> Mapping[str, Profile]:
        await self._world.look("profiles")
        return dict(self._world.profiles)

    async def of(self, instance: Instance) -> list[Profile]:
        return profiles_of(instance.profiles, await self.all())


class _Snapshots(_Part):
    async def all(self, instance: str) -> list[Snapshot]:
        await self._world.look("snapshots", instance)
        snapshots = self._world.one(instance).snapshots
        return [Snapshot(name, kept.created, None) for name, kept in snapshots.items()]

    async def one(self, instance: str, name: str) -> Snapshot:
        for item in await self.all(instance):
            if item.name == name:
                return item
        raise Missing("Snapshot not found")

    async def take(self, instance: str, name: str, *, timeout: float) -> None:
        def take() -> None:
            item = self._world.one(instance)
            if name in item.snapshots:
                raise NameTaken(f'Snapshot "{name}" already in use')
            item.snapshots[name] = replace_kept(item)

        await self._world.turn("take", instance, take)

    async def delete(self, instance: str, name: str, *, timeout: float) -> None:
        def delete() -> None:
            if self._world.one(instance).snapshots.pop(name, None) is None:
                raise Missing("Snapshot not found")

        await self._world.turn("delete_snapshot", instance, delete)


class _Catalogue(_Part):
    copy_command = "lxc image copy SERVER:IMAGE local: --alias NAME"
    longest_name = None

    async def all(self) -> list[StoredImage]:
        await self._world.look("images")
        return list(self._world.images.values())

    async def delete(self, fingerprint: str, *, timeout: float) -> None:
        def delete() -> None:
            if self._world.images.pop(fingerprint, None) is None:
                raise Missing("Image not found")

        await self._world.turn("delete_image", fingerprint, delete)

    async def pack(
        self, new: NewImage, *, timeout: float, began: Callable[[str], None] = lambda packing: None
    ) -> None:
        def pack() -> None:
            self._world.one(new.instance)
            fingerprint = f"{len(self._world.images):064x}"
            self._world.images[fingerprint] = StoredImage(
                fingerprint, (), new.properties, 512, datetime.now(timezone.utc), "x86_64"
            )

        began(f"packing-{new.instance}")
        await self._world.turn("pack", new.instance, pack)

    async def progress(self, packing: str) -> PackProgress:
        await self._world.look("progress", packing)
        if not self._world.running.get("pack"):
            raise Missing("Operation not found")
        return PackProgress(50, 2**20)

    async def name(self, alias: str, fingerprint: str) -> None:
        def name() -> None:
            if any(alias in image.aliases for image in self._world.images.values()):
                raise NameTaken(f'Alias "{alias}" already exists')
            self._alias(alias, fingerprint)

        await self._world.turn("name", alias, name)

    async def rename(self, alias: str, fingerprint: str) -> None:
        def rename() -> None:
            if not any(alias in image.aliases for image in self._world.images.values()):
                raise Missing("Image alias not found")
            self._alias(alias, fingerprint)

        await self._world.turn("name", alias, rename)

    def _alias(self, alias: str, fingerprint: str) -> None:
        if fingerprint not in self._world.images:
            raise Missing("Image not found")
        for key, image in self._world.images.items():
            names = (set(image.aliases) - {alias}) | ({alias} if key == fingerprint else set())
            self._world.images[key] = replace(image, aliases=tuple(sorted(names)))


class _Files(_Part):
    async def kind(self, name: str, path: str) -> str:
        await self._world.look("kind", name)
        try:
            kind = self._world.one(name).files[_plain(path)]
        except KeyError:
            raise Missing(f"LXD does not show {path} (404)") from None
        return "file" if kind == "pipe" else kind

    async def is_regular(self, name: str, path: str) -> bool:
        await self._world.look("is_regular", name)
        return self._world.one(name).files.get(_plain(path)) == "file"

    async def delete(self, name: str, path: str) -> None:
        def delete() -> None:
            files = self._world.one(name).files
            if _plain(path) not in files:
                raise Missing("file does not exist")
            if any(other.startswith(f"{_plain(path)}/") for other in files):
                raise EngineRefused("sftp: directory not empty")
            del files[_plain(path)]

        await self._world.turn("delete_file", name, delete)

    async def make_empty(self, name: str, path: str, mode: int) -> None:
        def make() -> None:
            self._world.one(name).files[_plain(path)] = "file"

        await self._world.turn("make_empty", name, make)

    async def delete_all(self, name: str, directory: str, prefix: str) -> None:
        def delete() -> None:
            files = self._world.one(name).files
            start = f"{_plain(directory)}/{prefix}"
            for path in [path for path in files if path.startswith(start)]:
                if files[path] == "directory":
                    raise Conflict(f"LXD cannot remove {path}.")
                del files[path]

        await self._world.turn("delete_all", name, delete)

    async def look(self, name: str) -> Tree:
        await self._world.look("look", name)
        self._world.one(name)
        return Tree(1024, ())

    async def holes(self, name: str, seen: Tree) -> Holes:
        await self._world.look("holes", name)
        return Holes(0, seen.size_bytes, 0)

    async def cut(self, name: str, files: Sequence[File]) -> None:
        await self._world.look("cut", name)

    async def end_packing(self, name: str) -> None:
        await self._world.look("end_packing", name)


def _plain(path: str) -> str:
    return path.removesuffix("/.")


class _Pools(_Part):
    async def driver(self, name: str) -> str:
        return self._one(name)[0]

    async def use(self, name: str) -> PoolUse:
        return self._one(name)[1]

    def _one(self, name: str) -> tuple[str, PoolUse]:
        try:
            return self._world.pools[name]
        except KeyError:
            raise Missing("Storage pool not found") from None


class _Operations(_Part):
    async def under_way(self) -> list[EngineOperation]:
        await self._world.look("under_way")
        return list(self._world.operations)


class _Server(_Part):
    @property
    def project(self) -> str:
        return self._world.project

    @property
    def kind(self) -> str:
        return "lxd"

    async def version(self) -> str | None:
        return "5.0.2"

    async def cards(self) -> tuple[PciCard, ...]:
        await self._world.look("cards")
        return self._world.cards

    async def allowed(self) -> Allowed:
        return self._world.allowed


async def until(condition: Callable[[], bool], turns: int = 10_000) -> None:
    """Wait for a condition for at most `turns` turns of the event loop."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    assert condition()
