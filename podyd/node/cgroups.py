"""Which pod a cgroup belongs to, also where liblxc could not name it after the pod.

A pod's cgroup is `lxc.payload.NAME`, or `lxc.payload.NAME-1` and so on where that is still there,
as after the engine and all pods were killed. Another pod may be called NAME-1, so only the engine
can tell: it knows the first process of each pod, which is in the pod's cgroup.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Protocol

from podyd.base.errors import PodydError
from podyd.node import procs

InstanceCgroup = procs.InstanceCgroup


class Started(Protocol):
    """An instance, and when it was started."""

    @property
    def name(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def started(self) -> datetime | None: ...


class Cgroups:
    """The pods' cgroups, updated by `follow` after each call of `changed`.

    `instances` returns the engine's instances of the project, `first_process` the pid of one's
    init, and `cgroup_of` the cgroup of a process.
    """

    def __init__(
        self,
        project: str,
        *,
        instances: Callable[[], Awaitable[Iterable[Started]]],
        first_process: Callable[[str], Awaitable[int]],
        cgroup_of: Callable[[int], Awaitable[InstanceCgroup | None]],
    ) -> None:
        self._project = project
        self._instances = instances
        self._first_process = first_process
        self._cgroup_of = cgroup_of
        self._changed = asyncio.Event()
        # Each running pod's first process and cgroup, for as long as it has not been started anew.
        self._known: dict[tuple[str, datetime | None], tuple[int, str]] = {}
        self._names: dict[str, str] = {}
        self._subscribers: list[Callable[[], None]] = []

    @property
    def names(self) -> Mapping[str, str]:
        """The names of running pods, by those of their cgroups."""
        return self._names

    @property
    def first_processes(self) -> Mapping[str, int]:
        """The pids of running pods' inits on the host, by the pods' names. A pod may have ended
        since, and its pid may be another process'."""
        return {name: pid for (name, _), (pid, _) in self._known.items()}

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Call `subscriber` whenever `names` has changed."""
        self._subscribers.append(subscriber)

    def changed(self) -> None:
        """A pod may have been started."""
        self._changed.set()

    def instance_of(self, cgroup: InstanceCgroup | None) -> tuple[str, str] | None:
        """The project and the name of the instance with this cgroup; None for the host's."""
        if cgroup is None or cgroup[0] != self._project:
            return cgroup
        return self._project, self._names.get(cgroup[1], cgroup[1])

    async def follow(self) -> None:
        """Read the cgroup of every pod that starts, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            with contextlib.suppress(PodydError):  # The engine does not answer now.
                await self._learn()

    async def _learn(self) -> None:
        running = {
            (instance.name, instance.started)
            for instance in await self._instances()
            if instance.status == "running"
        }
        self._known = {key: known for key, known in self._known.items() if key in running}
        for key in running - set(self._known):
            with contextlib.suppress(PodydError):  # It has just stopped, which is a change too.
                pid = await self._first_process(key[0])
                cgroup = await self._cgroup_of(pid)
                if cgroup is not None:
                    self._known[key] = pid, cgroup[1]
        names = {cgroup: name for (name, _), (_, cgroup) in self._known.items()}
        if names != self._names:
            self._names = names
            for subscriber in self._subscribers:
                subscriber()
