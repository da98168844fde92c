"""Notices: what podyd has to tell a member or the admins, readable afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Notice:
    """A message: `account` as `Pod.account` has it, None for the admins; `pod` is the name of
    its instance, "" if it is of none.

    The same notice may be sent several times in a short while: `count` says how often, and `time`,
    in seconds since 1970, when last.
    """

    account: str | None
    text: str
    pod: str
    count: int
    time: float


class Tell(Protocol):
    """Tells a member, or the admins if `account` is None; never waits and never fails.

    Text without pids and times is the same text when it is sent again, and is then counted: else
    a pod that causes many notices pushes all others out.
    """

    def __call__(self, account: str | None, text: str, *, pod: str = "") -> None: ...
