"""Calls about usage."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.contract.answers import Json
from podyd.contract.kinds import Names, Window, param
from podyd.contract.operation import GET, Access, Operation, Proof


@dataclass(frozen=True)
class UsageOf:
    user: tuple[str, ...] | None = param(
        Names(),
        "user names, separated by commas; without it, all users with more than 0",
        default=None,
    )
    t: float | None = param(
        Window(),
        "the period up to now, in seconds or as 1y 2w 3d 4h 5s; without it, 366 days, which is all"
        " that podyd keeps",
        default=None,
    )


STAT_CPUTIME = Operation(
    "/stat/cputime",
    GET,
    UsageOf,
    Json(dict[str, float]),
    "CPU seconds that the pods of each user have used.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
STAT_GPUTIME = Operation(
    "/stat/gputime",
    GET,
    UsageOf,
    Json(dict[str, float]),
    "Seconds for which processes in the pods of each user had a GPU open, added up over the GPUs.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
