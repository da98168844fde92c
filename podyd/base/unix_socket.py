"""The unix socket of a process that answers one other account: systemd's, or its own."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from podyd.base.files import make_directory

_INHERITED_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_PEERCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


def inherited() -> socket.socket | None:
    """The socket of systemd's socket activation, if this process was meant."""
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    listener = socket.socket(fileno=_INHERITED_FD)
    listener.set_inheritable(False)
    return listener


@contextmanager
def bound(path: Path, owner: int, group: int, mode: int) -> Iterator[socket.socket]:
    """A new listening socket at `path`, removed afterwards if it is still ours.

    Raises OSError if it cannot be made or another process serves it.
    """
    make_directory(path.parent)
    _refuse_if_taken(path)
    # Bound under another name, so that at `path` it never has the wrong owner or mode.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(draft))
        finally:
            os.umask(before)
        os.chown(draft, owner, group)
        draft.chmod(mode)
        listener.listen(128)
        ours = draft.stat().st_ino
        draft.replace(path)
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if path.lstat().st_ino == ours:
                    path.unlink()


def _refuse_if_taken(path: Path) -> None:
    """Only a socket on which nobody listens may be replaced."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is somebody, too
        with suppress(ConnectionRefusedError):
            with suppress(BlockingIOError):
                probe.connect(str(path))
            raise FileExistsError(f"{path} is served by another process")


def peer_uid(connection: socket.socket) -> int:
    """The uid of the process at the other end, by the kernel."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _pid, uid, _gid = _PEERCRED.unpack(raw)
    return int(uid)
