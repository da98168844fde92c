"""Hosts on which a test makes things so: the real one, and the one in memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import cached_property
from pathlib import Path

import pytest

import podyd
from podyd.node.directories import Directory, Fitness
from podyd.node.interface import Node
from podyd.node.local import LocalNode
from podyd.node.pod_sockets import ListeningSocket, PodSockets
from podyd.node.procs import Process
from podyd.node.samples import Gpu, ProcessSample, Sample
from podyd.node.sockdiag import SocketAddress
from podyd.node.telemetry import Timing
from tests.lab.nvml import GIB, FakeDriver, FakeNvml, FakeProcess
from tests.unit.node.fake import FakeNode

NO_PID = 2**22 + 1  # More than the kernel gives, proc(5).
NO_UID = 987_654_321
SECONDS = 20.0


class World(ABC):
    """A host that is closed at the end."""

    node: Node

    @abstractmethod
    def asked(self) -> AbstractAsyncContextManager[None]:
        """NVML is asked for as long."""

    @abstractmethod
    def hold(self, pid: int | None) -> None:
        """A process is on the first of the host's two cards; None for nobody."""

    @abstractmethod
    def nvml_fails(self) -> None: ...

    @abstractmethod
    def driver_goes(self) -> None: ...

    @abstractmethod
    def process(self) -> AbstractContextManager[int]:
        """The pid of a `sleep 60` of the account that runs the tests."""

    @abstractmethod
    def listening(self) -> AbstractContextManager[tuple[int, int]]:
        """Something listens on 127.0.0.1: the pid of who does, and the port."""

    @abstractmethod
    def connected(self) -> AbstractContextManager[tuple[SocketAddress, SocketAddress]]:
        """A connection of the account that runs the tests."""

    @abstractmethod
    def close(self, ends: tuple[SocketAddress, SocketAddress]) -> None:
        """Who has the first end closes it."""

    @abstractmethod
    def relaying(self) -> AbstractContextManager[None]:
        """`podyd ports` runs as long, of this version."""

    @abstractmethod
    def unfit(self) -> tuple[Directory, Directory]:
        """A directory that is not there, and one where all may write to what is above it."""


class LocalWorld(World):
    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = directory / "ports" / "ports.sock"
        self._directory = directory
        self._monkeypatch = monkeypatch
        self._clients: dict[SocketAddress, socket.socket] = {}
        self.local = LocalNode(
            cards_socket=lambda: str(self._directory / "no cards"),
            ports_socket=lambda: str(self._path),
            timing=Timing(silent=SECONDS, absent_retry=0.1, retry=0.1, stale=SECONDS),
        )
        self.node: Node = self.local

    @cached_property
    def _driver(self) -> FakeDriver:
        driver = FakeDriver(self._directory / "nvidia")
        for key, value in driver.environment.items():
            self._monkeypatch.setenv(key, value)
        return driver

    @contextlib.asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        assert self._driver.file.parent.exists()
        self._driver
        task = asyncio.create_task(self.local.samples.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def hold(self, pid: int | None) -> None:
        state = FakeNvml()
        self._driver.write(state if pid is None else state.holding(0, FakeProcess(pid, GIB)))

    def nvml_fails(self) -> None:
        self._driver.write(FakeNvml(init_fails=999))

    def driver_goes(self) -> None:
        self._driver.file.unlink()

    @contextlib.contextmanager
    def process(self) -> Iterator[int]:
        with subprocess.Popen(["sleep", "60"]) as child:
            # For a moment it is not that program yet.
            end = time.monotonic() + SECONDS
            while b"sleep" not in Path(f"/proc/{child.pid}/cmdline").read_bytes():
                assert time.monotonic() < end
            try:
                yield child.pid
            finally:
                child.kill()

    @contextlib.contextmanager
    def listening(self) -> Iterator[tuple[int, int]]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield os.getpid(), server.getsockname()[1]

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[SocketAddress, SocketAddress]]:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as client,
        ):
            accepted, _ = server.accept()
            with accepted:
                end = SocketAddress.of(accepted.getpeername())
                self._clients[end] = client
                yield end, SocketAddress.of(accepted.getsockname())

    def close(self, ends: tuple[SocketAddress, SocketAddress]) -> None:
        self._clients[ends[0]].close()

    @contextlib.contextmanager
    def relaying(self) -> Iterator[None]:
        program = Path(podyd.__file__).parent / "node/relay.py"
        command = [sys.executable, "-IS", str(program), str(self._path), podyd.__version__]
        with subprocess.Popen(command) as child:
            end = time.monotonic() + SECONDS
            with socket.socket(socket.AF_UNIX) as probe:
                while probe.connect_ex(str(self._path)):
                    assert time.monotonic() < end
                    time.sleep(0.01)
            try:
                yield
            finally:
                child.kill()

    def unfit(self) -> tuple[Directory, Directory]:
        everybodys = self._directory / "everybodys"
        everybodys.mkdir()
        everybodys.chmod(0o777)
        return (
            Directory(Path("/podyd-tests-nobody"), "podyd-tests-nobody", 1000, 1000),
            Directory(everybodys / "alice", "alice", 1000, 1000),
        )


