"""Calls about the host: its GPUs, their processes, its versions."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.contract.answers import Json
from podyd.contract.kinds import Indices, param
from podyd.contract.operation import GET, Access, Nothing, Operation, Proof


@dataclass(frozen=True)
class GpuIndices:
    id: tuple[int, ...] | None = param(
        Indices(),
        "GPU indices as nvidia-smi shows them, separated by commas",
        default=None,
        aliases=("gpu-id",),
    )


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU; `pod` is LXD's instance name, "" for a process of the host, and
    `<project>/<name>` for an instance that is no pod. `cmd` is `[<name>]` where there is no command
    line, or the process hangs so that it cannot be read."""

    pid: int
    pod: str
    cmd: str
    uptime: float | None
    memory_used: int | None
    gpu_memory_used: int | None
    idle: float | None


@dataclass(frozen=True)
class CardHolder:
    """A pod that has a card. `since` and `until` are those of its lease, null where it shares."""

    pod: str
    owner: str
    exclusive: bool
    since: str | None
    until: str | None


@dataclass(frozen=True)
class GpuInfo:
    """A card; null where it does not support the figure. Memory in bytes, utilisation in percent,
    temperature in degrees Celsius, power in watts; `idle`: for so many seconds nobody who holds it
    has used it, null where nobody holds it or where that cannot be known."""

    index: int
    uuid: str
    pci: str
    name: str
    driver: str | None
    memory_total: int | None
    memory_used: int | None
    utilisation: int | None
    temperature: int | None
    power: float | None
    power_limit: float | None
    idle: float | None
    problem: str | None
    pods: list[CardHolder]


@dataclass(frozen=True)
class HostSpec:
    podyd: str
    lxd: str | None
    kernel: str
    nvidia_driver: str | None
    cuda: str | None


HOST_GPU_PS = Operation(
    "/host/gpu-ps",
    GET,
    GpuIndices,
    Json(dict[str, list[GpuProcess]]),
    "Per GPU, the processes on it and the pods that they are in.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
HOST_GPUS = Operation(
    "/host/gpus",
    GET,
    Nothing,
    Json(list[GpuInfo]),
    "The GPUs, what they do and which pods have them.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
HOST_SPEC = Operation(
    "/host/spec",
    GET,
    Nothing,
    Json(HostSpec),
    "Versions of podyd and of what it stands on.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
