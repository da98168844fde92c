"""Ports of the host that are forwarded to pods: which ones a pod has, and the relay's table.

A pod's ports are stored in its instance's configuration, and stay the same whatever its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any
from weakref import WeakValueDictionary

from podyd.base.clock import now
from podyd.base.errors import Conflict, Forbidden, NotFound, PodydError, engine_could_not
from podyd.base.quantities import UNLIMITED
from podyd.config.current import Settings
from podyd.engine.interface import Instances
from podyd.engine.types import Instance, named
from podyd.model.member import Member
from podyd.model.pod import PORTS, Pod, pods_of
from podyd.network.locations import Locations
from podyd.node.interface import Relay, Relays, Sockets
from podyd.node.relay_client import Table

log = logging.getLogger(__name__)

NONE = "none"
NO_FREE_PORT = "no_free_port"
# By then an admin's `lxc launch` has asked the engine to start the instance.
SETTLE_AFTER = timedelta(seconds=5)
# Several changes often come together, and are applied at once.
GATHER_SECONDS = 0.1
# A pod that has just started gets its address by DHCP, of which there is no event.
SOON_SECONDS, SOON_WAIT = 0.5, timedelta(seconds=60)
REFRESH_SECONDS = 30.0
RETRY_SECONDS = 2.0
AWAY = "ports of pods cannot be reached"

# Host ports with the port in the pod.
Mapped = dict[int, int]


class Ports:
    """Assigns ports, and keeps the relay's table up to date."""

    def __init__(
        self,
        *,
        locations: Locations,
        instances: Instances,
        sockets: Sockets,
        relays: Relays,
        settings: Settings,
    ) -> None:
        self._locations = locations
        self._instances = instances
        self._sockets = sockets
        self._relays = relays
        self._settings = settings
        self._lock = asyncio.Lock()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Ports of pods that are being made.
        self._reserved: set[int] = set()
        # Ports that the relay listens on at present.
        self._open: frozenset[int] = frozenset()
        self._pokes: list[asyncio.Event] = []
        self._tell: Callable[[str], None] = lambda problem: None
        self._problem = ""

    def poke(self) -> None:
        """Check again: something has changed."""
        for event in self._pokes:
            event.set()

    def subscribe(self, tell: Callable[[str], None]) -> None:
        """Call `tell` with what is wrong with the relay, and with "" when it works again."""
        self._tell = tell

    # --- Which ports a pod has -------------------------------------------------------------------

    async def of(self, pod: Pod) -> Mapped:
        """A pod's ports, by those of the host."""
        return ports_of(await self._instances.all()).get(pod.name, {})

    @contextlib.asynccontextmanager
    async def new(self, member: Member, ins: str) -> AsyncIterator[dict[str, str]]:
        """Reserve the ports of a pod that is being made; yields the configuration that names them.

        Raises Conflict if too few are free.
        """
        inner = self._settings.current.ports.expose
        if member.quota.max_ports != UNLIMITED:
            inner = inner[: member.quota.max_ports]
        async with self._held(f"{member.name}/{ins}", inner) as ports:
            yield {PORTS: written(ports)}

    async def add(self, member: Member, pod: Pod, inner: int) -> None:
        """Forward one more port of the host to a pod. Raises Conflict, Forbidden (quota)."""
        async with self._alone(pod):
            current, missing = await self._ports_of(pod)
            mapped = [*current.values(), *missing]
            if inner in mapped:
                raise Conflict(
                    f"A port of the host is already forwarded to port {inner} of pod {pod.ins!r}.",
                    advice="See /pod/info.",
                    code="port_taken",
                    port=inner,
                )
            limit = member.quota.max_ports
            if limit != UNLIMITED and len(mapped) >= limit:
                raise Forbidden(
                    f"Your quota is {limit} ports of a pod, and this one has {len(mapped)}.",
                    advice="Delete one first, with /pod/port-delete.",
                    code="quota_exceeded",
                    limit=limit,
                    used=len(mapped),
                )
            async with self._held(f"{pod.owner}/{pod.ins}", [*missing, inner]) as added:
                await self._write(pod, current | added)

    async def delete(self, pod: Pod, inner: int) -> str:
        """Stop forwarding to this port of a pod. Returns what was done. Raises NotFound."""
        async with self._alone(pod):
            current, missing = await self._ports_of(pod)
            if inner not in [*current.values(), *missing]:
                raise NotFound(
                    f"No port of the host is forwarded to port {inner} of pod {pod.ins!r}.",
                    advice="See /pod/info.",
                    code="no_such_port",
                )
            others = {host: port for host, port in current.items() if port != inner}
            missing = [port for port in missing if port != inner]
            async with self._held(f"{pod.owner}/{pod.ins}", missing) as added:
                await self._write(pod, others | added)
        return f"No port of the host is forwarded to port {inner} of pod {pod.ins} any more."

    async def settle(self) -> None:
        """Assign ports to pods that have none or another pod's, until cancelled.

        An admin's `lxc launch` and `lxc copy` make such pods. The older pod keeps its ports.
        """
        logged = ""
        with self._poked() as poke:
            while True:
                poke.clear()
                delay, problem = REFRESH_SECONDS, ""
                try:
                    if not await self._settle():
                        delay = RETRY_SECONDS
                except PodydError as error:
                    problem = str(error)
                if problem and problem != logged:
                    log.warning("ports cannot be assigned now: %s", problem)
                logged = problem
                await _either(poke, delay)

    async def _settle(self) -> bool:
        """Assign them once; False if a pod is too new, or the engine is busy with it. Raises
        Conflict if none is free."""
        instances = await self._instances.all()
        pods = {pod.name: pod for pod in pods_of(instances)}
        done = True
        for pod in [pods[name] for name in _lacking(instances) if name in pods]:
            if pod.instance.created > now() - SETTLE_AFTER:
                done = False
                continue
            try:
                async with self._alone(pod):
                    current, missing = await self._ports_of(pod)
                    async with self._held(f"{pod.owner}/{pod.ins}", missing) as added:
                        await self._write(pod, current | added)
            except PodydError as error:
                if error.code == NO_FREE_PORT:
                    raise
                log.info("%s: its ports are assigned later: %s", pod.name, error)
                done = False
        return done

    def _alone(self, pod: Pod) -> asyncio.Lock:
        """The lock for changes of a pod's ports."""
        return self._locks.setdefault(pod.name, asyncio.Lock())

    async def _ports_of(self, pod: Pod) -> tuple[Mapped, list[int]]:
        """The ports that a pod has, and the ports in it that need a new one of the host."""
        instances = await self._instances.all()
        instance = named(instances, pod.name) or pod.instance
        mapped = ports_of(instances).get(pod.name, {})
        stored = parse(instance.config.get(PORTS, ""))
        wanted = self._settings.current.ports.expose if stored is None else stored.values()
        return mapped, [inner for inner in wanted if inner not in mapped.values()]

    @contextlib.asynccontextmanager
    async def _held(self, name: str, inner: Sequence[int]) -> AsyncIterator[Mapped]:
        """Reserve free ports for a pod until they are stored on its instance. Raises Conflict."""
        async with self._lock:
            mapped = await self._free(name, inner)
            self._reserved |= mapped.keys()
        try:
            yield mapped
        finally:
            # Under the lock, so that the next caller sees them in the engine's list, or here.
            async with self._lock:
                self._reserved -= mapped.keys()

    async def _free(self, name: str, inner: Sequence[int]) -> Mapped:
        """Free ports of the host, under the lock. Raises Conflict if there are too few.

        If they are free, a pod gets the same ones as the last one of its name.
        """
        if not inner:
            return {}
        first, last = self._settings.current.ports.range
        # The relay itself may still listen on a port that was released a moment ago.
        taken = self._reserved | (await self._busy() - self._open)
        for instance in await self._instances.all():
            taken |= (parse(instance.config.get(PORTS, "")) or {}).keys()
        mapped: Mapped = {}
        size = last - first + 1
        for port in inner:
            start = zlib.crc32(f"{name}:{port}".encode())
            numbers = (first + (start + step) % size for step in range(size))
            host = next((number for number in numbers if number not in taken), None)
            if host is None:
                raise Conflict(
                    f"All ports of the host from {first} to {last} are in use.",
                    advice=(
                        "Delete one of yours with /pod/port-delete, or ask your admin for more"
                        " (ports.range)."
                    ),
                    code=NO_FREE_PORT,
                )
            mapped[host] = port
            taken.add(host)
        return mapped

    async def _busy(self) -> frozenset[int]:
        try:
            return await self._sockets.listening_ports()
        except OSError as error:
            # The relay reports a port that is in use.
            log.warning("the kernel does not show which ports are in use: %s", error)
            return frozenset()

    async def _write(self, pod: Pod, mapped: Mapped) -> None:
        with engine_could_not("note the pod's ports"):
            await self._instances.edit(pod.name, config={PORTS: written(mapped)}, devices=dict)

    # --- The relay's table -----------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the relay's table up to date, until cancelled; podyd works without the relay too."""
        with self._poked() as poke:
            while True:
                try:
                    async with self._relays.relay() as relay:
                        await self._follow(relay, poke)
                except PodydError as error:
                    self._say(f"{AWAY}: {error}")
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, relay: Relay, poke: asyncio.Event) -> None:
        sent: Table | None = None
        while not relay.gone.done():
            poke.clear()
            try:
                table, delay = await self._table()
            except PodydError:
                # The engine does not answer, which is logged elsewhere; the table stays as it is.
                await _either(poke, RETRY_SECONDS, relay.gone)
                continue
            if table != sent or self._problem:
                answer = await relay.put(table)
                sent = table
                self._open = frozenset(table) - answer.refused.keys()
                refused = [f"{port} ({why})" for port, why in answer.refused.items()]
                if refused:
                    self._say(f"some ports cannot be opened: {', '.join(refused[:5])}")
                else:
                    self._say("'podyd ports' is an older one" if answer.is_old else "")
            await _either(poke, delay, relay.gone)
            await asyncio.sleep(GATHER_SECONDS)
        self._say(f"{AWAY}: 'podyd ports' has ended")

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            if problem:
                log.warning("%s", problem)
            else:
                log.info("ports of pods can be reached")
            self._problem = problem
            self._tell(problem)

    async def _table(self) -> tuple[Table, float]:
        """The target of each port, and the seconds until the next check."""
        instances = await self._instances.all()
        pods = pods_of(instances)
        mapped = ports_of(instances)
        running = [pod.instance for pod in pods if pod.status in ("running", "frozen")]
        addresses = await self._locations.of(running)
        table = {
            host: (addresses[pod.name], inner) if pod.name in addresses else None
            for pod in pods
            for host, inner in mapped.get(pod.name, {}).items()
        }
        soon = now() - SOON_WAIT
        waits = any(
            instance.name not in addresses and instance.started and instance.started > soon
            for instance in running
        )
        return table, SOON_SECONDS if waits else REFRESH_SECONDS

    @contextlib.contextmanager
    def _poked(self) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._pokes.append(event)
        try:
            yield event
        finally:
            self._pokes.remove(event)


