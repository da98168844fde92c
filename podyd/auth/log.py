"""The log of `podyd auth`, which its children share."""

from __future__ import annotations

import os
from contextlib import suppress

from podyd.base.logs import stderr_is_journal


def log(text: str, level: int) -> None:
    """One line, written at once: children share stderr.

    The journal takes the level off its front; see sd-daemon(3).
    """
    prefix = f"<{level}>" if stderr_is_journal() else ""
    with suppress(OSError):
        os.write(2, f"{prefix}podyd auth: {text}\n".encode(errors="replace"))


def quoted(text: str) -> str:
    """Whatever a stranger sent, in at most 64 harmless characters."""
    return ascii(text)[1:-1][:64]
