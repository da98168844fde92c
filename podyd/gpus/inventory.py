"""The host's NVIDIA cards, and the devices that pass them to a pod.

A card is known by its PCI address and UUID. Its number in the API is NVML's index, as nvidia-smi
shows it; without NVML the order of the PCI addresses, which NVML follows as well.

The UUID stays the same in whichever slot the card is, but it is not known where the engine lacks
nvidia-container-cli and NVML does not answer, as after an update of the driver. So podyd stores
which UUID was reported for which address; what is reported now takes precedence.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from podyd.base.errors import Unavailable
from podyd.base.tasks import came
from podyd.engine.gpu_devices import card_device, card_of_device, has_driver, is_by_cdi
from podyd.engine.interface import Server
from podyd.engine.types import Devices, PciCard, Profile, devices_of
from podyd.model.gpu import CardChoice
from podyd.node.interface import Samples
from podyd.node.samples import NVIDIA_VENDOR_ID, Sample, sysfs_address
from podyd.store.cards import CardStore
from podyd.store.database import RETRY_SECONDS

# Cards rarely change; asking the engine takes 28 ms.
KEPT_SECONDS = 30.0
# The database answers in milliseconds, unless the disk hangs.
RECALL_SECONDS = 2.0
# The names of the devices that podyd adds to an instance begin so; the others are the admin's.
OWN_PREFIX = "podyd-gpu-"
# Ends the name of one that has been made anew.
_AGAIN = "-again"
_COVER = {"type": "none"}


@dataclass(frozen=True)
class Card:
    """A card; `pci` as sysfs writes it, such as 0000:41:00.0. `uuid` is "" if it is not known.

    `numbers` are those of its character devices, as `major:minor`; `by_cdi` is whether the engine
    is given it by a CDI id. Two cards are equal if their addresses are.
    """

    index: int = field(compare=False)
    pci: str
    uuid: str = field(compare=False)
    name: str = field(default="", compare=False)
    numbers: frozenset[str] = field(default=frozenset(), compare=False)
    by_cdi: bool = field(default=False, compare=False)

    @property
    def key(self) -> str:
        """What identifies a card where it is stored."""
        return self.uuid or self.pci

    def is_written(self, key: str) -> bool:
        """Whether a stored key, maybe of a time when its UUID was not known, means this card."""
        return key == self.pci or key.lower() == self.uuid.lower() != ""

    def is_named(self, name: str) -> bool:
        """Whether a user's name of a card (index, UUID or PCI address) means this card."""
        if ":" in name:
            with contextlib.suppress(ValueError):
                return sysfs_address(name) == self.pci
        return name == str(self.index) or (name.lower() == self.uuid.lower() != "")


def key_of(written: str, cards: Iterable[Card]) -> str:
    """The current key of the card that a stored key means; the stored one if there is none."""
    return next((card.key for card in cards if card.is_written(written)), written)


def is_uuid(key: str) -> bool:
    """Whether a stored key is a UUID: neither an address nor an index."""
    return ":" not in key and not key.isdigit()


def lasting(choice: CardChoice, cards: Sequence[Card]) -> CardChoice:
    """The same choice with each card's key, as an index may mean another card after a reboot."""
    keys = [
        next((card.key for card in cards if card.is_named(name)), name) for name in choice.named
    ]
    return replace(choice, named=tuple(dict.fromkeys(keys)))


def by_index(choice: CardChoice, cards: Sequence[Card]) -> CardChoice:
    """The same choice with each card's current index, where the card exists."""
    numbers = {card.key: str(card.index) for card in cards}
    return replace(choice, named=tuple(numbers.get(key, key) for key in choice.named))


class Identities:
    """The UUID at each PCI address, as last reported; stored in podyd's database."""

    def __init__(self, store: CardStore) -> None:
        self._store = store
        self._known: dict[str, str] = {}
        self._asked = asyncio.Event()
        self._news = asyncio.Event()

    async def of(self, reported: Mapping[str, str]) -> Mapping[str, str]:
        """The UUIDs by address; `reported` is what the engine and NVML report now, and is
        stored."""
        await came(self._asked, RECALL_SECONDS)
        self._asked.set()  # Only the first call waits for the database.
        if reported.items() - self._known.items():
            self._known = _brought_up(self._known, reported)
            self._news.set()
        return self._known

    async def run(self) -> None:
        """Read what is stored, and store what is reported, until cancelled."""
        kept: Mapping[str, str] | None = None
        while True:
            try:
                if kept is None:
                    kept = await self._store.known()
                    self._known = _brought_up(kept, self._known)
                self._asked.set()
                self._news.clear()
                if self._known != kept:
                    kept = now = dict(self._known)
                    await self._store.remember(now)
                await self._news.wait()
            except Unavailable:  # The database has logged it.
                kept = None
                self._asked.set()
                await asyncio.sleep(RETRY_SECONDS)


def _brought_up(known: Mapping[str, str], reported: Mapping[str, str]) -> dict[str, str]:
    """`known` updated with `reported`, which takes precedence; a UUID is at one address only."""
    uuids = frozenset(reported.values())
    return {pci: uuid for pci, uuid in known.items() if uuid not in uuids} | dict(reported)


