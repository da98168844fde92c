"""A pod's settings while LXD restores a snapshot of it, and where LXD does not take them back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from podyd.base.errors import (
    Busy,
    EngineRefused,
    Gone,
    HalfRestored,
    Missing,
    PodydError,
    Unavailable,
    Unsettled,
)
from podyd.base.tasks import Tasks
from podyd.config.schema import Quota
from podyd.engine import instances as lxd_instances
from podyd.engine.instances import RestInstances
from podyd.engine.interface import ImageStore
from podyd.engine.refusals import refusal
from podyd.engine.rest import RestClient
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.snapshots import RestSnapshotStore
from podyd.model.member import Member
from podyd.pods import snapshots
from podyd.pods.snapshots import Snapshots
from podyd.pods.stages import Stages

NOW = {"user.podyd.owner": "ann", "limits.memory": "1GiB"}
THEN = {"user.podyd.owner": "bob", "user.podyd.lease.GPU-0": "old"}
CREATED = "2026-01-01T00:00:00.1Z"

MEMBER = Member("ann", False, Quota(), (), 1000, 1000)


def instance(config: dict[str, str], created: str = CREATED) -> dict[str, Any]:
    return {
        "name": "a",
        "status": "Stopped",
        "architecture": "x86_64",
        "config": config,
        "description": "",
        "devices": {},
        "ephemeral": False,
        "profiles": ["default"],
        "expanded_config": config,
        "expanded_devices": {},
        "created_at": created,
        "last_used_at": "1970-01-01T00:00:00Z",
        "location": "none",
        "state": None,
    }


class Lxd:
    """One instance, `a`, of which a snapshot has been restored."""

    def __init__(self) -> None:
        self.data: dict[str, Any] | None = instance(THEN)
        # What the next changes come to.
        self.refusals: list[PodydError] = []
        self.takes_it_all_the_same = False
        self.is_at: list[str] = []
        self.changes = 0
        # For how many seconds LXD was last waited for.
        self.patience: float | None = None
        self.changed: Callable[[], None] = lambda: None

    async def get(self, path: str, **query: Any) -> Any:
        if path == "/1.0/operations":
            named = [f"/1.0/instances/{name}?project=p" for name in self.is_at]
            resources = {"instances": named}
            running = {"id": "1", "class": "task", "resources": resources, "metadata": None}
            return {"running": [running], "success": [{**running, "id": "2"}]}
        if path == "/1.0/instances":
            return [self.data]
        return (await self.tagged(path))[0]

    async def tagged(self, path: str) -> tuple[Any, str]:
        if self.data is None:
            raise Gone("Instance not found")
        return self.data, "tag"

    async def change(self, method: str, path: str, body: Any, **options: Any) -> None:
        self.changes += 1
        self.patience = options.get("timeout")
        self.changed()
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is None or self.takes_it_all_the_same:
            assert self.data is not None
            self.data = {**self.data, **body, "expanded_config": body["config"]}
        if refusal is not None:
            raise refusal


class Restored:
    """An instance whose settings of now are kept by podyd alone."""

    def __init__(self, directory: Path) -> None:
        self.lxd = Lxd()
        self.directory = directory
        self._podyds: list[RestInstances] = []
        self.instances = self.begin()

    def begin(self) -> RestInstances:
        """A podyd that begins."""
        (self.directory / "a.json").write_text(json.dumps(instance(NOW)))
        self._podyds.append(RestInstances(cast(RestClient, self.lxd), RestoreGuard(self.directory)))
        return self._podyds[-1]

    def close(self) -> None:
        for podyd in self._podyds:
            podyd.close()

    @property
    def is_held(self) -> bool:
        return (self.directory / "a.json").exists()

    async def shown(self) -> dict[str, str]:
        (only,) = await self.instances.all()
        (timed,) = await self.instances.cpu_times()
        assert timed.instance.config == only.config
        return dict(only.config)


@pytest.fixture
def restored(tmp_path: Path) -> Iterator[Restored]:
    rig = Restored(tmp_path)
    yield rig
    rig.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    asyncio.run(main())


def test_lxd_gets_the_settings_back(restored: Restored) -> None:
    async def work() -> None:
        assert await restored.shown() == NOW
        await restored.instances.settle("a")
        assert restored.lxd.data is not None
        assert restored.lxd.data["config"] == NOW
        assert not restored.is_held

    run(work)


@pytest.mark.parametrize(
    "refusal",
    [
        Missing("Profile not found"),
        Missing("Operation not found"),
        EngineRefused('Invalid value "x" for config "raw.idmap"'),
    ],
)
def test_what_is_refused_is_kept_and_shown(restored: Restored, refusal: EngineRefused) -> None:
    async def work() -> None:
        restored.lxd.refusals = [refusal] * 2
        for _ in range(2):
            with pytest.raises(Unsettled) as error:
                await restored.instances.settle("a")
            assert refusal.reason in error.value.detail
        assert restored.is_held
        assert await restored.shown() == NOW
        await restored.instances.settle("a")
        assert not restored.is_held

    run(work)


def test_only_that_the_instance_is_gone_ends_it(restored: Restored) -> None:
    async def work() -> None:
        restored.lxd.data = None
        await restored.instances.settle("a")
        assert not restored.is_held

    run(work)


def test_another_instance_of_the_name_is_left_alone(restored: Restored) -> None:
    async def work() -> None:
        restored.lxd.data = instance({"user.podyd.owner": "new"}, "2026-02-02T00:00:00Z")
        assert await restored.shown() == {"user.podyd.owner": "new"}
        await restored.instances.settle("a")
        assert restored.lxd.changes == 0
        assert not restored.is_held

    run(work)


def test_lxd_that_is_still_restoring_would_overwrite_it(restored: Restored) -> None:
    async def work() -> None:
        restored.lxd.is_at = ["b", "a"]
        with pytest.raises(Busy):
            await restored.instances.settle("a")
        assert restored.lxd.changes == 0
        restored.lxd.is_at = ["b"]
        await restored.instances.settle("a")
        assert not restored.is_held

    run(work)


def test_what_lxd_has_changed_although_it_says_no_is_changed(restored: Restored) -> None:
    async def work() -> None:
        restored.lxd.refusals = [EngineRefused("Failed to write backup file: disk quota exceeded")]
        restored.lxd.takes_it_all_the_same = True
        with pytest.raises(Unsettled):
            await restored.instances.settle("a")
        await restored.instances.settle("a")
        assert restored.lxd.changes == 1
        assert not restored.is_held

    run(work)


def test_a_change_of_what_is_kept_can_mend_it(restored: Restored) -> None:
    async def edit() -> None:
        await restored.instances.edit(
            "a", config={"limits.memory": None, "user.x": "1"}, devices=lambda devices: devices
        )

    async def work() -> None:
        restored.lxd.refusals = [Missing("Profile not found")]
        with pytest.raises(Unsettled):
            await edit()
        assert await restored.shown() == NOW
        assert json.loads((restored.directory / "a.json").read_text())["config"] == NOW
        await edit()
        assert restored.lxd.data is not None
        assert restored.lxd.data["config"] == {"user.podyd.owner": "ann", "user.x": "1"}
        assert not restored.is_held

    run(work)


def test_what_was_not_written_to_its_end_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a.new").write_text("{")
    assert RestoreGuard(tmp_path).names() == []
    assert [*tmp_path.iterdir()] == []


def test_a_restore_is_alone_and_copies_of_its_pod_wait(tmp_path: Path) -> None:
    async def work() -> None:
        lxd = Lxd()
        lxd.data = instance(NOW)
        instances = RestInstances(cast(RestClient, lxd), RestoreGuard(tmp_path))
        await instances.begin_restore("a")
        assert json.loads((tmp_path / "a.json").read_text())["config"] == NOW
        with pytest.raises(Busy) as busy:
            instances.check_free("a")
        assert (busy.value.status, busy.value.code) == (409, "pod_busy")
        with pytest.raises(Busy):
            await instances.begin_restore("a")
        assert instances.unsettled == []
        instances.end_restore("a")
        instances.check_free("a")
        assert instances.unsettled == ["a"]
        instances.close()

    run(work)


# --- Changes beside those of others -------------------------------------------------------------


async def limit(instances: RestInstances, patience: float = 5.0) -> None:
    config = {"limits.memory": "2GiB"}
    await instances.edit("a", config=config, devices=dict, patience=patience)


@pytest.fixture
def free(tmp_path: Path) -> Iterator[tuple[Lxd, RestInstances]]:
    """Nothing is restored."""
    lxd = Lxd()
    instances = RestInstances(cast(RestClient, lxd), RestoreGuard(tmp_path))
    yield lxd, instances
    instances.close()


UPDATE = refusal(
    "Failed to create instance update operation: A matching non-reusable operation has now"
    " succeeded"
)
STARTING = refusal('Instance is busy running a "start" operation')
CHANGED = refusal("ETag doesn't match: a vs b")


def test_a_change_waits_for_others_changes(free: tuple[Lxd, RestInstances]) -> None:
    lxd, instances = free
    lxd.refusals = [UPDATE, CHANGED, UPDATE, STARTING]
    run(lambda: limit(instances))
    assert lxd.data is not None
    assert lxd.data["config"] == {**THEN, "limits.memory": "2GiB"}


@pytest.mark.parametrize(
    ("refusal", "patience"), [(STARTING, 35.0), (UPDATE, 0.05), (CHANGED, 0.05)]
)
def test_a_change_waits_as_long_as_its_caller_and_less_for_what_may_take_long(
    free: tuple[Lxd, RestInstances],
    monkeypatch: pytest.MonkeyPatch,
    refusal: PodydError,
    patience: float,
) -> None:
    monkeypatch.setattr(lxd_instances, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(lxd_instances, "FREE_SECONDS", 0.01)
    lxd, instances = free
    lxd.refusals = [refusal] * 100_000
    with pytest.raises(type(refusal)):
        run(lambda: asyncio.wait_for(limit(instances, patience), 10))
    assert lxd.changes > 1
    assert lxd.patience == patience + lxd_instances.CHANGE_SECONDS


# --- A disk that LXD counts as mounted ----------------------------------------------------------


class Mounted(Lxd):
    """The instance is stopped, and LXD counts so many mounts of its disk all the same."""

    def __init__(self, mounts: int) -> None:
        super().__init__()
        assert self.data is not None
        self.data["expanded_devices"] = {"disk": {"type": "disk", "path": "/", "pool": "p"}}
        self.mounts = mounts
        self.asked: list[str] = []

    async def change(self, method: str, path: str, body: Any, **options: Any) -> None:
        assert self.data is not None
        key = "volatile.disk.apply_quota"
        if "restore" in body:
            self.asked.append("restore")
        elif body.get("action") == "start":
            assert self.data["config"][key] == "true"
            self.asked.append("start")
            if self.mounts:
                self.mounts -= 1
                raise refusal(f'Failed to start device "disk": from "{key}": In use')
        elif body.get("action") == "stop":
            self.asked.append("stop")
        else:
            assert method == "PATCH"
            self.data["config"] = {**self.data["config"], **body["config"]}
            # As it is full.
            raise refusal("open backup.yaml: disk quota exceeded")
        if self.mounts:
            raise refusal("In use")


@pytest.mark.parametrize(
    ("mounts", "asked"),
    [(0, ["restore"]), (2, ["restore", "start", "restore", "start", "restore"])],
)
def test_mounts_that_lxd_counts_too_many_are_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: int, asked: list[str]
) -> None:
    monkeypatch.setattr(lxd_instances, "FREE_SECONDS", 0.001)
    lxd = Mounted(mounts)
    instances = RestInstances(cast(RestClient, lxd), RestoreGuard(tmp_path))
    run(lambda: instances.restore("a", "s", timeout=1))
    assert lxd.asked == asked
    assert lxd.data is not None
    assert lxd.data["config"].get("volatile.disk.apply_quota", "") == ""
    instances.close()


def test_a_size_that_lxd_has_yet_to_set_is_set(tmp_path: Path) -> None:
    """Some storage changes it at a start only, and LXD keeps in mind that it has to."""
    lxd = Mounted(1)
    assert lxd.data is not None
    lxd.data["config"] = {**THEN, "volatile.disk.apply_quota": "true"}
    instances = RestInstances(cast(RestClient, lxd), RestoreGuard(tmp_path))
    run(lambda: instances.restore("a", "s", timeout=1))
    assert lxd.asked == ["restore", "start", "restore"]
    assert lxd.data["config"]["volatile.disk.apply_quota"] == "true"
    instances.close()


def test_a_disk_that_lxd_is_at_stays_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lxd_instances, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(lxd_instances, "FREE_SECONDS", 0.01)
    lxd = Mounted(1)
    lxd.is_at = ["a"]
    instances = RestInstances(cast(RestClient, lxd), RestoreGuard(tmp_path))
    with pytest.raises(Busy, match="to copy it or for its files"):
        run(lambda: instances.restore("a", "s", timeout=1))
    assert set(lxd.asked) == {"restore"}
    instances.close()


def test_one_that_starts_after_all_is_stopped(tmp_path: Path) -> None:
    lxd = Mounted(0)
    instances = RestInstances(cast(RestClient, lxd), RestoreGuard(tmp_path))
    run(lambda: instances._unmount("a"))
    assert lxd.asked == ["start", "stop"]
    instances.close()


# --- Trying again -------------------------------------------------------------------------------


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(snapshots, "SETTLE_TIMEOUT", 0.05)


def looked_after(instances: RestInstances) -> Snapshots:
    parts = {
        "snapshots": None,
        "instances": instances,
        "owned": None,
        "power": None,
        "stages": Stages(cast(ImageStore, None)),
        "tasks": Tasks(),
    }
    return Snapshots(**cast(Any, parts))


@pytest.mark.usefixtures("_impatient")
def test_a_restore_ends_though_lxd_does_not_take_the_settings(restored: Restored) -> None:
    async def work() -> None:
        restored.lxd.refusals = [Missing("Profile not found")] * 1000
        problem = await looked_after(restored.instances)._settle("a")
        assert isinstance(problem, Unsettled)
        assert 1 < restored.lxd.changes < 20
        restored.instances.check_free("a")

    run(work)


class Said(logging.Handler):
    """What the log says, as it says it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]


