"""The engine's storage pools."""

from __future__ import annotations

from urllib.parse import quote

from podyd.engine.rest import RestClient
from podyd.engine.types import PoolUse


class RestPools:
    """The engine's storage pools, without a cache."""

    def __init__(self, client: RestClient) -> None:
        self._client = client

    async def driver(self, name: str) -> str:
        """A pool's kind, such as btrfs, zfs or dir. Raises Missing."""
        return str((await self._client.get(_path(name)))["driver"])

    async def use(self, name: str) -> PoolUse:
        """The size of a pool and how much of it is used. Raises Missing."""
        space = (await self._client.get(_path(name, "resources")))["space"]
        return PoolUse(name, space.get("total", 0), space.get("used", 0))


def _path(name: str, *parts: str) -> str:
    return "/".join(["/1.0/storage-pools", quote(name, safe=""), *parts])
