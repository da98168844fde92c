"""A fake host in memory, which tests configure; test_contract.py compares it with the real one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from podyd.base.errors import Unavailable
from podyd.base.tasks import came
from podyd.node.arp import Nic
from podyd.node.card_access import Enforcement, Holder, Permissions
from podyd.node.directories import Directory, Fitness
from podyd.node.facts import Facts
from podyd.node.pod_limits import PodLimits
from podyd.node.pod_loads import PodLoad
from podyd.node.pod_sockets import PodSockets
from podyd.node.procs import InstanceCgroup, Process
from podyd.node.relay_client import RelayAnswer, Table
from podyd.node.samples import Sample
from podyd.node.sockdiag import SocketAddress


class FakeNode:
    """A host without processes and without NVIDIA's driver, unless the test sets them."""

    def __init__(self) -> None:
        self.facts = Facts(name="gpu1", kernel="6.1.0-9-amd64", memory_bytes=64 * 1024**3)
        self.samples = FakeSamples()
        self.processes = FakeProcesses()
        self.loads = FakeLoads()
        self.sockets = FakeSockets()
        self.neighbours = FakeNeighbours()
        self.relays = FakeRelays()
        self.card_accesses = FakeCardAccesses()
        self.directories = FakeDirectories()
        self.accounts = FakeAccounts()


class FakeSamples:
    """NVML answers when a test calls `sampled` or `failed`; `is_old` marks the last sample old."""

    def __init__(self) -> None:
        self.latest: Sample | None = None
        self.problem: str | None = None
        self.absent = False
        self.is_old = False
        self._first = asyncio.Event()
        self._subscribers: list[Callable[[Sample], None]] = []

    @property
    def current(self) -> Sample | None:
        return None if self.is_old else self.latest

    async def first(self, timeout: float) -> None:
        await came(self._first, timeout)

    def subscribe(self, subscriber: Callable[[Sample], None]) -> None:
        self._subscribers.append(subscriber)

    def sampled(self, sample: Sample) -> None:
        self.latest, self.problem, self.absent, self.is_old = sample, None, False, False
        self._first.set()
        for subscriber in self._subscribers:
            subscriber(sample)

    def failed(self, problem: str, *, absent: bool = False) -> None:
        self.problem, self.absent = problem, absent
        if absent:
            self.latest = None
        self._first.set()


class FakeProcesses:
    """The processes in `known`, with their LXC cgroups in `cgroups` and their pids in pods in
    `inner`, and pods' limits by the pid of a process in each."""

    def __init__(self) -> None:
        self.known: dict[int, Process] = {}
        self.cgroups: dict[int, InstanceCgroup] = {}
        self.inner: dict[int, int] = {}
        self.limits: dict[int, PodLimits] = {}

    async def processes(self, pids: Iterable[int]) -> dict[int, Process]:
        return {pid: self.known[pid] for pid in pids if pid in self.known}

    async def cgroup_of(self, pid: int) -> InstanceCgroup | None:
        return self.cgroups.get(pid)

    async def pids_in_pod(self, pids: Iterable[int]) -> dict[int, int]:
        return {pid: self.inner[pid] for pid in pids if pid in self.inner}

    async def pod_limits(self, pid: int) -> PodLimits | None:
        return self.limits.get(pid)


class FakeLoads:
    """The loads of pods by the pid of a process in each; `asked` counts the calls."""

    def __init__(self) -> None:
        self.known: dict[int, PodLoad] = {}
        self.asked = 0

    async def of(self, pids: Iterable[int]) -> dict[int, PodLoad]:
        self.asked += 1
        return {pid: self.known[pid] for pid in pids if pid in self.known}


class FakeSockets:
    """`listening` are the host's ports, `pods` those of pods by the pid of a process in each,
    `owners` the owners by a connection's two ends, `closed` the closed connections. `fails` is
    raised by all methods, if set."""

    def __init__(self) -> None:
        self.listening: set[int] = set()
        self.pods: dict[int, PodSockets] = {}
        self.owners: dict[tuple[SocketAddress, SocketAddress], int] = {}
        self.closed: set[tuple[SocketAddress, SocketAddress]] = set()
        self.fails: OSError | None = None

    def _check(self) -> None:
        if self.fails is not None:
            raise self.fails

    async def listening_ports(self) -> frozenset[int]:
        self._check()
        return frozenset(self.listening)

    async def pod_sockets(self, pid: int) -> PodSockets:
        self._check()
        if pid not in self.pods:
            raise FileNotFoundError(pid)
        return self.pods[pid]

    async def owner_of(self, end: SocketAddress, other: SocketAddress) -> int | None:
        self._check()
        if (end, other) in self.closed:
            raise ConnectionResetError("closed")
        return self.owners.get((end, other))


