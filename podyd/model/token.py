"""Tokens, with which a member's programs log in instead of the password."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# `all` allows all that its owner may do; `read` only to read, and nothing inside a pod.
TokenScope = Literal["all", "read"]


@dataclass(frozen=True)
class Token:
    """A token without its secret; times in seconds since 1970.

    `uid` and `mark`, as in Account, identify the owner: a later account of the name does not match.
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
