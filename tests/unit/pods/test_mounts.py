"""Members' own directories in their pods, on a host and an engine that a test makes up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from podyd.base.errors import Conflict, Unavailable
from podyd.config.current import Settings
from podyd.config.loader import parse
from podyd.config.schema import Quota
from podyd.engine.interface import Instances, Server
from podyd.engine.types import Allowed
from podyd.model.member import Member
from podyd.node.directories import Directory, Fitness
from podyd.pods import mounts
from podyd.pods.mounts import MountConfig, Mounts
from tests.unit.node.fake import FakeDirectories

ALICE = Member("alice", False, Quota(), (), 1000, 1001)
OWN = Directory(Path("/data/alice"), "alice", 1000, 1001)


class Engine:
    """Lets pods of the account 1000 have what is below /data."""

    async def allowed(self) -> Allowed:
        return Allowed(
            paths=frozenset({"/data"}), uids=frozenset({"1000"}), gids=frozenset({"1001"})
        )


def new(directories: FakeDirectories) -> MountConfig:
    settings = Settings(parse("pods: {mounts: ['/data/$user:/workspace']}"))
    mounts = Mounts(
        server=cast(Server, Engine()),
        instances=cast(Instances, None),
        directories=directories,
        settings=settings,
    )
    return asyncio.run(mounts.new(ALICE, []))


def test_a_directory_that_is_fit() -> None:
    mounts = new(FakeDirectories())
    assert mounts.config["raw.idmap"] == "uid 1000 0\ngid 1001 0"
    (device,) = mounts.devices.values()
    assert (device["source"], device["path"]) == ("/data/alice", "/workspace")


@pytest.mark.parametrize(
    ("fitness", "words"),
    [
        (Fitness(unsafe="others than root may write to /data"), "podyd doctor"),
        (Fitness(unfit="/data/alice is not there"), "install -d -m 700 -o alice -g 1001"),
    ],
)
def test_one_that_is_not_says_who_does_what(fitness: Fitness, words: str) -> None:
    directories = FakeDirectories()
    directories.problems[OWN] = fitness
    with pytest.raises(Conflict, match=words) as refused:
        new(directories)
    assert refused.value.code == "directory_unfit"


def test_one_on_a_disk_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "LOOK_SECONDS", 0.01)
    directories = FakeDirectories()
    directories.hanging.add(OWN)
    with pytest.raises(Unavailable) as refused:
        new(directories)
    assert refused.value.code == "directory_hangs"
