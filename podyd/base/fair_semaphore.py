"""A semaphore with a bounded queue, in which no caller can take the places of the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable

Waiter = asyncio.Future[None]

# So many favoured waiters are served before one of the others.
MAX_PASSED_OVER = 3


class QueueFull(Exception):
    """The queue is full, and no other caller has more waiters in it than this one."""


class FairSemaphore:
    """`width` holders at a time, `length` waiters in the queue.

    Waiters are served in the order in which they came, but one of each caller in turn; the favoured
    first, who leave every fourth turn to the others. When the queue is full, the caller with the
    most waiters has its last one removed.
    """

    def __init__(self, *, width: int, length: int) -> None:
        self._free = width
        self._length = length
        self._under_way: Counter[Hashable] = Counter()
        self._passed_over = 0
        self._favoured = _Queue()
        self._others = _Queue()

    @contextlib.asynccontextmanager
    async def turn(
        self, key: Hashable, *, share: int, favoured: bool = False
    ) -> AsyncIterator[None]:
        """Wait for a turn and hold it; `key` has `share` of them at once. Raises QueueFull."""
        queue = self._favoured if favoured else self._others
        # No turn is free while a waiter could have it, so nobody is overtaken here.
        if self._free and self._under_way[key] < share:
            self._begin(key)
        else:
            await self._wait(queue, key, share)
        try:
            yield
        finally:
            self._end(key)

    def _begin(self, key: Hashable) -> None:
        self._free -= 1
        self._under_way[key] += 1

    def _end(self, key: Hashable) -> None:
        self._free += 1
        self._under_way[key] -= 1
        if not self._under_way[key]:
            del self._under_way[key]
        self._call()

    def _call(self) -> None:
        """Give free turns to waiters."""
        while self._free and (called := self._next()) is not None:
            key, waiter = called
            self._begin(key)
            waiter.set_result(None)

    def _next(self) -> tuple[Hashable, Waiter] | None:
        if self._passed_over < MAX_PASSED_OVER or not len(self._others):
            called = self._favoured.next(self._under_way)
            if called is not None:
                self._passed_over += 1
                return called
        self._passed_over = 0
        return self._others.next(self._under_way) or self._favoured.next(self._under_way)

    async def _wait(self, queue: _Queue, key: Hashable, share: int) -> None:
        if len(self._favoured) + len(self._others) >= self._length:
            self._make_room(queue, key)
        waiter = queue.join(key, share)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled() or waiter.exception() is not None:
                queue.leave(key, waiter)
            else:  # The turn had come at the same moment.
                self._end(key)
            raise

    def _make_room(self, queue: _Queue, key: Hashable) -> None:
        fullest = max((self._favoured, self._others), key=lambda item: item.most[1])
        greedy, count = fullest.most
        if queue.count(key) + 1 >= count:
            raise QueueFull
        fullest.drop_last(greedy)


class _Queue:
    """The waiters of each caller; the callers in the order in which they are served next."""

    def __init__(self) -> None:
        self._waiters: OrderedDict[Hashable, deque[Waiter]] = OrderedDict()
        self._shares: dict[Hashable, int] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def count(self, key: Hashable) -> int:
        return len(self._waiters.get(key, ()))

    @property
    def most(self) -> tuple[Hashable, int]:
        """The caller with the most waiters, and how many."""
        return max(
            ((key, len(waiters)) for key, waiters in self._waiters.items()),
            key=lambda item: item[1],
            default=(None, 0),
        )

    def join(self, key: Hashable, share: int) -> Waiter:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(key, deque()).append(waiter)
        self._shares[key] = share
        self._length += 1
        return waiter

    def leave(self, key: Hashable, waiter: Waiter) -> None:
        """Remove a waiter, if it is still in the queue."""
        waiters = self._waiters.get(key)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            self._removed(key)

    def drop_last(self, key: Hashable) -> None:
        """Refuse the last waiter of a caller."""
        waiter = self._waiters[key].pop()
        self._removed(key)
        if not waiter.done():
            waiter.set_exception(QueueFull())

    def next(self, under_way: Counter[Hashable]) -> tuple[Hashable, Waiter] | None:
        """Remove and return the next waiter whose caller holds less than its share."""
        for key in list(self._waiters):
            while key in self._waiters and under_way[key] < self._shares[key]:
                waiter = self._waiters[key].popleft()
                self._waiters.move_to_end(key)
                self._removed(key)
                if not waiter.done():
                    return key, waiter
        return None

    def _removed(self, key: Hashable) -> None:
        self._length -= 1
        if not self._waiters[key]:
            del self._waiters[key], self._shares[key]
