"""A snapshot that an engine refuses is copied over its instance, where that harms nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from podyd.base.errors import (
    EngineRefused,
    HalfRestored,
    NotRestorable,
    PodydError,
    TimedOut,
    Unavailable,
)
from podyd.engine.instances import RestInstances
from podyd.engine.refusals import refusal
from podyd.engine.rest import RestClient
from podyd.engine.restore_guard import RestoreGuard

FORBIDDEN = refusal(
    'Setting "volatile.eth0.host_name" on container "a" in project "p" is forbidden'
)
FULL = refusal("Refresh instance: rsync: write failed: Disk quota exceeded (122)")
TEMPLATE, OWNERS = "volatile.apply_template", "volatile.last_state.idmap"
ROOT = {"type": "disk", "path": "/", "pool": "p", "size": "1GiB"}


class Incus:
    """The stopped instance `a` and its snapshot `s`, which is not restored."""

    def __init__(self) -> None:
        self.extensions = ["projects"]
        self.driver = "btrfs"
        self.config = {"user.a": "now", OWNERS: "[]", "volatile.uuid": "1"}
        self.then = {"user.a": "then", OWNERS: "[]", "volatile.eth0.host_name": "veth1"}
        self.devices: dict[str, Any] = {}
        # What the next copies come to, and whether they have begun by then.
        self.ends: list[tuple[bool, BaseException]] = []
        # As its disk is full.
        self.unlimited: PodydError = refusal("open backup.yaml: disk quota exceeded")
        # Whether the answer to the next change of settings is lost.
        self.loses = False
        self.copies: list[dict[str, Any]] = []
        # The size of the disk at each copy.
        self.sizes: list[str | None] = []

    @property
    def data(self) -> dict[str, Any]:
        return {
            "name": "a",
            "architecture": "x86_64",
            "config": self.config,
            "description": "",
            "devices": self.devices,
            "ephemeral": False,
            "profiles": ["own"],
            "expanded_config": self.config,
            "expanded_devices": {"root": ROOT, **self.devices},
            "created_at": "2026-01-01T00:00:00Z",
        }

    async def get(self, path: str, **query: Any) -> Any:
        return {
            "/1.0": {"api_extensions": self.extensions},
            "/1.0/operations": {},
            "/1.0/instances/a": self.data,
            "/1.0/instances/a/snapshots/s": {"config": self.then},
            "/1.0/storage-pools/p": {"driver": self.driver},
        }[path]

    async def tagged(self, path: str) -> tuple[Any, str]:
        return self.data, "tag"

    async def change(self, method: str, path: str, body: Any, **options: Any) -> None:
        if "restore" in body:
            raise FORBIDDEN
        if method == "POST":
            self.copies.append(body)
            self.sizes.append(self.data["expanded_devices"]["root"].get("size"))
            has_begun, error = self.ends.pop(0) if self.ends else (True, None)
            if has_begun:
                options["began"]("/1.0/operations/1")
            if error is not None:
                raise error
            self.config = {**self.config, TEMPLATE: "copy"}
        elif method == "PATCH":
            self.devices = {**self.devices, **body["devices"]}
            raise self.unlimited
        else:
            self.config, self.devices = body["config"], body["devices"]
            if self.loses:
                self.loses = False
                raise Unavailable("It is away.")


@pytest.fixture
def incus() -> Incus:
    return Incus()


@pytest.fixture
def restore(incus: Incus, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Restores the snapshot, and puts the settings back whatever came of it, as a podyd does that
    has started since."""

    def podyd() -> contextlib.closing[RestInstances]:
        return contextlib.closing(RestInstances(cast(RestClient, incus), RestoreGuard(tmp_path)))

    async def work() -> None:
        try:
            with podyd() as instances:
                await instances.begin_restore("a")
                await instances.restore("a", "s", timeout=1)
        finally:
            with podyd() as instances:
                with contextlib.suppress(Unavailable):
                    await instances.settle("a")
                await instances.settle("a")

    yield lambda: asyncio.run(work())
    assert not list(tmp_path.iterdir())


def test_it_is_copied_over_the_instance_alone(incus: Incus, restore: Callable[[], None]) -> None:
    config = incus.config
    restore()
    source = {"type": "copy", "source": "a/s", "instance_only": True, "refresh": True}
    assert incus.copies == [{"name": "a", "source": source, "profiles": ["own"]}]
    # To the templates of its image, it is no copy.
    assert incus.config == config


def test_templates_that_were_still_to_come_come(incus: Incus, restore: Callable[[], None]) -> None:
    incus.then[TEMPLATE] = "create"
    restore()
    assert incus.config[TEMPLATE] == "create"


def test_what_would_harm_is_not_tried(incus: Incus, restore: Callable[[], None]) -> None:
    """ZFS would lose all of the instance's snapshots; others' files would be somebody else's."""
    for name, value in (
        ("driver", "zfs"),
        ("driver", "unheard-of"),
        ("extensions", ["projects", "instance_refresh_config"]),
        ("then", {**incus.then, OWNERS: '[{"Hostid":1000000}]'}),
    ):
        before = getattr(incus, name)
        setattr(incus, name, value)
        with pytest.raises(NotRestorable, match="host_name"):
            restore()
        setattr(incus, name, before)
    assert incus.copies == []
    restore()
    assert len(incus.copies) == 1


