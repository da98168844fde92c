"""The engine's instances of one project: read through a view of them (view.py), and changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from podyd.base.errors import (
    Busy,
    Changed,
    DiskFull,
    Ending,
    EngineRefused,
    Gone,
    InUse,
    KeyForbidden,
    NotLimited,
    NotRestorable,
    PodydError,
    Slipped,
    Unsettled,
)
from podyd.engine.bound import meant_for
from podyd.engine.interface import UPDATE_SECONDS
from podyd.engine.operations import RestOperations
from podyd.engine.refresh import Refresh, noted
from podyd.engine.refusals import refusal
from podyd.engine.rest import RestClient, instance_path
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.start_log import why_not_started
from podyd.engine.types import (
    Action,
    Address,
    CpuTime,
    Devices,
    FromImage,
    Instance,
    NewInstance,
    NewKeys,
    Source,
    State,
    root_of,
)
from podyd.engine.view import InstanceView, instance_of, rows_of

log = logging.getLogger(__name__)

# What an instance consists of, of all that the engine shows; the rest cannot be changed.
CHANGEABLE = ("architecture", "config", "description", "devices", "ephemeral", "profiles")
# So long the engine may be busy with an instance before a change is refused. It changes settings in
# a moment as a rule, and gives that up itself after 30 s (instance/operationlock).
BUSY_SECONDS = 5.0
FREE_SECONDS = 0.2
# So long it may clean up behind an instance that has ended.
CLEAN_SECONDS = 10.0
# Where it notes whether an instance runs, to start it again with the host.
_POWER = "volatile.last_state.power"
# For a change of settings itself, once the engine has started it.
CHANGE_SECONDS = 10.0


def state_of(data: Mapping[str, Any]) -> State:
    """From the engine's JSON of an instance's state, most of which is missing if it does not
    run."""
    return State(
        pid=data.get("pid", 0),
        addresses=tuple(
            Address(interface, address["family"], address["address"])
            for interface, network in (data.get("network") or {}).items()
            for address in network["addresses"] or ()
            if address["scope"] == "global"
        ),
        memory_bytes=max(0, (data.get("memory") or {}).get("usage", 0)),
        disk_bytes={
            # Some pools report -1, or 0 if the instance does not run, for "unknown".
            name: max(0, disk.get("usage", 0))
            for name, disk in (data.get("disk") or {}).items()
        },
    )


def _cpu_time_of(data: Mapping[str, Any]) -> CpuTime:
    """From the engine's JSON of an instance with its state."""
    usage = data["state"]["cpu"]["usage"] if data["state"] else -1
    return CpuTime(instance_of(data), usage if usage >= 0 else None)


def _changeable(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in CHANGEABLE}


def _edited(
    data: Mapping[str, Any],
    config: NewKeys,
    devices: Callable[[Devices], Devices],
) -> dict[str, Any]:
    """The engine's JSON of an instance with these keys set, or removed, and with new own
    devices."""
    keys = config(data["config"]) if callable(config) else config
    merged = {**data["config"], **keys}
    return {
        **data,
        "config": {key: value for key, value in merged.items() if value is not None},
        "devices": devices(data["devices"]),
    }


def _but_volatile(data: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in data["config"].items() if not key.startswith("volatile.")}


async def when_free(
    change: Callable[[], Awaitable[object]], patience: float = UPDATE_SECONDS
) -> None:
    """Make a change of an instance, if need be once the engine has done what it is at. Raises Busy.

    A change of its settings ends by itself: an admin has typed `lxc config`, or podyd moves a card.
    Nor does anybody go on changing them, so what has been changed meanwhile is changed anew. What
    the engine is at is waited for `patience` seconds at most, and less where it may take long.
    """
    began = time.monotonic()
    while True:
        try:
            await change()
            return
        except (Busy, Changed) as error:
            is_short = isinstance(error, Busy) and error.operation == "update"
            limit = min(patience, UPDATE_SECONDS if is_short else BUSY_SECONDS)
            if time.monotonic() - began > limit:
                raise
        await asyncio.sleep(FREE_SECONDS)


def _source(source: Source) -> Mapping[str, Any]:
    """What the engine makes an instance of, for that one alone if its name is bound."""
    if isinstance(source, FromImage):
        return {"type": "image", "fingerprint": source.fingerprint}
    whole = source.instance if source.snapshot is None else f"{source.instance}/{source.snapshot}"
    return {"type": "copy", "source": meant_for(source.instance, whole), "instance_only": True}


