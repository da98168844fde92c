"""Which requests that change a pod are under way."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from podyd.base.clock import iso, now
from podyd.contract.events import PodWork
from podyd.model.member import Member


@dataclass(frozen=True)
class Work:
    """A request under way; `pod` is LXD's name of the instance."""

    pod: str
    caller: Member
    shown: PodWork


class Works:
    """The changes under way, the oldest first."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._under_way: dict[int, Work] = {}
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Call `subscriber` whenever one begins or ends."""
        self._subscribers.append(subscriber)

    @property
    def under_way(self) -> dict[str, Work]:
        """By pod, what has been under way there for longest."""
        return {work.pod: work for work in reversed(self._under_way.values())}

    @contextlib.contextmanager
    def on(self, pod: str, operation: str, member: Member) -> Iterator[None]:
        """A member's request to change a pod is under way."""
        number = next(self._numbers)
        shown = PodWork(operation, iso(now()), member.name)
        self._under_way[number] = Work(pod, member, shown)
        self._tell()
        try:
            yield
        finally:
            del self._under_way[number]
            self._tell()

    def _tell(self) -> None:
        for subscriber in self._subscribers:
            subscriber()
