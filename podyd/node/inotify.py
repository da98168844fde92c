"""inotify(7): reports directories that are made."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("iIII")
_CREATE, _MOVED_TO, _OVERFLOW, _ONLY_DIRECTORIES = 0x100, 0x80, 0x4000, 0x1000000
_BUFFER_BYTES = 64 * 1024


class Inotify:
    """`fileno` can be read when something was made; raises OSError like the calls of the kernel."""

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._watched: dict[int, Path] = {}

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def watch(self, directory: Path) -> None:
        """Report what is made in a directory; watching it twice changes nothing."""
        what = _CREATE | _MOVED_TO | _ONLY_DIRECTORIES
        number = _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), what))
        self._watched[number] = directory

    def made(self) -> list[Path] | None:
        """What was made since; None if the kernel's queue has overflowed."""
        try:
            data = os.read(self._fd, _BUFFER_BYTES)
        except BlockingIOError:
            return []
        made: list[Path] = []
        start = 0
        while start < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, start)
            name = data[start + _EVENT.size : start + _EVENT.size + length].rstrip(b"\0")
            start += _EVENT.size + length
            if mask & _OVERFLOW:
                return None
            if name and number in self._watched:
                made.append(self._watched[number] / os.fsdecode(name))
            elif not name:  # IN_IGNORED: the directory is gone.
                self._watched.pop(number, None)
        return made


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
