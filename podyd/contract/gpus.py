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
    force: bool = param(Flag(), "1 takes cards away that a process of the pod uses", default=False)


@dataclass(frozen=True)
class LeaseCards:
    ins: str = param(PodName(), "the pod's name")
    gpus: CardChoice = param(Cards(), WHICH_CARDS)
    hours: float = param(Duration("hours", MAX_HOURS), "for how long")


@dataclass(frozen=True)
class ReleaseCards:
    ins: str = param(PodName(), "the pod's name")
    gpus: CardChoice | None = param(
        Cards(),
        f"{WHICH_CARDS}; without it all, and the pod's place in line; none: that place alone",
        default=None,
    )
    force: bool = param(Flag(), "1 takes cards away that a process of the pod uses", default=False)


@dataclass(frozen=True)
class LeasedCard:
    index: int
    uuid: str
    since: str
    until: str


@dataclass(frozen=True)
class LeaseResult:
    """`place` in line, from 1; 0 if the cards are attached."""

    log: str
    place: int
    leases: list[LeasedCard]


@dataclass(frozen=True)
class Waiting:
    """A pod in line for cards; `hours` is for how long it will have them."""

    place: int
    pod: str
    owner: str
    gpus: str
    hours: float
    since: str


POD_GPUS = Operation(
    "/pod/gpus",
    POST,
    ChangeGpus,
    Json(PodInfo),
    "Change a pod's GPUs, also while it runs.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
GPU_LEASE = Operation(
    "/gpu/lease",
    POST,
    LeaseCards,
    Json(LeaseResult),
    "Have GPUs for one pod alone, for a time.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
GPU_QUEUE = Operation(
    "/gpu/queue",
    POST,
    LeaseCards,
    Json(LeaseResult),
    "The same, in line where none is free now.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
GPU_LINE = Operation(
    "/gpu/line",
    GET,
    Nothing,
    Json(list[Waiting]),
    "Who is in line for GPUs.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
GPU_RELEASE = Operation(
    "/gpu/release",
    POST,
    ReleaseCards,
    Json(LeaseResult),
    "Give leased GPUs back, or leave the line.",
    access=Access.MEMBER,
    proof=Proof.CHANGES,
)
