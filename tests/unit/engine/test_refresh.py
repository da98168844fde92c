"""A snapshot that an engine refuses is copied over its instance, where that harms nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from podyd.base.errors import EngineRefused, HalfRestored, NotRestorable, Running
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
        # What the next copies come to, once they have begun.
        self.ends: list[EngineRefused] = []
        self.is_refused_at_once = False
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
            if self.is_refused_at_once:
                raise self.ends[0]
            options["began"]("/1.0/operations/1")
            if self.ends:
                raise self.ends.pop(0)
            self.config = {**self.config, TEMPLATE: "copy"}
        elif method == "PATCH":
            self.devices = {**self.devices, **body["devices"]}
            # As it is full.
            raise refusal("open backup.yaml: disk quota exceeded")
        else:
            self.config, self.devices = body["config"], body["devices"]


@pytest.fixture
def incus() -> Incus:
    return Incus()


@pytest.fixture
def restore(incus: Incus, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Restores the snapshot, and puts the settings back whatever came of it."""
    instances = RestInstances(cast(RestClient, incus), RestoreGuard(tmp_path))

    async def work() -> None:
        await instances.begin_restore("a")
        try:
            await instances.restore("a", "s", timeout=1)
        finally:
            instances.end_restore("a")
            await instances.settle("a")

    yield lambda: asyncio.run(work())
    instances.close()
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
    incus.ends = [FULL]
    restore()
    assert incus.sizes == ["1GiB", None]
    assert incus.devices == {}


def test_a_storage_that_is_full_is_said(
    incus: Incus, restore: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    incus.ends = [FULL, FULL]
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
    incus.ends = [FULL]
    with pytest.raises(HalfRestored):
        restore()
    assert incus.sizes == [None]


@pytest.mark.parametrize(
    ("reason", "is_refused_at_once", "kind"),
    [
        ("It rains", False, HalfRestored),
        ("It rains", True, EngineRefused),
        ("Instance is running", False, Running),
    ],
)
def test_what_came_of_the_disk_is_said(
    incus: Incus,
    restore: Callable[[], None],
    reason: str,
    is_refused_at_once: bool,
    kind: type[EngineRefused],
) -> None:
    incus.ends, incus.is_refused_at_once = [refusal(reason)], is_refused_at_once
    with pytest.raises(kind) as raised:
        restore()
    assert type(raised.value) is kind
