"""The identity of a machine: its ssh host keys, machine-id and host name.

A copy must not have them, nor an image. They are removed through the engine's file API before the
copy starts for the first time. The engine opens the files inside the pod's own root, so that a
symbolic link of the pod's owner cannot escape it; podyd opens none itself. No directory is listed
through that API, as nothing keeps the engine from running the pod's code there (see
podyd/engine/tree.py).
"""

from __future__ import annotations

import contextlib

from podyd.base.errors import (
    Busy,
    Conflict,
    DiskFull,
    EngineRefused,
    Gone,
    Missing,
    Slipped,
    TimedOut,
    Unavailable,
)
from podyd.engine.interface import Files

SSH = "/etc/ssh/."  # Also where /etc/ssh is a link to a directory.
# The engine's template, or systemd from the kernel's name, writes the host name again.
OTHERS = ("/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/hostname")
# An empty one is filled at the next boot, which does not count as the very first.
MACHINE_ID = "/etc/machine-id"
HOSTS = "/etc/hosts"


async def forget_identity(files: Files, name: str) -> None:
    """Remove the identity of an instance that is stopped. Raises Conflict if that fails."""
    try:
        if await _kind(files, name, SSH) == "directory":
            await files.delete_all(name, SSH, "ssh_host_")
        for path in OTHERS:
            await _delete(files, name, path)
        await files.make_empty(name, MACHINE_ID, 0o444)
        # With a link that leads out of the pod, the engine's template makes the start fail; with a
        # pipe, a newer engine waits for somebody who reads it, and then gives up the start.
        if not await files.is_regular(name, HOSTS):
            await _delete(files, name, HOSTS)
    except (Busy, DiskFull, Gone, Slipped):
        raise
    except (EngineRefused, Conflict, TimedOut, Unavailable) as error:
        # The engine itself reads /etc/machine-id there, and a pipe makes it hang.
        raise Conflict(
            "The pod's ssh host keys and machine-id could not be taken out of the copy"
            f" ({error.detail.rstrip('.')}).",
            advice="See whether its /etc/machine-id is a file, as usual.",
            code="identity_stays",
        ) from error


async def _kind(files: Files, name: str, path: str) -> str:
    """Its type in the engine: file, directory, symlink; "" if it does not exist."""
    try:
        return await files.kind(name, path)
    except Missing:
        return ""


async def _delete(files: Files, name: str, path: str) -> None:
    with contextlib.suppress(Missing):
        await files.delete(name, path)
