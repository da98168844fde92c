"""Samples of NVML: the cards at one moment, and the processes on each.

nvml_process.py takes them, in a separate process; here are their types and their JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from podyd.node.procs import InstanceCgroup

# Of PCI, as sysfs and the engine write it.
NVIDIA_VENDOR_ID = "10de"


@dataclass(frozen=True)
class ProcessSample:
    """A process on a card. `memory_used` in bytes, `utilisation` in percent of the card since the
    last sample; None if the driver does not report it. `cgroup` is its instance's.

    `seen` if the driver's buffer has it using the card at a later time than at the last sample,
    which a mean of less than 1 % does not show. `cpu` is the CPU time, in seconds, that it and the
    processes below it have used since then; None if that is not known.
    """

    pid: int
    memory_used: int | None
    utilisation: int | None
    cgroup: InstanceCgroup | None = None
    seen: bool = False
    cpu: float | None = None


@dataclass(frozen=True)
class Gpu:
    """A card at one moment; None where it does not support the figure.

    `pci` as the engine and sysfs write it, such as 0000:41:00.0. Memory in bytes, `utilisation` in
    percent, `peak` the highest that it was since the last sample, `temperature` in degrees Celsius,
    power in watts. `problem` says why a card does not answer.
    """

    uuid: str
    pci: str
    name: str
    memory_total: int | None = None
    memory_used: int | None = None
    utilisation: int | None = None
    peak: int | None = None
    temperature: int | None = None
    power: float | None = None
    power_limit: float | None = None
    problem: str | None = None
    processes: tuple[ProcessSample, ...] = ()


@dataclass(frozen=True)
class Sample:
    """All cards at one moment, in the order of NVML's indices; `taken` on the monotonic clock."""

    taken: float
    driver: str
    cuda: str
    gpus: tuple[Gpu, ...]

    @property
    def age(self) -> float:
        """Seconds since the sample was taken."""
        return time.monotonic() - self.taken

    def to_line(self) -> str:
        """The sample as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Sample:
        """From the JSON of `to_line`."""
        gpus = tuple(
            Gpu(**{**gpu, "processes": tuple(map(_process, gpu["processes"]))})
            for gpu in data["gpus"]
        )
        return cls(data["taken"], data["driver"], data["cuda"], gpus)


def _process(data: Mapping[str, Any]) -> ProcessSample:
    cgroup = data["cgroup"]
    return ProcessSample(**{**data, "cgroup": None if cgroup is None else (cgroup[0], cgroup[1])})


@dataclass(frozen=True)
class Failure:
    """Why there are no samples; `absent` if this host has no NVIDIA driver at all."""

    problem: str
    absent: bool

    def to_line(self) -> str:
        """The failure as one line of JSON."""
        return json.dumps(asdict(self))


def parse_line(line: str | bytes) -> Sample | Failure:
    """What `podyd nvml` wrote. Raises ValueError, KeyError or TypeError if it is not that."""
    data = json.loads(line)
    return Failure(**data) if "problem" in data else Sample.of(data)


def sysfs_address(address: str) -> str:
    """A PCI address as sysfs writes it: NVML's has a domain of eight digits, the engine also takes
    one without a domain, and capitals."""
    *domain, bus, rest = address.lower().split(":")
    number = int(domain[0], 16) if domain else 0
    return f"{number:04x}:{bus}:{rest}"
