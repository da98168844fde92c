"""The loads of running pods, from what the kernel counts."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone

from podyd.engine.types import Instance
from podyd.node.cgroups import Cgroups, InstanceCgroup
from podyd.node.pod_loads import PodLoad
from podyd.pods.loads import Load, Loads
from tests.unit.node.fake import FakeLoads

BEGAN = datetime(2026, 1, 1, tzinfo=timezone.utc)
MIB = 1024**2


class Rig:
    """Pods with their first processes, and what the kernel has counted of them."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.now = 100.0
        self.kernel = FakeLoads()
        self.cgroups = Cgroups(
            "podyd",
            instances=self._instances,
            first_process=self._first_process,
            cgroup_of=self._cgroup_of,
        )
        self.loads = Loads(cgroups=self.cgroups, counters=self.kernel, clock=lambda: self.now)

    async def _instances(self) -> list[Instance]:
        return [
            Instance(name, "running", BEGAN, BEGAN.replace(second=pid), {}, {}, {}, {}, ())
            for name, pid in self.pids.items()
        ]

    async def _first_process(self, name: str) -> int:
        return self.pids[name]

    async def _cgroup_of(self, pid: int) -> InstanceCgroup | None:
        return next(("podyd", name) for name, its in self.pids.items() if its == pid)

    async def run(self, **pids: int) -> None:
        """These pods run, with these first processes."""
        self.pids = pids
        self.cgroups.changed()
        following = asyncio.ensure_future(self.cgroups.follow())
        for _ in range(10):
            await asyncio.sleep(0)
        following.cancel()

    def counted(self, pid: int, name: str, cpu: float | None, memory: int | None = MIB) -> None:
        self.kernel.known[pid] = PodLoad(("podyd", name), cpu, memory)

    async def read(self, after: float = 2.0) -> dict[str, Load]:
        self.now += after
        return await self.loads.read()


def test_cpus_in_use_are_those_since_the_last_reading() -> None:
    async def whole() -> None:
        rig = Rig()
        await rig.run(a=1, b=2)
        rig.counted(1, "a", 1000.0, 5 * MIB)
        rig.counted(2, "b", None, None)
        assert await rig.read() == {"a": Load(None, 5 * MIB), "b": Load(None, None)}
        rig.counted(1, "a", 1005.0, 6 * MIB)
        assert await rig.read() == {"a": Load(2.5, 6 * MIB), "b": Load(None, None)}
        assert (await rig.read())["a"].cpu == 0.0
        assert rig.kernel.asked == 3, "all pods are read at once"

    asyncio.run(whole())


def test_a_pod_that_was_started_anew_begins_again() -> None:
    async def whole() -> None:
        rig = Rig()
        await rig.run(a=1)
        rig.counted(1, "a", 50.0)
        await rig.read()
        await rig.run(a=3)
        rig.counted(3, "a", 60.0)
        assert (await rig.read())["a"].cpu is None
        rig.counted(3, "a", 62.0)
        assert (await rig.read())["a"].cpu == 1.0

    asyncio.run(whole())


def test_a_pid_that_is_another_pods_by_now_does_not_count() -> None:
    async def whole() -> None:
        rig = Rig()
        await rig.run(a=1, b=2)
        rig.counted(1, "b", 5.0)
        assert await rig.read() == {}

    asyncio.run(whole())
