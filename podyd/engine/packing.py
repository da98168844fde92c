"""`podyd packing`: tells how large the images are that LXD has not finished, behind a unix socket.

LXD says how many bytes of files it has read, and not how large the image is by now; where it writes
is root's. So this is a root process, which reads names and sizes and nothing else, and takes no
input: who connects is sent a line of JSON, and the connection ends.

    {"images": {"0/lxd_build_1246174496": 3215360, "0/lxd_build_3": null},
     "scratch": {"0/lxd_compress_944449372": 4096}}
    {"error": "forbidden"}                            this peer may not ask

The numbers before the names are the places'; what cannot be told is null. What LXD 5.0.2 does:
for each image that it is asked for it makes a directory lxd_build_NUMBER before it answers. When it
is that image's turn, one after the other, it makes lxd_build_image_NUMBER in there (until then it
is null here), and writes into it what gzip, zstd, xz or nothing makes of the files. Only a squashfs
is written to lxd_compress_NUMBER in /tmp, and copied when it is whole.
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

# Of the deb and of the snap.
IMAGES = (Path("/var/lib/lxd/images"), Path("/var/snap/lxd/common/lxd/images"))
# The units hide LXD's directory, and mount these of it here.
MOUNTED = (Path("/run/podyd/images"), Path("/run/podyd/images-snap"))
# A directory, and the way from there through directories of this account's, and no link.
Place = Sequence[Path | str]
_TMP = Path("/tmp")  # noqa: S108 - nothing is written there
# A snap has a /tmp of its own, where snapd of now and of before has it. Without one, everybody can
# make these.
SCRATCH: tuple[Place, ...] = (
    (_TMP,),
    (_TMP, "snap-private-tmp", "snap.lxd", "tmp"),
    (_TMP, "snap.lxd", "tmp"),
)
# systemd begins it again for who asks, with the directories that there are then.
IDLE_SECONDS = 60.0
# Everybody can make files in /tmp, and many of them.
MAX_ENTRIES = 100_000
MAX_TOLD = 256
MAX_LINE_BYTES = 64 * 1024

_BUILD = re.compile(r"lxd_build_[0-9]{1,20}")
_IMAGE = re.compile(r"lxd_build_image_[0-9]{1,20}(\.compressed)?")
_COMPRESS = re.compile(r"lxd_compress_[0-9]{1,20}")

Told = dict[str, int | None] | None


class _TooManyError(Exception):
    """More than is looked at."""


def serve(path_of: Callable[[], Path], *, uid: int, gid: int, idle_s: float = IDLE_SECONDS) -> None:
    """Answer root and the account `uid` until SIGTERM or SIGINT.

    A listening socket inherited from systemd is used before one at `path_of()`; then this also ends
    when nobody has asked for `idle_s`. Raises OSError if the socket cannot be made or another
    process serves it.
    """
    signal.signal(signal.SIGTERM, _end)
    inherited = unix_socket.inherited()
    if inherited is not None:
        with inherited:
            _run(inherited, uid, idle_s)
        return
    with unix_socket.own(path_of(), uid, gid, 0o600) as listener:
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
        # In this order: whose squashfs is seen has an image, too.
        scratch = look(SCRATCH, squashed)
        images = look([[place] for place in image_places()], built)
        answer: object = {"images": images, "scratch": scratch}
    else:
        _log(f"a process of uid {asking} connected and was refused")
        answer = {"error": "forbidden"}
    # The line fits into what the kernel keeps for a peer that does not read.
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        connection.send(json.dumps(answer).encode() + b"\n")


def image_places() -> list[Path]:
    """Where LXD may have its images."""
    own = os.environ.get("LXD_DIR")
    return [*([Path(own, "images")] if own else []), *IMAGES, *MOUNTED]


def look(places: Sequence[Place], told: Callable[[int], Iterator[tuple[str, int | None]]]) -> Told:
    """What is `told` of the directories among `places`, each counted once.

    None where there is none, or more in one than is looked at.
    """
    sizes: dict[str, int | None] = {}
    seen = set()
    try:
        for number, place in enumerate(places):
            with contextlib.suppress(OSError), _opened(place) as directory:
                status = os.fstat(directory)
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    sizes.update((f"{number}/{name}", size) for name, size in told(directory))
            if len(sizes) > MAX_TOLD:
                return None
    except _TooManyError:
        return None
    return sizes if seen else None


def built(directory: int) -> Iterator[tuple[str, int | None]]:
    """The images that are asked for, in `images` of LXD's directory."""
    for name in _names(directory, _BUILD):
        with contextlib.suppress(OSError), _directory(name, directory) as inner:
            sizes = [_size(image, inner) for image in _names(inner, _IMAGE)]
            yield name, max((size for size in sizes if size is not None), default=None)


def squashed(directory: int) -> Iterator[tuple[str, int | None]]:
    """The squashfs in a /tmp."""
    for name in _names(directory, _COMPRESS):
        size = _size(name, directory)
        if size is not None:
            yield name, size


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[int]:
    """The directory at the end of the way. Raises OSError."""
    with contextlib.ExitStack() as way:
        directory = None
        for name in place:
            directory = way.enter_context(_directory(name, directory))
        assert directory is not None
        yield directory


@contextlib.contextmanager
def _directory(path: Path | str, within: int | None = None) -> Iterator[int]:
    """One of this account's; what is `within` another one is no link. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    flags |= 0 if within is None else os.O_NOFOLLOW
    descriptor = os.open(path, flags, dir_fd=within)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{path} is somebody else's")
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
    """How large a file of this account's is that LXD writes from its beginning to its end.

    No more than it takes on the disk, and no more than it is long: a filesystem may set more aside.
    """
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return None
    return min(status.st_size, status.st_blocks * 512)


def _log(text: str) -> None:
    """One line; the journal takes the level off its front (sd-daemon(3))."""
    prefix = f"<{LOG_WARNING}>" if stderr_is_journal() else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{prefix}podyd packing: {text}\n".encode())
