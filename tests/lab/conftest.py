"""A cluster of three members, an own one of $PODYD_TEST_ENGINE."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import lab
from tests.lab.cluster import Cluster, Member


def traces() -> dict[str, object]:
    """All that a cluster makes on the machine, outside the directories that go with it."""
    return {
        "links": sorted(name for name in os.listdir("/sys/class/net") if name.startswith("podydc")),
        "mounts": [point for point, _ in lab.mounts() if "podyd-cluster" in point],
        "cgroups": [str(path) for path in lab.CGROUPS.glob("**/podyd-cluster*")],
        "files": [str(path) for path in Path("/var/cache").glob("podyd-cluster*")],
        "loops": [
            path.read_text()
            for path in Path("/sys/block").glob("loop*/loop/backing_file")
            if "podyd-cluster" in path.read_text()
        ],
        "processes": [
            name
            for name in os.listdir("/proc")
            if name.isdigit() and lab.in_cluster(int(name)) and lab.is_alive(int(name))
        ],
    }


@pytest.fixture(scope="module")
def before() -> dict[str, object]:
    if os.geteuid() != 0:
        pytest.skip("a cluster needs root")
    Cluster(lab.ENGINE).down()
    return traces()


@pytest.fixture(scope="module")
def cluster(before: dict[str, object]) -> Iterator[Cluster]:
    cluster = Cluster(lab.ENGINE)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def first(cluster: Cluster) -> Member:
    """It leads when all have just begun."""
    return cluster.members[0]


@pytest.fixture
def third(cluster: Cluster) -> Iterator[Member]:
    """The one whose faults are tried: in the end it is whole again."""
    member = cluster.members[2]
    yield member
    mend(member)
    cluster.wait()


def mend(member: Member) -> None:
    """Whatever it lacks."""
    if member.first_process() is None:
        member.power_on()
    elif member.listens():
        member.resume()
    else:
        member.start()
    member.mend()
