"""At which address each pod is.

An address that a pod claims proves nothing, for its root sets any. What counts is at which one the
kernel has heard of the pod's own network card, and only where LXD holds the card to the address
that its DHCP server gave it (security.ipv4_filtering, as in podyd-base). podyd's certificate cannot
ask that server: who may see a network of LXD's may also change it.
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
    """Where an instance has been since it was started."""

    run: tuple[str, object]
    nic: Nic
    address: str


class Locations:
    """Remembers where the pods are; LXD's word of it is only where to ask the kernel."""

    def __init__(self, instances: Instances, neighbours: Neighbours) -> None:
        self._instances = instances
        self._neighbours = neighbours
        self._locations: dict[str, Location] = {}
        self._unheld: frozenset[str] = frozenset()

    async def of(self, running: Collection[Instance]) -> Mapping[str, str]:
        """The addresses of those that are found, by name; the others are asked for meanwhile."""
        heard = await self._neighbours.heard()
        found = {}
        for instance in running:
            location = location_of(instance, heard, self._locations.get(instance.name))
            if location is None:
                await self._ask_for(instance)
                continue
            found[instance.name] = location
            known = heard.get(location.nic, frozenset())
            if len(known) != 1:
                # It is forgotten, or has several, of which one is old.
                await self._neighbours.probe(location.nic.parent, {location.address, *known})
        self._locations = found
        self._warn(running)
        return {name: location.address for name, location in found.items()}

    async def _ask_for(self, instance: Instance) -> None:
        nics = held_nics(instance)
        if not nics:
            return
        with contextlib.suppress(PodydError):  # It has stopped this moment, or LXD is away.
            state = await self._instances.state(instance.name)
            claimed = _claimed(state)
            for nic in nics:
                await self._neighbours.probe(nic.parent, claimed)

    def _warn(self, running: Iterable[Instance]) -> None:
        unheld = frozenset(item.name for item in running if not held_nics(item))
        for name in sorted(unheld - self._unheld):
            log.warning(
                "%s: no port leads there, as none of its network cards has a parent and"
                " security.ipv4_filtering",
                name,
            )
        self._unheld = unheld


def location_of(instance: Instance, heard: Heard, before: Location | None) -> Location | None:
    """Where a running instance is; None while the kernel has not heard of it.

    Where it has been since its start it is still, if nobody else has been heard of there.
    """
    run = instance.uuid, instance.started
    known = before if before is not None and before.run == run else None
    for nic in held_nics(instance):
        addresses = heard.get(nic, frozenset())
        if known is not None and known.address in addresses:
            return known
        if addresses:
            return Location(run, nic, min(addresses))
    others = [
        addresses for nic, addresses in heard.items() if known and nic.parent == known.nic.parent
    ]
    is_anothers = known is not None and any(known.address in addresses for addresses in others)
    return None if is_anothers else known


def held_nics(instance: Instance) -> list[Nic]:
    """The network cards that LXD holds to the address that it gave them."""
    found = []
    for name, device in sorted(instance.devices.items()):
        hardware = device.get("hwaddr") or instance.config.get(f"volatile.{name}.hwaddr", "")
        is_held = is_set(device, "security.ipv4_filtering")
        parent = device.get("parent")
        if device.get("type") == "nic" and parent and is_held and hardware:
            found.append(Nic(parent, hardware.lower()))
    return found


def _claimed(state: State) -> set[str]:
    """The addresses that an instance says it has."""
    return {item.address for item in state.addresses if item.family == "inet"}
