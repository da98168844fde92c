"""A second way to restore a snapshot, where the engine refuses its own.

Since the fix of CVE-2026-48751 (Incus 7.0.1, LXD 5.0.7, 5.21.5 and the snap's 6.9, Debian 13's
packages of both), they restore no snapshot in a restricted project that has other keys `volatile.*`
than the instance has now. They write these keys themselves: a snapshot of an instance that ran has
the name of its NIC on the host (lxc/incus#3993). To copy the snapshot over its instance needs no
such key, and the instance keeps its settings and its other snapshots (storage/backend.go,
RefreshInstance). rsync changes, adds and deletes what differs; on btrfs, LXD may clone the
subvolume instead.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

from podyd.base.errors import (
    Busy,
    DiskFull,
    EngineRefused,
    HalfRestored,
    KeyForbidden,
    NotRestorable,
    PodydError,
    Running,
    Slipped,
    Unavailable,
)
from podyd.engine.bound import meant_for
from podyd.engine.pools import RestPools
from podyd.engine.rest import RestClient, instance_path
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.types import root_of

log = logging.getLogger(__name__)

# The fix, as podyd's table of advisories has it.
REFUSES = "CVE-2026-48751"
# The kinds of pools where that is so. On ZFS, the engine deletes the instance's dataset first, and
# all its snapshots with it (storage/drivers/driver_zfs_volumes.go, RefreshVolume).
_POOLS = frozenset({"btrfs", "dir"})
# A server with this API extension, as LXD from 6.8 on, also gives the instance the snapshot's
# settings, and what becomes of its identity then has not been tried.
_TAKES_SETTINGS = "instance_refresh_config"
# What the engine is to make of its templates at the next start. It notes it of every copy, and last
# of all; a pod that is restored must not get a copy's host name, or what else an image has for one.
_TEMPLATE = "volatile.apply_template"
_COPIED = "copy"
# As whom the files are on the disk.
_OWNERS = "volatile.last_state.idmap"
# Beside the settings of now, from before the copy on: what the snapshot has noted of its templates;
# and from its end on: that it is whole.
_NOTED = "noted"
_WHOLE = "whole"


class Refresh:
    """Copies snapshots over the stopped instances that they are of."""

    def __init__(self, client: RestClient, guard: RestoreGuard) -> None:
        self._client = client
        self._guard = guard

    async def restore(
        self, name: str, snapshot: str, refusal: NotRestorable, *, timeout: float
    ) -> None:
        """Restore an instance's disk, which the engine has refused so.

        Its settings may be others then, until they are put back with what `noted` says. Raises the
        refusal where there is no second way either, HalfRestored where the engine may have begun,
        and has not said that it has copied all; it may still be at it.
        """
        data = await self._client.get(instance_path(name))
        path = instance_path(name, "snapshots", quote(snapshot, safe=""))
        then = (await self._client.get(path))["config"]
        if not await self._is_possible(data, then):
            raise refusal
        log.info("%s: snapshot %s is copied over it: %s", name, snapshot, refusal.reason)
        noted = {key: value for key, value in then.items() if key == _TEMPLATE}
        kept = self._guard.kept(name) or data
        await self._guard.keep(name, {**kept, _NOTED: noted})
        body = {
            "name": name,
            "source": {
                "type": "copy",
                "source": meant_for(name, f"{name}/{snapshot}"),
                # Without it, the engine deletes the instance's snapshots.
                "instance_only": True,
                "refresh": True,
            },
            # Those of then may have gone.
            "profiles": data["profiles"],
        }
        copy = _Copy(self._client, body, timeout)
        try:
            await self._run(copy, name, data)
        except PodydError as error:
            if copy.may_have_begun:
                raise HalfRestored(_reason(error)) from error
            await self._guard.keep(name, kept)
            if isinstance(error, KeyForbidden):
                raise refusal from error
            raise
        await self._guard.keep(name, {**kept, _NOTED: noted, _WHOLE: True})

    async def _run(self, copy: _Copy, name: str, data: Mapping[str, Any]) -> None:
        try:
            await copy.run()
        except DiskFull:
            if not copy.may_have_begun or not await self._unlimit(name, data):
                raise
            await copy.run()

    async def _is_possible(self, data: Mapping[str, Any], then: Mapping[str, str]) -> bool:
        _, root = root_of(data["expanded_devices"])
        # The instance keeps its note of who the owners are, and the snapshot's files keep theirs.
        if then.get(_OWNERS) != data["config"].get(_OWNERS):
            return False
        extensions = (await self._client.get("/1.0"))["api_extensions"]
        return is_possible(await RestPools(self._client).driver(root["pool"]), extensions)

    async def _unlimit(self, name: str, data: Mapping[str, Any]) -> bool:
        """Take the limit of an instance's disk away until its settings are put back; whether it
        has one.

        rsync writes a file anew beside the old one, for which a full disk has no room.
        """
        root, keys = root_of(data["expanded_devices"])
        if "size" not in keys:
            return False
        unlimited = {key: value for key, value in keys.items() if key != "size"}
        # The engine says so where it finds no room for its copy of the settings, and sets them.
        with contextlib.suppress(DiskFull):
            await self._client.change("PATCH", instance_path(name), {"devices": {root: unlimited}})
        return True


class _Copy:
    """A copy that can be run again, and what is known of the disk that it is for."""

    def __init__(self, client: RestClient, body: Mapping[str, Any], timeout: float) -> None:
        self._client = client
        self._body = body
        self._timeout = timeout
        # Whether any run of it may have changed a part of the disk.
        self.may_have_begun = False

    async def run(self) -> None:
        """Copy; once more where the engine slips. Raises DiskFull, Busy, Running, TimedOut."""
        try:
            await self._once()
        except Slipped as error:
            log.warning("%s is copied again: %s", self._body["name"], error.reason)
            await self._once()

    async def _once(self) -> None:
        begun: list[str] = []
        try:
            await self._client.change(
                "POST", "/1.0/instances", self._body, timeout=self._timeout, began=begun.append
            )
        except (Busy, Running):
            raise  # The engine has not touched it this time.
        except PodydError as error:
            # Without an answer, the engine may have begun.
            self.may_have_begun |= bool(begun) or isinstance(error, Unavailable)
            raise


def is_possible(driver: str, extensions: Collection[str]) -> bool:
    """Whether snapshots can be copied over their instances in a pool of this kind, by a server with
    these API extensions."""
    return driver in _POOLS and _TAKES_SETTINGS not in extensions


def _reason(error: PodydError) -> str:
    return error.reason if isinstance(error, EngineRefused) else error.detail


def noted(name: str, data: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, str]:
    """What the engine itself has noted of an instance, and is to know of it after a restore: by its
    JSON of now, and what was kept meanwhile."""
    keys = {key: value for key, value in data["config"].items() if key.startswith("volatile.")}
    if _NOTED not in kept:
        return keys
    if keys.get(_TEMPLATE) == _COPIED:
        del keys[_TEMPLATE]
        keys |= kept[_NOTED]
    elif _WHOLE not in kept:
        log.warning("%s: a snapshot of it may have been restored in part; restore it again", name)
    # Else they have been put back before.
    return keys
