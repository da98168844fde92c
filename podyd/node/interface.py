"""What podyd asks of the host that its pods run on, and what no LXD can tell it.

Each subject is a Protocol, so that whoever asks says what of a host it needs. Questions and answers
are plain data: another host could be asked the same over a network. local.py is this host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from podyd.node.arp import Nic
from podyd.node.directories import Directory, Fitness
from podyd.node.facts import Facts
from podyd.node.pod_sockets import PodSockets
from podyd.node.procs import InstanceCgroup, Process
from podyd.node.relay_client import RelayAnswer, Table
from podyd.node.samples import Sample
from podyd.node.sockdiag import SocketAddress

# The first sample after a start is worth waiting for so long.
FIRST_SAMPLE_SECONDS = 2.0


class Samples(Protocol):
    """What NVML says of the cards, once a second."""

    @property
    def latest(self) -> Sample | None:
        """The last sample, however old; None where there is no NVIDIA driver."""

    @property
    def current(self) -> Sample | None:
        """The last sample, unless it is too old to say who is on a card now."""

    @property
    def problem(self) -> str | None:
        """Why there are no new samples, in one clause; None while they come."""

    @property
    def absent(self) -> bool:
        """Whether the host has no NVIDIA driver."""

    async def first(self, timeout: float) -> None:
        """Wait until there was a first answer, good or bad, `timeout` seconds at most."""

    def subscribe(self, subscriber: Callable[[Sample], None]) -> None:
        """Call `subscriber` with every sample from now on."""


class Processes(Protocol):
    """What the kernel says of processes. One that hangs is waited for only so long."""

    async def processes(self, pids: Iterable[int]) -> dict[int, Process]:
        """What there is to know of these, without those that have ended."""

    async def cgroup_of(self, pid: int) -> InstanceCgroup | None:
        """The cgroup of LXC's that a process is in; None if it is in none, or cannot be read."""


class Sockets(Protocol):
    """What the kernel says of TCP sockets."""

    async def listening_ports(self) -> frozenset[int]:
        """The ports of the host that anything listens on. Raises OSError."""

    async def pod_sockets(self, pid: int) -> PodSockets:
        """What listens in the pod that a process is in. Raises OSError."""

    async def owner_of(self, end: SocketAddress, other: SocketAddress) -> int | None:
        """The uid that has this end of a connection; None if it is on another host.

        Raises ConnectionError if the connection is closed, else OSError.
        """


class Neighbours(Protocol):
    """Which addresses the kernel has heard of."""

    async def heard(self) -> Mapping[Nic, frozenset[str]]:
        """The IPv4 addresses of each network card that the host has heard of lately."""

    async def probe(self, interface: str, addresses: Iterable[str]) -> None:
        """Have the kernel ask on an interface who has these addresses; `heard` says soon what it
        heard. Never fails."""


class Relay(Protocol):
    """A connection to what relays the ports of the host."""

    @property
    def gone(self) -> asyncio.Future[Any]:
        """Done once the relay has ended."""

    async def put(self, table: Table) -> RelayAnswer:
        """Have the ports led so, all others given up. Raises Unavailable."""


class Relays(Protocol):
    def relay(self) -> AbstractAsyncContextManager[Relay]:
        """Connect to the relay of this host. Raises Unavailable."""


class Directories(Protocol):
    async def fitness(self, directory: Directory) -> Fitness:
        """Whether a directory can be its owner's own in pods. May take for ever: it may be on a
        server that does not answer."""


class Accounts(Protocol):
    async def name_of(self, uid: int) -> str:
        """The name, or `uid N` where there is none or none comes in time."""


class Node(Protocol):
    """A host."""

    @property
    def facts(self) -> Facts: ...

    @property
    def samples(self) -> Samples: ...

    @property
    def processes(self) -> Processes: ...

    @property
    def sockets(self) -> Sockets: ...

    @property
    def neighbours(self) -> Neighbours: ...

    @property
    def relays(self) -> Relays: ...

    @property
    def directories(self) -> Directories: ...

    @property
    def accounts(self) -> Accounts: ...
