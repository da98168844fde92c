"""The project's instances as last known, kept true by the engine's events.

To ask the engine for all instances takes a millisecond and more for each, and most calls need them.
So what has been read is kept until an event names it; without the event stream nothing is kept.
Changes that an admin makes with `lxc` are thereby seen at once. What no event tells is seen within
READ_SECONDS.

In a cluster, the engine waits for a member that hangs, and then shows nothing of its instances but
their names. There nobody waits for longer than WAIT_SECONDS: what has not been read by then is
shown as last known, and the reading goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from podyd.base.engine_words import ENGINE
from podyd.base.errors import EngineRefused, Gone, PodydError, Unavailable
from podyd.base.tasks import beside, seen
from podyd.engine.bound import bound
from podyd.engine.lifecycle import Concern, concern_of
from podyd.engine.rest import (
    RestClient,
    instance_path,
    members_of,
    project_path,
    unreachable,
)
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.times import parse_time
from podyd.engine.types import Instance, Status, named
from podyd.engine.websocket import Websocket

log = logging.getLogger(__name__)

RECONNECT_DELAYS = (0.2, 0.5, 1.0, 2.0, 5.0)
PING_INTERVAL = 10.0
# If more instances have changed, it is quicker to read all.
MANY = 16
READ_SECONDS = 60.0
# With what else it takes, a call is to be answered within a second.
WAIT_SECONDS = 0.8
# At a cluster's members: one that comes back is there for the engine with its next heartbeat, of
# which one comes every 10 s.
LOOK_SECONDS = 2.0

# The engine's words; whatever else it says of an instance is an error.
_STATUSES: Mapping[str, Status] = {
    "Running": "running",
    # It runs, and its root has told the guest API that it has booted; from LXD 5.6 on, and Incus.
    "Ready": "running",
    "Stopped": "stopped",
    "Frozen": "frozen",
}
_NEVER = datetime.min.replace(tzinfo=timezone.utc)


def instance_of(data: Mapping[str, Any]) -> Instance:
    """From the engine's JSON of an instance."""
    started = parse_time(data["last_used_at"])
    return Instance(
        name=bound(data["name"], data["config"].get("volatile.uuid", "")),
        status=_STATUSES.get(data["status"], "error"),
        created=parse_time(data["created_at"]),
        # The engine writes the zero time, of 1970 or of the year 1, for "never".
        started=started if started.year > 1970 else None,
        config=data["config"],
        expanded_config=data["expanded_config"],
        own_devices=data["devices"],
        devices=data["expanded_devices"],
        profiles=tuple(data["profiles"] or ()),
        host=_host_of(data),
    )


async def rows_of(client: RestClient, *, depth: int = 1) -> list[Any]:
    """Every instance, as the engine writes it. Raises EngineRefused if podyd may not see the
    project."""
    rows = await members_of(client, "/1.0/instances", depth=depth)
    if not rows:
        await _check_seen(client)
    return rows


async def _row_of(client: RestClient, name: str) -> Any:
    """One, None if it is not there."""
    try:
        return await client.get(instance_path(name))
    except Gone:  # And nothing else that is missing, such as a part of it.
        await _check_seen(client)
        return None


async def _check_seen(client: RestClient) -> None:
    """To a certificate that may not see the project, Incus lists no instances since 6.21
    (lxc/incus#2824); pods that podyd takes for gone lose their ports and cards."""
    await client.get(project_path(client.project))


def _host_of(data: Mapping[str, Any]) -> str:
    location: str = data["location"]
    return "" if location == "none" else location


def _unreadable(name: str) -> Unavailable:
    return unreachable(asyncio.TimeoutError(f"{name} cannot be read"))


def _absent(name: str, known: Instance | None, host: str = "") -> Instance:
    """An instance of which only what is known of it can be shown."""
    if known is None:
        known = Instance(name, "error", _NEVER, None, {}, {}, {}, {}, ())
    return replace(known, host=host or known.host, is_reachable=False)


@dataclass(frozen=True)
class _Known:
    """What was read of an instance, None if it was not there, after the change of a number."""

    changes: int
    instance: Instance | None


@dataclass(frozen=True)
class _Reading:
    """A question to the engine that began after the change of a number."""

    changes: int
    # When those in a cluster who wait for it go on without.
    due: float
    task: asyncio.Task[None]

    @property
    def is_late(self) -> bool:
        return _now() > self.due


