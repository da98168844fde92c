"""Origin a process on a card is: one rule, whoever asks."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from podyd.accounting.usage import Usage
from podyd.config.current import Settings
from podyd.config.schema import Config
from podyd.gpus.activity import Activity
from podyd.gpus.attribution import GAP_SECONDS, HOST, Attributed, Attribution, Origin
from podyd.gpus.report import Report
from podyd.node.procs import InstanceCgroup, Process
from podyd.node.samples import Gpu, ProcessSample, Sample
from podyd.store.database import Database
from podyd.store.usage import UsageStore
from tests.unit.accounting.test_usage import instance
from tests.unit.node.fake import FakeNode, FakeSamples

PCI = "0000:41:00.0"
POD, NUMBERED, NAMESAKE, OF_HOST = 7, 8, 9, 10
CGROUPS: dict[int, InstanceCgroup | None] = {
    POD: ("podyd", "alice-main"),
    NUMBERED: ("podyd", "alice-main-1"),
    NAMESAKE: ("default", "alice-main"),
    OF_HOST: None,
}


def instance_of(cgroup: InstanceCgroup | None) -> InstanceCgroup | None:
    """As Cgroups has learnt it: liblxc had to number one."""
    return ("podyd", "bob-main") if cgroup == CGROUPS[NUMBERED] else cgroup


def sample(*pids: int, taken: float = 0.0, cgroups: Any = CGROUPS) -> Sample:
    processes = tuple(ProcessSample(pid, None, 0, cgroups.get(pid)) for pid in pids)
    return Sample(taken, "535", "12.2", (Gpu("GPU-1", PCI, "A100", processes=processes),))


def attribution() -> Attribution:
    return Attribution(FakeSamples(), project="podyd", instance_of=instance_of)


def origins(attribution: Attribution, sampled: Sample) -> dict[int, Origin]:
    seen: list[Attributed] = []
    attribution.subscribe(seen.append)
    attribution.sampled(sampled)
    return dict(seen[-1].origins)


def test_a_pod_the_host_and_another_projects_instance_of_the_same_name() -> None:
    by_pid = origins(attribution(), sample(*CGROUPS))
    assert by_pid == {
        POD: Origin("podyd", "alice-main", is_pod=True),
        NUMBERED: Origin("podyd", "bob-main", is_pod=True),
        NAMESAKE: Origin("default", "alice-main", is_pod=False),
        OF_HOST: HOST,
    }
    names = [by_pid[pid].name for pid in CGROUPS]
    assert names == ["alice-main", "bob-main", "default/alice-main", ""]


def test_of_one_that_ends_the_cgroup_is_known_and_of_another_with_its_pid_it_is_not() -> None:
    reused = attribution()
    origins(reused, sample(POD, taken=1.0))
    assert origins(reused, sample(POD, taken=2.0, cgroups={}))[POD].name == "alice-main"
    assert origins(reused, sample(POD, taken=3.0 + GAP_SECONDS, cgroups={}))[POD] == HOST
    origins(reused, sample(POD, taken=14.0))
    origins(reused, sample(taken=15.0))
    assert origins(reused, sample(POD, taken=16.0, cgroups={}))[POD] == HOST


def test_an_admins_instance_that_is_named_like_a_pod_is_taken_for_it_by_nobody(
    tmp_path: Path,
) -> None:
    async def whole() -> None:
        node, database = FakeNode(), Database(tmp_path / "db")
        node.processes.known[NAMESAKE] = Process(0, "python", 1000.0, 1)
        attributing = Attribution(node.samples, project="podyd", instance_of=instance_of)

        async def instances() -> list[Any]:
            return [instance("alice-main", "alice")]

        async def cpu_times() -> list[Any]:
            raise AssertionError

        usage = Usage(
            store=UsageStore(database),
            instances=instances,
            cpu_times=cpu_times,
            settings=Settings(Config()),
        )
        attributing.subscribe(usage.sampled)
        activity = Activity(attributing)
        for _ in range(2):
            node.samples.sampled(sample(NAMESAKE, taken=time.monotonic()))
        await usage.write()
        assert await usage.seconds("gpu", None, None) == {}
        assert activity.pods(PCI) == {"default/alice-main"}
        assert activity.pids(PCI, "alice-main") == []
        none: Any = None
        report = Report(
            server=none,
            node=node,
            activity=activity,
            attribution=attributing,
            scheduler=none,
            watch=none,
        )
        rows, _ = await report.gpu_processes(None, viewer="alice", sees_all=False)
        assert [row.pod for row in rows["0"]] == ["default/alice-main"]
        # And the pod itself is counted, and shown.
        for _ in range(2):
            node.samples.sampled(sample(POD, taken=time.monotonic()))
        await usage.write()
        assert list(await usage.seconds("gpu", None, None)) == ["alice"]
        assert activity.pids(PCI, "alice-main") == [POD]
        await database.close()

    asyncio.run(whole())
