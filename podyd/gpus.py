"""The host's NVIDIA cards as LXD sees them, and which of them a pod has.

A card is known by its PCI address and UUID. Its number in the API is NVML's index, which follows
the PCI bus (nvmlDeviceGetHandleByIndex: "the order in which NVML enumerates devices").
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podyd.lxd.client import LxdClient

NVIDIA_VENDOR_ID = "10de"
# Cards do not come and go; LXD takes 28 ms to look.
KEPT_SECONDS = 30.0


@dataclass(frozen=True)
class Card:
    """A card; `pci` as LXD writes it, such as 0000:41:00.0."""

    index: int
    pci: str
    uuid: str


class Gpus:
    """Asks LXD for the cards, at most every `KEPT_SECONDS`."""

    def __init__(self, client: LxdClient) -> None:
        self._client = client
        self._kept: tuple[float, tuple[Card, ...]] | None = None

    async def cards(self) -> tuple[Card, ...]:
        """The host's NVIDIA cards, by index."""
        now = time.monotonic()
        if self._kept is None or self._kept[0] <= now:
            resources = await self._client.get("/1.0/resources")
            self._kept = now + KEPT_SECONDS, _cards(resources["gpu"]["cards"] or [])
        return self._kept[1]


def _cards(found: Sequence[Mapping[str, Any]]) -> tuple[Card, ...]:
    nvidia = [card for card in found if card.get("vendor_id") == NVIDIA_VENDOR_ID]
    nvidia.sort(key=lambda card: str(card["pci_address"]))
    return tuple(
        Card(index, card["pci_address"], (card.get("nvidia") or {}).get("uuid", ""))
        for index, card in enumerate(nvidia)
    )


def cards_of(devices: Mapping[str, Mapping[str, str]], cards: Sequence[Card]) -> list[int]:
    """The indices of the cards that these LXD devices pass through.

    An LXD `gpu` device without an address passes them all (canonical/lxd#11841).
    """
    indices: set[int] = set()
    for device in devices.values():
        if device.get("type") != "gpu":
            continue
        if device.get("vendorid") not in (None, NVIDIA_VENDOR_ID):
            continue
        wanted = device.get("pci")
        indices |= {card.index for card in cards if wanted in (None, card.pci)}
    return sorted(indices)


def needs_nvidia(profile: Mapping[str, Any]) -> bool:
    """Whether an LXD profile is about NVIDIA cards, and of no use to a pod without one."""
    runtime: str = profile["config"].get("nvidia.runtime", "false")
    devices: Mapping[str, Mapping[str, str]] = profile["devices"]
    has_gpu = any(device.get("type") == "gpu" for device in devices.values())
    return has_gpu or runtime.lower() in ("true", "1", "yes", "on")


def gpu_devices(
    profiles: Sequence[Mapping[str, Any]], chosen: Sequence[Card]
) -> dict[str, dict[str, str]]:
    """Devices of an instance that give it the `chosen` cards instead of its profiles' ones."""
    masked = {
        name: {"type": "none"}
        for profile in profiles
        for name, device in profile["devices"].items()
        if device.get("type") == "gpu"
    }
    return masked | {f"podyd-gpu{card.index}": {"type": "gpu", "pci": card.pci} for card in chosen}
