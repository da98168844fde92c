"""Logins on the page, each of one browser."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WebSession:
    """A login on the page without its secret; times in seconds since 1970.

    `digest` is that of its secret, and identifies it. `uid` and `mark`, as in Account, identify the
    owner: a later account of the name does not match.
    """

    digest: bytes
    owner: str
    uid: int
    mark: str
    created: float
    expires: float
    # From where it was made.
    address: str = ""

    @property
    def id(self) -> str:
        """What its owner calls it by; says nothing of the secret, which nobody can guess."""
        return self.digest.hex()[:16]
