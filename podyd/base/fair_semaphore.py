"""A bounded number at a time; the others wait in line, and nobody can fill it for somebody else."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable

Place = asyncio.Future[None]

# So many of the favoured go first.
MAX_PASSED_OVER = 3


class QueueFull(Exception):
    """As many wait already as may, and nobody has more of them there than this one."""


class FairSemaphore:
    """`width` at a time, `length` in line.

    Who waits is served in the order in which they came, but one of each caller in turn; the
    favoured first, who leave every fourth turn to the others. Where the line is full, whoever has
    most in it loses the last of them.
    """

    def __init__(self, *, width: int, length: int) -> None:
        self._free = width
        self._length = length
        self._under_way: Counter[Hashable] = Counter()
        self._passed_over = 0
        self._favoured = _Line()
        self._others = _Line()

    @contextlib.asynccontextmanager
    async def turn(
        self, whose: Hashable, *, share: int, favoured: bool = False
    ) -> AsyncIterator[None]:
        """Wait for a turn and hold it; `whose` has `share` of them at once. Raises QueueFull."""
        line = self._favoured if favoured else self._others
        # While somebody waits who may go, no turn is free, so nobody is overtaken here.
        if self._free and self._under_way[whose] < share:
            self._begin(whose)
        else:
            await self._wait(line, whose, share)
        try:
            yield
        finally:
            self._end(whose)

    def _begin(self, whose: Hashable) -> None:
        self._free -= 1
        self._under_way[whose] += 1

    def _end(self, whose: Hashable) -> None:
        self._free += 1
        self._under_way[whose] -= 1
        if not self._under_way[whose]:
            del self._under_way[whose]
        self._call()

    def _call(self) -> None:
        """Give what is free to who waits."""
        while self._free and (called := self._next()) is not None:
            whose, place = called
            self._begin(whose)
            place.set_result(None)

    def _next(self) -> tuple[Hashable, Place] | None:
        if self._passed_over < MAX_PASSED_OVER or not len(self._others):
            called = self._favoured.next(self._under_way)
            if called is not None:
                self._passed_over += 1
                return called
        self._passed_over = 0
        return self._others.next(self._under_way) or self._favoured.next(self._under_way)

    async def _wait(self, line: _Line, whose: Hashable, share: int) -> None:
        if len(self._favoured) + len(self._others) >= self._length:
            self._make_room(line, whose)
        place = line.join(whose, share)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled() or place.exception() is not None:
                line.leave(whose, place)
            else:  # The turn had come at the same moment.
                self._end(whose)
            raise

    def _make_room(self, line: _Line, whose: Hashable) -> None:
        fullest = max((self._favoured, self._others), key=lambda item: item.most[1])
        greedy, count = fullest.most
        if line.count(whose) + 1 >= count:
            raise QueueFull
        fullest.drop_last(greedy)


class _Line:
    """Who waits: for each caller their places, and whose turn it is to be next."""

    def __init__(self) -> None:
        self._places: OrderedDict[Hashable, deque[Place]] = OrderedDict()
        self._shares: dict[Hashable, int] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def count(self, whose: Hashable) -> int:
        return len(self._places.get(whose, ()))

    @property
    def most(self) -> tuple[Hashable, int]:
        """Who has most places here, and how many."""
        return max(
            ((whose, len(places)) for whose, places in self._places.items()),
            key=lambda item: item[1],
            default=(None, 0),
        )

    def join(self, whose: Hashable, share: int) -> Place:
        place = asyncio.get_running_loop().create_future()
        self._places.setdefault(whose, deque()).append(place)
        self._shares[whose] = share
        self._length += 1
        return place

    def leave(self, whose: Hashable, place: Place) -> None:
        """Give a place up; one that is no longer here, too."""
        places = self._places.get(whose)
        if places is not None and place in places:
            places.remove(place)
            self._left(whose)

    def drop_last(self, whose: Hashable) -> None:
        """Refuse the last one of a caller."""
        place = self._places[whose].pop()
        self._left(whose)
        if not place.done():
            place.set_exception(QueueFull())

    def next(self, under_way: Counter[Hashable]) -> tuple[Hashable, Place] | None:
        """Take the next one out who may go."""
        for whose in list(self._places):
            while whose in self._places and under_way[whose] < self._shares[whose]:
                place = self._places[whose].popleft()
                self._places.move_to_end(whose)
                self._left(whose)
                if not place.done():
                    return whose, place
        return None

    def _left(self, whose: Hashable) -> None:
        self._length -= 1
        if not self._places[whose]:
            del self._places[whose], self._shares[whose]
