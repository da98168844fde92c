"""What a host answers, the same of the real one and of the one in memory.

The real one is this machine, with a `podyd ports` of the test's own, and NVML on a driver of the
tests' own. What only a pod's processes and a pod's network card show is in the integration
tests (test_nvidia.py, test_ports.py).
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from podyd.base.errors import Unavailable
from podyd.node.interface import Node
from podyd.node.samples import Sample
from tests.unit.node.worlds import NO_PID, NO_UID, SECONDS, FakeWorld, LocalWorld, World


@pytest.fixture(params=["local", "fake"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    local = LocalWorld(tmp_path, monkeypatch)
    yield local
    local.local.close()


def play(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), SECONDS))


async def sampled(node: Node, wanted: Callable[[Sample], bool]) -> Sample:
    """The first sample from now on that is as wanted."""
    first: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
    node.samples.subscribe(
        lambda sample: first.set_result(sample) if wanted(sample) and not first.done() else None
    )
    return await first


async def until(condition: Callable[[], bool]) -> None:
    """Soon; `play` ends what never comes."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


# --- Cards --------------------------------------------------------------------------------------


def test_samples_say_who_is_on_which_card(world: World) -> None:
    async def whole() -> None:
        samples = world.node.samples
        assert (samples.latest, samples.current, samples.problem) == (None, None, None)
        with world.process() as pid:
            world.hold(pid)
            async with world.asked():
                await samples.first(SECONDS)
                assert samples.latest is not None
                assert samples.latest is samples.current
                assert (samples.problem, samples.absent) == (None, False)
                first, second = samples.latest.gpus
                assert [process.pid for process in first.processes] == [pid]
                assert first.processes[0].cgroup is None, "it is the host's"
                assert second.processes == ()
                world.hold(None)
                without = await sampled(world.node, lambda sample: not sample.gpus[0].processes)
                assert [gpu.pci for gpu in without.gpus] == [first.pci, second.pci]
                assert samples.latest is not None
                assert samples.latest.taken >= without.taken

    play(whole)


def test_nvml_that_fails_says_why_and_what_was_known_stays(world: World) -> None:
    async def whole() -> None:
        samples = world.node.samples
        async with world.asked():
            await samples.first(SECONDS)
        assert samples.latest is not None
        world.nvml_fails()
        async with world.asked():
            await until(lambda: samples.problem is not None)
            assert not samples.absent
            assert samples.latest is not None
            world.driver_goes()
            await until(lambda: samples.absent)
            assert samples.problem is not None
            assert samples.latest is samples.current is None
            world.hold(None)
            await sampled(world.node, lambda _: True)
            assert (samples.problem, samples.absent) == (None, False)

    play(whole)


def test_a_host_without_a_driver_is_told_apart_from_one_that_has_not_answered(
    world: World,
) -> None:
    async def whole() -> None:
        samples = world.node.samples
        await samples.first(0.01)
        assert (samples.absent, samples.problem) == (False, None)
        world.driver_goes()
        async with world.asked():
            await samples.first(SECONDS)
            assert samples.absent

    play(whole)


# --- Processes ----------------------------------------------------------------------------------


def test_a_process_and_none_that_has_ended(world: World) -> None:
    async def whole() -> None:
        with world.process() as pid:
            processes = await world.node.processes.processes([pid, NO_PID])
            assert list(processes) == [pid]
            process = processes[pid]
            assert (process.uid, process.cmd) == (os.geteuid(), "sleep 60")
            assert process.uptime is not None
            assert 0 <= process.uptime < 60
            assert process.memory_used
            assert await world.node.processes.cgroup_of(pid) is None, "it is the host's"
            assert await world.node.processes.pod_limits(pid) is None
        assert await world.node.processes.processes([pid]) == {}
        assert await world.node.processes.cgroup_of(pid) is None

    play(whole)


# --- Sockets ------------------------------------------------------------------------------------


def test_what_listens_on_the_host_and_where_a_process_is(world: World) -> None:
    async def whole() -> None:
        sockets = world.node.sockets
        with world.listening() as (pid, port):
            assert port in await sockets.listening_ports()
            of_pod = await sockets.pod_sockets(pid)
            assert (port, "127.0.0.1") in of_pod.listening
            assert of_pod.cgroup is None, "it is no pod's"
        assert port not in await sockets.listening_ports()
        assert (port, "127.0.0.1") not in (await sockets.pod_sockets(pid)).listening
        with pytest.raises(OSError, match=str(NO_PID)):
            await sockets.pod_sockets(NO_PID)

    play(whole)


def test_whose_a_connection_is_until_it_is_closed(world: World) -> None:
    async def whole() -> None:
        sockets = world.node.sockets
        with world.connected() as ends:
            assert await sockets.owner_of(*ends) == os.getuid()
            world.close(ends)
            with pytest.raises(ConnectionError):
                await sockets.owner_of(*ends)

    play(whole)


def test_a_process_in_no_pod_is_no_load(world: World) -> None:
    async def whole() -> None:
        assert await world.node.loads.of([os.getpid(), NO_PID]) == {}

    play(whole)


# --- Neighbours ---------------------------------------------------------------------------------


def test_neighbours_are_asked_and_nothing_fails(world: World) -> None:
    async def whole() -> None:
        neighbours = world.node.neighbours
        await neighbours.probe("no-such0", ["192.0.2.7"])
        await neighbours.probe("lo", [])
        for nic, addresses in (await neighbours.heard()).items():
            assert nic.hardware == nic.hardware.lower()
            assert addresses

    play(whole)


# --- The relay ----------------------------------------------------------------------------------


def test_a_relay_says_what_it_refuses_and_when_it_ends(world: World) -> None:
    async def whole() -> None:
        with pytest.raises(Unavailable):
            async with world.node.relays.relay():
                pass
        with world.listening() as (_, port), world.relaying():
            async with world.node.relays.relay() as relay:
                answer = await relay.put({})
                assert (answer.refused, answer.is_old) == ({}, False)
                answer = await relay.put({port: None})
                assert answer.refused == {port: "Address already in use"}
                assert not relay.gone.done()
        with world.relaying():
            relays = world.node.relays.relay()
            relay = await relays.__aenter__()
        await asyncio.wait({relay.gone})
        with pytest.raises(Unavailable):
            await relay.put({})
        await relays.__aexit__(None, None, None)

    play(whole)


# --- Directories, accounts and facts ------------------------------------------------------------


def test_why_a_directory_cannot_be_its_owners_own(world: World) -> None:
    async def whole() -> None:
        missing, everybodys = world.unfit()
        fitness = await world.node.directories.fitness(missing)
        assert not fitness.unsafe
        assert "is not there" in fitness.unfit
        fitness = await world.node.directories.fitness(everybodys)
        assert fitness.unsafe
        assert not fitness.unfit, "nobody looks there"

    play(whole)


def test_the_names_of_accounts(world: World) -> None:
    async def whole() -> None:
        accounts = world.node.accounts
        assert await accounts.name_of(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name
        assert await accounts.name_of(NO_UID) == f"uid {NO_UID}"

    play(whole)


def test_facts(world: World) -> None:
    assert world.node.facts.name
    assert world.node.facts.kernel[0].isdigit()
    assert world.node.facts.memory_bytes > 1024**2
