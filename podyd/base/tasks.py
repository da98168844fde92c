"""The one place where background tasks are made, kept and mourned."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from podyd.base.errors import PodydError

log = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0

T = TypeVar("T")


class Tasks:
    """Background tasks with an owner: none is lost, and a death is logged."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` in the background; `name` stands in the log if it fails."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> asyncio.Task[Any]:
        """Run `work` for good: when it dies, it is mourned in the log and begun again."""
        return self.spawn(self._again(work, name), name)

    async def _again(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        while True:
            try:
                await work()
            except Exception as error:  # Whatever it is: without this work podyd is half dead.
                log.error("%s died and begins again", name, exc_info=error)
            await asyncio.sleep(AGAIN_SECONDS)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, PodydError):
            log.warning("%s failed: %s", task.get_name(), error)
        else:
            log.error("%s died", task.get_name(), exc_info=error)

    async def finish(self, timeout: float) -> None:
        """Wait for what runs, `timeout` seconds at most, then cancel the rest."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)
        await self.cancel()

    async def cancel(self) -> None:
        """End everything now."""
        left = list(self._running)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5)


async def beside(work: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, None]) -> T:
    """What `work` returns. The others end with it; one of them that fails ends it, with its error.

    None of them outlives the call.
    """
    main = asyncio.ensure_future(work)
    going_on: set[asyncio.Task[Any]] = {main, *map(asyncio.ensure_future, others)}
    tasks = tuple(going_on)
    try:
        while not main.done():
            done, going_on = await asyncio.wait(going_on, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        return main.result()
    finally:
        for task in tasks:
            task.add_done_callback(seen)
            task.cancel()


async def together(*works: Coroutine[Any, Any, T]) -> list[T]:
    """What all of them return; where one fails, or the caller is cancelled, no other goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.add_done_callback(seen)
            task.cancel()
        if left:
            await asyncio.wait(left)


async def came(event: asyncio.Event, timeout: float | None) -> None:
    """Wait until an event is set, `timeout` seconds at most; without one, however long it takes."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=timeout)
    finally:
        waiting.cancel()


def seen(task: asyncio.Future[Any]) -> None:
    """Have it noticed that a task has failed, where nobody may be left to wait for it."""
    if not task.cancelled():
        task.exception()


def died(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """For `loop.set_exception_handler`: asyncio's own also logs what an exception says."""
    task = context.get("task") or context.get("future")
    work = task.get_coro() if isinstance(task, asyncio.Task) else None
    name = getattr(work, "__qualname__", "a callback")
    log.error("%s died, and nobody saw it", name, exc_info=context.get("exception"))
