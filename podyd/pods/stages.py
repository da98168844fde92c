"""How far the creation, copy or restore of a pod is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from podyd.base.errors import EngineRefused
from podyd.contract.pods import Progress
from podyd.engine.interface import ImageStore
from podyd.model.member import Member

Doing = Literal["unpacking", "copying", "stopping", "restoring", "starting"]


@dataclass
class Stage:
    """What is being done for a pod now."""

    doing: Doing
    # The engine's operation, once it has started, where that may report how far it is.
    operation: str = ""

    def began(self, operation: str) -> None:
        self.operation = operation

    def go_on(self, doing: Doing) -> None:
        self.doing, self.operation = doing, ""


class Stages:
    """The work under way, by owner and pod."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images
        self._by_pod: dict[tuple[str, str], Stage] = {}

    @contextlib.contextmanager
    def of(self, member: Member, ins: str, doing: Doing) -> Iterator[Stage]:
        """Work on a pod begins with `doing`. What is asked for meanwhile, and refused, is not
        shown."""
        stage = Stage(doing)
        key = member.name, ins
        shown = self._by_pod.setdefault(key, stage)
        try:
            yield stage
        finally:
            if shown is stage:
                del self._by_pod[key]

    async def progress(self, member: Member, ins: str) -> Progress | None:
        """How far the work on a pod is; None if nothing is under way here.

        LXD (5.0.2) reports how far it is with an image that is a tar archive, and nothing of a
        squashfs, a copy or a restore.
        """
        stage = self._by_pod.get((member.name, ins))
        if stage is None:
            return None
        doing = stage.doing
        if not stage.operation:
            return Progress(doing, None, None)
        try:
            progress = await self._images.progress(stage.operation)
        except EngineRefused:  # It has ended.
            return Progress(doing, None, None)
        return Progress(doing, progress.percent, progress.speed)
