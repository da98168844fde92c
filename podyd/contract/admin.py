"""Calls for admins: all members, leases of others, what was changed, what `podyd doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.contract.answers import Json
from podyd.contract.gpus import LeaseResult
from podyd.contract.kinds import WHICH_CARDS, Cards, Moment, PodName, Text, UserLogin, Whole, param
from podyd.contract.operation import GET, POST, Access, Nothing, Operation, Proof
from podyd.contract.users import QuotaInfo
from podyd.model.gpu import CardChoice

MAX_ACTIONS = 1000


@dataclass(frozen=True)
class EndLeases:
    pod: str = param(PodName(), "the engine's name of the instance, as /pod/listall has it")
    reason: str = param(Text(300), "why, in one line; the pod's owner is sent it")
    gpus: CardChoice | None = param(
        Cards(),
        f"{WHICH_CARDS}; without it, all of the pod's leases end and it leaves the queue; none: it"
        " only leaves the queue",
        default=None,
    )


@dataclass(frozen=True)
class ListActions:
    since: float | None = param(
        Moment(),
        "only what was done at this time and later: ISO 8601, or how long ago, such as 2d",
        default=None,
    )
    user: str | None = param(UserLogin(), "only what this user has done", default=None)
    pod: str | None = param(
        PodName(),
        "only what was done to this pod, by the engine's name of the instance",
        default=None,
    )
    call: str | None = param(Text(100), "only this call, such as /pod/delete", default=None)
    limit: int = param(
        Whole(1, MAX_ACTIONS), "at most so many, the newest; without it, 100", default=100
    )


@dataclass(frozen=True)
class QuotaUse:
    """What a member's pods and images use of the quota: `gpus` are those that their pods have or
    wait for, `disk` is the sum of the limits of their disks in bytes, null if one has none;
    `image_size` in bytes."""

    pods: int
    gpus: int
    disk: int | None
    images: int
    image_size: int


@dataclass(frozen=True)
class Person:
    """A member. `is_admin` is 1 or 0."""

    user: str
    is_admin: int
    quota: QuotaInfo
    used: QuotaUse


@dataclass(frozen=True)
class ActionInfo:
    """A request that changed something, or was refused. `pod` is the engine's name of the
    instance, "" if it was about none; `status` is that of the answer; `code` that of the error, ""
    if there was none."""

    time: str
    user: str
    operation: str
    pod: str
    status: int
    code: str


@dataclass(frozen=True)
class FindingInfo:
    """What a check found: `level` is error, warning, note or ok, `what` one sentence, `do` the
    command to type, or ""."""

    check: str
    level: str
    what: str
    do: str


@dataclass(frozen=True)
class Findings:
    """The findings of the last 'podyd doctor --keep', and its time. If there are none, both are
    null, and `problem` says why."""

    time: str | None
    findings: list[FindingInfo] | None
    problem: str | None


ADMIN_PEOPLE = Operation(
    "/admin/people",
    GET,
    Nothing,
    Json(list[Person]),
    "All members with their quotas, and what they use of them.",
    access=Access.ADMIN,
    proof=Proof.READS,
)
ADMIN_RELEASE = Operation(
    "/admin/release",
    POST,
    EndLeases,
    Json(LeaseResult),
    "End leases of any member's pod, or take it out of the queue; its owner gets a notice.",
    access=Access.ADMIN,
    proof=Proof.CHANGES,
)
ADMIN_LOG = Operation(
    "/admin/log",
    GET,
    ListActions,
    Json(list[ActionInfo]),
    "What members have changed lately (90 days, 20,000 entries, of which each member has a fair"
    " share), the newest first; not what they did inside pods.",
    access=Access.ADMIN,
    proof=Proof.READS,
)
ADMIN_DOCTOR = Operation(
    "/admin/doctor",
    GET,
    Nothing,
    Json(Findings),
    "What 'podyd doctor' found on this machine when it ran last.",
    access=Access.ADMIN,
    proof=Proof.READS,
)