class FakeWorld(World):
    def __init__(self) -> None:
        self.fake = FakeNode()
        self.fake.accounts.names[os.getuid()] = pwd.getpwuid(os.getuid()).pw_name
        self.node: Node = self.fake
        self._state: Sample | tuple[str, bool] = _sample(None)

    @contextlib.asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        async def answer() -> None:
            while True:
                if isinstance(self._state, Sample):
                    self.fake.samples.sampled(self._state)
                else:
                    problem, absent = self._state
                    self.fake.samples.failed(problem, absent=absent)
                await asyncio.sleep(0)

        task = asyncio.create_task(answer())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def hold(self, pid: int | None) -> None:
        self._state = _sample(pid)

    def nvml_fails(self) -> None:
        self._state = "Unknown Error", False

    def driver_goes(self) -> None:
        self._state = "Driver Not Loaded", True

    @contextlib.contextmanager
    def process(self) -> Iterator[int]:
        self.fake.processes.known[7] = Process(os.geteuid(), "sleep 60", 1.0, 1024**2)
        yield 7
        del self.fake.processes.known[7]

    @contextlib.contextmanager
    def listening(self) -> Iterator[tuple[int, int]]:
        sockets = self.fake.sockets
        sockets.listening.add(8080)
        sockets.pods[8] = PodSockets(None, frozenset({ListeningSocket(8080, "127.0.0.1")}))
        yield 8, 8080
        sockets.listening.remove(8080)
        sockets.pods[8] = PodSockets(None, frozenset())

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[SocketAddress, SocketAddress]]:
        ends = SocketAddress("127.0.0.1", 40000), SocketAddress("127.0.0.1", 8799)
        self.fake.sockets.owners[ends] = os.getuid()
        yield ends

    def close(self, ends: tuple[SocketAddress, SocketAddress]) -> None:
        self.fake.sockets.closed.add(ends)

    @contextlib.contextmanager
    def relaying(self) -> Iterator[None]:
        self.fake.relays.begin(podyd.__version__)
        # Those of processes that listen are taken.
        self.fake.relays.taken = self.fake.sockets.listening
        yield
        self.fake.relays.end()

    def unfit(self) -> tuple[Directory, Directory]:
        missing = Directory(Path("/data/alice"), "alice", 1000, 1000)
        open_one = Directory(Path("/open/alice"), "alice", 1000, 1000)
        self.fake.directories.problems = {
            missing: Fitness(unfit="/data/alice is not there"),
            open_one: Fitness(unsafe="others than root may write to /open"),
        }
        return missing, open_one


def _sample(pid: int | None) -> Sample:
    held = () if pid is None else (ProcessSample(pid, GIB, 0),)
    cards = (
        Gpu("GPU-0", "0000:41:00.0", "A100", processes=held),
        Gpu("GPU-1", "0000:c1:00.0", "A100"),
    )
    return Sample(time.monotonic(), "535.183.01", "12.2", cards)
