"""`podyd packing`: a unix socket that returns the sizes of images that the engine has not finished.

The engine reports how many bytes of files it has read, and not the size of the image so far; its
directory is readable for root only. So this is a root process, which reads only names and sizes,
and has no input: it sends a line of JSON to each connection and closes it.

    {"images": {"0/lxd_build_1246174496": 3215360, "0/lxd_build_3": null},
     "scratch": {"0/lxd_compress_944449372": 4096}}
    {"error": "forbidden"}                            this peer may not use the socket

Sizes are in bytes, null if they are not known; the number before a name is that of its directory.
LXD 5.0.2 creates a directory lxd_build_NUMBER, Incus one called incus_build_NUMBER and so on, for
each image before it answers the request. It packs one image after the other: it creates
lxd_build_image_NUMBER in that directory (until then the size is null), and writes to it the files
as gzip, zstd, xz or uncompressed. Only a squashfs is written to lxd_compress_NUMBER in /tmp, and
copied when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from syslog import LOG_WARNING
from typing import NoReturn

from podyd.base import unix_socket
from podyd.base.logs import stderr_is_journal
from podyd.engine.dialect import DIALECTS

# Of each engine's packages.
IMAGES = tuple(place.directory / "images" for dialect in DIALECTS for place in dialect.places)
# The units hide the engines' directories, and mount these parts of them here.
MOUNTED = (
    Path("/run/podyd/images"),
    Path("/run/podyd/images-snap"),
    Path("/run/podyd/images-incus"),
)
# A directory, and the names of its subdirectories, which must be this account's and not links.
Place = Sequence[Path | str]
_TMP = Path("/tmp")  # noqa: S108 - nothing is written there
# The snap has a /tmp of its own, at a path of current or of earlier versions of snapd. Without the
# snap, any user can create these directories.
SCRATCH: tuple[Place, ...] = (
    (_TMP,),
    (_TMP, "snap-private-tmp", "snap.lxd", "tmp"),
    (_TMP, "snap.lxd", "tmp"),
)
# systemd starts it again at the next connection, with the directories that exist then.
IDLE_SECONDS = 60.0
# Any user can create many files in /tmp.
MAX_ENTRIES = 100_000
MAX_SIZES = 256
MAX_LINE_BYTES = 64 * 1024

_BEGIN = f"(?:{'|'.join(dialect.temporary for dialect in DIALECTS)})"
_BUILD = re.compile(_BEGIN + r"build_[0-9]{1,20}")
_IMAGE = re.compile(_BEGIN + r"build_image_[0-9]{1,20}(\.compressed)?")
_COMPRESS = re.compile(_BEGIN + r"compress_[0-9]{1,20}")

Sizes = dict[str, int | None] | None


class _TooManyError(Exception):
    """A directory has more than MAX_ENTRIES entries."""


def serve(path_of: Callable[[], Path], *, uid: int, gid: int, idle_s: float = IDLE_SECONDS) -> None:
    """Answer root and the account `uid` until SIGTERM or SIGINT.

    A listening socket inherited from systemd is used instead of one at `path_of()`; then this also
    ends after `idle_s` seconds without a connection. Raises OSError if the socket cannot be created
    or another process serves it.
    """
    signal.signal(signal.SIGTERM, _end)
    inherited = unix_socket.inherited()
    if inherited is not None:
        with inherited:
            _run(inherited, uid, idle_s)
        return
    with unix_socket.bound(path_of(), uid, gid, 0o600) as listener:
        _run(listener, uid, None)


def _end(_number: int, _frame: object) -> NoReturn:
    raise SystemExit


def _run(listener: socket.socket, uid: int, idle_s: float | None) -> None:
    listener.settimeout(idle_s)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        except ConnectionError:
            continue
        with connection:
            _tell(connection, uid)


def _tell(connection: socket.socket, uid: int) -> None:
    asking = unix_socket.peer_uid(connection)
    if asking in (0, uid):
        # In this order, every squashfs in the answer has its image there, too.
        scratch = look(SCRATCH, squashed)
        images = look([[place] for place in image_places()], built)
        answer: object = {"images": images, "scratch": scratch}
    else:
        _log(f"a process of uid {asking} connected and was refused")
        answer = {"error": "forbidden"}
    # The line fits in the kernel's buffer, also if the peer does not read.
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        connection.send(json.dumps(answer).encode() + b"\n")


def image_places() -> list[Path]:
    """The directories in which an engine may have its images."""
    told = [place.directory / "images" for item in DIALECTS for place in item.candidates()]
    return list(dict.fromkeys([*told, *IMAGES, *MOUNTED]))


def look(
    places: Sequence[Place], sizes_in: Callable[[int], Iterator[tuple[str, int | None]]]
) -> Sizes:
    """The sizes, in bytes, that `sizes_in` returns for each existing directory of `places`; each
    directory counts once.

    None if there is no directory, or if one has too many entries.
    """
    sizes: dict[str, int | None] = {}
    seen = set()
    try:
        for number, place in enumerate(places):
            with contextlib.suppress(OSError), _opened(place) as directory:
                status = os.fstat(directory)
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    sizes.update((f"{number}/{name}", size) for name, size in sizes_in(directory))
            if len(sizes) > MAX_SIZES:
                return None
    except _TooManyError:
        return None
    return sizes if seen else None


def built(directory: int) -> Iterator[tuple[str, int | None]]:
    """The images that are requested, in `images` of the engine's directory, with their sizes in
    bytes."""
    for name in _names(directory, _BUILD):
        with contextlib.suppress(OSError), _directory(name, directory) as inner:
            sizes = [_size(image, inner) for image in _names(inner, _IMAGE)]
            yield name, max((size for size in sizes if size is not None), default=None)


def squashed(directory: int) -> Iterator[tuple[str, int | None]]:
    """The squashfs files in a /tmp, with their sizes in bytes."""
    for name in _names(directory, _COMPRESS):
        size = _size(name, directory)
        if size is not None:
            yield name, size


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[int]:
    """A descriptor of the directory at a place. Raises OSError."""
    with contextlib.ExitStack() as descriptors:
        directory = None
        for name in place:
            directory = descriptors.enter_context(_directory(name, directory))
        assert directory is not None
        yield directory


@contextlib.contextmanager
def _directory(path: Path | str, within: int | None = None) -> Iterator[int]:
    """A descriptor of a directory of this account; `within` another one, links are not followed.
    Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    flags |= 0 if within is None else os.O_NOFOLLOW
    descriptor = os.open(path, flags, dir_fd=within)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to another account")
        yield descriptor
    finally:
        os.close(descriptor)


def _names(directory: int, wanted: re.Pattern[str]) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= MAX_ENTRIES:
                raise _TooManyError
            if wanted.fullmatch(entry.name):
                yield entry.name


def _size(name: str, directory: int) -> int | None:
    """The size in bytes of a file of this account that the engine writes sequentially; None if not
    known.

    The smaller of its length and its blocks, as a filesystem may allocate more in advance.
    """
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return None
    return min(status.st_size, status.st_blocks * 512)


def _log(text: str) -> None:
    """Write one line; the journal removes the prefix with the level (sd-daemon(3))."""
    prefix = f"<{LOG_WARNING}>" if stderr_is_journal() else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{prefix}podyd packing: {text}\n".encode())
