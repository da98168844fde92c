"""Which instances an event of the engine's is about.

Read in the sources of LXD 5.0.2 to 6.9 and of Incus 6.0.4 to 7.0.1 (lifecycle/, and where it is
called from). An event of an instance names it in `source`: created, started, ready, paused,
resumed, stopped (by somebody), shutdown (by its own root, or a crash), restarted, restored, updated
(keys, devices, profiles), renamed, migrated, deleted. What the engine itself notes of an instance
(`volatile.*`) changes before one of these. None comes of a start that fails, also after a reboot
from within; of a status that is changed behind the engine's back; or of a member of a cluster that
goes away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

# They come with every command and download, and change nothing.
_HARMLESS = frozenset(
    f"instance-{what}"
    for what in ("exec", "console", "console-retrieved", "file-retrieved", "log-retrieved")
)
# What these change is no part of what is shown of an instance.
_BESIDE = tuple(
    f"{what}-"
    for what in (
        *(f"instance-{part}" for part in ("backup", "console", "file", "log", "metadata")),
        "instance-snapshot",
        "image",
    )
)


@dataclass(frozen=True)
class Concern:
    """The instances that may be others now than before."""

    names: frozenset[str] = frozenset()
    # As after a profile has changed, or after something that is not known here; and after one is
    # renamed, which a list alone has by one name or the other at any moment.
    are_all: bool = False


def concern_of(event: Mapping[str, Any]) -> Concern | None:
    """What a lifecycle event is about; None if it is not worth a look at anything."""
    action: str = event["action"]
    if action in _HARMLESS:
        return None
    if action.startswith(_BESIDE):
        return Concern()
    match urlsplit(event["source"]).path.split("/"):
        case ["", _, "instances", name] if name:
            old_name = (event.get("context") or {}).get("old_name", "")
            return Concern(frozenset({unquote(name), old_name} - {""}), are_all=bool(old_name))
    return Concern(are_all=True)