def test_a_full_disk_has_no_limit_meanwhile(incus: Incus, restore: Callable[[], None]) -> None:
    incus.ends = [(True, FULL)]
    restore()
    assert incus.sizes == ["1GiB", None]
    assert incus.devices == {}


def test_a_storage_that_is_full_is_said(
    incus: Incus, restore: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    incus.ends = [(True, FULL), (True, FULL)]
    with caplog.at_level(logging.WARNING), pytest.raises(HalfRestored, match="quota exceeded"):
        restore()
    assert incus.devices == {}
    assert "restore it again" in caplog.text
    caplog.clear()
    restore()
    assert caplog.text == ""


def test_without_a_limit_there_is_none_to_take_away(
    incus: Incus, restore: Callable[[], None]
) -> None:
    incus.devices = {"root": {"type": "disk", "path": "/", "pool": "p"}}
    incus.ends = [(True, FULL)]
    with pytest.raises(HalfRestored):
        restore()
    assert incus.sizes == [None]


RAIN = refusal("It rains")
BUSY = refusal("Instance is busy running a start operation")
RUNS = refusal("Instance is running")
SLIPPED = refusal("Bad file descriptor")
AWAY = Unavailable("It is away.")


@pytest.mark.parametrize(("has_begun", "error"), [(False, RAIN), (False, RUNS), (True, RUNS)])
def test_what_the_engine_has_not_touched_is_as_it_was(
    incus: Incus,
    restore: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    has_begun: bool,
    error: EngineRefused,
) -> None:
    """The engine refuses a pod that runs although it has made an operation of it."""
    incus.then[TEMPLATE] = "create"
    incus.ends = [(has_begun, error)]
    config = incus.config
    with pytest.raises(type(error)) as raised:
        restore()
    assert type(raised.value) is type(error)
    assert incus.config == config
    assert "restore it again" not in caplog.text


def test_an_engine_that_refuses_the_copy_too_has_the_same_answer(
    incus: Incus, restore: Callable[[], None]
) -> None:
    incus.ends = [(False, FORBIDDEN)]
    with pytest.raises(NotRestorable, match="was running at it, or has been restored since"):
        restore()


@pytest.mark.parametrize(
    "ends",
    [
        [(True, RAIN)],
        # The engine restarts meanwhile, or its answer to the request is lost.
        [(True, AWAY)],
        [(False, AWAY)],
        [(True, TimedOut("It continues."))],
        [(True, FULL), (False, RAIN)],
        [(True, FULL), (False, BUSY)],
        [(True, FULL), (True, RUNS)],
        [(True, SLIPPED), (False, BUSY)],
        [(True, SLIPPED), (True, SLIPPED)],
    ],
)
def test_what_it_may_have_touched_is_half_restored(
    incus: Incus,
    restore: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    ends: list[tuple[bool, BaseException]],
) -> None:
    incus.then[TEMPLATE] = "create"
    config = incus.config
    incus.ends = [*ends]
    with pytest.raises(HalfRestored) as raised:
        restore()
    assert raised.value.__cause__ is ends[-1][1]
    assert incus.ends == []
    # What the templates of its image make goes with the files of then.
    assert incus.config == config
    assert caplog.text.count("restore it again") == 1


@pytest.mark.parametrize("error", [RAIN, AWAY])
def test_a_limit_that_stays_leaves_it_half_restored(
    incus: Incus, restore: Callable[[], None], error: PodydError
) -> None:
    incus.ends, incus.unlimited = [(True, FULL)], error
    with pytest.raises(HalfRestored, match=r"rains|away"):
        restore()
    assert len(incus.copies) == 1


def test_what_slipped_is_copied_again(incus: Incus, restore: Callable[[], None]) -> None:
    incus.ends = [(True, SLIPPED)]
    restore()
    assert len(incus.copies) == 2


def test_busy_and_untouched_it_is_tried_again(incus: Incus, restore: Callable[[], None]) -> None:
    incus.ends = [(False, BUSY), (False, SLIPPED), (False, BUSY)]
    restore()
    assert len(incus.copies) == 4


def test_a_podyd_that_ends_before_the_copy_leaves_the_templates(
    incus: Incus, restore: Callable[[], None]
) -> None:
    incus.then[TEMPLATE] = "create"
    incus.ends = [(False, asyncio.CancelledError())]
    config = incus.config
    with pytest.raises(asyncio.CancelledError):
        restore()
    assert incus.config == config


def test_of_a_whole_copy_nothing_is_said(
    incus: Incus, restore: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the answer to the change of its settings was lost."""
    incus.then[TEMPLATE] = "create"
    incus.loses = True
    restore()
    assert not incus.loses
    assert incus.config[TEMPLATE] == "create"
    assert "restore it again" not in caplog.text
