"""The interface to the host that pods run on: what podyd needs of it and the engine does not
provide.

Each subject is a Protocol, so that a caller depends only on the parts that it uses. Arguments and
results are plain data, which could also be sent over a network to another host. local.py implements
it for this host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

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

# Requests soon after a start wait so long for the first sample.
FIRST_SAMPLE_SECONDS = 2.0


class Samples(Protocol):
    """Samples of all cards, taken from NVML once a second."""

    @property
    def latest(self) -> Sample | None:
        """The last sample, however old; None where there is no NVIDIA driver."""

    @property
    def current(self) -> Sample | None:
        """The last sample, unless it is too old to say who is on a card now."""

    @property
    def problem(self) -> str | None:
        """Why there are no new samples, in one clause; None if there are."""

    @property
    def absent(self) -> bool:
        """Whether the host has no NVIDIA driver."""

    async def first(self, timeout: float) -> None:
        """Wait until there was a first answer, good or bad, `timeout` seconds at most."""

    def subscribe(self, subscriber: Callable[[Sample], None]) -> None:
        """Call `subscriber` with every sample from now on."""


class Processes(Protocol):
    """Processes of the host, read from /proc. A read that hangs is given up after a time."""

    async def processes(self, pids: Iterable[int]) -> dict[int, Process]:
        """These processes, without those that have ended."""

    async def cgroup_of(self, pid: int) -> InstanceCgroup | None:
        """The instance's cgroup that a process is in; None if there is none or it cannot be
        read."""

    async def pids_in_pod(self, pids: Iterable[int]) -> dict[int, int]:
        """The pids that these processes have in their pods, without those that are in none."""

    async def pod_limits(self, pid: int) -> PodLimits | None:
        """The kernel's limits of the pod that a process is in; None if it is in none, or they
        cannot be read."""


class Loads(Protocol):
    """What pods use of the host, as the kernel counts it; nothing in a pod is asked."""

    async def of(self, pids: Iterable[int]) -> dict[int, PodLoad]:
        """The loads of the pods that these processes are in, by process; of all in one thread.
        Without those that are in none, or whose files cannot be read."""


class Sockets(Protocol):
    """TCP sockets of the host and of pods, as the kernel reports them."""

    async def listening_ports(self) -> frozenset[int]:
        """The ports of the host that anything listens on. Raises OSError."""

    async def pod_sockets(self, pid: int) -> PodSockets:
        """The listening sockets in the network namespace of a pod's process. Raises OSError."""

    async def owner_of(self, end: SocketAddress, other: SocketAddress) -> int | None:
        """The uid that has this end of a connection; None if it is on another host.

        Raises ConnectionError if the connection is closed, else OSError.
        """


class Neighbours(Protocol):
    """The kernel's ARP table."""

    async def heard(self) -> Mapping[Nic, frozenset[str]]:
        """The IPv4 addresses of each interface in the ARP table."""

    async def probe(self, interface: str, addresses: Iterable[str]) -> None:
        """Have the kernel send ARP requests for these addresses on an interface; `heard` returns
        the answers soon after. Never fails."""


class Relay(Protocol):
    """A connection to the process that relays the ports of the host."""

    @property
    def gone(self) -> asyncio.Future[Any]:
        """Done once the relay has ended."""

    async def put(self, table: Table) -> RelayAnswer:
        """Forward the ports as in this table, and close all others. Raises Unavailable."""


class Relays(Protocol):
    def relay(self) -> AbstractAsyncContextManager[Relay]:
        """Connect to the relay of this host. Raises Unavailable."""


class CardAccess(Protocol):
    """Which cards the processes of pods may open, and who has which one open."""

    @property
    def gone(self) -> asyncio.Future[Any]:
        """Done once the helper has ended; the rules that it set stay."""

    async def permit(self, permissions: Permissions) -> Enforcement:
        """Let the kernel refuse to each pod all NVIDIA cards but these, from now on and when it
        starts; what is open stays open. Raises Unavailable."""

    async def holders(self) -> tuple[Holder, ...]:
        """The processes of pods that have a card open, whether they may or not. Raises
        Unavailable."""

    async def end(self, holders: Iterable[Holder], *, kill: bool) -> None:
        """Send SIGTERM, or SIGKILL, to those of these processes that still have a card open.
        Raises Unavailable."""


class CardAccesses(Protocol):
    def card_access(self) -> AbstractAsyncContextManager[CardAccess]:
        """Connect to the helper of this host. Raises Unavailable."""


class Directories(Protocol):
    async def fitness(self, directory: Directory) -> Fitness:
        """Whether a directory can be mounted into its owner's pods. May never return, as it may be
        on a server that does not answer."""


class Accounts(Protocol):
    async def name_of(self, uid: int) -> str:
        """The name of an account; `uid N` if there is none or the lookup takes too long."""


class Node(Protocol):
    """A host."""

    @property
    def facts(self) -> Facts: ...

    @property
    def samples(self) -> Samples: ...

    @property
    def processes(self) -> Processes: ...

    @property
    def loads(self) -> Loads: ...

    @property
    def sockets(self) -> Sockets: ...

    @property
    def neighbours(self) -> Neighbours: ...

    @property
    def relays(self) -> Relays: ...

    @property
    def card_accesses(self) -> CardAccesses: ...

    @property
    def directories(self) -> Directories: ...

    @property
    def accounts(self) -> Accounts: ...