@pytest.mark.usefixtures("_impatient")
def test_it_is_told_once_and_tried_when_something_changes(
    restored: Restored, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Missing("Profile not found")
    restored.lxd.refusals = [missing, missing, Missing("Pool not found"), Unavailable("away")]
    seen: list[str] = []

    async def work() -> None:
        happened: asyncio.Queue[str] = asyncio.Queue()
        log = logging.Logger("snapshots")
        log.addHandler(Said(happened.put_nowait))
        monkeypatch.setattr(snapshots, "log", log)
        restored.lxd.changed = lambda: happened.put_nowait("tried")
        looking = looked_after(restored.instances)
        restored.instances.subscribe(looking.poke)
        task = asyncio.ensure_future(looking.run())
        while len(seen) < 9:
            seen.append(await happened.get())
            if seen[-1] == "tried":
                restored.instances.changed("a")
        task.cancel()

    run(lambda: asyncio.wait_for(work(), 10))
    expected = ("tried", "Profile", "tried", "tried", "Pool", "tried", "away", "tried", "again")
    assert all(text in what for text, what in zip(expected, seen, strict=True)), seen


# --- What ran ------------------------------------------------------------------------------------


class Told:
    """Pods of which one is told to stop and to start."""

    def __init__(self, status: str) -> None:
        self._status = status
        self.told: list[str] = []

    async def find(self, member: object, ins: str) -> Any:
        return SimpleNamespace(name="a", ins=ins, status=self._status)

    async def stop(self, member: object, ins: str) -> None:
        self.told.append("stop")

    async def start(self, member: object, ins: str) -> None:
        self.told.append("start")


class Refusing(Lxd):
    """Has the snapshot `s`, and does not restore it."""

    refusal = refusal("It rains")

    async def get(self, path: str, **query: Any) -> Any:
        if path.endswith("/snapshots"):
            return [{"name": "a/s", "created_at": CREATED}]
        return await super().get(path, **query)

    async def change(self, method: str, path: str, body: Any, **options: Any) -> None:
        raise self.refusal


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("status", "message"),
    [("Stopped", []), ("Running", ["stop", "start"]), ("Frozen", ["stop", "start"])],
)
def test_what_ran_runs_again_whatever_comes_of_a_restore(
    tmp_path: Path, status: str, message: list[str]
) -> None:
    restored_by(tmp_path, pods := Told(status.lower()), "could not restore the snapshot: It rains")
    assert pods.told == message


@pytest.mark.usefixtures("_impatient")
def test_what_is_half_restored_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusing, "refusal", HalfRestored("It rains"))
    restored_by(tmp_path, pods := Told("running"), "restored only in part")
    assert pods.told == ["stop"]


def restored_by(tmp_path: Path, pods: Told, detail: str) -> None:
    """A restore that ends in this error."""
    lxd = Refusing()
    instances = RestInstances(cast(RestClient, lxd), RestoreGuard(tmp_path))
    taken = RestSnapshotStore(cast(RestClient, lxd))
    parts = {
        "snapshots": taken,
        "instances": instances,
        "owned": pods,
        "power": pods,
        "stages": Stages(cast(ImageStore, None)),
        "tasks": Tasks(),
    }
    restoring = Snapshots(**cast(Any, parts)).restore(MEMBER, "main", "s")

    async def work() -> None:
        with pytest.raises(EngineRefused, match=detail):
            await restoring

    run(work)
    instances.close()
