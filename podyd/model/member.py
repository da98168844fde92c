"""Members, who may have pods, and their limits."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.config.schema import Quota


@dataclass(frozen=True)
class Member:
    """A user who has logged in, with their rights and limits by podyd.yaml."""

    name: str
    is_admin: bool
    quota: Quota
    profiles: tuple[str, ...]
    uid: int
    gid: int
