"""The current settings of instances, stored while the engine restores a snapshot of them.

The engine also restores the settings of the snapshot: an old owner, or a lease that has ended or
belongs to somebody else now. The current ones cannot be kept in the engine meanwhile, so they are
stored in files, which a podyd that starts after a crash reads.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_SETTINGS = ("config", "devices", "expanded_config", "expanded_devices", "profiles")
SUFFIX = ".json"
# The directory of such files, in that of podyd's data.
RESTORING = "restoring"


class RestoreGuard:
    """Stores the settings, a small file per instance in a directory of podyd's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for unfinished in directory.glob("*.new"):
            unfinished.unlink()
        self._kept: dict[str, Mapping[str, Any]] = {
            path.name.removesuffix(SUFFIX): json.loads(path.read_text())
            for path in directory.glob(f"*{SUFFIX}")
        }
        # A disk that is busy with the restore takes its time. One thread, so that a file which is
        # written before it is removed is so on the disk, too.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="restore-guard")

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def has(self, name: str) -> bool:
        return name in self._kept

    def names(self) -> list[str]:
        return list(self._kept)

    def kept(self, name: str) -> Mapping[str, Any] | None:
        """The engine's JSON of an instance from before the restore; None if none is stored."""
        return self._kept.get(name)

    def over(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The engine's JSON of an instance, with the stored settings in place of the restored
        ones."""
        kept = self._kept.get(data["name"])
        # An instance of the same name may be another one, made after this one was deleted.
        if kept is None or kept["created_at"] != data["created_at"]:
            return data
        return {**data, **{key: kept[key] for key in _SETTINGS}}

    async def keep(self, name: str, data: Mapping[str, Any]) -> None:
        """Store an instance's settings; they are on the disk when this returns."""
        self._kept[name] = data
        await self._do(lambda: self._write(name, json.dumps(data)))

    async def drop(self, name: str) -> None:
        """Remove an instance's stored settings, also from the disk."""
        if self._kept.pop(name, None) is not None:
            await self._do(lambda: self._remove(name))

    async def _do(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _write(self, name: str, text: str) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        new = self._directory / f"{name}.new"
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path(name))
        self._sync()

    def _remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        """Sync the directory's entries, which fsync(2) of a file does not do."""
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{SUFFIX}"
