"""How often a password may be tried, and who has to wait for it.

Where a user is known to come from has failures of its own, which nobody elsewhere can cause. All
other origins have so many for one user between them; but the last of these are for those that have
not failed yet, so that who guesses from one origin does not keep the user out of another. Whoever
comes when there are none left waits for one, those with the fewest failures first: the right
password gets in, and there are no more guesses for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from podyd.base.errors import TooMany
from podyd.base.throttle import Throttle
from podyd.config.schema import AuthConfig

# Longer than that nobody waits for an answer; they are told when to come again.
MAX_DELAY = 30.0
# Who waits, in all, from one origin, and from one origin for one user.
MAX_WAITING = 256
MAX_WAITING_PER_ORIGIN = 16
MAX_WAITING_PER_USER = 2
# Between two looks; failures are forgiven meanwhile.
MAX_PAUSE = 1.0
MIN_PAUSE = 0.02


@dataclass(frozen=True)
class Try:
    """A secret of `who`, from `origin`; `known`: they have logged in from there before."""

    who: Hashable
    origin: Hashable
    known: bool
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def own(self) -> Hashable:
        """The key of what has failed for this user from there."""
        return "own", self.who, self.origin

    @property
    def keys(self) -> Sequence[Hashable]:
        """All that a failure counts for."""
        if self.known:
            return (self.own,)
        return self.own, ("user", self.who), ("origin", self.origin)


class _Join(Protocol):
    def __call__(self, *, is_too_late: bool) -> None: ...


@dataclass(frozen=True)
class Counted:
    """A try that may be made; it counts as failed until it is forgiven."""

    marks: Sequence[tuple[Hashable, float]]


class Guesses:
    """Counts failed tries; `auth` is the configuration in force."""

    def __init__(self, auth: Callable[[], AuthConfig], failures: Throttle | None = None) -> None:
        self._auth = auth
        self._failures = failures or Throttle()
        self._waiting: set[Try] = set()

    async def admit(self, one: Try) -> Counted:
        """Wait until the secret may be tried. Raises TooMany if that is too long."""
        deadline = time.monotonic() + MAX_DELAY
        with self._in_line(one) as join:
            while (pause := self._pause(one)) > 0:
                join(is_too_late=time.monotonic() + pause > deadline)
                await asyncio.sleep(min(pause, MAX_PAUSE))
        # It counts before it is made, so that many at once count too.
        return Counted([(key, self._failures.count(key)) for key in one.keys])

    def forgive(self, counted: Counted) -> None:
        """It did not fail, or nobody knows."""
        for key, when in counted.marks:
            self._failures.forgive(key, when)

    def failed_token(self, who: Hashable, origin: Hashable) -> None:
        """Count a token that there is not. Raises TooMany where there were too many."""
        auth = self._auth()
        limits: dict[Hashable, int] = {
            ("own", who, origin): auth.failures_per_user,
            ("origin", origin): auth.failures_per_address,
        }
        wait = self._longest(limits)
        if wait > 0:
            raise _too_many(wait)
        for key in limits:
            self._failures.count(key)

    @contextlib.contextmanager
    def _in_line(self, one: Try) -> Iterator[_Join]:
        def join(*, is_too_late: bool) -> None:
            if is_too_late or (one not in self._waiting and self._is_full_for(one)):
                raise _too_many(self._wait(one))
            self._waiting.add(one)

        try:
            yield join
        finally:
            self._waiting.discard(one)

    def _is_full_for(self, one: Try) -> bool:
        here = [other for other in self._waiting if other.origin == one.origin]
        return (
            len(self._waiting) >= MAX_WAITING
            or len(here) >= MAX_WAITING_PER_ORIGIN
            or sum(other.who == one.who for other in here) >= MAX_WAITING_PER_USER
        )

    def _pause(self, one: Try) -> float:
        """Seconds until it is worth looking again; 0 if it is this one's turn."""
        wait = self._wait(one)
        if wait > 0:
            return max(wait, MIN_PAUSE)
        return MIN_PAUSE if any(self._goes_before(other, one) for other in self._waiting) else 0.0

    def _goes_before(self, other: Try, one: Try) -> bool:
        return (
            other != one
            and not set(other.keys).isdisjoint(one.keys)
            and self._rank(other) < self._rank(one)
            and self._wait(other) <= 0
        )

    def _rank(self, one: Try) -> tuple[int, int]:
        return self._own_failures(one), one.number

    def _own_failures(self, one: Try) -> int:
        return self._failures.number(one.own, self._auth().failure_window)

    def _wait(self, one: Try) -> float:
        """Seconds until no count of it is too high; 0 if none is."""
        auth = self._auth()
        limits: dict[Hashable, int] = {one.own: auth.failures_per_user}
        if not one.known:
            left_for_others = auth.failures_per_user // 3 if self._own_failures(one) else 0
            limits["user", one.who] = auth.failures_per_user - left_for_others
            limits["origin", one.origin] = auth.failures_per_address
        return self._longest(limits)

    def _longest(self, limits: Mapping[Hashable, int]) -> float:
        window = self._auth().failure_window
        return max(self._failures.wait(key, limit, window) for key, limit in limits.items())


def _too_many(wait: float) -> TooMany:
    # Sooner than a try is free, so that who comes then can wait in line for it.
    after = max(1.0, wait - MAX_DELAY / 2)
    return TooMany(
        "Too many failed logins.",
        advice=f"Wait {after:.0f} s.",
        retry_after=after,
        code="too_many_failed_logins",
    )
