"""Calls about the host: its GPUs, their processes, its versions."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.contract.answers import Json, PlainText
from podyd.contract.kinds import Indices, param
from podyd.contract.operation import GET, Access, Nothing, Operation, Proof


@dataclass(frozen=True)
class GpuIndices:
    id: tuple[int, ...] | None = param(
        Indices(),
        "GPU indices as nvidia-smi shows them, separated by commas; without it, all GPUs",
        default=None,
        aliases=("gpu-id",),
    )


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU; null for a figure that is not known.

    `pid` is its number on the host. `pod` is the engine's name of the instance that it runs in: ""
    for a process of the host, `<project>/<name>` for an instance that is not a pod. `cmd` is its
    command line, or `[<name>]` if that cannot be read; of another user's process on the host,
    members see the user's name instead. `uptime` in seconds; `memory_used` (of the host) and
    `gpu_memory_used` in bytes. `idle`: for how many seconds nothing has been seen of it, neither
    use of the GPU nor a change of its memory there nor more CPU time than rest needs.
    """

    pid: int
    pod: str
    cmd: str
    uptime: float | None
    memory_used: int | None
    gpu_memory_used: int | None
    idle: float | None


@dataclass(frozen=True)
class CardHolder:
    """A pod that has a GPU, has leased it, or is on it. `pod` is the engine's name of the instance.
    `attached`: it has the GPU; otherwise a process of it is on the GPU all the same, or it gets the
    GPU that it has leased once what others have on it is ended. `exclusive`: it has leased the GPU,
    from `since` to `until`; otherwise both are null."""

    pod: str
    owner: str
    attached: bool
    exclusive: bool
    since: str | None
    until: str | None


@dataclass(frozen=True)
class Intruder:
    """A process on a GPU that its pod does not have, such as after the pod's lease.

    `pid` is its number on the host, `pod` the engine's name of the instance, `since` when it was
    first seen there. `state`: seen (once), warned (with SIGTERM), killed (with SIGKILL), or left,
    with `lease.end: leave` in podyd.yaml.
    """

    pid: int
    pod: str
    owner: str
    since: str
    state: str


@dataclass(frozen=True)
class GpuInfo:
    """A GPU; null for a figure that it does not support, or that NVML does not report now.

    `index` is that of nvidia-smi, `pci` its PCI address, `driver` the version of the NVIDIA driver.
    Memory in bytes, `utilisation` in percent, `temperature` in degrees Celsius, `power` and
    `power_limit` in watts. `idle`: for how many seconds none of the processes that hold it has used
    it, as in /host/gpu-ps; null if nothing holds it, or if that is not known. `problem`
    says what is wrong with it, null if nothing is. `pods` are the pods that have it
    or have processes on it, `intruders` the processes on it whose pods do not have it.
    """

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
    intruders: list[Intruder]


@dataclass(frozen=True)
class HostSpec:
    """Versions; null for what is not installed or does not answer. `engine`, lxd or incus, is what
    pods run on, and `lxd` its version, whichever it is. `cuda` is the newest version that the
    NVIDIA driver supports."""

    podyd: str
    engine: str
    lxd: str | None
    kernel: str
    nvidia_driver: str | None
    cuda: str | None


HOST_GPU_PS = Operation(
    "/host/gpu-ps",
    GET,
    GpuIndices,
    Json(dict[str, list[GpuProcess]]),
    "The processes on each GPU, by its index, with the pods that they run in; header Age is the age"
    " of the data in seconds.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
HOST_GPUS = Operation(
    "/host/gpus",
    GET,
    Nothing,
    Json(list[GpuInfo]),
    "The GPUs with their utilisation, and the pods that have them.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
HOST_SPEC = Operation(
    "/host/spec",
    GET,
    Nothing,
    Json(HostSpec),
    "Versions of podyd, the engine, the kernel and the NVIDIA driver.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
# What who has not logged in is told in place of what the engine says, which may name anything.
NOT_FOR_ALL = "The engine does not answer as it should; whoever logs in sees why."
STATUS_TEXT = Operation(
    "/status.txt",
    GET,
    Nothing,
    PlainText("text/plain; charset=utf-8"),
    "The GPUs, who holds them, and the queue, as text for a display on a wall; for members and the"
    " addresses of web.status_allow.",
    access=Access.STATUS,
    proof=Proof.READS,
)
