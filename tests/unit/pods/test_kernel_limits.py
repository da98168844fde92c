"""What LXD does with limits late, or not at all, is waited for or brought about."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import cast

import pytest

from podyd.base.errors import Busy, TimedOut
from podyd.config.schema import Quota
from podyd.engine.types import Devices, Status
from podyd.model.member import Member
from podyd.model.pod import CPU_BEFORE, SWAP
from podyd.node.pod_limits import PodLimits
from podyd.pods import kernel_limits
from podyd.pods.disks import Disks
from podyd.pods.info import Info
from podyd.pods.kernel_limits import KernelLimits
from podyd.pods.limits import Limits
from podyd.pods.owned import Owned
from podyd.pods.quota import cpu_limit
from tests.unit.engine.fake import FakeEngine
from tests.unit.node.fake import FakeNode
from tests.unit.pods.test_power import POD

CPU, SWAP_KEY = "limits.cpu", "limits.memory.swap"
PID = 1000
NAME = "ann-main"
EIGHT = frozenset(range(8))


class Host:
    """LXD, which misses so many changes, on a host with 8 CPUs, of which a pod has `cpus`."""

    def __init__(self, config: dict[str, str], *, cpus: int = 8, misses: int = 0) -> None:
        self.lxd, self.node = FakeEngine(), FakeNode()
        self.lxd.add(replace(POD, config=config))
        self.node.processes.limits[PID] = PodLimits(cpus, EIGHT)
        self.limits = KernelLimits(
            instances=self.lxd.engine.instances, processes=self.node.processes
        )
        self.misses = misses
        # All values that the key had.
        self.said = [config.get(CPU)]
        self.lxd.checks.append(self._changed)

    def _changed(self) -> None:
        answer = self.config.get(CPU)
        if answer == self.said[-1]:
            return
        self.said.append(answer)
        if self.misses:
            self.misses -= 1
        else:
            self.set_cpus(min(8, cpu_limit(self.config)) if answer else 8)

    def set_cpus(self, cpus: int) -> None:
        self.node.processes.limits[PID] = PodLimits(cpus, EIGHT)

    @property
    def config(self) -> dict[str, str]:
        return dict(self.lxd.instance(NAME).config)

    def waits(self) -> bool:
        return asyncio.run(self.limits.cpus_set(NAME))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_limits, "MISSED_SECONDS", 0.005)
    monkeypatch.setattr(kernel_limits, "CPU_SECONDS", 2.0)


@pytest.mark.parametrize(
    ("limit", "cpus"), [("2", 2), ("16", 8), ("0-3", 4), ("6-9", 2), (None, 8)]
)
def test_cpus_that_are_there_are_not_waited_for(limit: str | None, cpus: int) -> None:
    host = Host({CPU: limit} if limit else {}, cpus=cpus)
    assert host.waits()
    assert host.lxd.done == []


def test_cpus_that_come_late_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_limits, "MISSED_SECONDS", 60.0)
    host = Host({CPU: "2"})

    async def wait() -> bool:
        waiting = asyncio.create_task(host.limits.cpus_set(NAME))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        host.set_cpus(2)
        return await waiting

    assert asyncio.run(wait())
    assert host.lxd.done == []


@pytest.mark.parametrize("limit", ["2", "0-3", None])
@pytest.mark.parametrize("misses", [0, 1, 4])
def test_a_change_that_lxd_has_missed_is_made_again(limit: str | None, misses: int) -> None:
    config = {"user.x": "y", **({CPU: limit} if limit else {})}
    host = Host(config, cpus=7, misses=misses)
    assert host.waits()
    assert host.config == config
    assert host.said[1] == f"0{limit or 8}"


def test_an_admin_who_changes_it_meanwhile_is_not_overruled() -> None:
    host = Host({CPU: "2"})

    def meddle() -> None:
        if host.said[-1] == "02":
            host.lxd.stored[NAME].config[CPU] = "3"
            host.set_cpus(3)

    host.lxd.checks.append(meddle)
    assert host.waits()
    assert host.config[CPU] == "3"


@pytest.mark.parametrize("own", [{CPU: "2"}, {}])
def test_a_limit_that_is_set_just_before_it_is_told_again_stays(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, str]
) -> None:
    monkeypatch.setattr(kernel_limits, "MISSED_SECONDS", 0.0)
    host = Host(own, cpus=7)
    look = host.node.processes.pod_limits

    asked = []

    async def another_request(pid: int) -> PodLimits | None:
        asked.append(pid)
        now = await look(pid)
        if len(asked) == 1:
            host.lxd.stored[NAME].config[CPU] = "4"
        return now

    monkeypatch.setattr(host.node.processes, "pod_limits", another_request)
    assert host.waits()
    assert host.config == {CPU: "4"}


@pytest.mark.parametrize("own", [{CPU: "2"}, {CPU: "0-3"}, {}])
def test_a_podyd_that_is_killed_meanwhile_leaves_no_limit_of_its_own(own: dict[str, str]) -> None:
    host = Host(own, cpus=7, misses=10_000)

    class Killed(BaseException):
        pass

    def kill() -> None:
        if host.config != own:
            raise Killed

    host.lxd.checks.append(kill)
    with pytest.raises(Killed):
        host.waits()
    assert host.config != own
    host.lxd.checks.remove(kill)
    asyncio.run(host.limits.before_start(host.lxd.instance(NAME)))
    assert host.config == own


def test_another_limit_is_no_longer_podyds_own() -> None:
    host = Host({**POD.config, CPU: "08", CPU_BEFORE: "none"})
    change(host, cpus=2)
    assert host.config == {**POD.config, CPU: "2"}


@pytest.mark.parametrize("refused", [False, True])
def test_cpus_that_never_come_are_given_up(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    monkeypatch.setattr(kernel_limits, "CPU_SECONDS", 0.05)
    host = Host({CPU: "2"}, misses=10_000)
    if refused:
        host.lxd.refuse("edit", Busy("busy", operation="update"), times=10_000)
    assert not host.waits()
    assert host.config[CPU] in ("2", "02")


def test_where_nobody_knows_nobody_waits() -> None:
    host = Host({CPU: "2"})
    host.node.processes.limits.clear()
    assert host.waits()


# --- What a member is told ------------------------------------------------------------------------


class Elsewhere:
    """The disk and the answer of /pod/limits, which are not the matter here."""

    @contextlib.asynccontextmanager
    async def resized(self, *of: object) -> AsyncIterator[Callable[[Devices], Devices]]:
        yield lambda own: own

    async def of(self, *of: object) -> None: ...


ALICE = Member("ann", False, Quota(), ("podyd-base",), 1000, 1000)


def change(host: Host, *, memory: int | None = None, cpus: int | None = None) -> None:
    elsewhere, engine = Elsewhere(), host.lxd.engine
    limits = Limits(
        instances=engine.instances,
        profiles=engine.profiles,
        owned=Owned(engine.instances),
        disks=cast(Disks, elsewhere),
        info=cast(Info, elsewhere),
        kernel=host.limits,
    )
    asyncio.run(limits.change(ALICE, "main", memory, cpus, None))


@pytest.mark.parametrize("status", ["running", "frozen"])
def test_cpus_that_do_not_come_are_told(monkeypatch: pytest.MonkeyPatch, status: Status) -> None:
    monkeypatch.setattr(kernel_limits, "CPU_SECONDS", 0.05)
    host = Host(dict(POD.config), misses=10_000)
    host.lxd.stored[NAME].status = status
    with pytest.raises(TimedOut) as error:
        change(host, cpus=2)
    assert (error.value.status, error.value.code) == (504, "limits_pending")
    assert host.config[CPU] in ("2", "02"), "it is set"


def test_cpus_of_a_pod_that_does_not_run_are_not_waited_for() -> None:
    host = Host(dict(POD.config), misses=10_000)
    host.lxd.stored[NAME].status = "stopped"
    change(host, cpus=2)
    assert host.config[CPU] == "2"


def test_a_new_limit_of_memory_takes_podyds_own_key_away() -> None:
    host = Host({**POD.config, SWAP_KEY: "false", SWAP: "true"})
    change(host, memory=2**30)
    assert host.config == {**POD.config, "limits.memory": str(2**30)}


def test_without_a_limit_of_memory_a_pod_may_swap_again() -> None:
    host = Host({**POD.config, "limits.memory": "1GiB"})
    host.node.processes.limits[PID] = PodLimits(8, EIGHT, is_unswappable=True)
    change(host, memory=-1)
    assert host.config == {**POD.config, SWAP_KEY: "false", SWAP: "true"}


# --- Swapping -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "is_unswappable", "is_set"),
    [
        ({}, True, True),
        # cgroup v1, or an LXD that does it right.
        ({}, False, False),
        ({"limits.memory": "1GiB"}, True, False),
        # An admin's own.
        ({SWAP_KEY: "true"}, True, False),
    ],
)
def test_what_has_no_limit_of_memory_may_be_swapped_again(
    config: dict[str, str], is_unswappable: bool, is_set: bool
) -> None:
    host = Host(config)
    host.node.processes.limits[PID] = PodLimits(8, EIGHT, is_unswappable)
    asyncio.run(host.limits.allow_swap(NAME))
    marks = {SWAP_KEY: "false", SWAP: "true"} if is_set else {}
    assert host.config == {**config, **marks}


@pytest.mark.parametrize("limit", ["limits.memory", SWAP_KEY])
def test_a_limit_that_comes_meanwhile_is_not_made_one_without_swapping(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    host = Host({})

    async def another_request(pid: int) -> PodLimits:
        host.lxd.stored[NAME].config[limit] = "1GiB"
        return PodLimits(8, EIGHT, is_unswappable=True)

    monkeypatch.setattr(host.node.processes, "pod_limits", another_request)
    asyncio.run(host.limits.allow_swap(NAME))
    assert host.config == {limit: "1GiB"}


@pytest.mark.parametrize(
    ("config", "left"),
    [({SWAP_KEY: "false", SWAP: "true"}, {}), ({SWAP_KEY: "false"}, {SWAP_KEY: "false"})],
)
def test_a_start_needs_no_such_key(config: dict[str, str], left: dict[str, str]) -> None:
    host = Host(config)
    asyncio.run(host.limits.before_start(host.lxd.instance(NAME)))
    assert host.config == left
