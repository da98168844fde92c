"""Files of instances, as LXD reaches them from outside."""

from __future__ import annotations

from collections.abc import Sequence

from podyd.engine import tree
from podyd.engine.rest import LxdClient
from podyd.engine.types import File, Holes, Tree


class LxdFiles:
    """For instances that are stopped: in one that runs, its root may be in the way.

    What is said of a large disk, see tree.py.
    """

    def __init__(self, client: LxdClient) -> None:
        self._client = client

    async def kind(self, name: str, path: str) -> str:
        """What LXD calls it: file (a pipe, too), directory or symlink. Raises Missing."""
        response = await self._client.file("HEAD", name, path)
        return str(response.headers.get("X-LXD-type", ""))

    async def delete(self, name: str, path: str) -> None:
        """Delete a file, or a directory that has nothing in it. Raises Missing."""
        await self._client.file("DELETE", name, path)

    async def make_empty(self, name: str, path: str, mode: int) -> None:
        """Make a file of root's with nothing in it."""
        headers = {"type": "file", "mode": f"{mode:04o}", "uid": "0", "gid": "0"}
        headers = {f"X-LXD-{key}": value for key, value in headers.items()}
        await self._client.file("POST", name, path, headers=headers)

    async def delete_all(self, name: str, directory: str, prefix: str) -> None:
        """Delete what is in a directory and begins so. Raises Conflict, TimedOut."""
        await tree.remove(self._client, name, directory, prefix)

    async def look(self, name: str) -> Tree:
        """All files of an instance. Raises Conflict, TimedOut."""
        return await tree.look(self._client, name)

    async def holes(self, name: str, seen: Tree) -> Holes:
        """What of an instance's files is zeros, and what does not compress."""
        return await tree.holes(self._client, name, seen)

    async def cut(self, name: str, files: Sequence[File]) -> None:
        """Make these files empty, so that who reads them comes to an end."""
        await tree.cut(self._client, name, files)

    async def end_packing(self, name: str) -> None:
        """Have LXD come to an end with an image that it makes of an instance."""
        await tree.end_packing(self._client, name)
