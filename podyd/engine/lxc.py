"""LXD's own command, where root asks for images by hand; they are in the default project."""

from __future__ import annotations

import json
from pathlib import Path

_ALIASES = "/1.0/images/aliases"
_DEFAULT = "project=default"
LIST_ALIASES = ("lxc", "query", f"{_ALIASES}?recursion=1&{_DEFAULT}")


def aliases_in(answer: str) -> set[str]:
    """The names of the images that LIST_ALIASES has written."""
    return {str(item["name"]) for item in json.loads(answer) or []}


def import_image(meta: Path, rootfs: Path, alias: str) -> tuple[str, ...]:
    """The command that makes an image of these files, under a name."""
    files = (str(meta), str(rootfs))
    return ("lxc", "-q", "image", "import", *files, f"--alias={alias}", "--project=default")


def show_alias(alias: str) -> tuple[str, ...]:
    """The command that tells of a name which image has it."""
    return ("lxc", "query", f"{_ALIASES}/{alias}?{_DEFAULT}")


def fingerprint_in(answer: str) -> str:
    """The image that `show_alias` has written."""
    return str(json.loads(answer)["target"])
