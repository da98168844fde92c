"""What instances and profiles say in the new engine: where they name the old one's things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from podyd.engine.moving import Original
from podyd.engine.types import Devices, Profile

# The API that programs in a pod have of their engine: LXD's key, and Incus'
# (https://linuxcontainers.org/incus/docs/main/reference/instance_options/).
GUEST_API = {
    "security.devlxd": "security.guestapi",
    "security.devlxd.images": "security.guestapi.images",
}


@dataclass(frozen=True)
class Translation:
    """The bridge and the pool of the old engine, and those of the new one."""

    old_bridges: frozenset[str]
    bridge: str
    pool: str

    def original(self, original: Original) -> Original:
        """An instance as the new engine has it."""
        return replace(
            original,
            config=_config(original.config),
            devices=self._devices(original.devices),
        )

    def profile(self, profile: Profile) -> Profile:
        """A profile as the new engine has it."""
        return replace(
            profile, config=_config(profile.config), devices=self._devices(profile.devices)
        )

    def _devices(self, devices: Devices) -> dict[str, dict[str, str]]:
        return {name: self._device(device) for name, device in devices.items()}

    def _device(self, device: Mapping[str, str]) -> dict[str, str]:
        changed = dict(device)
        if device["type"] == "nic":
            for key in ("parent", "network"):
                if device.get(key) in self.old_bridges:
                    changed[key] = self.bridge
        elif device["type"] == "disk" and device.get("path") == "/" and "pool" in device:
            changed["pool"] = self.pool
        return changed


def _config(config: Mapping[str, str]) -> dict[str, str]:
    return {GUEST_API.get(key, key): value for key, value in config.items()}
