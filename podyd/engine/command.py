"""The engine's own command, where root asks for images by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from podyd.engine.dialect import Dialect, Place

_ALIASES = "/1.0/images/aliases"


@dataclass(frozen=True)
class ImageCommand:
    """Command lines about the images that pods can be made of; `project` is podyd's."""

    dialect: Dialect
    place: Place
    project: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What the command needs in its environment."""
        return {self.dialect.directory_variable: str(self.place.directory)}

    @property
    def _owner(self) -> str:
        return self.project if self.dialect.has_own_images else "default"

    def aliases(self) -> tuple[str, ...]:
        """Writes what `aliases_in` reads."""
        return self._query(f"{_ALIASES}?recursion=1&project={quote(self._owner, safe='')}")

    def show_alias(self, alias: str) -> tuple[str, ...]:
        """Writes what `fingerprint_in` reads: which image has this name."""
        where = f"project={quote(self._owner, safe='')}"
        return self._query(f"{_ALIASES}/{quote(alias, safe='')}?{where}")

    def make(self, meta: Path, rootfs: Path, alias: str) -> tuple[str, ...]:
        """Makes an image of these files, under a name."""
        options = (f"--alias={alias}", f"--project={self._owner}")
        return (self.dialect.command, "-q", "image", "import", str(meta), str(rootfs), *options)

    def _query(self, path: str) -> tuple[str, ...]:
        return (self.dialect.command, "query", path)


def aliases_in(answer: str) -> set[str]:
    """The names of the images that `ImageCommand.aliases` has written."""
    return {str(item["name"]) for item in json.loads(answer) or []}


def fingerprint_in(answer: str) -> str:
    """The image that `ImageCommand.show_alias` has written."""
    return str(json.loads(answer)["target"])
