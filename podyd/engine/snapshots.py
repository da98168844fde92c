"""Snapshots of instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from podyd.engine.rest import RestClient, instance_path, members_of
from podyd.engine.times import parse_time
from podyd.engine.types import Snapshot


class RestSnapshotStore:
    """The engine's snapshots, without a cache."""

    def __init__(self, client: RestClient) -> None:
        self._client = client

    async def all(self, instance: str) -> list[Snapshot]:
        """An instance's snapshots, the oldest first."""
        snapshots = await members_of(self._client, instance_path(instance, "snapshots"))
        return sorted(
            map(_snapshot_of, snapshots or []), key=lambda item: (item.created, item.name)
        )

    async def one(self, instance: str, name: str) -> Snapshot:
        """A snapshot of an instance. Raises Missing."""
        return _snapshot_of(await self._client.get(_path(instance, name)))

    async def take(self, instance: str, name: str, *, timeout: float) -> None:
        """Take a snapshot of an instance. Raises NameTaken, DiskFull, Busy, TimedOut."""
        # The engine removes one that fails because it has slipped.
        await self._client.change(
            "POST",
            instance_path(instance, "snapshots"),
            {"name": name},
            timeout=timeout,
            is_repeatable=True,
        )

    async def delete(self, instance: str, name: str, *, timeout: float) -> None:
        """Delete a snapshot. Raises Missing; DiskFull also where it is deleted, and the engine
        finds no room for its own list of them."""
        await self._client.change("DELETE", _path(instance, name), timeout=timeout)


def _path(instance: str, name: str) -> str:
    return instance_path(instance, "snapshots", quote(name, safe=""))


def _snapshot_of(data: Mapping[str, Any]) -> Snapshot:
    """From the engine's JSON of one; its name there is the instance's, too."""
    size = data.get("size", -1)
    return Snapshot(
        data["name"].rpartition("/")[2],
        parse_time(data["created_at"]),
        size if size >= 0 else None,
    )
