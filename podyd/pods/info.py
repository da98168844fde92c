"""The information on a pod."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from podyd.base.clock import iso
from podyd.base.errors import EngineRefused
from podyd.contract.pods import PodInfo, PodNow
from podyd.engine.interface import Instances
from podyd.engine.types import Devices, State
from podyd.gpus.decisions import View
from podyd.gpus.inventory import Card, Inventory, cards_in
from podyd.model.member import Member
from podyd.model.pod import Pod
from podyd.network.ports import Ports, ports_of
from podyd.pods.disks import Disks
from podyd.pods.owned import Owned
from podyd.pods.quota import cpu_limit, memory_limit


class Info:
    """Collects the information on one pod."""

    def __init__(
        self,
        *,
        owned: Owned,
        instances: Instances,
        inventory: Inventory,
        ports: Ports,
        disks: Disks,
    ) -> None:
        self._owned = owned
        self._instances = instances
        self._inventory = inventory
        self._ports = ports
        self._disks = disks

    async def of(self, member: Member, ins: str) -> PodInfo:
        """The information on a member's pod. Raises NotFound."""
        pod = await self._owned.find(member, ins)
        state = await self._state(pod)
        now = await self._now(pod, await self._inventory.cards(), await self._ports.of(pod), state)
        started = pod.instance.started
        running = pod.status == "running"
        return PodInfo(
            **vars(now),
            addresses=_addresses(state),
            uptime=round(time.time() - started.timestamp(), 3) if running and started else None,
        )

    async def now(self, view: View) -> dict[str, PodNow]:
        """Every pod, by the engine's name of it, as it is shown to who watches; the engine is asked
        for nothing of each one."""
        instances = [*(pod.instance for pod in view.pods), *view.strangers]
        ports = ports_of(instances)
        states = self._instances.last_states
        return {
            pod.name: await self._now(
                pod, view.cards, ports.get(pod.name, {}), states.get(pod.name)
            )
            for pod in view.pods
        }

    async def _now(
        self, pod: Pod, cards: Iterable[Card], ports: Mapping[int, int], state: State | None
    ) -> PodNow:
        instance = pod.instance
        disk = await self._disks.of(pod, state)
        return PodNow(
            name=pod.name,
            ins=pod.ins,
            owner=pod.owner,
            status=pod.status,
            image=pod.image,
            created=iso(instance.created),
            started=iso(instance.started) if instance.started else None,
            port_mapping=_ports(pod, ports),
            gpu_ids=_gpu_ids(pod, cards),
            memory_limit=memory_limit(instance.expanded_config),
            cpu_limit=cpu_limit(instance.expanded_config),
            disk_used=disk.used,
            disk_limit=disk.limit,
            profiles=list(instance.profiles),
        )

    async def _state(self, pod: Pod) -> State | None:
        try:
            return await self._instances.state(pod.name)
        except EngineRefused:
            return None  # It was stopped or deleted meanwhile.


def _addresses(state: State | None) -> list[str]:
    addresses = [
        (item.family, item.address)
        for item in (state.addresses if state else ())
        if item.interface != "lo"
    ]
    return [address for _, address in sorted(addresses)]


def _ports(pod: Pod, own: Mapping[int, int]) -> list[str]:
    """`HOST:POD` for each of a pod's own ports, and those that an admin forwards to it."""
    mapped = [f"{host}:{inner}" for host, inner in own.items()]
    return sorted([*port_mapping(pod.instance.devices), *mapped])


def _gpu_ids(pod: Pod, cards: Iterable[Card]) -> list[int]:
    return sorted(card.index for card in cards_in(pod.instance.devices, cards))


def port_mapping(devices: Devices) -> list[str]:
    """`HOST:POD` for each port that a proxy device of the host forwards to the pod."""
    mappings = []
    for device in devices.values():
        if device.get("type") == "proxy" and device.get("bind", "host") == "host":
            outside, inside = (device[end].rpartition(":")[2] for end in ("listen", "connect"))
            mappings.append(f"{outside}:{inside}")
    return sorted(mappings)