class RestInstances:
    """The project's instances, read through a view that follows the engine's events."""

    def __init__(self, client: RestClient, guard: RestoreGuard) -> None:
        self._client = client
        self._guard = guard
        self._refresh = Refresh(client, guard)
        self._view = InstanceView(client, guard)
        # As of the last look at the CPU times.
        self.last_states: Mapping[str, State] = {}
        self._restoring: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        """End what is being read, and release the restore guard; its files stay."""
        self._view.close()
        self._guard.close()

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Call `subscriber` whenever something has changed, or may have."""
        self._view.subscribe(subscriber)

    def changed(self, name: str) -> None:
        """An instance has been changed: whoever asks from now on sees it as it is then."""
        self._view.changed(name)

    async def watch(self, connected: Callable[[], Awaitable[None]]) -> None:
        """Follow the engine's events for good; `connected` is called whenever the engine is there
        (again)."""
        await self._view.watch(connected)

    async def all(self) -> tuple[Instance, ...]:
        """Every instance of the project."""
        return await self._view.all()

    async def cpu_times(self) -> tuple[CpuTime, ...]:
        """Every instance with its CPU time, which costs the engine some 15 ms for each that
        runs."""
        data = await rows_of(self._client, depth=2)
        # Of one that is being stopped, Incus 6.0.4 shows its name and nothing else.
        whole = [item for item in data if item["config"] is not None]
        self.last_states = {
            item["name"]: state_of(item["state"]) for item in whole if item["state"]
        }
        times = [_cpu_time_of(self._guard.over(item)) for item in whole]
        if len(whole) < len(data):
            known = {item.instance.name for item in times}
            times += [CpuTime(item, None) for item in await self.all() if item.name not in known]
        return tuple(times)

    async def has(self, name: str, uuid: str) -> bool:
        """Whether an instance has this name and this uuid."""
        found = await self._view.one(name)
        return found is not None and found.uuid == uuid

    async def first_process(self, name: str) -> int:
        """The pid of an instance's first process, on the host; 0 or less where there is none."""
        return (await self.state(name)).pid

    async def state(self, name: str) -> State:
        """What an instance is at now, which costs the engine some 15 ms if it runs."""
        try:
            return state_of(await self._client.get(instance_path(name, "state")))
        except Ending:
            return State()

    async def console(self, name: str) -> str:
        """What an instance has written to its console. Raises EngineRefused if it has none."""
        return await self._client.text(instance_path(name, "console"))

    async def why_not_started(self, name: str) -> str:
        """What an instance's last start failed for. Raises EngineRefused if there is no log."""
        return why_not_started(await self._client.text(instance_path(name, "logs", "lxc.log")))

    # --- Making, changing, deleting --------------------------------------------------------------

    async def create(
        self,
        new: NewInstance,
        *,
        timeout: float,
        began: Callable[[str], None] = lambda operation: None,
    ) -> None:
        """Make an instance, which is stopped then. Raises NameTaken, DiskFull, Slipped, TimedOut.

        One that is a copy has the configuration and devices of its source besides its own.
        """
        body = {
            "name": new.name,
            "source": _source(new.source),
            "profiles": list(new.profiles),
            "config": new.config,
            "devices": new.devices,
        }
        try:
            await self._client.change("POST", "/1.0/instances", body, timeout=timeout, began=began)
        finally:
            self.changed(new.name)

    async def delete(self, name: str, *, timeout: float) -> None:
        """Delete an instance that is stopped. Raises Gone, Busy, TimedOut."""
        path = instance_path(name)
        try:
            await when_free(lambda: self._client.change("DELETE", path, timeout=timeout))
        finally:
            self.changed(name)

    async def set_status(
        self, name: str, action: Action, *, timeout: float, force: bool = False
    ) -> None:
        """Start, stop or unfreeze an instance; the engine gives that up itself after `timeout`
        seconds.

        Raises Busy, Running, NotRunning, DidNotShutDown, DiskFull, NotLimited, Slipped, TimedOut.
        """
        body = {"action": action, "timeout": int(timeout), "force": force}
        self.check_free(name)
        if action == "stop":
            await self._let_end(name, timeout)
        else:
            await self.settle(name)
        try:
            # podyd waits a little longer, for the engine's own timeout error.
            await when_free(
                lambda: self._client.change(
                    "PUT", instance_path(name, "state"), body, timeout=timeout + 5
                )
            )
        except EngineRefused as error:
            if action == "start" and not error.is_telling:
                await self._check_limited(name)
            raise
        finally:
            self.changed(name)

    async def _let_end(self, name: str, timeout: float) -> None:
        """Wait up to `timeout` seconds for an instance that is about to have stopped.

        Incus says that it runs until all of it is cleaned up. To be told to stop then fails, and
        lets go of the lock, so that a start would meet what is still being removed
        (instance/drivers/driver_lxc.go).
        """
        end = time.monotonic() + timeout
        with contextlib.suppress(PodydError):  # What else there is, it says of the stop itself.
            while time.monotonic() < end:
                try:
                    await self._client.get(instance_path(name, "state"))
                    return
                except Ending:
                    await asyncio.sleep(FREE_SECONDS)

    async def clean_up(self, name: str, *, has_ended: bool) -> None:
        """Wait until the engine has cleaned up behind an instance that ended while it was to be
        stopped: what is started before is robbed of its devices.

        The engine says first that it is stopped, as LXC does; once it hears of the end, that it
        runs, while it notes that it does not (instance/drivers/driver_lxc.go, OnStop); and then
        that it is stopped. That it `has_ended`, the engine may have said before all that. Of one
        that ended with its host it notes for good that it runs.
        """
        end = time.monotonic() + CLEAN_SECONDS
        try:
            while time.monotonic() < end:
                with contextlib.suppress(Ending):
                    shown = await self._client.get(instance_path(name))
                    is_on = shown["config"].get(_POWER) == "RUNNING"
                    settled = {"Running": is_on and not has_ended, "Stopped": not is_on}
                    if settled.get(shown["status"], True):
                        return
                await asyncio.sleep(FREE_SECONDS)
        except PodydError as error:  # Whether it has stopped is for the caller to see.
            log.info("%s: whether it is cleaned up is not known: %s", name, error)
        finally:
            self.changed(name)

    async def _check_limited(self, name: str) -> None:
        """Raises NotLimited if that is why an instance has not started: only its log says it."""
        try:
            why = refusal(await self.why_not_started(name))
        except PodydError:
            return
        if isinstance(why, NotLimited):
            raise why

    async def remove_key(self, name: str, key: str) -> None:
        """Take a key of an instance away, and change nothing else. Raises Busy."""
        # To the engine, a key without a value is none.
        change = {"config": {key: ""}}
        try:
            await when_free(lambda: self._client.change("PATCH", instance_path(name), change))
        finally:
            self.changed(name)

    async def edit(
        self,
        name: str,
        *,
        config: NewKeys,
        devices: Callable[[Devices], Devices],
        patience: float = UPDATE_SECONDS,
    ) -> None:
        """Set these keys of an instance (None takes one away), and make its own devices anew.

        What others change meanwhile is kept. In a running instance it takes effect at once. What
        the engine is at is waited for `patience` seconds at most. Raises Busy, at once while a
        snapshot is being restored; TimedOut where the engine itself waits for longer.
        """

        async def change() -> None:
            if not await self._edit_held(name, config, devices):
                data, etag = await self._client.tagged(path)
                body = _edited(_changeable(data), config, devices)
                await self._put(path, body, etag, timeout=patience + CHANGE_SECONDS)

        self.check_free(name)
        path = instance_path(name)
        try:
            await when_free(change, patience)
        finally:
            self.changed(name)

    async def _edit_held(
        self, name: str, config: NewKeys, devices: Callable[[Devices], Devices]
    ) -> bool:
        """Edit what is kept since a restore, and have the engine take that; whether anything is
        kept."""
        async with self._settling(name):
            kept = self._guard.kept(name)
            if kept is None:
                return False
            await self._guard.keep(name, _edited(kept, config, devices))
            try:
                await self._settle(name)
            except BaseException:
                await self._guard.keep(name, kept)
                raise
            return True

    async def reset(self, name: str, config: Mapping[str, str], devices: Devices) -> None:
        """Leave an instance this configuration and these own devices alone.

        The engine gives a copy those of its source too.
        """
        path = instance_path(name)
        data = await self._client.get(path)
        body = _changeable(data)
        kept = {
            key: value
            for key, value in data["config"].items()
            if key.startswith(("image.", "volatile."))
        }
        try:
            await self._put(path, {**body, "config": {**kept, **config}, "devices": devices})
        finally:
            self.changed(name)

    async def _put(
        self, path: str, body: Mapping[str, Any], etag: str = "", timeout: float = 60.0
    ) -> None:
        """Make an instance so.

        When it is, the engine writes a copy of it onto the instance's own disk. Where that is full,
        it returns an error although the change is made (LXD 5.0.2).
        """
        try:
            await self._client.change("PUT", path, body, etag=etag, timeout=timeout)
        except DiskFull:
            data = await self._client.get(path)
            if _but_volatile(data) != _but_volatile(body) or data["devices"] != body["devices"]:
                raise
            log.warning("%s is changed, though its disk is full", path)

    async def has_room(self, name: str) -> bool:
        """Whether the engine can write what it must write to start an instance, or to take a
        snapshot."""
        try:
            # It changes nothing, and the engine writes its copy anew.
            await self._client.change("PATCH", instance_path(name), {"config": {}})
        except DiskFull:
            return False
        except EngineRefused as error:
            log.info("%s: whether its disk is full is not known: %s", name, error.reason)
        return True

    # --- Snapshots -------------------------------------------------------------------------------

    def check_free(self, name: str) -> None:
        """Raises Busy, as the engine does, while a snapshot of an instance is being restored."""
        if name in self._restoring:
            raise Busy("a snapshot is being restored", operation="restore")

    async def begin_restore(self, name: str) -> None:
        """Keep an instance's settings until `end_restore` and `settle`, and others from it.

        Raises Busy if it is being restored already.
        """
        self.check_free(name)
        self._restoring.add(name)
        try:
            await self.settle(name)  # Its last restore may have left something to do.
            await self._guard.keep(name, await self._client.get(instance_path(name)))
        except BaseException:
            self._restoring.discard(name)
            raise
        self.changed(name)

    async def restore(self, name: str, snapshot: str, *, timeout: float) -> None:
        """Make an instance's disk as it was at a snapshot.

        The engine makes its settings as they were, too. Who owns it and which cards it has is of
        now: until `settle` has put that back, it is what everybody is shown. Raises EngineRefused,
        HalfRestored where that may have changed a part of the disk, TimedOut.
        """

        async def restore() -> None:
            try:
                await self._client.change(
                    "PUT", instance_path(name), {"restore": snapshot}, timeout=timeout
                )
            except InUse:
                await self._unmount(name)
                raise
            except KeyForbidden as error:
                refused = NotRestorable(error.reason)
                await self._refresh.restore(name, snapshot, refused, timeout=timeout)

        # The engine may still be cleaning up after one that has only just stopped.
        await when_free(restore)

    async def _unmount(self, name: str) -> None:
        """Have the engine count one mount less of a stopped instance's disk, if it is at nothing
        with it.

        LXD (5.0.2) counts mounts, and unmounts or restores a disk that has none. A start that fails
        for a full disk leaves one that nobody takes away. Where the size of the disk is to be set
        at a start, LXD unmounts it for that; with a mount too many that fails, and as the start
        fails for it, it is unmounted once more. So such a start takes away what is too much.
        """
        if name in await self._worked_on():
            return
        path, state = instance_path(name), instance_path(name, "state")
        data = await self._client.get(path)
        root, _ = root_of(data["expanded_devices"])
        key = f"volatile.{root}.apply_quota"
        # The engine has put off a change of the size, and takes the key away when that is done.
        is_due = bool(data["config"].get(key))
        try:
            await self._set_key(path, key, "true")
            await self._client.change("PUT", state, {"action": "start"})
            # There was none too many.
            await self._client.change("PUT", state, {"action": "stop", "force": True})
        except EngineRefused as error:
            log.info("%s is to be unmounted: %s", name, error.reason)
        finally:
            if not is_due:
                await self._set_key(path, key, "")

    async def _set_key(self, path: str, key: str, value: str) -> None:
        # A full disk has no room for the engine's copy of the settings, which are set all the same.
        with contextlib.suppress(DiskFull):
            await self._client.change("PATCH", path, {"config": {key: value}})

    async def _worked_on(self) -> set[str]:
        """The instances that the engine is doing something with."""
        at = await RestOperations(self._client).under_way()
        return {name for item in at for name in item.instances}

    def end_restore(self, name: str) -> None:
        """Let others change an instance again."""
        self._restoring.discard(name)

    @property
    def unsettled(self) -> list[str]:
        """The instances whose settings the engine has not taken back after a restore, which is
        over."""
        return [name for name in self._guard.names() if name not in self._restoring]

    async def settle(self, name: str) -> None:
        """Give an instance its settings of before the restore back, if they are still to come.

        Raises Busy while the engine is still at it, Unsettled if the engine does not take them, and
        what passes by itself.
        """
        if self._guard.has(name):
            async with self._settling(name):
                await self._settle(name)

    async def _settle(self, name: str) -> None:
        kept = self._guard.kept(name)
        if kept is None:
            return
        # The engine lets settings be changed during a restore, and then overwrites them.
        if name in await self._worked_on():
            raise Busy("a snapshot is being restored", operation="restore")
        try:
            await self._put_back(name, kept)
        except (Busy, Changed, Slipped):
            raise
        except EngineRefused as error:
            raise Unsettled(error.reason) from error
        await self._guard.drop(name)
        self.changed(name)

    async def _put_back(self, name: str, kept: Mapping[str, Any]) -> None:
        """Change an instance's settings to those that are kept, if it is there and has others."""
        path = instance_path(name)
        with contextlib.suppress(Gone):
            data, etag = await self._client.tagged(path)
            if data["created_at"] != kept["created_at"]:
                return  # Another one has its name by now.
            # What the engine notes there goes with the disk as it is now.
            config = _but_volatile(kept) | noted(name, data, kept)
            body = {**_changeable(kept), "config": config}
            if body != _changeable(data):
                await self._put(path, body, etag)

    def _settling(self, name: str) -> asyncio.Lock:
        """One at a time puts an instance's settings back."""
        return self._locks.setdefault(name, asyncio.Lock())
