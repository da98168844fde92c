"""Which pod a cgroup is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

import pytest

from podyd.base.errors import Gone
from podyd.engine.types import Instance, Status
from podyd.node.cgroups import Cgroups, InstanceCgroup

BEGAN = datetime(2026, 1, 1, tzinfo=timezone.utc)


def instance(name: str, started: datetime = BEGAN, status: Status = "running") -> Instance:
    return Instance(name, status, BEGAN, started, {}, {}, {}, {}, ())


class Rig:
    """LXD as the test says: instances, their first processes, and the cgroups of those."""

    def __init__(self) -> None:
        self.instances: list[Instance] = []
        self.first: dict[str, int] = {}
        self.cgroups: dict[int, str] = {}
        self.asked: list[str] = []
        self.names = Cgroups(
            "podyd",
            instances=self._all,
            first_process=self._first_process,
            cgroup_of=self._cgroup_of,
        )

    async def _all(self) -> list[Instance]:
        return self.instances

    async def _cgroup_of(self, pid: int) -> InstanceCgroup | None:
        return ("podyd", self.cgroups[pid]) if pid in self.cgroups else None

    async def _first_process(self, name: str) -> int:
        self.asked.append(name)
        if name not in self.first:
            raise Gone("Instance not found")
        return self.first[name]

    def run(self, cgroups: Mapping[str, str]) -> None:
        """The pods and the cgroups of their first processes."""
        for pid, (name, cgroup) in enumerate(
            cgroups.items(), start=max(self.cgroups, default=0) + 1
        ):
            self.first[name], self.cgroups[pid] = pid, cgroup
        asyncio.run(self._follow())

    async def _follow(self) -> None:
        self.names.changed()
        task = asyncio.ensure_future(self.names.follow())
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()

    def pod(self, cgroup: str) -> str:
        named = self.names.instance_of(("podyd", cgroup))
        assert named is not None
        assert named[0] == "podyd"
        return named[1]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_numbered_cgroup_is_not_the_pod_of_that_name(rig: Rig) -> None:
    rig.instances = [instance("a"), instance("a-1")]
    rig.run({"a": "a-1", "a-1": "a-1-1"})
    assert (rig.pod("a-1"), rig.pod("a-1-1"), rig.pod("other")) == ("a", "a-1", "other")
    assert rig.names.instance_of(("default", "a-1")) == ("default", "a-1")
    assert rig.names.instance_of(None) is None


def test_each_start_is_looked_at_once(rig: Rig) -> None:
    rig.instances = [instance("a"), instance("off", status="stopped")]
    rig.run({"a": "a-1"})
    rig.run({})
    assert rig.asked == ["a"]
    rig.instances = [instance("a", BEGAN + timedelta(hours=1))]
    rig.run({"a": "a"})
    assert rig.asked == ["a", "a"]
    assert (rig.pod("a"), rig.pod("a-1")) == ("a", "a-1")


def test_one_that_ends_meanwhile_hides_no_other(rig: Rig) -> None:
    rig.instances = [instance("gone"), instance("b")]
    rig.run({"b": "b-1"})
    assert rig.pod("b-1") == "b"
