"""Slots for long-running work: a limit for each member, and one for all together."""

from __future__ import annotations

import contextlib
from collections import Counter

from podyd.base.errors import TooMany
from podyd.model.member import Member


class Slots:
    """Counts slots: at most `per_member` of each member, and `total` of all together.

    The error has the member's number before `what`, and `advice`.
    """

    def __init__(self, *, per_member: int, total: int, what: str, advice: str, code: str) -> None:
        self._per_member = per_member
        self._total = total
        self._what = what
        self._advice = advice
        self._code = code
        self._taken: Counter[str] = Counter()

    def take(self, member: Member) -> contextlib.ExitStack:
        """Take a slot; closing the result releases it, and a second time does nothing.

        Raises TooMany.
        """
        taken = self._taken[member.name]
        if taken >= self._per_member or self._taken.total() >= self._total:
            raise TooMany(
                f"{taken} {self._what}.", advice=self._advice, retry_after=1, code=self._code
            )
        self._taken[member.name] += 1
        slot = contextlib.ExitStack()
        slot.callback(self._give_back, member.name)
        return slot

    def _give_back(self, name: str) -> None:
        self._taken[name] -= 1
        if not self._taken[name]:
            del self._taken[name]
