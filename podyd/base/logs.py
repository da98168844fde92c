"""How podyd logs: what a line looks like, and whether the journal reads it."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from types import TracebackType

STDERR = 2

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Formatter(logging.Formatter):
    """Tells where an exception came from and of which kind it is.

    Not what it says: that may be a password, or a command.
    """

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's name for it
        parts = []
        error = ei[1]
        while error is not None:
            frames = "".join(traceback.format_tb(error.__traceback__))
            parts.append(f"{frames}{type(error).__name__}")
            hidden = error.__suppress_context__
            error = error.__cause__ or (None if hidden else error.__context__)
        return "\n".join(reversed(parts))


def stderr_is_journal() -> bool:
    """Whether this process's stderr is the stream that systemd has opened to the journal.

    JOURNAL_STREAM of systemd.exec(5) is its device and inode; a child whose stderr is redirected
    inherits the variable, but not the stream.
    """
    with contextlib.suppress(OSError):
        status = os.fstat(STDERR)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def log_to(handler: logging.Handler, text: str) -> None:
    """Send everything from INFO on to `handler`, formatted as `text`."""
    handler.setFormatter(Formatter(text))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # Tornado's own access log prints the query string, where passwords may be.
    logging.getLogger("tornado.access").propagate = False