async def _either(
    poke: asyncio.Event, timeout: float, gone: asyncio.Future[Any] | None = None
) -> None:
    """Wait for `poke` or `gone`, or until time is up."""
    waiting = asyncio.ensure_future(poke.wait())
    try:
        await asyncio.wait(
            {waiting, *([gone] if gone else [])},
            timeout=timeout,
            return_when=asyncio.FIRST_COMPLETED,
        )
    finally:
        waiting.cancel()


# --- What is stored on the instances ------------------------------------------------------------


def parse(text: str) -> Mapped | None:
    """The ports in a value of user.podyd.ports; None if it is malformed."""
    if text == NONE:
        return {}
    if not re.fullmatch(r"\d{4,5}:\d{1,5}(,\d{4,5}:\d{1,5})*", text, re.ASCII):
        return None
    pairs = (part.partition(":") for part in text.split(","))
    mapped = {int(host): int(inner) for host, _, inner in pairs}
    if not all(1024 <= host < 65536 and 0 < inner < 65536 for host, inner in mapped.items()):
        return None
    return mapped


def written(mapped: Mapped) -> str:
    """The value of user.podyd.ports for these ports."""
    return ",".join(f"{host}:{inner}" for host, inner in sorted(mapped.items())) or NONE


def ports_of(instances: Iterable[Instance]) -> dict[str, Mapped]:
    """The ports of each instance, by its name; one that several claim belongs to the oldest."""
    by_instance: dict[str, Mapped] = {}
    taken: set[int] = set()
    for instance in _by_age(instances):
        mapped = parse(instance.config.get(PORTS, "")) or {}
        by_instance[instance.name] = {
            host: inner for host, inner in mapped.items() if host not in taken
        }
        taken |= mapped.keys()
    return by_instance


def _lacking(instances: Iterable[Instance]) -> list[str]:
    """The instances that have no ports, or claim another one's, the oldest first."""
    instances = list(instances)
    by_instance = ports_of(instances)
    return [
        instance.name
        for instance in _by_age(instances)
        if parse(instance.config.get(PORTS, "")) != by_instance[instance.name]
    ]


def _by_age(instances: Iterable[Instance]) -> list[Instance]:
    return sorted(instances, key=lambda item: (item.created, item.name))