class FakeNeighbours:
    """`known` is the kernel's table, `asked` the requests: the interface, and the address."""

    def __init__(self, known: Mapping[Nic, frozenset[str]] | None = None) -> None:
        self.known = dict(known or {})
        self.asked: set[tuple[str, str]] = set()

    async def heard(self) -> Mapping[Nic, frozenset[str]]:
        return dict(self.known)

    async def probe(self, interface: str, addresses: Iterable[str]) -> None:
        self.asked |= {(interface, address) for address in addresses}


class FakeRelays:
    """A relay that runs from `begin` to `end`; the ports in `taken` belong to another process."""

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.table: dict[int, tuple[str, int] | None] = {}
        self._version: str | None = None
        self._gone: list[asyncio.Future[Any]] = []

    def begin(self, version: str) -> None:
        self._version, self.table = version, {}

    def end(self) -> None:
        self._version = None
        for future in self._gone:
            future.set_result(b"")
        self._gone = []

    @contextlib.asynccontextmanager
    async def relay(self) -> AsyncIterator[_FakeRelay]:
        if self._version is None:
            raise Unavailable("'podyd ports' does not answer", code="ports_unreachable")
        relay = _FakeRelay(self, self._version)
        self._gone.append(relay.gone)
        try:
            yield relay
        finally:
            if relay.gone in self._gone:
                self._gone.remove(relay.gone)
            relay.gone.cancel()


class _FakeRelay:
    def __init__(self, relays: FakeRelays, version: str) -> None:
        self._relays = relays
        self._version = version
        self.gone: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def put(self, table: Table) -> RelayAnswer:
        if self.gone.done():
            raise Unavailable("'podyd ports' does not answer", code="ports_unreachable")
        taken = self._relays.taken
        self._relays.table = {port: to for port, to in table.items() if port not in taken}
        refused = dict.fromkeys(sorted(table.keys() & taken), "Address already in use")
        return RelayAnswer(refused, self._version)


class FakeCardAccesses:
    """A helper that runs until `end`, and again from `begin` on. `permissions` is the last table,
    `held` who has cards open, `ended` the processes that were signalled, with whether they were to
    be killed; `stubborn` are the pids that go on after SIGTERM, `immortal` those after SIGKILL."""

    def __init__(self) -> None:
        self.way, self.problem = "bpf", ""
        self.permissions: dict[str, frozenset[str]] = {}
        self.held: list[Holder] = []
        self.ended: list[tuple[Holder, bool]] = []
        self.stubborn: set[int] = set()
        self.immortal: set[int] = set()
        self._is_there = True
        self._gone: list[asyncio.Future[Any]] = []

    def begin(self) -> None:
        self._is_there = True

    def end(self) -> None:
        self._is_there = False
        for future in self._gone:
            future.set_result(b"")
        self._gone = []

    @contextlib.asynccontextmanager
    async def card_access(self) -> AsyncIterator[_FakeCardAccess]:
        if not self._is_there:
            raise _no_card_access()
        access = _FakeCardAccess(self)
        self._gone.append(access.gone)
        try:
            yield access
        finally:
            if access.gone in self._gone:
                self._gone.remove(access.gone)
            access.gone.cancel()


def _no_card_access() -> Unavailable:
    return Unavailable("'podyd cards' does not answer", code="cards_unreachable")


class _FakeCardAccess:
    def __init__(self, helper: FakeCardAccesses) -> None:
        self._helper = helper
        self.gone: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def _check(self) -> None:
        if self.gone.done():
            raise _no_card_access()

    async def permit(self, permissions: Permissions) -> Enforcement:
        self._check()
        self._helper.permissions = dict(permissions)
        return Enforcement(self._helper.way, self._helper.problem)

    async def holders(self) -> tuple[Holder, ...]:
        self._check()
        return tuple(self._helper.held)

    async def end(self, holders: Iterable[Holder], *, kill: bool) -> None:
        self._check()
        helper = self._helper
        survivors = helper.immortal if kill else helper.immortal | helper.stubborn
        for holder in set(holders) & set(helper.held):
            helper.ended.append((holder, kill))
            if holder.pid not in survivors:
                helper.held.remove(holder)


class FakeDirectories:
    """All directories are valid, but those in `problems`; those in `hanging` never answer."""

    def __init__(self) -> None:
        self.problems: dict[Directory, Fitness] = {}
        self.hanging: set[Directory] = set()

    async def fitness(self, directory: Directory) -> Fitness:
        if directory in self.hanging:
            await asyncio.Event().wait()
        return self.problems.get(directory, Fitness())


class FakeAccounts:
    """The accounts in `names`, by uid."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}

    async def name_of(self, uid: int) -> str:
        return self.names.get(uid, f"uid {uid}")
