"""A folder of this machine as a tar file, written as it is read."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from podyd.client.failure import Usage

Leave = Callable[[str], None]


def pack(folder: Path, target: Any, leave: Leave) -> None:
    """Write all that is in a folder, and that itself as `.`, to `target`.

    Links stay links. `leave` is called for what is neither file, folder nor link. Raises Usage.
    """
    with tarfile.open(
        fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape"
    ) as tar:
        _add(tar, folder, ".", leave)
        for parent, folders, files in os.walk(folder, onerror=_refuse):
            folders.sort()
            for name in sorted(folders + files):
                path = Path(parent, name)
                _add(tar, path, path.relative_to(folder).as_posix(), leave)
            # Else tarfile would keep them all.
            tar.members.clear()  # type: ignore[attr-defined]


def _refuse(error: OSError) -> None:
    raise Usage(f"{error.filename} cannot be read: {error.strerror}.") from error


def _add(tar: tarfile.TarFile, path: Path, name: str, leave: Leave) -> None:
    try:
        status = path.lstat()
    except OSError as error:
        _refuse(error)
        raise
    info = tarfile.TarInfo(name)
    # In the pod it is root's; who is setuid there, its owner decides there.
    info.mode = stat.S_IMODE(status.st_mode) & 0o777
    info.mtime = status.st_mtime
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif stat.S_ISLNK(status.st_mode):
        info.type = tarfile.SYMTYPE
        info.linkname = os.readlink(path)  # noqa: PTH115 - Path would tidy it
        tar.addfile(info)
    elif stat.S_ISREG(status.st_mode):
        try:
            file = path.open("rb")
        except OSError as error:
            _refuse(error)
            raise
        with file:
            info.size = os.fstat(file.fileno()).st_size
            tar.addfile(info, _Exactly(file, path))  # type: ignore[arg-type]
    else:
        leave(f"{path} is not a file, folder or link, and is skipped.")


class _Exactly:
    """A file that is read; what goes wrong with it is no fault of podyd's."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except OSError as error:
            raise Usage(f"{self._path} cannot be read: {error.strerror}.") from error
        if len(data) < count:
            raise Usage(f"{self._path} became shorter while it was read; try again.")
        return data
