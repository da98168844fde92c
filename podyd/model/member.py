"""Who may have pods, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass

from podyd.config.schema import Quota


@dataclass(frozen=True)
class Member:
    """A user who has logged in, with what podyd.yaml grants them."""

    name: str
    is_admin: bool
    quota: Quota
    profiles: tuple[str, ...]
    uid: int
    gid: int
