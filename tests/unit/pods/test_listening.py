"""What listens in a pod, of a kernel and an engine that a test makes up."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from podyd.base.errors import Conflict, Unavailable
from podyd.contract.pods import ListeningPort
from podyd.engine.interface import Instances
from podyd.model.pod import Pod
from podyd.network.ports import Ports
from podyd.node.cgroups import Cgroups
from podyd.node.pod_sockets import ListeningSocket, PodSockets
from podyd.node.procs import InstanceCgroup
from podyd.pods.listening import Listening
from tests.unit.accounting.test_usage import instance
from tests.unit.node.fake import FakeSockets

PID = 7
POD = Pod("alice", "main", instance("alice-main", "alice"))
FOUND = frozenset({ListeningSocket(8080, "127.0.0.1"), ListeningSocket(22, "::")})


class Engine:
    """Has one pod that runs."""

    async def first_process(self, name: str) -> int:
        return PID


class HostPorts(Ports):
    """One leads to its port 22."""

    def __init__(self) -> None:
        pass

    async def of(self, pod: Pod) -> dict[int, int]:
        return {20001: 22}


class Names(Cgroups):
    """Each cgroup bears its instance's own name."""

    def __init__(self) -> None:
        pass

    def instance_of(self, cgroup: InstanceCgroup | None) -> InstanceCgroup | None:
        return cgroup


def listeners(sockets: FakeSockets) -> Listening:
    return Listening(
        project="podyd",
        instances=cast(Instances, Engine()),
        ports=HostPorts(),
        cgroups=Names(),
        sockets=sockets,
    )


def asked(cgroup: InstanceCgroup | None, pod: Pod = POD) -> list[ListeningPort]:
    sockets = FakeSockets()
    sockets.pods[PID] = PodSockets(cgroup, FOUND)
    return asyncio.run(listeners(sockets).of(pod))


def test_each_with_the_port_of_the_host_that_leads_there() -> None:
    assert asked(("podyd", "alice-main")) == [
        ListeningPort(22, "::", "tcp", 20001),
        ListeningPort(8080, "127.0.0.1", "tcp", None),
    ]


@pytest.mark.parametrize("cgroup", [None, ("podyd", "bob-main"), ("default", "alice-main")])
def test_nothing_of_another_process_that_has_the_number_by_now(
    cgroup: InstanceCgroup | None,
) -> None:
    with pytest.raises(Unavailable, match="ProcessLookupError") as refused:
        asked(cgroup)
    assert refused.value.code == "listeners_unknown"


def test_a_kernel_that_does_not_tell() -> None:
    sockets = FakeSockets()
    sockets.fails = PermissionError()
    with pytest.raises(Unavailable, match="PermissionError") as refused:
        asyncio.run(listeners(sockets).of(POD))
    assert refused.value.code == "listeners_unknown"


def test_a_pod_that_does_not_run_is_not_asked() -> None:
    with pytest.raises(Conflict) as refused:
        asked(None, replace(POD, instance=replace(POD.instance, status="stopped")))
    assert refused.value.code == "pod_not_running"
