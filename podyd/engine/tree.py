"""The files of a stopped instance, as the engine shows them by SFTP: nothing in it is run.

LXD 5.0.2 packs an image with a tar without sparse files: each file has its full length in it,
whatever it uses on the disk. Packing cannot be stopped either (the operation cannot be cancelled),
and goes on to the end of a file even when the instance is deleted meanwhile. But it fails at once
if a file has become shorter than its tar header says.
To list a directory, LXD's SFTP server has the C library look up the owners' names, inside the root
of the instance but outside of its namespaces. The library loads the modules of nsswitch.conf there,
so that the pod's root could run code on the host, and blocks for ever if passwd is a pipe. It
formats times by /etc/localtime, and blocks for ever if that is a pipe. So these files are renamed
while directories are listed.
Protocol: https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02, version 3.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import logging
import secrets
import struct
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from podyd.base.engine_words import ENGINE
from podyd.base.errors import Conflict, PodydError, TimedOut
from podyd.engine.rest import RestClient, instance_path, unreachable
from podyd.engine.types import LARGE_BYTES, File, Holes, Tree

log = logging.getLogger(__name__)

LOOK_SECONDS = 300.0
ASK_SECONDS = 15.0
# The files that are read there for the names of owners, and for times.
_READ_THERE = (b"/etc/nsswitch.conf", b"/etc/passwd", b"/etc/group", b"/etc/localtime")
# The limit of files that `remove` removes.
MAX_REMOVED = 1000
AT_ONCE = 16
# The limit of the names of directories that are not listed yet, and of large files.
MAX_HELD_BYTES = 64 * 1024**2
MAX_PACKET_BYTES = 1024**2
# The engine does not show the holes of files: the largest files are sampled at this many offsets.
MAX_SAMPLED, SAMPLES, SAMPLE_BYTES = 64, 1024, 4096
# Added to the samples that are not zeros, for an upper bound of the data (99.3 % confidence).
MARGIN = 5
# A sample that is packed to less than this part of its size is compressible.
DENSE = 0.9

_INIT, _OPEN, _CLOSE, _READ, _LSTAT, _SETSTAT, _OPENDIR, _READDIR = 1, 3, 4, 5, 7, 9, 11, 12
_REMOVE, _RENAME = 13, 18
_STATUS, _HANDLE, _DATA, _NAME, _ATTRIBUTES = 101, 102, 103, 104, 105
_TO_READ = 1
_OK, _EOF, _MISSING = 0, 1, 2
_HAS_SIZE, _HAS_IDS, _HAS_MODE, _HAS_TIMES, _HAS_MORE = 1, 2, 4, 8, 0x80000000
_KIND, _DIRECTORY, _FILE = 0o170000, 0o040000, 0o100000


async def look(client: RestClient, name: str) -> Tree:
    """List all files of an instance.

    Raises Conflict (too many of them, or one that the engine cannot show), TimedOut, Unavailable,
    EngineRefused.
    """
    try:
        return await asyncio.wait_for(_look(client, name), LOOK_SECONDS)
    except asyncio.TimeoutError:
        raise TimedOut(
            f"There are more files than {ENGINE} can show in {LOOK_SECONDS:.0f} s.",
            advice="Have fewer and larger ones.",
            code="too_many_files",
        ) from None


async def cut(client: RestClient, name: str, files: Sequence[File]) -> None:
    """Truncate files to 0 bytes, so that the engine's packing of them fails instead of going on."""
    async with _connected(client, name) as sftp:
        await asyncio.gather(*(sftp.empty(file.path) for file in files))


async def holes(client: RestClient, name: str, tree: Tree) -> Holes:
    """The holes in an instance's files, estimated from samples of the largest ones.

    The offsets are random and cannot be predicted. Raises TimedOut, Unavailable, EngineRefused.
    """
    try:
        return await asyncio.wait_for(_holes(client, name, tree), ASK_SECONDS)
    except asyncio.TimeoutError:
        raise TimedOut(f"{ENGINE} did not show the largest files in time.") from None


