"""Who sees what of the processes on the cards, on a host that a test makes up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from podyd.base.errors import BadRequest, Unavailable
from podyd.contract.host import GpuProcess
from podyd.gpus.activity import Activity
from podyd.gpus.report import Report
from podyd.node.procs import Process
from podyd.node.samples import Gpu, ProcessSample, Sample
from tests.unit.gpus.attributing import attribution
from tests.unit.node.fake import FakeNode

POD, FOREIGN, ALICES, BOBS, GONE, HIDDEN = range(11, 17)
CGROUPS = {POD: ("podyd", "alice-main"), FOREIGN: ("default", "alice-main")}
UIDS = {POD: 100_000, FOREIGN: 200_000, ALICES: 1000, BOBS: 1001, HIDDEN: None}


def node() -> FakeNode:
    fake = FakeNode()
    fake.accounts.names = {1000: "alice", 1001: "bob"}
    fake.processes.known = {pid: Process(uid, f"run {pid}", 1e9, 1) for pid, uid in UIDS.items()}
    return fake


def sample() -> Sample:
    processes = tuple(
        ProcessSample(pid, None, 0, CGROUPS.get(pid)) for pid in range(POD, HIDDEN + 1)
    )
    return Sample(0.0, "535", "12.2", (Gpu("GPU-1", "0000:41:00.0", "A", processes=processes),))


def report_of(fake: FakeNode) -> Report:
    attributing = attribution(fake.samples)
    none: Any = None
    return Report(
        server=none,
        node=fake,
        activity=Activity(attributing),
        attribution=attributing,
        scheduler=none,
        watch=none,
    )


def rows(*, viewer: str, sees_all: bool) -> dict[int, GpuProcess]:
    async def whole() -> dict[int, GpuProcess]:
        fake = node()
        report = report_of(fake)
        fake.samples.sampled(sample())
        by_card, _ = await report.gpu_processes(None, viewer=viewer, sees_all=sees_all)
        return {row.pid: row for row in by_card["0"]}

    return asyncio.run(whole())


@pytest.mark.parametrize(
    ("viewer", "sees_all", "alices", "bobs"),
    [
        ("alice", False, f"run {ALICES}", "bob"),
        ("bob", False, "alice", f"run {BOBS}"),
        ("root", True, f"run {ALICES}", f"run {BOBS}"),
    ],
)
def test_what_runs_on_the_host_itself_is_its_owners_and_the_admins_to_see(
    viewer: str, sees_all: bool, alices: str, bobs: str
) -> None:
    shown = rows(viewer=viewer, sees_all=sees_all)
    assert {pid: (row.pod, row.cmd) for pid, row in shown.items()} == {
        POD: ("alice-main", f"run {POD}"),
        FOREIGN: ("default/alice-main", f"run {FOREIGN}"),
        ALICES: ("", alices),
        BOBS: ("", bobs),
        # The kernel does not say whose it is.
        HIDDEN: ("", f"run {HIDDEN}"),
    }


def test_a_host_without_a_driver_has_no_cards_and_one_that_fails_says_why() -> None:
    async def whole() -> None:
        fake = node()
        report = report_of(fake)
        fake.samples.failed("Driver Not Loaded", absent=True)
        assert await report.gpu_processes(None, viewer="alice", sees_all=False) == ({}, 0.0)
        with pytest.raises(BadRequest, match="there is none"):
            await report.gpu_processes([0], viewer="alice", sees_all=False)
        fake.samples.sampled(sample())
        fake.samples.failed("NVML hangs")
        by_card, age = await report.gpu_processes([0], viewer="alice", sees_all=False)
        assert len(by_card["0"]) == len(UIDS)
        assert age > 0
        fake.samples.is_old = True
        with pytest.raises(Unavailable, match="NVML hangs"):
            await report.gpu_processes(None, viewer="alice", sees_all=False)

    asyncio.run(whole())
