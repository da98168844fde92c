"""What instances and profiles say in the new engine: where they name the old one's things, or cards
by CDI ids, which it does not take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from podyd.base.errors import SetupError
from podyd.engine.gpu_devices import CAPABILITIES, RUNTIME, has_driver, is_by_cdi, with_address
from podyd.engine.moving import Original
from podyd.engine.types import Devices, PciCard, Profile

# The API that programs in a pod have of their engine: LXD's key, and Incus'
# (https://linuxcontainers.org/incus/docs/main/reference/instance_options/).
GUEST_API = {
    "security.devlxd": "security.guestapi",
    "security.devlxd.images": "security.guestapi.images",
}
# What an instance or profile has in place of CDI ids, which bring all of the driver's libraries.
DRIVER = {RUNTIME: "true", CAPABILITIES: "all"}


@dataclass(frozen=True)
class Translation:
    """The bridges and the pool of the old engine, and those of the new one.

    `cards` are NVIDIA's of this host where the new engine does not take CDI ids, else None;
    `drivers` the profiles that bring the driver.
    """

    old_bridges: frozenset[str]
    bridge: str
    pool: str
    cards: Sequence[PciCard] | None = None
    drivers: frozenset[str] = frozenset()

    def original(self, original: Original) -> Original:
        """An instance as the new engine has it. Raises SetupError where that cannot be said."""
        brought = not self.drivers.isdisjoint(original.profiles)
        return replace(
            original,
            config=_config(original.config)
            | ({} if brought else self._driver_of(original.devices)),
            devices=self._devices(original.name, original.devices),
        )

    def profile(self, profile: Profile) -> Profile:
        """A profile as the new engine has it. Raises SetupError where that cannot be said."""
        return replace(
            profile,
            config=_config(profile.config) | self._driver_of(profile.devices),
            devices=self._devices(f"Profile {profile.name}", profile.devices),
        )

    def _driver_of(self, devices: Devices) -> dict[str, str]:
        by_cdi = self.cards is not None and any(map(is_by_cdi, devices.values()))
        return DRIVER if by_cdi else {}

    def _devices(self, holder: str, devices: Devices) -> dict[str, dict[str, str]]:
        translated = {}
        for name, device in devices.items():
            try:
                translated[name] = self._device(device)
            except SetupError as error:
                what = f"{holder}'s device {name}: {error.detail}"
                raise SetupError(what, advice=error.advice) from error
        return translated

    def _device(self, device: Mapping[str, str]) -> dict[str, str]:
        if self.cards is not None:
            device = with_address(device, self.cards)
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


def with_cards(
    translation: Translation, profiles: Sequence[Profile], cards: Sequence[PciCard]
) -> Translation:
    """The same where the new engine takes cards by address; `profiles` are the old one's, `cards`
    NVIDIA's of this host."""
    drivers = {item.name for item in profiles if has_driver(item.config, item.devices)}
    return replace(translation, cards=cards, drivers=frozenset(drivers))
