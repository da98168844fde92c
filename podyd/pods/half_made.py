"""Instances that are half-made: those in the making, and what is left of those that failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime, timedelta, timezone

from podyd.base.errors import Busy, Gone, LxdRefused, PodydError, lxd_could_not
from podyd.base.tasks import Tasks, came
from podyd.engine.bound import uuid_of
from podyd.engine.interface import Files, Instances
from podyd.engine.types import Instance, named
from podyd.model.pod import MADE_AS, TEMPLATE, is_half_made

log = logging.getLogger(__name__)

STOP_TIMEOUT = 30
DELETE_TIMEOUT = 120.0
REMOVE_TIMEOUT = 10.0
# What LXD does not let go of is tried again after so many seconds at first, and at last.
REMOVE_SECONDS, REMOVE_SECONDS_MAX = 0.5, 60.0
SWEEP_MARGIN = timedelta(seconds=10)


class HalfMade:
    """Knows what this podyd is making, and removes what it, or one before it, has left."""

    def __init__(self, *, instances: Instances, files: Files, tasks: Tasks) -> None:
        self._instances = instances
        self._files = files
        self._tasks = tasks
        self._began = datetime.now(timezone.utc)
        # The names of the instances that are being made.
        self._making: set[str] = set()
        # What is being deleted, and the sign that it may go now.
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._again = asyncio.Event()

    def begin(self, name: str) -> None:
        """An instance of this name is being made: until `end`, `sweep` lets it be."""
        self._making.add(name)

    def end(self, name: str) -> None:
        """It is whole, or removed."""
        self._making.discard(name)

    def is_under_way(self, name: str) -> bool:
        """Whether this podyd is making it."""
        return name in self._making

    async def remove(self, name: str) -> bool:
        """Delete what is half-made; whether it is gone. If not, it goes in the background."""
        removing = self.removal(name)
        gone, _ = await asyncio.wait({removing}, timeout=REMOVE_TIMEOUT)
        return bool(gone) and not removing.cancelled() and removing.exception() is None

    def removal(self, name: str) -> asyncio.Task[None]:
        """Delete what is half-made, in the background, however long LXD does not let go of it."""
        if name not in self._removing:
            self._removing[name] = self._tasks.spawn(
                self._remove(name), f"removing half-made pod {name}"
            )
        return self._removing[name]

    async def _meant(self, name: str) -> str:
        """A name, for that instance alone that has it now, if one does."""
        found = named(await self._instances.all(), name)
        return found.name if found else name

    async def _remove(self, name: str) -> None:
        pause, said, meant = REMOVE_SECONDS, "", name
        try:
            while True:
                try:
                    # The name may be another's by the time of a later try.
                    meant = meant if uuid_of(meant) else await self._meant(name)
                    return await delete(self._instances, meant)
                except PodydError as error:
                    before, said = said, error.detail
                    # LXD may be making it yet.
                    if said != before and not isinstance(error, Busy):
                        log.warning("half-made pod %s is still there: %s", name, said)
                await came(self._again, pause)
                pause = min(2 * pause, REMOVE_SECONDS_MAX)
        finally:
            del self._removing[name]

    async def sweep(self) -> None:
        """Delete the pods that a podyd which was killed has left half-made.

        What could not be deleted so far is tried again now, too.
        """
        self._again.set()
        self._again.clear()
        # What ends while the list is read, and what begins then.
        before = self._in_hand()
        for instance in await self._instances.all():
            is_marked = instance.config.get(MADE_AS) == instance.name
            # What is younger, this podyd is making, or somebody beside it.
            is_old = instance.created < self._began + SWEEP_MARGIN
            if is_marked and is_old and instance.name not in before | self._in_hand():
                try:
                    await self._sweep_one(instance)
                except LxdRefused as error:
                    log.warning("%s is left as it is: %s", instance.name, error.reason)

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
    """Delete an instance, running or not; that it has gone already is no error."""
    # Stopping what has stopped is an error that does not matter here.
    with contextlib.suppress(LxdRefused):
        await instances.set_status(name, "stop", timeout=STOP_TIMEOUT, force=True)
    with lxd_could_not("delete the pod"), contextlib.suppress(Gone):
        await instances.delete(name, timeout=DELETE_TIMEOUT)