async def _holes(client: RestClient, name: str, tree: Tree) -> Holes:
    files = tree.large[:MAX_SAMPLED]
    ends = list(itertools.accumulate(file.size for file in files))
    if not ends:
        return Holes(0, tree.size_bytes, 0)
    total = ends[-1]
    places: list[list[int]] = [[] for _ in files]
    for _ in range(SAMPLES):
        place = secrets.randbelow(total)
        number = bisect.bisect_right(ends, place)
        places[number].append(place - ends[number] + files[number].size)
    async with _connected(client, name) as sftp:
        samples = await asyncio.gather(
            *(sftp.sampled(file.path, where) for file, where in zip(files, places, strict=True))
        )
    full = sum(item.full for item in samples)
    dense = sum({file.size: item.dense for file, item in zip(files, samples, strict=True)}.values())
    return Holes(
        total * (SAMPLES - full) // SAMPLES,
        tree.size_bytes - total + total * min(SAMPLES, full + MARGIN) // SAMPLES,
        total * max(0, dense - MARGIN) // SAMPLES,
    )


async def remove(client: RestClient, name: str, directory: str, prefix: str) -> None:
    """Remove the files of an existing directory whose names begin with `prefix`.

    Raises Conflict if one cannot be removed, TimedOut, Unavailable, EngineRefused.
    """
    try:
        await asyncio.wait_for(_remove(client, name, directory, prefix), ASK_SECONDS)
    except asyncio.TimeoutError:
        raise TimedOut(f"{ENGINE} did not show {directory} in time.") from None


async def _remove(client: RestClient, name: str, directory: str, prefix: str) -> None:
    path = directory.encode()
    async with _listing(client, name) as sftp:
        files = []
        async for entry, *_ in sftp.entries(path):
            if entry.startswith(prefix.encode()):
                files.append(_below(path, entry))
            if len(files) > MAX_REMOVED:
                raise Conflict(f"There are more than {MAX_REMOVED} {directory}/{prefix}*.")
        for file in files:
            await sftp.remove(file)


async def is_regular(client: RestClient, name: str, path: str) -> bool:
    """Whether a path is a regular file, no link to one. Raises TimedOut, Unavailable,
    EngineRefused."""

    async def ask() -> bool:
        async with _connected(client, name) as sftp:
            return await sftp.mode(path.encode()) & _KIND == _FILE

    try:
        return await asyncio.wait_for(ask(), ASK_SECONDS)
    except asyncio.TimeoutError:
        raise TimedOut(f"{ENGINE} did not show {path} in time.") from None


async def end_packing(client: RestClient, name: str) -> None:
    """Make the engine's packing of an instance fail soon, if it goes on; its files are not
    needed."""
    try:
        await cut(client, name, (await look(client, name)).large)
    except PodydError as error:
        log.warning("%s may go on with packing %s: %s", ENGINE, name, error)


async def _look(client: RestClient, name: str) -> Tree:
    size = held = 0
    large: list[File] = []
    pending = [b"/"]
    async with _listing(client, name) as sftp:
        while pending:
            batch, pending = pending[-AT_ONCE:], pending[:-AT_ONCE]
            held -= sum(map(len, batch))
            for directory, contents in zip(
                batch, await asyncio.gather(*map(sftp.directory, batch)), strict=True
            ):
                size += contents.size_bytes
                paths = [_below(directory, entry) for entry in contents.directories]
                files = [File(_below(directory, entry), count) for entry, count in contents.large]
                held += sum(map(len, paths)) + sum(len(file.path) for file in files)
                pending += paths
                large += files
            if held > MAX_HELD_BYTES:
                raise Conflict(
                    f"There are more directories than {ENGINE} can show.",
                    advice="Have fewer ones.",
                    code="too_many_files",
                )
    large.sort(key=lambda file: -file.size)
    return Tree(size, tuple(large))