class InstanceView:
    """All instances; `watch` follows the engine's events.

    Changes are numbered. What is known has the number of the last change before its reading began:
    one with a higher number may not be in it, and nothing with a lower one replaces it.
    """

    def __init__(self, client: RestClient, guard: RestoreGuard) -> None:
        self._client = client
        self._guard = guard
        self._subscribers: list[Callable[[], None]] = []
        self._is_following = False
        self._is_clustered = False
        # The numbers of the last change: of anything, of any instance, of a cluster's members, of
        # the connection, and of each instance that has not been read since.
        self._changes = 0
        self._all_changed = 0
        self._members_changed = 0
        self._connected = 0
        self._changed: dict[str, int] = {}
        self._known: dict[str, _Known] = {}
        # Of all instances, and thus of those that are not known; -1: never.
        self._all_known = -1
        self._shown: tuple[Instance, ...] | None = None
        # By name, and of all by "".
        self._readings: dict[str, _Reading] = {}
        self._list_began = 0.0

    def close(self) -> None:
        """End what is being read."""
        for reading in list(self._readings.values()):
            reading.task.cancel()

    # --- Changes ---------------------------------------------------------------------------------

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Call `subscriber` whenever something has changed, or may have."""
        self._subscribers.append(subscriber)

    def changed(self, *names: str) -> None:
        """These instances have changed, or may have."""
        self._changes += 1
        # Unbound: whichever has the name now.
        self._changed |= dict.fromkeys(map(str, names), self._changes)
        self._tell()

    def all_changed(self) -> None:
        """Any instance may have changed."""
        self._forget()
        self._tell()

    def _forget(self) -> None:
        self._changes += 1
        self._all_changed = self._changes

    def _tell(self) -> None:
        for subscriber in self._subscribers:
            subscriber()

    # --- Reading ---------------------------------------------------------------------------------

    async def all(self) -> tuple[Instance, ...]:
        """Every instance, by name."""
        if not self._is_following:
            self._forget()
        readings = self._due()
        left = None
        if self._is_bounded:
            readings = [reading for reading in readings if not reading.is_late]
            left = max((reading.due for reading in readings), default=0) - _now()
        if readings:
            done, _ = await asyncio.wait({reading.task for reading in readings}, timeout=left)
            for task in done:
                task.result()
        return self._instances()

    async def one(self, name: str) -> Instance | None:
        """The instance of a name; another one may have got it meanwhile, so nothing but what it is
        now. Raises Unavailable if that cannot be read."""
        changes = self._changes
        instances = await self.all()
        if self._changed.get(name, changes + 1) <= changes:
            raise _unreadable(name)
        return named(instances, name)

    @property
    def _is_bounded(self) -> bool:
        """Whether something is shown although it cannot be read; not what was known before there
        were events."""
        is_known = self._is_following and self._all_known >= self._connected
        return self._is_clustered and is_known

    def _instances(self) -> tuple[Instance, ...]:
        if self._shown is None:
            known = (self._known[name].instance for name in sorted(self._known))
            self._shown = tuple(item for item in known if item is not None)
        return self._shown

    def _due(self) -> list[_Reading]:
        """The readings of what has changed, begun where nobody has."""
        last = self._all_changed
        if len(self._changed) > MANY:
            last = max(last, *self._changed.values())
        is_list_due = self._all_known < last
        if is_list_due and not self._is_clustered:
            return [self._reading("", self._changes)]
        readings = []
        if is_list_due:
            readings.append(self._reading("", last))
        elif _now() - self._list_began >= READ_SECONDS:
            self._reading("", 0)
        # A cluster's list may take long: whoever has just changed an instance sees that before.
        for name in sorted(self._changed, key=self._changed.__getitem__)[-MANY:]:
            readings.append(self._reading(name, self._changed[name]))
        return readings

    def _reading(self, name: str, changes: int) -> _Reading:
        """One that began after a change; callers between two changes share it.

        Beside one that a member keeps waiting, there is no other until the members have changed.
        """
        present = self._readings.get(name)
        if present is not None and not present.task.done():
            is_stuck = self._is_bounded and present.is_late
            if present.changes >= changes or (
                is_stuck and present.changes >= self._members_changed
            ):
                return present
        work = self._read_one(name) if name else self._read_all()
        reading = _Reading(self._changes, _now() + WAIT_SECONDS, asyncio.ensure_future(work))
        reading.task.add_done_callback(lambda task: self._ended(name, reading))
        self._readings[name] = reading
        return reading

    def _ended(self, name: str, reading: _Reading) -> None:
        seen(reading.task)
        if self._readings.get(name) is reading:
            del self._readings[name]
        has_read = not reading.task.cancelled() and reading.task.exception() is None
        if has_read and self._is_clustered and reading.is_late:
            self._tell()

    async def _read_one(self, name: str) -> None:
        changes = self._changes
        try:
            row = await _row_of(self._client, name)
        except PodydError as error:
            if self._is_clustered:
                self._take(name, _absent(name, self._last(name)), changes)
            elif isinstance(error, EngineRefused):
                await self._read_all()
            else:
                raise
        else:
            instance = instance_of(self._guard.over(row)) if row is not None else None
            self._take(name, instance, changes)

    async def _read_all(self) -> None:
        changes, self._list_began = self._changes, _now()
        rows = await rows_of(self._client)
        if changes < self._all_known:
            return
        before = self._instances()
        for row in rows:
            self._take(row["name"], self._of_list(row), changes)
        names = {row["name"] for row in rows}
        self._known = {
            name: known
            for name, known in self._known.items()
            if name in names or known.changes > changes
        }
        was_due = self._all_known < self._all_changed
        self._all_known = changes
        self._changed = {name: last for name, last in self._changed.items() if last > changes}
        self._shown = None
        if not was_due and self._instances() != before:
            self._tell()

    def _of_list(self, row: Mapping[str, Any]) -> Instance:
        # As it is of a member that does not answer; without its keys, a pod is none.
        if row["config"] is None:
            if not self._is_clustered:
                raise _unreadable(row["name"])
            return _absent(row["name"], self._last(row["name"]), _host_of(row))
        return instance_of(self._guard.over(row))

    def _last(self, name: str) -> Instance | None:
        known = self._known.get(name)
        return known.instance if known is not None else None

    def _take(self, name: str, instance: Instance | None, changes: int) -> None:
        """Know this of an instance, unless something younger is known."""
        known = self._known.get(name)
        if changes < (known.changes if known is not None else self._all_known):
            return
        self._known[name] = _Known(changes, instance)
        if self._changed.get(name, 0) <= changes:
            self._changed.pop(name, None)
        self._shown = None

    # --- Following the engine ---------------------------------------------------------------------

    async def watch(self, connected: Callable[[], Awaitable[None]]) -> None:
        """Follow the engine's events for good; `connected` is called whenever the engine is there
        (again)."""
        failures = 0
        while True:
            try:
                stream = await self._client.websocket(
                    "/1.0/events", type="lifecycle", ping_interval=PING_INTERVAL
                )
            except PodydError as error:
                if failures == 0:
                    log.warning("%s is away, trying again: %s", ENGINE, error)
                failures = min(failures + 1, len(RECONNECT_DELAYS) - 1)
            else:
                failures = 0
                await self._follow(stream, connected)
            await asyncio.sleep(RECONNECT_DELAYS[failures])

    async def _follow(self, stream: Websocket, connected: Callable[[], Awaitable[None]]) -> None:
        try:
            # To whom the engine trusts no more, it shows no environment.
            environment = (await self._client.get("/1.0")).get("environment", {})
            self._is_clustered = environment.get("server_clustered", False)
            self.all_changed()
            self._connected = self._changes
            self._is_following = True
            log.info("following %s's events of project %s", ENGINE, self._client.project)
            await connected()
            others = [self._follow_members()] if self._is_clustered else []
            await beside(self._read_events(stream), *others)
            log.warning("%s closed its event stream", ENGINE)
        except PodydError as error:
            log.warning("%s went away: %s", ENGINE, error)
        finally:
            self._is_following = False
            self.all_changed()
            stream.close()

    async def _read_events(self, stream: Websocket) -> None:
        while (message := await stream.read_message()) is not None:
            event = json.loads(message)
            if event["type"] == "lifecycle":
                self._heard(concern_of(event["metadata"]))

    def _heard(self, concern: Concern | None) -> None:
        if concern is None:
            return
        if concern.are_all:
            self._forget()
        self.changed(*concern.names)

    async def _follow_members(self) -> None:
        """Look at a cluster's members, of which no event tells that one does not answer.

        An instance is unreachable until its member, which the engine counts as there again, answers
        for it.
        """
        before: Mapping[str, str] | None = None
        while True:
            with contextlib.suppress(PodydError):
                rows = await members_of(self._client, "/1.0/cluster/members")
                members = {row["server_name"]: row["status"] for row in rows}
                if before not in (None, members):
                    log.info("the members of %s's cluster: %s", ENGINE, members)
                    self.all_changed()
                    self._members_changed = self._changes
                elif silent := self._silent(members):
                    self.changed(*silent)
                before = members
            await asyncio.sleep(LOOK_SECONDS)

    def _silent(self, members: Mapping[str, str]) -> list[str]:
        """The unreachable instances of members that are there."""
        return [
            item.name
            for item in self._instances()
            if not item.is_reachable and members.get(item.host) != "Offline"
        ]


def _now() -> float:
    return asyncio.get_running_loop().time()
