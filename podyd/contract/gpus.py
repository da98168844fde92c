"""Calls about the use of GPUs: sharing, leases, and the queue for leases."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.base.clock import MAX_HOURS
from podyd.contract.answers import Json
from podyd.contract.kinds import WHICH_CARDS, Cards, Duration, Flag, PodName, param
from podyd.contract.operation import GET, POST, Access, Nothing, Operation, Proof
from podyd.contract.pods import PodInfo
from podyd.model.gpu import CardChoice


@dataclass(frozen=True)
class ChangeGpus:
    ins: str = param(PodName(), "the pod's name")
    gpus: CardChoice = param(Cards(), WHICH_CARDS)
    force: bool = param(
        Flag(), "1: also remove GPUs that a process in the pod uses; it is ended", default=False
    )


@dataclass(frozen=True)
class LeaseCards:
    ins: str = param(PodName(), "the pod's name")
    gpus: CardChoice = param(Cards(), WHICH_CARDS)
    hours: float = param(
        Duration("hours", MAX_HOURS),
        "how long the lease lasts, in hours; at most podyd.yaml's lease.max_hours",
    )


@dataclass(frozen=True)
class ReleaseCards:
    ins: str = param(PodName(), "the pod's name")
    gpus: CardChoice | None = param(
        Cards(),
        f"{WHICH_CARDS}; without it, all of the pod's leases end and it leaves the queue; none: it"
        " only leaves the queue",
        default=None,
    )
    force: bool = param(
        Flag(),
        "1: also give back GPUs that a process in the pod uses, and end it; else this is refused",
        default=False,
    )


@dataclass(frozen=True)
class LeasedCard:
    """A GPU that a pod has leased: no other pod has it from `since` to `until`. If other pods still
    compute on it at `since`, which is ended, the pod gets it then, unless it shared it before.
    `index` is that of nvidia-smi."""

    index: int
    uuid: str
    since: str
    until: str


@dataclass(frozen=True)
class Ending:
    """Processes on a GPU that their pod no longer has: podyd ends them, with SIGTERM and, `grace`
    seconds after the lease has ended, SIGKILL. `gpu` is the index of nvidia-smi, `pod` the engine's
    name of the instance, `processes` their number at present."""

    gpu: int
    pod: str
    grace: float
    processes: int


@dataclass(frozen=True)
class LeaseResult:
    """The pod's leases after the call. `place` is its place in the queue, from 1; 0 if it does not
    wait. `log` says what was done, in one sentence. `ending` are the processes that are being ended
    on the GPUs that the pod has given back, and those of other pods on the GPUs that it has leased;
    it is empty if podyd.yaml's lease.end is leave."""

    log: str
    place: int
    leases: list[LeasedCard]
    ending: list[Ending]


@dataclass(frozen=True)
class ChangedGpus(PodInfo):
    """The pod after the call, as of /pod/info, and its processes that are being ended on GPUs that
    it no longer has."""

    ending: list[Ending]


@dataclass(frozen=True)
class Waiting:
    """A request for GPUs in the queue. `place` begins at 1; `pod` is the engine's name of the
    instance.

    `gpus` is the request's parameter of that name, `hours` how long the lease will be from when it
    begins, `since` when the request was made. So many `more` than the pod has count for the owner's
    quota already.
    """

    place: int
    pod: str
    owner: str
    gpus: str
    hours: float
    since: str
    more: int


POD_GPUS = Operation(
    "/pod/gpus",
    POST,
    ChangeGpus,
    Json(ChangedGpus),
    "Change the GPUs of a pod, which may be running.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
GPU_LEASE = Operation(
    "/gpu/lease",
    POST,
    LeaseCards,
    Json(LeaseResult),
    "Lease GPUs: for some hours, no other pod has them. What others compute on them is ended,"
    " unless podyd.yaml says to wait.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
GPU_QUEUE = Operation(
    "/gpu/queue",
    POST,
    LeaseCards,
    Json(LeaseResult),
    "Lease GPUs as /gpu/lease does, or queue for them if too few are free now.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
GPU_LINE = Operation(
    "/gpu/line",
    GET,
    Nothing,
    Json(list[Waiting]),
    "The queue for GPUs, in the order in which it is served.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
GPU_RELEASE = Operation(
    "/gpu/release",
    POST,
    ReleaseCards,
    Json(LeaseResult),
    "End leases of GPUs before their time, or leave the queue.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
