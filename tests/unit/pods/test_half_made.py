"""What is half-made, and LXD that does not let go of it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import Any, cast

import pytest

from podyd.base.errors import (
    Busy,
    EngineRefused,
    Gone,
    NotRunning,
    Running,
    TimedOut,
    Unavailable,
)
from podyd.base.tasks import Tasks
from podyd.engine import instances
from podyd.engine.bound import bound, uuid_of
from podyd.engine.instances import RestInstances
from podyd.engine.interface import Files
from podyd.engine.operations import RestOperations
from podyd.engine.rest import RestClient
from podyd.engine.types import Instance
from podyd.model.pod import MADE_AS, OWNER
from podyd.pods import half_made as module
from podyd.pods import sweep
from podyd.pods.half_made import HalfMade, delete
from podyd.pods.sweep import Sweep
from tests.unit.pods.test_power import POD

PROTECTED = EngineRefused("Container is protected")
CREATING = Busy("busy", operation="create")
OLD = datetime.now(timezone.utc) - timedelta(days=1)


def half_made(name: str, created: datetime = OLD) -> Instance:
    return dataclasses.replace(
        POD, name=name, config={OWNER: "ann", MADE_AS: name}, created=created, started=None
    )


class Lxd(RestInstances):
    """Has instances, and refuses to delete them for so long as it has a reason."""

    def __init__(self, *instances: Instance) -> None:
        self._client = cast(RestClient, self)
        self.stored = {instance.name: instance for instance in instances}
        self.refusals: list[Exception] = []
        self.is_doing: list[set[str]] = []
        self.deleted = asyncio.Event()
        # Whom the changes were meant for.
        self.uuids: set[str] = set()

    async def get(self, path: str, **query: Any) -> Any:
        if path.startswith("/1.0/instances/"):  # It is not about to have stopped.
            return {"status": "Stopped", "config": {}}
        assert path == "/1.0/operations"
        doing = self.is_doing.pop(0) if self.is_doing else set()
        of_task = {"class": "task", "resources": None, "metadata": None}
        return {"running": [{"id": one, **of_task} for one in doing]}

    async def change(self, method: str, path: str, body: Any = None, **options: Any) -> None:
        name = path.split("/")[3]
        self.uuids.add(uuid_of(path))
        if name not in self.stored:
            raise Gone("Instance not found")
        if method == "DELETE":
            if self.refusals:
                raise self.refusals.pop(0)
            del self.stored[name]
            self.deleted.set()

    async def all(self) -> tuple[Instance, ...]:
        return tuple(self.stored.values())

    def check_free(self, name: str) -> None: ...

    def changed(self, name: str) -> None: ...


def half_made_on(lxd: Lxd) -> HalfMade:
    return HalfMade(instances=lxd, files=cast(Files, None), tasks=Tasks())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMOVE_TIMEOUT", 0.05)
    monkeypatch.setattr(module, "REMOVE_SECONDS", 0.001)
    monkeypatch.setattr(module, "REMOVE_SECONDS_MAX", 0.002)
    monkeypatch.setattr(instances, "BUSY_SECONDS", 0.0)
    monkeypatch.setattr(instances, "FREE_SECONDS", 0.0)
    monkeypatch.setattr(sweep, "LOOK_SECONDS", 0.001)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(work(), 10)

    asyncio.run(main())


@pytest.mark.parametrize("refusal", [PROTECTED, CREATING, Unavailable("LXD is away")])
def test_what_lxd_does_not_delete_is_not_gone_and_is_tried_again(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        lxd = Lxd(half_made("a"))
        lxd.refusals = [refusal] * 100_000
        making = half_made_on(lxd)
        assert not await making.remove("a")
        lxd.refusals = []
        monkeypatch.setattr(module, "REMOVE_TIMEOUT", 10.0)
        assert await making.remove("a")
        assert not lxd.stored
        assert await making.remove("a"), "what is gone is gone"

    run(work)


class Ended(Lxd):
    """Of what does not run any more, it shows status and power one after the other; the last ones
    for good."""

    def __init__(self, *shown: tuple[str, str]) -> None:
        super().__init__(half_made("a"))
        self.shown = list(shown)
        self.looks = 0

    async def get(self, path: str, **query: Any) -> Any:
        if path != "/1.0/instances/a":
            return await super().get(path, **query)
        self.looks += 1
        status, power = self.shown.pop(0) if len(self.shown) > 1 else self.shown[0]
        return {"status": status, "config": {"volatile.last_state.power": power}}

    async def change(self, method: str, path: str, body: Any = None, **options: Any) -> None:
        if method == "PUT":
            raise NotRunning("The instance is already stopped")
        await super().change(method, path, body, **options)


def test_one_that_ended_with_its_host_is_deleted_at_once() -> None:
    async def work() -> None:
        lxd = Ended(("Stopped", "RUNNING"))
        await delete(lxd, "a")
        assert (lxd.stored, lxd.looks) == ({}, 0)

    run(work)


def test_one_that_has_just_ended_is_deleted_once_lxd_has_cleaned_up() -> None:
    async def work() -> None:
        lxd = Ended(("Running", "STOPPED"), ("Running", "STOPPED"), ("Stopped", "STOPPED"))
        lxd.refusals = [Running("Instance is running")]
        await delete(lxd, "a")
        assert (lxd.stored, lxd.looks) == ({}, 3)

    run(work)


def test_one_that_goes_on_is_not_deleted() -> None:
    async def work() -> None:
        lxd = Ended(("Running", "RUNNING"))
        lxd.refusals = [Running("Instance is running")] * 2
        with pytest.raises(Running):
            await delete(lxd, "a")
        assert lxd.looks == 1

    run(work)


def test_a_pod_that_has_got_the_name_meanwhile_stays() -> None:
    class Renaming(Lxd):
        async def change(self, method: str, path: str, body: Any = None, **options: Any) -> None:
            try:
                await super().change(method, path, body, **options)
            except TimedOut:
                self.stored["a"] = dataclasses.replace(half_made("a"), name=bound("a", "new"))
                raise

    async def work() -> None:
        lxd = Renaming(dataclasses.replace(half_made("a"), name=bound("a", "old")))
        lxd.refusals = [TimedOut("LXD has not finished within 120 s and goes on.")]
        making = half_made_on(lxd)
        await making.removal("a")
        assert not lxd.refusals
        assert lxd.uuids == {"old"}

    run(work)


def test_what_is_wrong_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "podyd.pods")

    async def work() -> None:
        lxd = Lxd(half_made("a"))
        lxd.refusals = [CREATING] * 5 + [PROTECTED] * 5
        await half_made_on(lxd).removal("a")

    run(work)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "half-made pod a is still there" in message
    assert PROTECTED.reason in message


def test_the_pauses_grow_and_end_when_lxd_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMOVE_SECONDS", 1000.0)
    monkeypatch.setattr(module, "REMOVE_SECONDS_MAX", 1000.0)

    async def work() -> None:
        lxd = Lxd(half_made("a"))
        lxd.refusals = [PROTECTED]
        whole = half_made_on(lxd)
        assert not await whole.remove("a")
        await whole.sweep()
        await lxd.deleted.wait()

    run(work)


class NoCommits:
    """Notes when it was asked to sweep, and what there was then."""

    def __init__(self, lxd: Lxd) -> None:
        self._lxd = lxd
        self.sweeps = 0

    async def sweep(self) -> None:
        self.sweeps += 1
        if self.sweeps == 2:
            # Has come to be at the very end of what LXD was doing.
            self._lxd.stored["late"] = half_made("late")


def test_what_lxd_is_still_making_is_waited_for_and_nothing_else() -> None:
    async def work() -> None:
        lxd = Lxd(
            half_made("a"), half_made("young", datetime.now(timezone.utc) + timedelta(hours=1))
        )
        lxd.is_doing = [{"1", "2"}, {"2", "3"}, {"3"}]  # 3 is of this podyd's own.
        commits = NoCommits(lxd)
        parts = {
            "operations": RestOperations(lxd._client),
            "half_made": (whole := half_made_on(lxd)),
            "commits": commits,
        }
        await Sweep(**cast(Any, parts)).sweep()
        assert commits.sweeps == 3
        await asyncio.gather(*whole._removing.values())
        assert set(lxd.stored) == {"young"}

    run(work)


@pytest.mark.parametrize("name", ["begun", "ended"])
def test_what_begins_or_ends_while_the_list_is_read_is_left_alone(name: str) -> None:
    class Slow(Lxd):
        async def all(self) -> tuple[Instance, ...]:
            listed = await super().all()
            making.begin("begun")
            making.end("ended")
            return listed

    async def work() -> None:
        await making.sweep()
        await asyncio.gather(*making._removing.values())
        assert set(lxd.stored) == {name}

    lxd = Slow(half_made(name))
    making = half_made_on(lxd)
    making.begin("ended")
    run(work)


def test_one_that_lxd_does_not_change_keeps_no_other_one_from_being_removed() -> None:
    class Refusing(Lxd):
        async def change(self, method: str, path: str, body: Any = None, **options: Any) -> None:
            if method == "PATCH":
                raise PROTECTED
            await super().change(method, path, body, **options)

    async def work() -> None:
        whole = dataclasses.replace(half_made("a"), started=OLD)
        lxd = Refusing(whole, half_made("b"))
        swept = half_made_on(lxd)
        await swept.sweep()
        await asyncio.gather(*swept._removing.values())
        assert set(lxd.stored) == {"a"}

    run(work)


def test_nothing_is_waited_for_where_lxd_does_nothing() -> None:
    async def work() -> None:
        lxd = Lxd()
        commits = NoCommits(lxd)
        parts = {
            "operations": RestOperations(lxd._client),
            "half_made": half_made_on(lxd),
            "commits": commits,
        }
        await Sweep(**cast(Any, parts)).sweep()
        assert commits.sweeps == 1

    run(work)
