"""Calls about usage."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.contract.answers import Json
from podyd.contract.kinds import Names, Window, param
from podyd.contract.operation import GET, Access, Operation, Proof


@dataclass(frozen=True)
class UsageOf:
    user: tuple[str, ...] | None = param(
        Names(), "user names, separated by commas; without it, all who have any", default=None
    )
    t: float | None = param(
        Window(),
        "how far back, in seconds or as 1y 2w 3d 4h 5s; without it, all that is kept",
        default=None,
    )


STAT_CPUTIME = Operation(
    "/stat/cputime",
    GET,
    UsageOf,
    Json(dict[str, float]),
    "Per user, CPU seconds of their pods.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
STAT_GPUTIME = Operation(
    "/stat/gputime",
    GET,
    UsageOf,
    Json(dict[str, float]),
    "Per user, seconds for which processes of their pods held a GPU, added up over the GPUs.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
