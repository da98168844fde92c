"""What an engine answers, the same of LXD (tests/integration/test_engine.py) and of the fake."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from podyd.base.errors import Busy, EngineRefused, Gone, Missing, NameTaken, NotRunning, Running
from podyd.engine.interface import Engine
from podyd.engine.types import CopyOf, FromImage, Instance, Keys, NewImage, NewInstance, named

SECONDS = 60.0
MARK = "user.podyd.contract"


@dataclass
class World:
    """An engine with one small image, one profile with a root disk in `pool`, and no instances."""

    engine: Engine
    image: str
    profile: str
    pool: str
    # What the names of instances begin with.
    prefix: str
    made: list[str] = field(default_factory=list)

    def new(self, **config: str) -> NewInstance:
        """An instance that no other case has."""
        self.made.append(f"{self.prefix}-{len(self.made)}")
        return NewInstance(self.made[-1], FromImage(self.image), (self.profile,), config, {})

    async def create(self, **config: str) -> str:
        """The name of such an instance, which is there."""
        new = self.new(**config)
        await self.engine.instances.create(new, timeout=SECONDS)
        return new.name

    async def copy(self, of: str, snapshot: str | None = None, **config: str) -> str:
        """The name of a copy, which is there."""
        self.made.append(f"{self.prefix}-{len(self.made)}")
        new = NewInstance(self.made[-1], CopyOf(of, snapshot), (self.profile,), config, {})
        await self.engine.instances.create(new, timeout=SECONDS)
        return new.name

    async def one(self, name: str) -> Instance:
        """As it is now."""
        instance = named(await self.engine.instances.all(), name)
        assert instance is not None
        return instance

    async def start(self, name: str) -> None:
        await self.engine.instances.set_status(name, "start", timeout=SECONDS)

    async def stop(self, name: str) -> None:
        await self.engine.instances.set_status(name, "stop", timeout=SECONDS, force=True)

    async def delete(self, name: str) -> None:
        await self.engine.instances.delete(name, timeout=SECONDS)


Case = Callable[[World], Coroutine[Any, Any, None]]
CASES: list[Case] = []


def case(work: Case) -> Case:
    CASES.append(work)
    return work


async def edit(world: World, name: str, **config: str | None) -> None:
    """Set keys of an instance, by their last words."""
    keys = {f"user.{key}": value for key, value in config.items()}
    await world.engine.instances.edit(name, config=keys, devices=dict)


@case
async def what_is_made_of_an_image_is_stopped_and_has_its_profile(world: World) -> None:
    name = await world.create(**{MARK: "1"})
    made = await world.one(name)
    assert (made.status, made.started, made.profiles) == ("stopped", None, (world.profile,))
    assert made.config[MARK] == "1"
    assert any(key.startswith("image.") for key in made.config)
    assert made.uuid
    assert made.own_devices == {}
    assert made.devices["root"]["pool"] == world.pool
    (profile,) = await world.engine.profiles.of(made)
    assert profile == (await world.engine.profiles.all())[world.profile]
    state = await world.engine.instances.state(name)
    assert (state.pid <= 0, state.addresses) == (True, ())


@case
async def what_cannot_be_made_is_not_there(world: World) -> None:
    create = world.engine.instances.create
    new = world.new()
    for source, profiles, refusal in (
        # LXD takes it for none at all.
        (FromImage("0" * 64), new.profiles, EngineRefused),
        (new.source, ("no-such-profile",), Missing),
        (CopyOf(f"{world.prefix}-none"), new.profiles, Missing),
    ):
        with pytest.raises(refusal):
            await create(NewInstance(new.name, source, profiles, {}, {}), timeout=SECONDS)
    assert named(await world.engine.instances.all(), new.name) is None
    await create(new, timeout=SECONDS)
    with pytest.raises(NameTaken):
        await create(new, timeout=SECONDS)


@case
async def it_runs_until_it_is_stopped(world: World) -> None:
    name = await world.create()
    with pytest.raises(NotRunning):
        await world.stop(name)
    await world.start(name)
    run = await world.one(name)
    assert run.status == "running"
    assert run.started is not None
    assert await world.engine.instances.first_process(name) > 0
    for work in (world.start(name), world.delete(name)):
        with pytest.raises(Running):
            await work
    times = await world.engine.instances.cpu_times()
    assert {item.instance.name: item.nanoseconds is None for item in times}[name] is False
    await world.stop(name)
    assert (await world.one(name)).status == "stopped"
    assert (await world.one(name)).started == run.started
    await world.delete(name)
    assert named(await world.engine.instances.all(), name) is None


@case
async def keys_and_devices_are_changed_and_the_rest_stays(world: World) -> None:
    name = await world.create(**{MARK: "1", "user.a": "1", "user.b": "1"})
    heard: list[str] = []
    world.engine.instances.subscribe(lambda: heard.append("changed"))
    own = {"none": {"type": "none"}}
    await world.engine.instances.edit(
        name, config={"user.a": None, "user.c": "2"}, devices=lambda devices: {**devices, **own}
    )
    assert heard
    changed = await world.one(name)
    keys = {key: value for key, value in changed.config.items() if key.startswith("user.")}
    assert keys == {MARK: "1", "user.b": "1", "user.c": "2"}
    assert changed.own_devices == own
    assert set(changed.devices) >= {"root", "none"}
    await world.engine.instances.remove_key(name, "user.b")
    await world.engine.instances.remove_key(name, "user.b")
    assert "user.b" not in (await world.one(name)).config
    await world.engine.instances.reset(name, {"user.d": "3"}, {})
    reset = await world.one(name)
    assert [key for key in reset.config if key.startswith("user.")] == ["user.d"]
    assert (reset.own_devices, reset.uuid) == ({}, changed.uuid)


@case
async def a_copy_has_the_keys_of_its_source_and_an_identity_of_its_own(world: World) -> None:
    name = await world.create(**{MARK: "1"})
    await world.engine.snapshots.take(name, "s", timeout=SECONDS)
    for snapshot in (None, "s"):
        copy = await world.one(await world.copy(name, snapshot, **{"user.own": "2"}))
        assert (copy.config[MARK], copy.config["user.own"]) == ("1", "2")
        assert copy.uuid not in ("", (await world.one(name)).uuid)
        assert await world.engine.snapshots.all(copy.name) == []
    with pytest.raises(Missing):
        await world.copy(name, "none")


@case
async def snapshots_are_kept_by_name(world: World) -> None:
    name, snapshots = await world.create(), world.engine.snapshots
    for snapshot in ("b", "a"):
        await snapshots.take(name, snapshot, timeout=SECONDS)
    assert [item.name for item in await snapshots.all(name)] == ["b", "a"]
    assert (await snapshots.one(name, "a")).name == "a"
    with pytest.raises(NameTaken):
        await snapshots.take(name, "a", timeout=SECONDS)
    await snapshots.delete(name, "a", timeout=SECONDS)
    with pytest.raises(Missing):
        await snapshots.delete(name, "a", timeout=SECONDS)
    with pytest.raises(Missing):
        await snapshots.one(name, "a")


@case
async def a_change_may_depend_on_the_keys_of_that_moment(world: World) -> None:
    name = await world.create(**{"user.a": "1"})

    def keys(config: Mapping[str, str]) -> Keys:
        return {"user.a": None, "user.b": config["user.a"]} if "user.a" in config else {}

    for _ in range(2):
        await world.engine.instances.edit(name, config=keys, devices=dict)
        config = (await world.one(name)).config
        assert "user.a" not in config
        assert config["user.b"] == "1"


@case
async def a_restore_leaves_the_settings_of_now(world: World) -> None:
    name, instances = await world.create(**{"user.a": "then"}), world.engine.instances
    await world.engine.snapshots.take(name, "s", timeout=SECONDS)
    await edit(world, name, a="now")
    await instances.begin_restore(name)
    with pytest.raises(Busy):
        instances.check_free(name)
    with pytest.raises(Busy):
        await edit(world, name, a="later")
    await instances.restore(name, "s", timeout=SECONDS)
    assert (await world.one(name)).config["user.a"] == "now"
    instances.end_restore(name)
    assert instances.unsettled == [name]
    await instances.settle(name)
    assert instances.unsettled == []
    assert (await world.one(name)).config["user.a"] == "now"


@case
async def what_ran_at_a_snapshot_is_restored(world: World) -> None:
    name, instances, files = await world.create(), world.engine.instances, world.engine.files
    await world.start(name)
    for snapshot in ("s", "later"):
        await world.engine.snapshots.take(name, snapshot, timeout=SECONDS)
    await world.stop(name)
    before = await world.one(name)
    await files.make_empty(name, "/etc/new", 0o644)
    # Twice, as an engine may have noted the first time.
    for _ in range(2):
        await instances.begin_restore(name)
        await instances.restore(name, "s", timeout=SECONDS)
        instances.end_restore(name)
        await instances.settle(name)
        with pytest.raises(Missing):
            await files.kind(name, "/etc/new")
    assert [item.name for item in await world.engine.snapshots.all(name)] == ["s", "later"]
    after = await world.one(name)
    assert after.uuid == before.uuid
    assert "volatile.apply_template" not in after.config
    await world.start(name)


@case
async def a_bound_name_means_that_instance_alone(world: World) -> None:
    old = await world.one(await world.create())
    await world.delete(old.name)
    again = NewInstance(str(old.name), FromImage(world.image), (world.profile,), {}, {})
    await world.engine.instances.create(again, timeout=SECONDS)
    for work in (edit(world, old.name, a="1"), world.delete(old.name), world.copy(old.name)):
        with pytest.raises(Gone):
            await work
    new = await world.one(again.name)
    assert "user.a" not in new.config
    await edit(world, new.name, a="1")


@case
async def of_what_is_not_there_nothing_is_told(world: World) -> None:
    name = f"{world.prefix}-none"
    for work in (
        world.engine.instances.state(name),
        world.start(name),
        world.delete(name),
        edit(world, name, a="1"),
        world.engine.instances.remove_key(name, "user.a"),
        world.engine.snapshots.all(name),
        world.engine.snapshots.take(name, "s", timeout=SECONDS),
    ):
        with pytest.raises(Gone):
            await work


@case
async def files_are_seen_made_and_deleted(world: World) -> None:
    name, files = await world.create(), world.engine.files
    assert await files.kind(name, "/etc/.") == "directory"
    for path in ("/etc", "/etc/none", "/none/none"):
        assert not await files.is_regular(name, path)
    for path in ("/etc/key_a", "/etc/key_b", "/etc/other"):
        with pytest.raises(Missing):
            await files.kind(name, path)
        await files.make_empty(name, path, 0o444)
        assert await files.kind(name, path) == "file"
        assert await files.is_regular(name, path)
    await files.delete_all(name, "/etc/.", "key_")
    with pytest.raises(Missing):
        await files.kind(name, "/etc/key_b")
    await files.delete(name, "/etc/other")
    with pytest.raises(Missing):
        await files.delete(name, "/etc/other")
    assert (await files.look(name)).size_bytes > 0


@case
async def an_image_is_made_named_and_deleted(world: World) -> None:
    name, images = await world.create(), world.engine.images
    packings: list[str] = []
    await images.pack(NewImage(name, {MARK: name}), timeout=SECONDS, began=packings.append)
    assert len(packings) == 1
    (made,) = [item for item in await images.all() if item.properties.get(MARK) == name]
    try:
        assert (made.aliases, made.size_bytes > 0) == ((), True)
        await images.name(name, made.fingerprint)
        with pytest.raises(NameTaken):
            await images.name(name, made.fingerprint)
        await images.rename(name, made.fingerprint)
        with pytest.raises(Missing):
            await images.rename(f"{name}-none", made.fingerprint)
        (made,) = [item for item in await images.all() if item.fingerprint == made.fingerprint]
        assert made.aliases == (name,)
    finally:
        await images.delete(made.fingerprint, timeout=SECONDS)
    with pytest.raises(Missing):
        await images.delete(made.fingerprint, timeout=SECONDS)


@case
async def the_host_and_its_pools_are_told_of(world: World) -> None:
    pools, server = world.engine.pools, world.engine.server
    assert await pools.driver(world.pool)
    use = await pools.use(world.pool)
    assert use.name == world.pool
    assert 0 < use.used < use.total
    for ask in (pools.driver, pools.use):
        with pytest.raises(Missing):
            await ask("no-such-pool")
    assert await server.version()
    assert isinstance(await server.cards(), tuple)
    assert (await server.allowed()).paths == frozenset()
    assert await world.engine.operations.under_way() == []
