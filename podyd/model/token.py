"""What a member's program logs in with instead of the password."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# All that its owner may do, or what only looks, and at nothing that is in a pod.
TokenScope = Literal["all", "read"]


@dataclass(frozen=True)
class Token:
    """What is known of a token; times in seconds since 1970.

    Its owner is an account, and no other one of this name: `uid` and `mark` are as of Account.
    """

    id: str
    owner: str
    uid: int
    mark: str
    name: str
    scope: TokenScope
    created: float
    expires: float
    last_used: float | None = None
