"""A tar file of a pod's as a folder of this machine; the pod may have written anything into it.

All files are written, into a new folder beside the one that they shall be in, before there is a
single link: so no link can lead a file elsewhere. A link that leads out of the folder is left out,
as is a device, a pipe or a socket. Nobody is setuid.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from podyd.client.body import PIECE_BYTES
from podyd.client.failure import Away, Failure

Leave = Callable[[str], None]
# What a header says in its place, such as a long name; tarfile holds all of it.
MAX_HEADER_BYTES = 1024**2
HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# With these, no other file can be written either.
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def unpack(source: Any, target: Path, leave: Leave) -> None:
    """Make `target` of a tar file whose `.` it is, or put into it what is in that.

    `leave` is called for what is left out, with the reason. Raises Failure; then nothing has
    changed, unless some of it was put into a folder that was there.
    """
    try:
        draft = Path(tempfile.mkdtemp(prefix=".pody-", dir=target.parent))
    except OSError as error:
        raise Failure(f"{target} cannot be made: {error.strerror}.") from error
    try:
        _Unpacker(draft, leave).run(source)
        if target.is_dir():
            _merge(draft, target, leave)
        else:
            draft.rename(target)
    except tarfile.TarError as error:
        raise Away(f"The answer is not a complete tar file ({error}); try again.") from error
    except OSError as error:
        raise Failure(f"{target} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class _Unpacker:
    """Fills an empty folder."""

    def __init__(self, top: Path, leave: Leave) -> None:
        self._top = top
        self._leave = leave
        self._links: list[tuple[Path, str]] = []
        self._folders: dict[Path, tarfile.TarInfo] = {}

    def run(self, source: Any) -> None:
        with _in_words():
            tar = tarfile.open(  # noqa: SIM115 - it is a stream, and there is nothing to close
                fileobj=source, mode="r|", errors="surrogateescape", tarinfo=_Header
            )
        while (info := _next(tar)) is not None:
            self._take(tar, info)
            # Else tarfile would keep them all.
            tar.members.clear()  # type: ignore[attr-defined]
        # Whether all of it has come, only the source can tell: what is cut off may look whole.
        while source.read(PIECE_BYTES):
            pass
        for path, target in self._links:
            self._link(path, target)
        for path, info in sorted(self._folders.items(), reverse=True):
            _finish(path, info)

    def _take(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        path = self._place(info.name)
        if path is None:
            self._leave(f"{info.name} is outside of the folder, and is skipped.")
            return
        try:
            if info.isdir():
                path.mkdir(parents=True, exist_ok=True)
                self._folders[path] = info
            elif info.isreg() and not info.issparse():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write(tar, info, path)
            elif info.issym():
                self._links.append((path, info.linkname))
            elif info.islnk() and (other := self._place(info.linkname)) is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(other, path)
            else:
                self._leave(f"{info.name} is not a file, folder or link, and is skipped.")
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in FATAL:
                raise
            # A name that this system does not have, or has already (where A is a).
            reason = getattr(error, "strerror", None) or error
            self._leave(f"{info.name} is skipped: {reason}.")

    def _place(self, name: str) -> Path | None:
        parts = PurePosixPath(name).parts
        names = [part for part in parts if part != "."]
        is_odd = any(
            part in ("..", "/", "//") or (os.name == "nt" and _is_odd(part)) for part in names
        )
        return None if is_odd else self._top.joinpath(*names)

    def _write(self, tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
        content = tar.extractfile(info)
        assert content is not None
        with path.open("xb") as file:
            shutil.copyfileobj(content, file, PIECE_BYTES)
        _finish(path, info)

    def _link(self, path: Path, target: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
            top = self._top.resolve()
            inside = path.parent.resolve(strict=True).joinpath(target).resolve()
            if inside != top and top not in inside.parents:
                path.unlink()
                shown = path.relative_to(self._top)
                self._leave(
                    f"{shown} is a link to {target}, outside of the folder, and is skipped."
                )
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            self._leave(f"{path.name} is skipped: {reason}.")


class _Header(tarfile.TarInfo):
    """A header, which the pod may have written as it likes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        return _checked(lambda: super(_Header, cls).frombuf(buf, encoding, errors))

    # Where Python has it (Debian 13's 3.13), it is called for what is read from a file instead.
    @classmethod
    def _frombuf(
        cls, buf: bytes | bytearray, encoding: str, errors: str, **options: Any
    ) -> _Header:
        read: Callable[..., _Header] = super()._frombuf  # type: ignore[misc]
        return _checked(lambda: read(buf, encoding, errors, **options))


def _checked(read: Callable[[], _Header]) -> _Header:
    try:
        info = read()
    except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
        # tarfile would take it for the end.
        raise tarfile.ReadError(str(error)) from error
    if info.size < 0 or (info.type in HEADERS and info.size > MAX_HEADER_BYTES):
        raise tarfile.ReadError("a header is too large")
    return info


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _in_words():
        return tar.next()


@contextmanager
def _in_words() -> Iterator[None]:
    """What tarfile says of headers that make no sense, also where it stumbles over them."""
    try:
        yield
    except (tarfile.TarError, Failure, OSError):
        raise
    except Exception as error:  # There are many ways to stumble.
        raise tarfile.ReadError("a header makes no sense") from error


def _is_odd(part: str) -> bool:
    """Whether Windows takes a name for something else."""
    return any(char in part for char in '\\:<>"|?*') or part.rstrip(" .") != part


def _finish(path: Path, info: tarfile.TarInfo) -> None:
    path.chmod(stat.S_IMODE(info.mode) & 0o777 | (stat.S_IRWXU if info.isdir() else stat.S_IRUSR))
    # A pod can write times that there are not.
    with suppress(OSError, OverflowError, ValueError):
        os.utime(path, (info.mtime, info.mtime))


def _merge(draft: Path, target: Path, leave: Leave) -> None:
    """Move all into a folder that is there; through no link that is in it."""
    for path in sorted(draft.iterdir()):
        place = target / path.name
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder and place.is_dir() and not place.is_symlink():
            _merge(path, place, leave)
        elif os.path.lexists(place) and (is_folder or place.is_dir()):
            leave(f"{place} exists with another type than in the pod, and is not replaced.")
        else:
            path.replace(place)
