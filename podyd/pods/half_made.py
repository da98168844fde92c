"""Half-made instances: those that are being created, and the remains of failed ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime, timedelta, timezone

from podyd.base.errors import Busy, EngineRefused, Gone, PodydError, Running, engine_could_not
from podyd.base.tasks import Tasks, came
from podyd.engine.bound import uuid_of
from podyd.engine.interface import Files, Instances
from podyd.engine.types import Instance, named
from podyd.model.pod import MADE_AS, TEMPLATE, is_half_made
from podyd.pods.power import STOP_TIMEOUT

log = logging.getLogger(__name__)

DELETE_TIMEOUT = 120.0
REMOVE_TIMEOUT = 10.0
# The pause before a deletion is tried again, in seconds: the first, and the longest.
REMOVE_SECONDS, REMOVE_SECONDS_MAX = 0.5, 60.0
SWEEP_MARGIN = timedelta(seconds=10)


class HalfMade:
    """Tracks the instances that this podyd is creating, and removes half-made ones, also those of
    an earlier podyd."""

    def __init__(self, *, instances: Instances, files: Files, tasks: Tasks) -> None:
        self._instances = instances
        self._files = files
        self._tasks = tasks
        self._began = datetime.now(timezone.utc)
        # The names of the instances that are being created.
        self._making: set[str] = set()
        # The deletions under way, and the event that makes them try again at once.
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._again = asyncio.Event()

    def begin(self, name: str) -> None:
        """Register an instance that is being created: until `end`, `sweep` skips it."""
        self._making.add(name)

    def end(self, name: str) -> None:
        """The instance is complete, or removed."""
        self._making.discard(name)

    def is_under_way(self, name: str) -> bool:
        """Whether this podyd is creating it."""
        return name in self._making

    async def remove(self, name: str) -> bool:
        """Delete a half-made instance; returns whether it is gone. If not, the deletion goes on in
        the background."""
        removing = self.removal(name)
        gone, _ = await asyncio.wait({removing}, timeout=REMOVE_TIMEOUT)
        return bool(gone) and not removing.cancelled() and removing.exception() is None

    def removal(self, name: str) -> asyncio.Task[None]:
        """Delete a half-made instance in the background, until the engine has deleted it."""
        if name not in self._removing:
            self._removing[name] = self._tasks.spawn(
                self._remove(name), f"removing half-made pod {name}"
            )
        return self._removing[name]

    async def _bound(self, name: str) -> str:
        """A name, bound to the instance that has it now, if there is one."""
        instance = named(await self._instances.all(), name)
        return instance.name if instance else name

    async def _remove(self, name: str) -> None:
        pause, problem, target = REMOVE_SECONDS, "", name
        try:
            while True:
                try:
                    # Another instance may have the name by the time of a later attempt.
                    target = target if uuid_of(target) else await self._bound(name)
                    return await delete(self._instances, target)
                except PodydError as error:
                    before, problem = problem, str(error)
                    # The engine may still be creating it.
                    if problem != before and not isinstance(error, Busy):
                        log.warning("half-made pod %s is still there: %s", name, problem)
                await came(self._again, pause)
                pause = min(2 * pause, REMOVE_SECONDS_MAX)
        finally:
            del self._removing[name]

    async def sweep(self) -> None:
        """Delete half-made pods of a podyd that was killed.

        Deletions that have failed so far are tried again now, too.
        """
        self._again.set()
        self._again.clear()
        # Includes those that end while the list is read, and those that begin then.
        before = self._in_hand()
        for instance in await self._instances.all():
            is_marked = instance.config.get(MADE_AS) == instance.name
            # Younger ones are being created by this podyd, or by another process.
            is_old = instance.created < self._began + SWEEP_MARGIN
            if is_marked and is_old and instance.name not in before | self._in_hand():
                try:
                    await self._sweep_one(instance)
                except EngineRefused as error:
                    log.warning("%s is not changed: %s", instance.name, error.reason)

    def _in_hand(self) -> set[str]:
        return {*self._making, *self._removing}

    async def _sweep_one(self, instance: Instance) -> None:
        if not is_half_made(instance):
            await self._instances.remove_key(instance.name, MADE_AS)
            return
        log.warning("removing half-made pod %s", instance.name)
        if instance.name.startswith(TEMPLATE):
            await self._files.end_packing(instance.name)
        self.removal(instance.name)


async def delete(instances: Instances, name: str) -> None:
    """Delete an instance, running or not, if it still exists."""
    # The error for an instance that has stopped already does not matter here.
    with contextlib.suppress(EngineRefused):
        await instances.set_status(name, "stop", timeout=STOP_TIMEOUT, force=True)
    with engine_could_not("delete the pod"), contextlib.suppress(Gone):
        try:
            await instances.delete(name, timeout=DELETE_TIMEOUT)
        except Running:  # Or it has just ended.
            await instances.clean_up(name, has_ended=False)
            await instances.delete(name, timeout=DELETE_TIMEOUT)
