"""Background tasks: started, restarted and logged here alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from podyd.base.errors import PodydError

log = logging.getLogger(__name__)

RESTART_SECONDS = 5.0

T = TypeVar("T")


class Tasks:
    """Background tasks with an owner: each is referenced until it ends, and a failure is logged."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` in the background; `name` is logged if it fails."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> asyncio.Task[Any]:
        """Run `work` until cancelled: when it fails, that is logged and it is started again."""
        return self.spawn(self._restarted(work, name), name)

    async def _restarted(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        while True:
            try:
                await work()
            except Exception as error:  # Whatever it is: podyd does not work without this task.
                log.error("%s failed and is started again", name, exc_info=error)
            await asyncio.sleep(RESTART_SECONDS)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, PodydError):
            log.warning("%s failed: %s", task.get_name(), error)
        else:
            log.error("%s crashed", task.get_name(), exc_info=error)

    async def finish(self, timeout: float) -> None:
        """Wait for the running tasks, `timeout` seconds at most, then cancel the rest."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)
        await self.cancel()

    async def cancel(self) -> None:
        """Cancel all tasks, and wait until they have ended, 5 seconds at most."""
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=5)


async def beside(work: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, None]) -> T:
    """What `work` returns. The others end with it; one of them that fails ends it, with its error.

    None of them outlives the call.
    """
    main = asyncio.ensure_future(work)
    running: set[asyncio.Task[Any]] = {main, *map(asyncio.ensure_future, others)}
    tasks = tuple(running)
    try:
        while not main.done():
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
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
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.add_done_callback(seen)
            task.cancel()
        if running:
            await asyncio.wait(running)


async def came(event: asyncio.Event, timeout: float | None) -> None:
    """Wait until an event is set, `timeout` seconds at most; without one, however long it takes."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=timeout)
    finally:
        waiting.cancel()


def seen(task: asyncio.Future[Any]) -> None:
    """Retrieve a task's exception, so that asyncio does not warn that nobody did."""
    if not task.cancelled():
        task.exception()


def log_crash(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """For `loop.set_exception_handler`: asyncio's own also logs what an exception says."""
    task = context.get("task") or context.get("future")
    work = task.get_coro() if isinstance(task, asyncio.Task) else None
    name = getattr(work, "__qualname__", "a callback")
    log.error("%s crashed, and nothing awaited it", name, exc_info=context.get("exception"))
