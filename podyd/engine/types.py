"""The data of the engine's interface; nothing here depends on how an engine is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

# Whether an instance runs; "error" for any other status.
Status = Literal["running", "stopped", "frozen", "error"]
# Changes of an instance's status.
Action = Literal["start", "stop", "unfreeze"]
Devices = Mapping[str, Mapping[str, str]]
# Keys of an instance with their values, None for one to remove; or what makes these of its present
# ones.
Keys = Mapping[str, str | None]
NewKeys = Keys | Callable[[Mapping[str, str]], Keys]
# Smaller files are read quickly.
LARGE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Instance:
    """An instance; `config` and `own_devices` are without its profiles, the rest with them.

    Its name is bound: a request to the engine with it reaches this instance or none. `host` is the
    member of a cluster that it is on. While that does not answer, the rest is as last known; empty
    if nothing is.
    """

    name: str
    status: Status
    created: datetime
    started: datetime | None
    config: Mapping[str, str]
    expanded_config: Mapping[str, str]
    own_devices: Devices
    devices: Devices
    profiles: tuple[str, ...]
    host: str = ""
    is_reachable: bool = True

    @property
    def uuid(self) -> str:
        """Its identity, also after it is renamed; "" while it is being created."""
        return self.config.get("volatile.uuid", "")


@dataclass(frozen=True)
class Address:
    """An address that an instance reports and that is not local to it; `family` as in ip(8)."""

    interface: str
    family: str
    address: str


@dataclass(frozen=True)
class State:
    """The state of an instance.

    `pid` is that of its init on the host; 0 or less if there is none. A disk device whose usage is
    not known is missing in `disk_bytes`, or has 0 there.
    """

    pid: int = 0
    addresses: tuple[Address, ...] = ()
    memory_bytes: int = 0
    disk_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CpuTime:
    """An instance and its CPU time since it started; None if it is not known."""

    instance: Instance
    nanoseconds: int | None


@dataclass(frozen=True)
class Profile:
    """A profile, as `lxc profile edit` shows it."""

    name: str
    description: str = ""
    config: Mapping[str, str] = field(default_factory=dict)
    devices: Devices = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of an instance; `size` in bytes, None if the pool does not report it."""

    name: str
    created: datetime
    size: int | None


@dataclass(frozen=True)
class FromImage:
    """The source of a new instance: an image."""

    fingerprint: str


@dataclass(frozen=True)
class CopyOf:
    """The source of a new instance: another one, or a snapshot of it."""

    instance: str
    snapshot: str | None = None


Source = FromImage | CopyOf


@dataclass(frozen=True)
class NewInstance:
    """An instance to be created."""

    name: str
    source: Source
    profiles: tuple[str, ...]
    config: Mapping[str, str]
    devices: Devices


@dataclass(frozen=True)
class StoredImage:
    """An image that instances can be created from."""

    fingerprint: str
    aliases: tuple[str, ...]
    properties: Mapping[str, str]
    size_bytes: int
    created: datetime
    architecture: str


@dataclass(frozen=True)
class NewImage:
    """An image that is to be made of an instance.

    With `keeps_holes`, those of its files are holes in the image too, where the engine can do that;
    else they are zeros.
    """

    instance: str
    properties: Mapping[str, str]
    keeps_holes: bool = False


@dataclass(frozen=True)
class PackProgress:
    """How far an image is packed or unpacked, in percent, and how fast, in bytes per second; None
    is not known."""

    percent: int | None = None
    speed: int | None = None


@dataclass(frozen=True)
class File:
    """A file and how large it says it is; what is no UTF-8 in its path is replaced in `text`."""

    path: bytes
    size: int

    @property
    def text(self) -> str:
        return self.path.decode(errors="replace")


@dataclass(frozen=True)
class Tree:
    """The files of an instance: all sizes together, and the LARGE_BYTES ones, largest first."""

    size_bytes: int
    large: tuple[File, ...]


@dataclass(frozen=True)
class Holes:
    """About how many bytes of all files are zeros, as holes are, and how many others at most.

    At least `dense_bytes` of them do not compress; of files of one size, which may be the same one
    twice, the first alone counts.
    """

    zero_bytes: int
    data_bytes: int
    dense_bytes: int


@dataclass(frozen=True)
class PoolUse:
    """A storage pool, with how much there is and how much of that is used, in bytes."""

    name: str
    total: int
    used: int


@dataclass(frozen=True)
class EngineOperation:
    """Something that the engine is at, and with which instances; none for an image's making."""

    id: str
    instances: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PciCard:
    """A graphics card of the host; `vendor` is PCI's number of it. "" is what nobody tells.

    `numbers` are those of its character devices, as `major:minor`. `by_cdi` is whether the engine
    is given it by a CDI id; see gpu_devices.py.
    """

    pci: str
    vendor: str
    uuid: str = ""
    name: str = ""
    numbers: frozenset[str] = frozenset()
    by_cdi: bool = False


@dataclass(frozen=True)
class Allowed:
    """What of the host instances may have: what is below these paths, and who they may be there."""

    paths: frozenset[str] = frozenset()
    uids: frozenset[str] = frozenset()
    gids: frozenset[str] = frozenset()


def named(instances: Iterable[Instance], name: str) -> Instance | None:
    """The instance of this name among these, if there is one."""
    return next((item for item in instances if item.name == name), None)


def devices_of(profiles: Iterable[Profile]) -> Devices:
    """The devices of several profiles, of which the last one takes precedence."""
    devices: dict[str, Mapping[str, str]] = {}
    for profile in profiles:
        devices |= profile.devices
    return devices


def config_of(profiles: Iterable[Profile]) -> dict[str, str]:
    """The keys of several profiles; the last value of a key counts."""
    config: dict[str, str] = {}
    for profile in profiles:
        config |= profile.config
    return config


def profiles_of(names: Iterable[str], known: Mapping[str, Profile]) -> list[Profile]:
    """An instance's profiles, by their names, among these, in the order in which they are
    applied."""
    return [known[name] for name in names if name in known]


def is_set(keys: Mapping[str, str], key: str) -> bool:
    """Whether a key says yes, for which the engine takes several words."""
    return keys.get(key, "").lower() in ("true", "1", "yes", "on")


def root_of(devices: Devices) -> tuple[str, Mapping[str, str]]:
    """The name and the keys of the disk that an instance runs on."""
    for name, device in devices.items():
        if device.get("type") == "disk" and device.get("path") == "/":
            return name, device
    return "root", {}
