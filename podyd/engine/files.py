"""Files of instances, through the engine's file API."""

from __future__ import annotations

from collections.abc import Sequence

from podyd.engine import tree
from podyd.engine.rest import RestClient
from podyd.engine.types import File, Holes, Tree


class RestFiles:
    """For stopped instances: in a running one, its root could interfere.

    For whole disks, see tree.py.
    """

    def __init__(self, client: RestClient) -> None:
        self._client = client

    async def kind(self, name: str, path: str) -> str:
        """The engine's word for it: file (also for a pipe), directory or symlink. Raises
        Missing."""
        response = await self._client.file("HEAD", name, path)
        return str(response.headers.get(self._client.dialect.header_of("type"), ""))

    async def is_regular(self, name: str, path: str) -> bool:
        """Whether a path is a regular file; the file API does not tell it from a pipe."""
        return await tree.is_regular(self._client, name, path)

    async def delete(self, name: str, path: str) -> None:
        """Delete a file, or an empty directory. Raises Missing."""
        await self._client.file("DELETE", name, path)

    async def make_empty(self, name: str, path: str, mode: int) -> None:
        """Create an empty file that belongs to root."""
        headers = {"type": "file", "mode": f"{mode:04o}", "uid": "0", "gid": "0"}
        headers = {self._client.dialect.header_of(key): value for key, value in headers.items()}
        await self._client.file("POST", name, path, headers=headers)

    async def delete_all(self, name: str, directory: str, prefix: str) -> None:
        """Delete the entries of a directory with this prefix. Raises Conflict, TimedOut."""
        await tree.remove(self._client, name, directory, prefix)

    async def look(self, name: str) -> Tree:
        """All files of an instance. Raises Conflict, TimedOut."""
        return await tree.look(self._client, name)

    async def holes(self, name: str, seen: Tree) -> Holes:
        """How many bytes of an instance's files are zeros, and how many do not compress."""
        return await tree.holes(self._client, name, seen)

    async def cut(self, name: str, files: Sequence[File]) -> None:
        """Truncate these files, so that a process that reads them reaches their end."""
        await tree.cut(self._client, name, files)

    async def end_packing(self, name: str) -> None:
        """Make the engine finish an image that it packs of an instance, by truncating what it
        reads."""
        await tree.end_packing(self._client, name)
