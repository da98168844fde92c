"""The IPv4 address of each pod.

An address that a pod reports proves nothing, as its root can set any. What counts is the kernel's
ARP entry of the pod's own interface, and only where the engine limits the interface to the address
that its DHCP server gave it (security.ipv4_filtering, as in podyd-base). podyd's certificate cannot
ask that server: the engine lets a certificate that may see a network also change it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from podyd.base.errors import PodydError
from podyd.engine.interface import Instances
from podyd.engine.types import Instance, State, is_set
from podyd.node.arp import Nic
from podyd.node.interface import Neighbours

log = logging.getLogger(__name__)

Heard = Mapping[Nic, frozenset[str]]


@dataclass(frozen=True)
class Location:
    """The interface and address of an instance since it was started (`run`)."""

    run: tuple[str, object]
    nic: Nic
    address: str


class Locations:
    """Caches the addresses of pods; those that the engine reports are only probed by ARP."""

    def __init__(self, instances: Instances, neighbours: Neighbours) -> None:
        self._instances = instances
        self._neighbours = neighbours
        self._locations: dict[str, Location] = {}
        self._unheld: frozenset[str] = frozenset()

    async def of(self, running: Collection[Instance]) -> Mapping[str, str]:
        """The known addresses, by name of the instance; ARP requests are sent for the others."""
        heard = await self._neighbours.heard()
        locations = {}
        for instance in running:
            location = location_of(instance, heard, self._locations.get(instance.name))
            if location is None:
                await self._probe(instance)
                continue
            locations[instance.name] = location
            entries = heard.get(location.nic, frozenset())
            if len(entries) != 1:
                # The entry has expired, or there are several, of which one is old.
                await self._neighbours.probe(location.nic.parent, {location.address, *entries})
        self._locations = locations
        self._warn(running)
        return {name: location.address for name, location in locations.items()}

    async def _probe(self, instance: Instance) -> None:
        nics = held_nics(instance)
        if not nics:
            return
        with contextlib.suppress(PodydError):  # It has just stopped, or the engine does not answer.
            state = await self._instances.state(instance.name)
            claimed = _claimed(state)
            for nic in nics:
                await self._neighbours.probe(nic.parent, claimed)

    def _warn(self, running: Iterable[Instance]) -> None:
        unheld = frozenset(item.name for item in running if not held_nics(item))
        for name in sorted(unheld - self._unheld):
            log.warning(
                "%s: no port is forwarded there, as none of its network interfaces has a parent"
                " and security.ipv4_filtering",
                name,
            )
        self._unheld = unheld


def location_of(instance: Instance, heard: Heard, before: Location | None) -> Location | None:
    """The location of a running instance; None while the kernel has no ARP entry of it.

    Its last one since its start still counts, unless another interface has that address now.
    """
    run = instance.uuid, instance.started
    last = before if before is not None and before.run == run else None
    for nic in held_nics(instance):
        addresses = heard.get(nic, frozenset())
        if last is not None and last.address in addresses:
            return last
        if addresses:
            return Location(run, nic, min(addresses))
    others = [
        addresses for nic, addresses in heard.items() if last and nic.parent == last.nic.parent
    ]
    is_anothers = last is not None and any(last.address in addresses for addresses in others)
    return None if is_anothers else last


def held_nics(instance: Instance) -> list[Nic]:
    """The interfaces that the engine limits to the address that it gave them."""
    nics = []
    for name, device in sorted(instance.devices.items()):
        hardware = device.get("hwaddr") or instance.config.get(f"volatile.{name}.hwaddr", "")
        is_held = is_set(device, "security.ipv4_filtering")
        parent = device.get("parent")
        if device.get("type") == "nic" and parent and is_held and hardware:
            nics.append(Nic(parent, hardware.lower()))
    return nics


def _claimed(state: State) -> set[str]:
    """The IPv4 addresses that an instance reports."""
    return {item.address for item in state.addresses if item.family == "inet"}
