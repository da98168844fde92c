"""Files in and out of pods: who may move how many at once, and that what is put is put whole.

The work is done by `find`, `head`, `cat` and `tar` in the pod. LXD has a way of its own, but there
a process of the host opens the file: at a pipe, or whatever else a pod's root puts in its place,
that process hangs for good, and the pod can be neither stopped nor deleted any more (measured on
5.0.2). A command in the pod counts as the pod's, and is killed with all that it started when the
caller goes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timezone

from podyd import spec
from podyd.disks import full
from podyd.errors import Conflict, NotFound, PodydError
from podyd.line import STDOUT, Wish
from podyd.lxd.endings import Ending
from podyd.lxd.execution import Afterwards, Executor
from podyd.places import Places
from podyd.pod import Pod
from podyd.pods import Pods
from podyd.spec import Entry, FileInfo, FileType, Log, OneFile, PutFile
from podyd.tasks import seen
from podyd.users import Member

MAX_PER_MEMBER = 8
MAX_ALL = 64
MAX_ENTRIES = 10_000
# A directory's list, with names as long as Linux allows.
MAX_LIST_BYTES = 4 * 1024**2
MAX_COMPLAINT_BYTES = 2048
MAX_SHOWN = 300

Send = Callable[[bytes], Awaitable[None]]
Receive = Callable[[], Awaitable[bytes | None]]

# $1: the path, $2: the format. First what it is, ended by a NUL, then what is in it. No more of a
# file than the size that was said; those of /proc say 0.
_GIVE = r"""
export LC_ALL=C
found=$(find -H "$1" -maxdepth 0 -printf '%y %s' 2>/dev/null) || exit 20
find -H "$1" -maxdepth 0 -printf '%y\t%s\t%m\t%T@\0' || exit 20
case $2${found% *} in
  stat*) ;;
  tard) exec tar --create --file=- --format=posix --numeric-owner --directory="$1" . ;;
  f) if [ "${found#* }" = 0 ]; then exec cat <"$1"; else exec head -c "${found#* }" <"$1"; fi ;;
  d) exec find -H "$1" -mindepth 1 -maxdepth 1 -printf '%y\t%s\t%m\t%T@\t%f\0' ;;
