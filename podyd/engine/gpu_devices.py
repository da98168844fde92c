"""How instances are given NVIDIA cards: by address, or by CDI ids.

LXD up to 6.9 and Incus take a card's PCI address, and bring the driver's libraries into what has
`nvidia.runtime`. Later LXDs have no such key (pull request 18559): there an id of the Container
Device Interface brings both, and an address just the card's device. LXD makes the CDI
specification itself, in which a card has its UUID and NVML's index for a name
(lxd/device/cdi/spec.go); `id` cannot be combined with `pci` (lxd/device/gpu_physical.go). All of
this is of LXD's source, main of August 2026.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from podyd.base.engine_words import ENGINE
from podyd.base.errors import SetupError
from podyd.engine.types import Devices, PciCard, is_set

RUNTIME = "nvidia.runtime"
CAPABILITIES = "nvidia.driver.capabilities"
# What the engine runs for that, and for CDI ids; and how to have it.
RUNTIME_PROGRAM, CDI_PROGRAM = "nvidia-container-cli", "nvidia-ctk"
HOW_TO_HAVE = {
    RUNTIME_PROGRAM: "apt install libnvidia-container-tools (or nvidia-container-toolkit)",
    CDI_PROGRAM: "apt install nvidia-container-toolkit (LXD's snap has it: snap refresh lxd)",
}
# Of these, such LXDs know none.
_RUNTIME_KEYS = ("nvidia.runtime", "nvidia.driver.", "nvidia.require.")
_VENDOR = "nvidia.com"
_CARD, _SLICE = f"{_VENDOR}/gpu", f"{_VENDOR}/mig"
_EVERY = "all"
EVERY_CARD = f"{_CARD}={_EVERY}"


def wants_cdi(extensions: Collection[str]) -> bool:
    """Whether a server of these API extensions brings the driver by CDI ids alone."""
    return "gpu_cdi" in extensions and "nvidia_runtime" not in extensions


def card_device(pci: str, uuid: str, index: int, *, by_cdi: bool) -> dict[str, str]:
    """The device that gives an instance one card; by its index where the UUID is not known."""
    choice = {"id": f"{_CARD}={uuid or index}"} if by_cdi else {"pci": pci}
    return {"type": "gpu", "gputype": "physical", **choice}


def is_by_cdi(device: Mapping[str, str]) -> bool:
    """Whether a device is of the CDI kind. Else `id` is the number of /dev/dri/card*."""
    return device.get("type") == "gpu" and "=" in device.get("id", "")


def card_of_device(device: Mapping[str, str]) -> str | None:
    """What a `gpu` device calls its card: the PCI address, UUID or NVML's index; None if it is for
    every card, "" if for another maker's. Of a MIG slice it is the card's name; None where it does
    not say."""
    if not is_by_cdi(device):
        return device.get("pci")
    kind, _, name = device["id"].partition("=")
    if not kind.startswith(f"{_VENDOR}/"):
        return ""
    if kind == _SLICE:
        card, colon, _ = name.partition(":")
        return card if colon else None
    return None if name == _EVERY else name


def has_driver(config: Mapping[str, str], devices: Devices) -> bool:
    """Whether an instance or a profile of these brings the driver's libraries."""
    return is_set(config, RUNTIME) or any(map(is_by_cdi, devices.values()))


def in_cdi(device: Mapping[str, str], uuids: Mapping[str, str]) -> dict[str, str]:
    """A profile's device as a server takes it that wants CDI ids; `uuids` are the cards', by
    address. Raises SetupError for a card whose UUID is not known."""
    is_whole = device.get("type") == "gpu" and device.get("gputype", "physical") == "physical"
    if not is_whole or device.keys() & {"id", "vendorid", "productid"}:
        return dict(device)
    rest = {key: value for key, value in device.items() if key != "pci"}
    pci = device.get("pci", "").lower()
    if not pci:
        return {**rest, "id": EVERY_CARD}
    uuid = uuids.get(pci) or uuids.get(f"0000:{pci}")
    if not uuid:
        raise SetupError(
            f"A profile gives card {pci}, and {ENGINE}, which wants a CDI id here, knows no UUID of"
            " it.",
            advice=f"Write 'id: {_CARD}=NUMBER' for 'pci' into its file, with the number that"
            " nvidia-smi shows.",
        )
    return {**rest, "id": f"{_CARD}={uuid}"}


def with_address(device: Mapping[str, str], cards: Sequence[PciCard]) -> dict[str, str]:
    """A device with a CDI id as a server takes it that is given cards by address, any other as it
    is; `cards` are NVIDIA's of this host. Raises SetupError for one that names none of these."""
    if not is_by_cdi(device):
        return dict(device)
    rest = {key: value for key, value in device.items() if key != "id"}
    kind, _, name = device["id"].partition("=")
    if device["id"] == EVERY_CARD:
        return rest
    # NVML numbers them by their addresses.
    in_order = enumerate(sorted(cards, key=lambda card: card.pci))
    found = [card for index, card in in_order if name in (card.uuid, str(index))]
    if kind != _CARD or not found:
        raise SetupError(
            f"No address is known of {device['id']}.",
            advice="Take the device away, and give it by hand again afterwards.",
        )
    return {**rest, "pci": found[0].pci}


def without_runtime(config: Mapping[str, str]) -> dict[str, str]:
    """The configuration without what a server that wants CDI ids does not know."""
    return {key: value for key, value in config.items() if not key.startswith(_RUNTIME_KEYS)}
