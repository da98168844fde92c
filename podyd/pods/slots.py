"""Slots for long-running work: a limit for each member, and one for all together."""

from __future__ import annotations

import contextlib
from collections import Counter

from podyd.base.errors import TooMany
from podyd.model.member import Member


class Slots:
    """Counts slots: at most `own` of each member, and `all` together.

    The error has the member's number before `what`, and `advice`.
    """

    def __init__(self, *, own: int, all: int, what: str, advice: str, code: str) -> None:
        self._own = own
        self._all = all
        self._what = what
        self._advice = advice
        self._code = code
        self._taken: Counter[str] = Counter()

    def take(self, member: Member) -> contextlib.ExitStack:
        """Take a slot; closing the result releases it, and a second time does nothing.

        Raises TooMany.
        """
        own = self._taken[member.name]
        if own >= self._own or self._taken.total() >= self._all:
            raise TooMany(
                f"{own} {self._what}.", advice=self._advice, retry_after=1, code=self._code
            )
        self._taken[member.name] += 1
        slot = contextlib.ExitStack()
        slot.callback(self._give_back, member.name)
        return slot

    def _give_back(self, name: str) -> None:
        self._taken[name] -= 1
        if not self._taken[name]:
            del self._taken[name]