esac
"""

# $1: the path, $2: a word that nobody knows. $target is where links lead to; a name may end in
# newlines, which a shell would take away.
_WHERE = r"""
export LC_ALL=C
target=$(readlink -f -- "$1" && echo .) || exit 21
target=${target%??}
[ -n "$target" ] || target=/
beside=${target%/*}/.podyd-$2
"""

_TAKE_FILE = (
    _WHERE
    + r"""
[ ! -d "$target" ] || exit 22
[ ! -e "$target" ] || [ -f "$target" ] || exit 23
umask 077
set -C
exec cat >"$beside"
"""
)

# $3: how many bytes it must have, $4: its mode or "", $5: its time or "".
_KEEP_FILE = (
    _WHERE
    + r"""
[ "$(stat -c %s "$beside")" = "$3" ] || exit 24
if [ -e "$target" ]; then
  chown --reference="$target" "$beside"
  chmod --reference="$target" "$beside"
else
  chmod 644 "$beside"
fi || exit
[ -z "$4" ] || chmod "$4" "$beside" || exit
[ -z "$5" ] || touch -d "@$5" "$beside" || exit
mv -T -f "$beside" "$target"
"""
)

_INTO = r"""
[ ! -d "$target" ] || beside=${target%/}/.podyd-$2
"""

_TAKE_TAR = (
    _WHERE
    + _INTO
    + r"""
[ ! -e "$target" ] || [ -d "$target" ] || exit 25
mkdir -m 755 "$beside" || exit
exec tar --extract --file=- --numeric-owner --same-permissions --directory="$beside"
"""
)

# Into a directory that is there, links to the new files: one is there as a whole, or not at all.
_KEEP_TAR = (
    _WHERE
    + _INTO
    + r"""
[ -d "$beside" ] || exit 24
if [ -d "$target" ]; then
  find "$beside" -mindepth 1 -maxdepth 1 \
    -exec cp -a --link --remove-destination -t "$target" {} + || exit
  rm -rf "$beside"
else
  mv -T "$beside" "$target"
fi
"""
)

_DROP = (
    _WHERE.replace("exit 21", "exit 0")
    + r"""
rm -rf "$beside" "${target%/}/.podyd-$2"
"""
)

_TYPES: Mapping[str, FileType] = {
    "f": "file",
    "d": "directory",
    "l": "link",
    "p": "pipe",
    "s": "socket",
    "b": "device",
    "c": "device",
}


class Transfers:
    """Gives places; who has one can move a file."""

    def __init__(self, *, pods: Pods, executor: Executor) -> None:
        self._executor = executor
        self._places = Places(
            pods,
            own=MAX_PER_MEMBER,
            all=MAX_ALL,
            what="files of yours are on their way; wait until one is there",
            code="too_many_files",
        )

    async def fetch(self, member: Member, request: OneFile) -> FileInfo | Outgoing:
        """What there is at a path: a file's bytes, a directory as a tar file, or words about it.

        Raises NotFound, Conflict (the pod does not run, or that is no file) or TooMany.
        """
        pod = await self._places.enter(member, request.ins)
        outgoing = Outgoing(self, pod, request)
        try:
            about = await outgoing.begin()
        except BaseException:
            outgoing.close()
            raise
        if about is None:
            return outgoing
        outgoing.close()
        return about

    async def put(self, member: Member, request: PutFile) -> Incoming:
        """A place for a file that comes. Raises what `fetch` does."""
        return Incoming(self, await self._places.enter(member, request.ins), request)

    def leave(self, pod: Pod) -> None:
        """The place in this pod is free again."""
        self._places.leave(pod)

    async def run(
        self, pod: Pod, script: str, words: Sequence[str], pipe: Pipe, then: Afterwards | None
    ) -> int:
        """Run a script in a pod; its exit status."""
        command = ("/bin/sh", "-c", script, "podyd", *words)
        end = await self._executor.talk(
            pod.name, command, pipe, terminal=None, timeout=None, then=then
        )
        assert end.code is not None
        return end.code

    def drop(self, pod: Pod, words: Sequence[str]) -> None:
        """Remove what there is of a file that will not come, in the background."""
        command = ("/bin/sh", "-c", _DROP, "podyd", *words)
        self._executor.end(Ending(pod.name, command, outlives_stop=True))


class Pipe:
    """What a script is given and what it gives, without anybody who talks to it."""

    def __init__(self, receive: Receive | None = None, send: Send | None = None) -> None:
        self._receive = receive
        self._send = send
        self.taken_bytes = 0
        self._complaint = b""

    @property
    def complaint(self) -> str:
        """The first line that it wrote to stderr."""
        text = self._complaint.decode(errors="replace").strip().partition("\n")[0][:MAX_SHOWN]
        return text.rstrip(".") or "a command in the pod failed"

    async def input(self) -> bytes | None:
        data = await self._receive() if self._receive is not None else None
        self.taken_bytes += len(data or b"")
        return data

    async def output(self, channel: int, data: bytes) -> None:
        if channel != STDOUT:
            self._complaint += data[: MAX_COMPLAINT_BYTES - len(self._complaint)]
        elif self._send is not None and data:
            await self._send(data)

    async def wish(self) -> Wish:
        nothing: asyncio.Future[Wish] = asyncio.get_running_loop().create_future()
        return await nothing


class Outgoing:
    """A file on its way out of a pod."""

    def __init__(self, transfers: Transfers, pod: Pod, request: OneFile) -> None:
        self._transfers = transfers
        self._pod = pod
        self._request = request
        # One piece at a time: the pod waits until it is taken.
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._pipe = Pipe(send=self._pieces.put)
        self._work: asyncio.Task[int] | None = None
        self._rest = b""
        self._size = 0
        self._is_open = True
        self.headers: dict[str, str] = {}

    async def begin(self) -> FileInfo | None:
        """Find out what it is; words about it, unless it is to be sent."""
        words = (self._request.path, self._request.format or "")
        run = self._transfers.run(self._pod, _GIVE, words, self._pipe, None)
        self._work = asyncio.ensure_future(run)
        self._work.add_done_callback(seen)
        about = await self._head()
        match self._request.format, about.type:
            case "stat", _:
                return about
            case None, "directory":
                return await self._listed(about)
            case "tar", "directory":
                self.headers = {"Content-Type": "application/x-tar"}
                return None
            case None, "file":
                self.headers = _file_headers(about)
                self._size = about.size
                return None
        wanted = "a file" if self._request.format is None else "a directory"
        raise Conflict(
            f"{about.path!r} is not {wanted} (it is a {about.type}).",
            code="wrong_file_type",
            type=about.type,
        )

    async def _head(self) -> FileInfo:
        data = b""
        while b"\0" not in data:
            piece = await self._piece()
            if piece is None:
                raise NotFound(
                    f"There is no {self._request.path!r} in pod {self._pod.ins!r}.",
                    code="no_such_file",
                )
            data += piece
        head, _, self._rest = data.partition(b"\0")
        entry = _entry(head + b"\t")
        return FileInfo(
            self._request.path, entry.type, entry.size, entry.mode, entry.modified, None, False
        )

    async def _listed(self, about: FileInfo) -> FileInfo:
        data = bytearray(self._rest)
        while len(data) <= MAX_LIST_BYTES and (piece := await self._piece()) is not None:
            data += piece
        lines = data.split(b"\0")[:-1]
        entries = [_entry(bytes(line)) for line in lines[:MAX_ENTRIES]]
        return FileInfo(
            about.path,
            about.type,
            about.size,
            about.mode,
            about.modified,
            sorted(entries, key=lambda entry: entry.name),
            truncated=len(lines) > MAX_ENTRIES or len(data) > MAX_LIST_BYTES,
        )

    async def _piece(self) -> bytes | None:
        assert self._work is not None
        getting = asyncio.ensure_future(self._pieces.get())
        try:
            await asyncio.wait({getting, self._work}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
        finally:
            getting.cancel()
        self._work.result()
        return None if self._pieces.empty() else self._pieces.get_nowait()

    async def run(self, send: Send) -> None:
        """Send all of it. Raises PodydError if it ended before its end."""
        piece: bytes | None = self._rest
        sent = 0
        while piece is not None:
            if piece:
                sent += len(piece)
                await send(piece)
            piece = await self._piece()
        assert self._work is not None
        code = self._work.result()
        # 1 is tar's for a file that has changed while it was read.
        is_whole = code in ((0, 1) if self._request.format == "tar" else (0,))
        if not is_whole or sent < self._size:
            why = "it has become shorter meanwhile" if is_whole else self._pipe.complaint
            raise PodydError(
                f"{self._request.path!r} could not be read to its end: {why}.", code="file_cut_off"
            )

    def close(self) -> None:
        """Give the place back, and end what is not ended; a second time does nothing."""
        if self._is_open:
            self._is_open = False
            if self._work is not None:
                self._work.cancel()
            self._transfers.leave(self._pod)


class Incoming:
    """A file on its way into a pod; nothing is at its place before all of it is there."""

    def __init__(self, transfers: Transfers, pod: Pod, request: PutFile) -> None:
        self._transfers = transfers
        self._pod = pod
        self._request = request
        self._words = (request.path, secrets.token_hex(8))
        self._is_open = True

    async def run(self, receive: Receive) -> Log:
        """Take all that `receive` gives, None at its end. Raises Conflict if the pod cannot."""
        is_tar = self._request.format == "tar"
        pipe = Pipe(receive)
        await self._do(_TAKE_TAR if is_tar else _TAKE_FILE, self._words, pipe)
        if is_tar:
            await self._do(_KEEP_TAR, self._words, Pipe())
            return Log(f"All of it is in {self._request.path}.")
        mtime = "" if self._request.mtime is None else str(self._request.mtime)
        more = (str(pipe.taken_bytes), self._request.mode or "", mtime)
        await self._do(_KEEP_FILE, (*self._words, *more), Pipe())
        return Log(f"{pipe.taken_bytes} bytes are in {self._request.path}.")

    async def _do(self, script: str, words: Sequence[str], pipe: Pipe) -> None:
        try:
            code = await self._transfers.run(self._pod, script, words, pipe, self._drop)
        except PodydError:
            self._transfers.drop(self._pod, self._words)
            raise
        if code != 0:
            self._transfers.drop(self._pod, self._words)
            raise self._refused(code, pipe.complaint)

    async def _drop(self) -> None:
        self._transfers.drop(self._pod, self._words)

    def _refused(self, code: int, complaint: str) -> PodydError:
        path, ins = self._request.path, self._pod.ins
        match code:
            case 21:
                directory = path.rstrip("/").rpartition("/")[0] or "/"
                return NotFound(
                    f"There is no directory {directory!r} in pod {ins!r}.", code="no_such_file"
                )
            case 22:
                return Conflict(
                    f"{path!r} is a directory; say which file in it.", code="wrong_file_type"
                )
            case 23 | 25:
                wanted = "file" if code == 23 else "directory"
                return Conflict(f"{path!r} is there and is no {wanted}.", code="wrong_file_type")
            case 24:
                complaint = "what had come was changed in the pod meanwhile"
        if "quota exceeded" in complaint:
            return full(self._pod)
        # Not all that is mounted in a pod is its disk.
        is_full = "No space left" in complaint
        return Conflict(
            f"The pod did not take it: {complaint}.", code="disk_full" if is_full else "not_taken"
        )

    def close(self) -> None:
        """Give the place back; a second time does nothing."""
        if self._is_open:
            self._is_open = False
            self._transfers.leave(self._pod)


def _entry(line: bytes) -> Entry:
    kind, size, mode, modified, name = line.split(b"\t", 4)
    when = datetime.fromtimestamp(int(float(modified)), timezone.utc)
    return Entry(
        name=name.decode(errors="replace"),
        type=_TYPES.get(kind.decode(), "link"),
        size=int(size),
        mode=mode.decode().rjust(4, "0"),
        modified=spec.iso(when),
    )


def _file_headers(about: FileInfo) -> dict[str, str]:
    headers = {
        "Content-Type": "application/octet-stream",
        # A browser does not show what a pod's root has written as a page of podyd's.
        "Content-Disposition": "attachment",
        "X-Podyd-Size": str(about.size),
        "X-Podyd-Mode": about.mode,
        "X-Podyd-Modified": about.modified,
    }
    return headers | ({"Content-Length": str(about.size)} if about.size else {})
