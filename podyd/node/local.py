"""The host that podyd itself runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager

from podyd.node import arp, directories, sockdiag
from podyd.node.arp import Nic
from podyd.node.card_access import CardAccessClient, card_access_at
from podyd.node.directories import Directory, Fitness
from podyd.node.facts import Facts
from podyd.node.pod_loads import PodLoad, pod_load
from podyd.node.pod_sockets import PodSockets, pod_sockets
from podyd.node.procs import Reader
from podyd.node.relay_client import RelayClient, relay_at
from podyd.node.sockdiag import SocketAddress
from podyd.node.telemetry import USUAL, Telemetry, Timing
from podyd.node.user_names import UserNames

# For sock_diag, which answers in milliseconds.
KERNEL_SECONDS = 5.0
# For a pod with many connections, which takes the kernel long.
POD_SECONDS = 5.0


class LocalNode:
    """The node interface for this host; `ports_socket` and `cards_socket` return the paths of the
    unix sockets of `podyd ports` and `podyd cards`."""

    def __init__(
        self,
        *,
        ports_socket: Callable[[], str],
        cards_socket: Callable[[], str],
        timing: Timing = USUAL,
    ) -> None:
        self.facts = Facts.of_this_host()
        self.samples = Telemetry(timing)
        self.processes = Reader()
        self.loads = LocalLoads()
        self.sockets = LocalSockets()
        self.neighbours = LocalNeighbours()
        self.relays = LocalRelays(ports_socket)
        self.card_accesses = LocalCardAccesses(cards_socket)
        self.directories = LocalDirectories()
        self.accounts = UserNames()

    def close(self) -> None:
        """Release everything, without waiting for threads that hang."""
        self.sockets.close()
        self.directories.close()
        self.accounts.close()


class LocalLoads:
    """Asks in threads of its own, so that it delays no request about processes."""

    def __init__(self) -> None:
        self._pods = Reader()

    async def of(self, pids: Iterable[int]) -> dict[int, PodLoad]:
        loads = await self._pods.ask("load", pod_load, pids)
        return {pid: load for pid, load in loads.items() if load is not None}


class LocalSockets:
    """Asks the kernel, each kind of request in its own threads: some are slow while other processes
    ask too, and logins must not wait for requests about pods."""

    def __init__(self) -> None:
        self._ports = ThreadPoolExecutor(1, thread_name_prefix="ports")
        self._owners = ThreadPoolExecutor(2, thread_name_prefix="origins")
        self._pods = Reader()

    def close(self) -> None:
        for threads in (self._ports, self._owners):
            threads.shutdown(wait=False, cancel_futures=True)

    async def listening_ports(self) -> frozenset[int]:
        asking = asyncio.get_running_loop().run_in_executor(self._ports, sockdiag.listening_ports)
        try:
            return await asyncio.wait_for(asking, KERNEL_SECONDS)
        except asyncio.TimeoutError:
            raise TimeoutError(f"sock_diag takes more than {KERNEL_SECONDS:g} s") from None

    async def pod_sockets(self, pid: int) -> PodSockets:
        def read(pid: int) -> PodSockets | OSError:
            try:
                return pod_sockets(pid)
            except OSError as error:
                return error

        asked = await self._pods.ask("sockets", read, [pid], POD_SECONDS)
        result = asked.get(pid, TimeoutError())
        if isinstance(result, OSError):
            raise result
        return result

    async def owner_of(self, end: SocketAddress, other: SocketAddress) -> int | None:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._owners, sockdiag.owner_of, end, other)


class LocalNeighbours:
    """Calls the kernel directly, as both take microseconds."""

    async def heard(self) -> Mapping[Nic, frozenset[str]]:
        return arp.neighbours()

    async def probe(self, interface: str, addresses: Iterable[str]) -> None:
        arp.probe(interface, addresses)


class LocalRelays:
    def __init__(self, socket: Callable[[], str]) -> None:
        self._socket = socket

    def relay(self) -> AbstractAsyncContextManager[RelayClient]:
        return relay_at(self._socket())


class LocalCardAccesses:
    def __init__(self, socket: Callable[[], str]) -> None:
        self._socket = socket

    def card_access(self) -> AbstractAsyncContextManager[CardAccessClient]:
        return card_access_at(self._socket())


class LocalDirectories:
    """Checks in threads: a directory may be on a server that does not answer."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="mounts")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fitness(self, directory: Directory) -> Fitness:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, directories.fitness, directory)
