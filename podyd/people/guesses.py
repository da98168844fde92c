"""Rate limits of failed logins: how many attempts there may be, and which of them wait.

An origin from which a user has logged in before has a limit of its own, which nobody elsewhere can
use up. All other origins share one limit for each user; the last third of that is for origins that
have not failed yet, so that guesses from one origin do not lock the user out at another. An attempt
beyond the limit waits until failures expire, those with the fewest failures first: the right
password still gets in, and the rate of guesses stays bounded.
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

# An attempt that would wait longer is refused, with the time after which to try again.
MAX_DELAY = 30.0
# Attempts that wait: in all, from one origin, and from one origin for one user.
MAX_WAITING = 256
MAX_WAITING_PER_ORIGIN = 16
MAX_WAITING_PER_USER = 2
# Seconds between two checks of the limits; attempts that succeed free their place meanwhile.
MAX_PAUSE = 1.0
MIN_PAUSE = 0.02


@dataclass(frozen=True)
class Try:
    """An attempt to log in as `who` from `origin`; `known` if they have logged in from there
    before."""

    who: Hashable
    origin: Hashable
    known: bool
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def user_at_origin(self) -> Hashable:
        """The key of the failures of this user from this origin."""
        return "own", self.who, self.origin

    @property
    def keys(self) -> Sequence[Hashable]:
        """The keys of all counters that a failure increments."""
        if self.known:
            return (self.user_at_origin,)
        return self.user_at_origin, ("user", self.who), ("origin", self.origin)


class _Join(Protocol):
    def __call__(self, *, is_too_late: bool) -> None: ...


@dataclass(frozen=True)
class Counted:
    """An attempt that may be made; it counts as a failure until it is forgiven."""

    marks: Sequence[tuple[Hashable, float]]


class Guesses:
    """Counts failed attempts; `auth` returns the configuration in force."""

    def __init__(self, auth: Callable[[], AuthConfig], failures: Throttle | None = None) -> None:
        self._auth = auth
        self._failures = failures or Throttle()
        self._waiting: set[Try] = set()

    async def admit(self, one: Try) -> Counted:
        """Wait until the attempt may be made. Raises TooMany if that takes over `MAX_DELAY`."""
        deadline = time.monotonic() + MAX_DELAY
        with self._queued(one) as join:
            while (pause := self._pause(one)) > 0:
                join(is_too_late=time.monotonic() + pause > deadline)
                await asyncio.sleep(min(pause, MAX_PAUSE))
        # Counted before it is made, so that concurrent attempts count too.
        return Counted([(key, self._failures.count(key)) for key in one.keys])

    def forgive(self, counted: Counted) -> None:
        """Undo the count of an attempt that has not failed, or of which that is not known."""
        for key, when in counted.marks:
            self._failures.forgive(key, when)

    def failed_token(self, who: Hashable, origin: Hashable) -> None:
        """Count a token that does not exist. Raises TooMany if there were too many."""
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
    def _queued(self, one: Try) -> Iterator[_Join]:
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
        """Seconds until the next check; 0 if it is this one's turn."""
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
        return self._failures.number(one.user_at_origin, self._auth().failure_window)

    def _wait(self, one: Try) -> float:
        """Seconds until none of its counters is above its limit; 0 if none is."""
        auth = self._auth()
        limits: dict[Hashable, int] = {one.user_at_origin: auth.failures_per_user}
        if not one.known:
            reserved = auth.failures_per_user // 3 if self._own_failures(one) else 0
            limits["user", one.who] = auth.failures_per_user - reserved
            limits["origin", one.origin] = auth.failures_per_address
        return self._longest(limits)

    def _longest(self, limits: Mapping[Hashable, int]) -> float:
        window = self._auth().failure_window
        return max(self._failures.wait(key, limit, window) for key, limit in limits.items())


def _too_many(wait: float) -> TooMany:
    # Sooner than an attempt is free, so that the next one can join the queue for it.
    after = max(1.0, wait - MAX_DELAY / 2)
    return TooMany(
        "Too many failed logins.",
        advice=f"Wait {after:.0f} s.",
        retry_after=after,
        code="too_many_failed_logins",
    )
