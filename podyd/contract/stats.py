"""Calls about usage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from podyd.contract.answers import Json, JsonOrText
from podyd.contract.kinds import Month, Names, Window, Word, param
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
        "the period up to now, in seconds or as 1y 2w 3d 4h 5s; without it, 366 days",
        default=None,
    )


@dataclass(frozen=True)
class MonthOf:
    month: datetime | None = param(
        Month(),
        "the month, such as 2026-11, in UTC; without it, the present one; podyd keeps thirteen and"
        " the present one",
        default=None,
    )
    format: str = param(Word(("json", "csv")), "csv: a table for a spreadsheet", default="json")


@dataclass(frozen=True)
class GpuHours:
    """What a user's pods had of the GPUs, in hours, added up over the GPUs: `hours` for which one
    of their processes had a GPU open, as in /stat/gputime, and `leased_hours` for which they had
    leased one, used or not."""

    user: str
    hours: float
    leased_hours: float


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
STAT_GPU_HOURS = Operation(
    "/stat/gpu-hours",
    GET,
    MonthOf,
    JsonOrText(list[GpuHours], "text/csv; charset=utf-8"),
    "GPU hours of each user in a month, used and leased.",
    access=Access.MEMBER,
    proof=Proof.READS,
)