def _below(directory: bytes, entry: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + entry


@dataclass(frozen=True)
class _Sampled:
    """How many samples of a file are not zeros, and how many are not compressible."""

    full: int
    dense: int


def _is_dense(sample: bytes) -> bool:
    return len(sample) == SAMPLE_BYTES and len(zlib.compress(sample, 1)) > len(sample) * DENSE


@dataclass
class _Directory:
    """The contents of one directory, without those of its subdirectories."""

    size_bytes: int
    directories: list[bytes]
    large: list[tuple[bytes, int]]

    def add(self, entry: bytes, size: int, mode: int, links: int) -> None:
        if mode & _KIND == _DIRECTORY and entry not in (b".", b".."):
            self.directories.append(entry)
        elif mode & _KIND == _FILE:
            # A file with several names is packed once.
            self.size_bytes += size // links
            if size >= LARGE_BYTES:
                self.large.append((entry, size))


class _Sftp:
    """An SFTP connection with many concurrent requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._ended: BaseException | None = None

    async def begin(self) -> None:
        self._write(_INIT, struct.pack(">I", 3))
        await self._read()

    async def run(self) -> None:
        """Read answers until the connection ends."""
        try:
            while True:
                kind, data = await self._read()
                (number,) = struct.unpack_from(">I", data)
                waiting = self._asked.pop(number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result((kind, data[4:]))
        except (OSError, EOFError, struct.error) as error:
            self.end(error)

    def end(self, error: BaseException) -> None:
        """Fail all requests that are not answered."""
        self._ended = error
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(unreachable(error))
        self._asked.clear()

    async def directory(self, path: bytes) -> _Directory:
        """The contents of a directory. Raises Conflict if it cannot be read."""
        contents = _Directory(0, [], [])
        async for entry in self.entries(path):
            contents.add(*entry)
        return contents

    async def entries(self, path: bytes) -> AsyncIterator[tuple[bytes, int, int, int]]:
        """Name, size in bytes, mode and link count of each entry, `.` and `..` too."""
        kind, handle = await self._ask(_OPENDIR, _string(path))
        if kind != _HANDLE:
            raise _unseen(path)
        kind, data = await self._ask(_READDIR, handle)
        while kind == _NAME:
            for entry in _entries(data):
                yield entry
            kind, data = await self._ask(_READDIR, handle)
        if _status(kind, data) != _EOF:
            raise _unseen(path)
        await self._ask(_CLOSE, handle)

    async def mode(self, path: bytes) -> int:
        """The type and permissions of a path; 0 if it cannot be seen."""
        kind, data = await self._ask(_LSTAT, _string(path))
        return _attributes(data, 0)[1] if kind == _ATTRIBUTES else 0

    async def remove(self, path: bytes) -> None:
        """Remove a file. Raises Conflict if it cannot be removed."""
        if _status(*await self._ask(_REMOVE, _string(path))) != _OK:
            raise Conflict(f"{path.decode(errors='replace')!r} cannot be removed.")

    async def rename(self, path: bytes, to: bytes) -> bool:
        """Rename a file, if the new name does not exist; returns whether the file exists."""
        status = _status(*await self._ask(_RENAME, _string(path) + _string(to)))
        if status not in (_OK, _MISSING):
            raise Conflict(f"{path.decode(errors='replace')!r} cannot be renamed.")
        return status == _OK

    async def sampled(self, path: bytes, places: Sequence[int]) -> _Sampled:
        """Sample a file at these offsets; a failed read counts as not zeros and compressible."""
        kind, handle = await self._ask(_OPEN, _string(path) + struct.pack(">II", _TO_READ, 0))
        if kind != _HANDLE:
            return _Sampled(len(places), 0)
        full = dense = 0
        for place in places:
            where = struct.pack(">QI", place, SAMPLE_BYTES)
            kind, data = await self._ask(_READ, handle + where)
            sample = _text(data, 0)[0] if kind == _DATA else None
            full += sample is None or sample.strip(b"\0") != b""
            dense += sample is not None and _is_dense(sample)
        await self._ask(_CLOSE, handle)
        return _Sampled(full, dense)

    async def empty(self, path: bytes) -> None:
        """Truncate a file to 0 bytes, if it still exists."""
        await self._ask(_SETSTAT, _string(path) + struct.pack(">IQ", _HAS_SIZE, 0))

    async def _ask(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        if self._ended is not None:
            raise unreachable(self._ended)
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        waiting = self._asked[number]
        self._write(kind, struct.pack(">I", number) + payload)
        return await waiting

    def _write(self, kind: int, payload: bytes) -> None:
        self._writer.write(struct.pack(">IB", len(payload) + 1, kind) + payload)

    async def _read(self) -> tuple[int, bytes]:
        (length,) = struct.unpack(">I", await self._reader.readexactly(4))
        if not 0 < length <= MAX_PACKET_BYTES:
            raise OSError(f"an SFTP packet of {length} bytes")
        packet = await self._reader.readexactly(length)
        return packet[0], packet[1:]


@contextlib.asynccontextmanager
async def _connected(client: RestClient, name: str) -> AsyncIterator[_Sftp]:
    reader, writer = await client.upgraded(instance_path(name, "sftp"), "sftp")
    sftp = _Sftp(reader, writer)
    running: asyncio.Task[None] | None = None
    try:
        await sftp.begin()
        running = asyncio.ensure_future(sftp.run())
        yield sftp
    except (OSError, EOFError, struct.error) as error:
        raise unreachable(error) from error
    finally:
        if running is not None:
            running.cancel()
        sftp.end(ConnectionError("podyd has hung up"))
        writer.close()


@contextlib.asynccontextmanager
async def _listing(client: RestClient, name: str) -> AsyncIterator[_Sftp]:
    """A connection to list directories, on which no code of the instance is run.

    After an error the files stay renamed; such an instance is not used any more.
    """
    aside = b".podyd-" + secrets.token_hex(8).encode()
    async with _connected(client, name) as sftp:
        moved = [path for path in _READ_THERE if await sftp.rename(path, path + aside)]
        yield sftp
        for path in moved:
            await sftp.rename(path + aside, path)


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _status(kind: int, data: bytes) -> int:
    """The code of a status; -1 for an answer of another type."""
    return int(struct.unpack_from(">I", data)[0]) if kind == _STATUS else -1


def _unseen(path: bytes) -> Conflict:
    return Conflict(
        f"{ENGINE} cannot show directory {path.decode(errors='replace')!r}, and so cannot pack it.",
        advice="Delete it, or make its path shorter.",
        code="directory_unseen",
    )


def _entries(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, size in bytes, mode and link count of each entry in an answer to _READDIR."""
    (count,) = struct.unpack_from(">I", data)
    at = 4
    for _ in range(count):
        name, at = _text(data, at)
        # In the form of `ls -l`: "-rw-r--r--    2 0        0 …".
        line, at = _text(data, at)
        size, mode, at = _attributes(data, at)
        words = line.split(None, 2)
        links = int(words[1]) if len(words) > 1 and words[1].isdigit() else 1
        yield name, size, mode, max(1, links)


def _attributes(data: bytes, at: int) -> tuple[int, int, int]:
    """Size in bytes and mode in the protocol's attributes, and the offset of their end."""
    (has,) = struct.unpack_from(">I", data, at)
    at += 4
    size = mode = 0
    if has & _HAS_SIZE:
        (size,) = struct.unpack_from(">Q", data, at)
        at += 8
    at += 8 if has & _HAS_IDS else 0
    if has & _HAS_MODE:
        (mode,) = struct.unpack_from(">I", data, at)
        at += 4
    at += 8 if has & _HAS_TIMES else 0
    if has & _HAS_MORE:
        (more,) = struct.unpack_from(">I", data, at)
        at += 4
        for _ in range(2 * more):
            _, at = _text(data, at)
    return size, mode, at


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    """A string of the protocol, and the offset of its end."""
    (length,) = struct.unpack_from(">I", data, at)
    end = at + 4 + length
    return data[at + 4 : end], end
