"""Who may not work beside a `podyd migrate`: another one, `podyd setup` and `podyd serve`."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from podyd.base.errors import PodydError, SetupError

LOCK = "migration.lock"


@contextlib.contextmanager
def alone(state_dir: str) -> Iterator[None]:
    """Have no other one run meanwhile; one that is killed does not count. Raises SetupError."""
    path = Path(state_dir) / LOCK
    try:
        file = path.open("w")
    except OSError as error:
        raise SetupError(
            f"{path} cannot be made ({error.strerror}).", advice="Run 'podyd setup' first."
        ) from error
    with file:
        # So that the service can look, whatever root's umask says.
        os.fchmod(file.fileno(), 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError("Another 'podyd migrate' or a 'podyd setup' is running.") from None
        yield


@contextlib.contextmanager
def without(state_dir: str, refusal: type[PodydError]) -> Iterator[None]:
    """Have no migration begin meanwhile. Raises `refusal` if one is running: trust in podyd's
    certificate would give it a project that is open while pods are copied."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # There has been none, or it is not ours to see.
            file = held.enter_context((Path(state_dir) / LOCK).open())
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise refusal(
                    "'podyd migrate' is moving pods.", advice="Wait until it has ended."
                ) from None
        yield
