"""Which requests that change a pod are under way."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from podyd.base.clock import iso, now
from podyd.base.errors import PodydError
from podyd.contract.events import PodWork
from podyd.model.member import Member


@dataclass(frozen=True)
class Work:
    """A request under way; `pod` is the engine's name of the instance."""

    pod: str
    caller: Member
    shown: PodWork


# So many that have ended are kept for the next look, for there may be none for long.
MOST_UNSEEN = 256


class Works:
    """The changes under way, the oldest first."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._under_way: dict[int, Work] = {}
        self._seen: frozenset[int] = frozenset()
        self._unseen: dict[int, Work] = {}
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Call `subscriber` whenever one begins or ends."""
        self._subscribers.append(subscriber)

    def look(self) -> dict[str, Work]:
        """By pod, what has been under way there for longest since the last look. So what began and
        ended in between is there once: who watches has to learn that something was done."""
        works = {**self._unseen, **self._under_way}
        self._seen = frozenset(self._under_way)
        self.forget()
        return {works[number].pod: works[number] for number in sorted(works, reverse=True)}

    def forget(self) -> None:
        """Nobody wants to know what has ended by now."""
        self._unseen = {}

    @contextlib.contextmanager
    def on(self, pod: str, operation: str, member: Member) -> Iterator[None]:
        """A member's request to change a pod is under way; one that is refused changes nothing."""
        number = next(self._numbers)
        shown = PodWork(operation, iso(now()), member.name)
        self._under_way[number] = Work(pod, member, shown)
        self._tell()
        is_refused = False
        try:
            yield
        except PodydError as error:
            is_refused = error.status < 500
            raise
        finally:
            work = self._under_way.pop(number)
            if number not in self._seen and not is_refused:
                self._unseen[number] = work
                while len(self._unseen) > MOST_UNSEEN:
                    del self._unseen[next(iter(self._unseen))]
            self._tell()

    def _tell(self) -> None:
        for subscriber in self._subscribers:
            subscriber()
