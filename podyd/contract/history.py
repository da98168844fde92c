"""Calls about what was used over time: curves of GPUs and of pods."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.contract.answers import Json
from podyd.contract.kinds import PodName, Word, param
from podyd.contract.operation import GET, Access, Operation, Proof

SPANS = ("hour", "day", "week", "month", "year")
BACK = "how far back; without it, an hour"


@dataclass(frozen=True)
class GpuHistoryOf:
    span: str = param(Word(SPANS), BACK, default="hour")


@dataclass(frozen=True)
class PodHistoryOf:
    ins: str = param(PodName(), "the pod's name")
    span: str = param(Word(SPANS), BACK, default="hour")


@dataclass(frozen=True)
class GpuCurves:
    """Means of a GPU, one for each step; null where nothing is known. Memory in bytes,
    `utilisation` in percent, `power` in watts, `temperature` in degrees Celsius."""

    utilisation: list[float | None]
    memory_used: list[int | None]
    power: list[float | None]
    temperature: list[float | None]


@dataclass(frozen=True)
class GpuHistory:
    """Curves of each GPU, by its index; the first value is of the `step` seconds from `start` on,
    the last one of the present step."""

    start: str
    step: int
    gpus: dict[str, GpuCurves]


@dataclass(frozen=True)
class PodHistory:
    """Curves of a pod as in GpuHistory. `cpu` is how many CPUs it has kept busy, `memory_used` its
    memory in bytes without files that the kernel would drop; null while it did not run."""

    start: str
    step: int
    cpu: list[float | None]
    memory_used: list[int | None]


GPU_HISTORY = Operation(
    "/gpu/history",
    GET,
    GpuHistoryOf,
    Json(GpuHistory),
    "What each GPU did in the last hour, day, week, month or year.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
POD_HISTORY = Operation(
    "/pod/history",
    GET,
    PodHistoryOf,
    Json(PodHistory),
    "The CPUs and the memory that a pod used in the last hour, day, week, month or year.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