class Inventory:
    """Asks the engine for the cards, at most every `KEPT_SECONDS`, and NVML for their order."""

    def __init__(self, server: Server, samples: Samples, identities: Identities) -> None:
        self._server = server
        self._samples = samples
        self._identities = identities
        self._kept: tuple[float, tuple[Card, ...]] | None = None

    async def cards(self) -> tuple[Card, ...]:
        """The host's NVIDIA cards, by index."""
        now = time.monotonic()
        if self._kept is None or self._kept[0] <= now:
            cards = _by_address(await self._server.cards())
            self._kept = now + KEPT_SECONDS, cards
        cards = _in_order(self._kept[1], self._samples.latest)
        known = await self._identities.of({card.pci: card.uuid for card in cards if card.uuid})
        return tuple(replace(card, uuid=card.uuid or known.get(card.pci, "")) for card in cards)


def _by_address(cards: Sequence[PciCard]) -> tuple[Card, ...]:
    nvidia = [card for card in cards if card.vendor == NVIDIA_VENDOR_ID]
    nvidia.sort(key=lambda card: card.pci)
    return tuple(
        Card(index, card.pci, card.uuid, card.name, card.numbers, card.by_cdi)
        for index, card in enumerate(nvidia)
    )


def _in_order(cards: Sequence[Card], sample: Sample | None) -> tuple[Card, ...]:
    """The cards with NVML's indices; those that NVML does not show come last."""
    known = {gpu.pci: (index, gpu) for index, gpu in enumerate(sample.gpus)} if sample else {}
    rest = iter(range(len(known), len(known) + len(cards)))
    numbered = []
    for card in cards:
        if card.pci in known:
            index, gpu = known[card.pci]
            # Without nvidia-container-cli, the engine knows no UUIDs.
            numbered.append(replace(card, index=index, uuid=card.uuid or gpu.uuid))
        else:
            numbered.append(replace(card, index=next(rest)))
    return tuple(sorted(numbered, key=lambda card: card.index))


# --- Devices ------------------------------------------------------------------------------------


def cards_in(devices: Devices, cards: Iterable[Card]) -> frozenset[Card]:
    """The cards that these devices pass to a pod.

    A `gpu` device without an address passes them all (canonical/lxd#11841).
    """
    chosen: set[Card] = set()
    for device in devices.values():
        if device.get("type") != "gpu":
            continue
        if device.get("vendorid") not in (None, NVIDIA_VENDOR_ID):
            continue
        wanted = card_of_device(device)
        chosen |= {card for card in cards if wanted is None or card.is_named(wanted)}
    return frozenset(chosen)


def natural(
    profiles: Sequence[Profile], own: Devices, covers: Container[str]
) -> dict[str, Mapping[str, str]]:
    """The devices of an instance without podyd's overrides, its profiles in their order.

    `covers` names the devices of profiles that podyd has masked; an admin may have masked others.
    """
    return {**devices_of(profiles), **of_the_admin(own, covers)}


def with_cards(
    profiles: Sequence[Profile],
    own: Devices,
    covers: Container[str],
    wanted: Iterable[Card] | None,
) -> tuple[dict[str, Mapping[str, str]], frozenset[str]]:
    """An instance's own devices that give it the `wanted` cards, and the new `covers`.

    With None, those that leave it the cards of its profiles.
    """
    kept = of_the_admin(own, covers)
    if wanted is None:
        return kept, frozenset()
    covered = frozenset(
        name
        for name, device in natural(profiles, own, covers).items()
        if device.get("type") == "gpu" and name not in kept
    )
    given = cards_in(kept, wanted)
    # An admin may have chosen CDI where the engine has both.
    by_cdi = any(map(is_by_cdi, natural(profiles, own, covers).values()))
    devices = _named(
        {
            f"{OWN_PREFIX}{card.pci.replace(':', '-')}": card_device(
                card.pci, card.uuid, card.index, by_cdi=by_cdi or card.by_cdi
            )
            for card in wanted
            if card not in given
        },
        {name: device for name, device in own.items() if name.startswith(OWN_PREFIX)},
    )
    return {**kept, **dict.fromkeys(covered, _COVER), **devices}, covered


def _named(devices: Devices, before: Devices) -> dict[str, Mapping[str, str]]:
    """These devices in place of those `before`, with their names there.

    Of CDI devices that remain where others go, with other names, so that the engine makes them
    anew: the driver's libraries are mounted for the first device alone and go with it, also while
    others remain (startCDIDevices and stopCDIDevices in LXD's lxd/device/gpu_cdi.go).
    """
    kept = {
        name: again if before.get(again := f"{name}{_AGAIN}") == device else name
        for name, device in devices.items()
    }
    new = {kept[name]: device for name, device in devices.items()}
    is_all_that_remains = before.keys() > new.keys() and any(map(is_by_cdi, new.values()))
    if not is_all_that_remains:
        return new
    return {
        name if new_name != name else f"{name}{_AGAIN}": devices[name]
        for name, new_name in kept.items()
    }


def of_the_admin(own: Devices, covers: Container[str]) -> dict[str, Mapping[str, str]]:
    """Those of an instance's own devices that podyd has not made."""
    return {
        name: device
        for name, device in own.items()
        if not name.startswith(OWN_PREFIX) and not (name in covers and device == _COVER)
    }


def needs_nvidia(profile: Profile) -> bool:
    """Whether a profile needs NVIDIA cards, and so cannot be used on a host without one."""
    has_gpu = any(device.get("type") == "gpu" for device in profile.devices.values())
    return has_gpu or has_driver(profile.config, profile.devices)
