"""The settings of instances while LXD restores a snapshot of them.

LXD makes an instance's settings as they were at the snapshot: an owner of then, a lease that is
over or somebody else's by now. What they are now cannot stand in LXD meanwhile, so it stands in a
file, and a podyd that is killed in the middle finds it when it begins.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SETTINGS = ("config", "devices", "expanded_config", "expanded_devices", "profiles")
SUFFIX = ".json"


class Holds:
    """One small file for each instance, in a directory of podyd's own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept: dict[str, Mapping[str, Any]] = {
            path.name.removesuffix(SUFFIX): json.loads(path.read_text())
            for path in directory.glob(f"*{SUFFIX}")
        }

    def has(self, name: str) -> bool:
        return name in self._kept

    def names(self) -> list[str]:
        return list(self._kept)

    def kept(self, name: str) -> Mapping[str, Any] | None:
        """An instance as LXD showed it before the restore."""
        return self._kept.get(name)

    def over(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """An instance as LXD shows it, with the settings that are kept."""
        kept = self._kept.get(data["name"])
        return data if kept is None else {**data, **{key: kept[key] for key in _SETTINGS}}

    def keep(self, name: str, data: Mapping[str, Any]) -> None:
        """Keep an instance's settings; they are on the disk when this returns."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        new = self._directory / f"{name}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path(name))
        self._kept[name] = data

    def drop(self, name: str) -> None:
        self._kept.pop(name, None)
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{SUFFIX}"
