"""How far the move of a pod is: a key on its instances, which is thus changed together with them.

On the old engine's instance it stays, and its owner and what starts it at boot stand in it, so that
no podyd shows the pod there and nothing starts it. The new engine's has it until it is whole: what
has it when a move begins is the rest of one that was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from podyd.base.errors import SetupError
from podyd.model.pod import OWNER

KEY = "user.podyd.migration"
AUTOSTART = "boot.autostart"

# "here": not copied yet. "moved": the new engine has it, and it may have to be started.
Stage = Literal["here", "moved", "done"]
STAGES = ("here", "moved", "done")


@dataclass(frozen=True)
class Mark:
    """What the key says; `owner` and `autostart` are None where the pod has no such key."""

    stage: Stage
    ran: bool
    owner: str | None
    autostart: str | None

    def keys(self) -> dict[str, str | None]:
        """What the old engine's instance then has."""
        return {KEY: json.dumps(asdict(self)), OWNER: None, AUTOSTART: "false"}

    def undone(self) -> dict[str, str | None]:
        """What an instance has that is used again, or from now on."""
        return {KEY: None, OWNER: self.owner, AUTOSTART: self.autostart}

    def at(self, stage: Stage) -> Mark:
        """The same, further on."""
        return replace(self, stage=stage)


def mark_of(name: str, config: Mapping[str, str]) -> Mark | None:
    """The mark in an instance's configuration; None if it has none."""
    if KEY not in config:
        return None
    try:
        mark = Mark(**json.loads(config[KEY]))
    except (ValueError, TypeError):
        mark = None
    if mark is None or mark.stage not in STAGES:
        raise SetupError(
            f"The key {KEY} of {name} is not one of podyd's.",
            advice="Remove it if you have written it yourself.",
        )
    return mark


def new_mark(config: Mapping[str, str], *, runs: bool) -> Mark:
    """That of an instance whose move begins."""
    return Mark("here", runs, config.get(OWNER), config.get(AUTOSTART))
