"""The information on a pod."""

from __future__ import annotations

import time

from podyd.base.clock import iso
from podyd.base.errors import LxdRefused
from podyd.contract.pods import PodInfo
from podyd.engine.interface import Instances
from podyd.engine.types import Devices, State
from podyd.gpus.inventory import Inventory, cards_in
from podyd.model.member import Member
from podyd.model.pod import Pod
from podyd.network.ports import Ports
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
        config = pod.instance.expanded_config
        running = pod.status == "running"
        started = pod.instance.started
        state = await self._state(pod)
        disk = await self._disks.of(pod, state)
        return PodInfo(
            name=pod.name,
            ins=pod.ins,
            owner=pod.owner,
            status=pod.status,
            image=pod.image,
            created=iso(pod.instance.created),
            addresses=_addresses(state),
            port_mapping=sorted(
                [
                    *port_mapping(pod.instance.devices),
                    *(f"{host}:{inner}" for host, inner in (await self._ports.of(pod)).items()),
                ]
            ),
            gpu_ids=sorted(
                card.index for card in cards_in(pod.instance.devices, await self._inventory.cards())
            ),
            memory_limit=memory_limit(config),
            cpu_limit=cpu_limit(config),
            disk_used=disk.used,
            disk_limit=disk.limit,
            profiles=list(pod.instance.profiles),
            uptime=round(time.time() - started.timestamp(), 3) if running and started else None,
        )

    async def _state(self, pod: Pod) -> State | None:
        try:
            return await self._instances.state(pod.name)
        except LxdRefused:
            return None  # It was stopped or deleted meanwhile.


def _addresses(state: State | None) -> list[str]:
    addresses = [
        (item.family, item.address)
        for item in (state.addresses if state else ())
        if item.interface != "lo"
    ]
    return [address for _, address in sorted(addresses)]


def port_mapping(devices: Devices) -> list[str]:
    """`HOST:POD` for each port that an LXD proxy device on the host forwards to the pod."""
    mappings = []
    for device in devices.values():
        if device.get("type") == "proxy" and device.get("bind", "host") == "host":
            outside, inside = (device[end].rpartition(":")[2] for end in ("listen", "connect"))
            mappings.append(f"{outside}:{inside}")
    return sorted(mappings)
