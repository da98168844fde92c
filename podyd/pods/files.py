"""Transfers of files into and out of pods, with slots for each member and atomic uploads.

The work is done by `stat`, `find`, `head`, `cat` and `tar` in the pod; those of busybox suffice.
The engine has a file API, but there a process of the host opens the file: if a pod's root replaces
it by a pipe, that process hangs for ever, and the pod can be neither stopped nor deleted any more
(measured on LXD 5.0.2). A command in the pod counts towards the pod's limits, and is killed with
all processes that it started when the caller disconnects.

The pod's root controls the output of these programs: it is limited in bytes and time, and checked
before it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import TypeVar

from podyd.base.clock import iso_of
from podyd.base.errors import Conflict, NotFound, PodydError, TimedOut
from podyd.base.longtext import HeldAnswer
from podyd.base.tasks import beside, seen
from podyd.contract.operation import Log
from podyd.contract.pods import Entry, FileInfo, FileType, OneFile, PutFile
from podyd.engine.streams import STDOUT, Afterwards, Ending, Executor, Wish, no_wish
from podyd.model.member import Member
from podyd.model.pod import Pod
from podyd.pods.disks import full
from podyd.pods.owned import Owned
from podyd.pods.slots import Slots

MAX_PER_MEMBER = 8
MAX_ALL = 64
MAX_ENTRIES = 10_000
MAX_LIST_BYTES = 2 * 1024**2
# The limit of the first line, which has a file's type, size, mode and time.
MAX_HEAD_BYTES = 128
# The timeout for that line, and for the list of a directory.
ANSWER_SECONDS = 60.0
# A transfer ends, and its slot is free, after this time without progress of the pod or the caller.
POD_SECONDS = 300.0
CALLER_SECONDS = 3600.0
WATCH_SECONDS = 10.0
MAX_COMPLAINT_BYTES = 2048
MAX_SHOWN = 300

T = TypeVar("T")
Send = Callable[[bytes], Awaitable[None]]
Receive = Callable[[], Awaitable[bytes | None]]

# The exit status if a program is missing, whose name is in stderr.
_MISSING = 26
_NEEDS = r"""
export LC_ALL=C
needs() {
  for program; do
    command -v "$program" >/dev/null || { echo "$program" >&2; exit 26; }
  done
}
"""

# $1: the path, $2: the format. First a line about the file, then its contents; in a directory's
# list, names have a terminator that no name has. Not more of a file than the size in the first
# line; files of /proc have 0 there.
_GIVE = (
    _NEEDS
    + r"""
needs stat
about=$(stat -L -c '%f %s %a %Y' "$1" 2>/dev/null || stat -c '%f %s %a %Y' "$1") || exit 20
size=${about#* }
size=${size%% *}
case $2,$about in
  tar,4*) needs tar ;;
  ,4*) needs find ;;
  ,8*) needs head cat ;;
esac
echo "$about"
case $2,$about in
  stat,*) ;;
  tar,4*)
    case $(tar --version) in *GNU*) posix=--format=posix ;; esac
    exec tar -c -f - $posix --numeric-owner -C "$1" .
    ;;
  ,8*) if [ "$size" = 0 ]; then exec cat <"$1"; else exec head -c "$size" <"$1"; fi ;;
  ,4*) cd "$1" && exec find . -mindepth 1 -maxdepth 1 -exec stat -c '%f %s %a %Y %n/' {} + ;;
esac
"""
)

# $1: the path, $2: a random word. $target is the path with links resolved; a name may end in
# newlines, which a shell would remove.
_WHERE = (
    _NEEDS
    + r"""
needs readlink
target=$(readlink -f -- "$1" && echo .) || exit 21
target=${target%??}
[ -n "$target" ] || target=/
beside=${target%/*}/.podyd-$2
"""
)

_TAKE_FILE = (
    _WHERE
    + r"""
[ ! -d "$target" ] || exit 22
[ ! -e "$target" ] || [ -f "$target" ] || exit 23
needs cat stat
umask 077
set -C
exec cat >"$beside"
"""
)

# $3: its size in bytes, which is checked, $4: its mode or "", $5: its time or "".
_KEEP_FILE = (
    _WHERE
    + r"""
[ "$(stat -c %s "$beside")" = "$3" ] || exit 24
if [ -e "$target" ]; then
  chown "$(stat -c %u:%g "$target")" "$beside"
  chmod "$(stat -c %a "$target")" "$beside"
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
needs tar find
[ ! -e "$target" ] || [ -d "$target" ] || exit 25
mkdir -m 755 "$beside" || exit
exec tar -x -p -f - --numeric-owner -C "$beside"
"""
)

# In an existing directory, hard links to the new files are made: each appears atomically.
_KEEP_TAR = (
    _WHERE
    + _INTO
    + r"""
[ -d "$beside" ] || exit 24
if [ -d "$target" ]; then
  find "$beside" -mindepth 1 -maxdepth 1 \
    -exec cp -a -l -f --remove-destination -t "$target" {} + || exit
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

# By the first digit of a mode in hex.
_TYPES: Mapping[bytes, FileType] = {
    b"8": "file",
    b"4": "directory",
    b"a": "link",
    b"1": "pipe",
    b"c": "socket",
    b"6": "device",
    b"2": "device",
}
_FIRST_TIME = int(datetime(1000, 1, 1, tzinfo=timezone.utc).timestamp())
_LAST_TIME = int(datetime(9999, 12, 31, tzinfo=timezone.utc).timestamp())
_ABOUT = rb"([0-9a-f])[0-9a-f]{3} (\d{1,18}) ([0-7]{1,4}) (-?\d{1,18})"
_HEAD = re.compile(_ABOUT + rb"\n")
_LISTED = re.compile(_ABOUT + rb" \./([^/]{1,255})")


class Transfers:
    """Assigns slots for transfers; each transfer of a file needs one."""

    def __init__(self, *, owned: Owned, executor: Executor) -> None:
        self._executor = executor
        self._owned = owned
        self._slots = Slots(
            per_member=MAX_PER_MEMBER,
            total=MAX_ALL,
            what="file transfers of yours are running",
            advice="Wait until one has ended.",
            code="too_many_files",
        )

    async def fetch(self, member: Member, request: OneFile) -> HeldAnswer[FileInfo] | Outgoing:
        """The contents of a path: a file's bytes, a directory as a tar file, or information on it.

        Raises NotFound, Conflict (the pod does not run, or that is no file) or TooMany.
        """
        pod = await self._owned.find_running(member, request.ins)
        outgoing = Outgoing(self, pod, request, self._slots.take(member))
        try:
            about = await outgoing.begin()
        except BaseException:
            outgoing.close()
            raise
        return outgoing if about is None else HeldAnswer(about, outgoing.close)

    async def put(self, member: Member, request: PutFile) -> Incoming:
        """A slot for an upload. Raises what `fetch` does."""
        pod = await self._owned.find_running(member, request.ins)
        return Incoming(self, pod, request, self._slots.take(member))

    async def run(
        self, pod: Pod, script: str, words: Sequence[str], pipe: Pipe, then: Afterwards | None
    ) -> int:
        """Run a script in a pod and return its exit status. Raises TimedOut without progress."""
        command = ("/bin/sh", "-c", script, "podyd", *words)
        running = self._executor.run(pod.name, command, pipe, timeout=None, then=then)
        end = await beside(running, pipe.watch())
        assert end.code is not None
        if end.code == _MISSING:
            program = pipe.complaint if re.fullmatch("[a-z]{1,20}", pipe.complaint) else "a program"
            raise Conflict(
                f"Pod {pod.ins!r} has no {program!r}, which file transfers need.",
                advice="Install it there.",
                code="program_missing",
                program=program,
            )
        return end.code

    def drop(self, pod: Pod, words: Sequence[str]) -> None:
        """Remove the temporary files of an upload that has failed, in the background."""
        command = ("/bin/sh", "-c", _DROP, "podyd", *words)
        self._executor.end(Ending(pod.name, command, outlives_stop=True))


class Pipe:
    """The input and output streams of a script that is not interactive."""

    def __init__(self, receive: Receive | None = None, send: Send | None = None) -> None:
        self._receive = receive
        self._send = send
        self.taken_bytes = 0
        self._complaint = b""
        self._waits_for_caller = False
        self._since = time.monotonic()

    @property
    def complaint(self) -> str:
        """The first line of its stderr."""
        text = self._complaint.decode(errors="replace").strip().partition("\n")[0][:MAX_SHOWN]
        return text.rstrip(".") or "a command in the pod failed"

    async def input(self) -> bytes | None:
        if self._receive is None:
            return None
        data = await self._turn(self._receive())
        self.taken_bytes += len(data or b"")
        return data

    async def output(self, stream: int, data: bytes) -> None:
        if stream != STDOUT:
            self._complaint += data[: MAX_COMPLAINT_BYTES - len(self._complaint)]
        elif self._send is not None and data:
            await self._turn(self._send(data))

    async def _turn(self, caller: Awaitable[T]) -> T:
        """Wait for the caller; then the next progress is expected from the pod."""
        self._waits_for_caller, self._since = True, time.monotonic()
        try:
            return await caller
        finally:
            self._waits_for_caller, self._since = False, time.monotonic()

    async def watch(self) -> None:
        """Raises TimedOut if the pod or the caller, whichever is awaited, makes no progress."""
        while True:
            patience = CALLER_SECONDS if self._waits_for_caller else POD_SECONDS
            left = self._since + patience - time.monotonic()
            if left <= 0:
                break
            await asyncio.sleep(min(left, WATCH_SECONDS))
        raise _caller_is_silent() if self._waits_for_caller else _silent(POD_SECONDS)

    async def wish(self) -> Wish:
        return await no_wish()


class Outgoing:
    """A download from a pod."""

    def __init__(
        self, transfers: Transfers, pod: Pod, request: OneFile, slot: contextlib.ExitStack
    ) -> None:
        self._transfers = transfers
        self._pod = pod
        self._request = request
        # One chunk at a time: the pod waits until it is sent.
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._pipe = Pipe(send=self._pieces.put)
        self._work: asyncio.Task[int] | None = None
        self._rest = b""
        self._size = 0
        self._slot = slot
        self._deadline = time.monotonic() + ANSWER_SECONDS
        self.headers: dict[str, str] = {}

    async def begin(self) -> FileInfo | None:
        """Read the type of the file; returns information on it, or None if it is to be sent."""
        words = (self._request.path, self._request.format or "")
        run = self._transfers.run(self._pod, _GIVE, words, self._pipe, None)
        self._work = asyncio.ensure_future(run)
        self._work.add_done_callback(seen)
        self._slot.callback(self._work.cancel)
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
        while b"\n" not in data and len(data) <= MAX_HEAD_BYTES:
            piece = await self._piece(self._deadline)
            if piece is None:
                raise self._headless()
            data += piece
        match = _HEAD.match(data)
        if match is None:
            raise self._unusable()
        self._rest = data[match.end() :]
        return FileInfo(self._request.path, *_about(match), None, False)

    def _headless(self) -> PodydError:
        assert self._work is not None
        if self._work.result() != 20:
            return self._unusable()
        return NotFound(
            f"There is no {self._request.path!r} in pod {self._pod.ins!r}.", code="no_such_file"
        )

    def _unusable(self) -> Conflict:
        return Conflict(
            f"The output of 'stat' or 'find' in pod {self._pod.ins!r} for {self._request.path!r} is"
            " malformed.",
            advice="Check that these programs are those of its distribution.",
            code="pod_answer_unusable",
        )

    async def _listed(self, about: FileInfo) -> FileInfo:
        data = bytearray(self._rest)
        while len(data) <= MAX_LIST_BYTES:
            piece = await self._piece(self._deadline)
            if piece is None:
                break
            data += piece
        is_cut = len(data) > MAX_LIST_BYTES
        entries = await asyncio.to_thread(_entries, bytes(data), is_cut)
        if entries is None:
            raise self._unusable()
        is_cut |= len(entries) > MAX_ENTRIES
        return replace(about, entries=entries[:MAX_ENTRIES], truncated=is_cut)

    async def _piece(self, deadline: float | None = None) -> bytes | None:
        assert self._work is not None
        getting = asyncio.ensure_future(self._pieces.get())
        timeout = None if deadline is None else max(0, deadline - time.monotonic())
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({getting, self._work}, timeout=timeout, return_when=first)
            if getting.done():
                return getting.result()
        finally:
            getting.cancel()
        if not self._work.done():
            raise _silent(ANSWER_SECONDS)
        self._work.result()
        return None if self._pieces.empty() else self._pieces.get_nowait()

    async def run(self, send: Send) -> None:
        """Send all of it. Raises PodydError if it is incomplete."""
        piece: bytes | None = self._rest
        sent = 0
        while piece is not None:
            if piece:
                sent += len(piece)
                await _taken(send(piece))
            piece = await self._piece()
        assert self._work is not None
        code = self._work.result()
        # tar's status is 1 if a file has changed while it was read.
        is_whole = code in ((0, 1) if self._request.format == "tar" else (0,))
        if not is_whole or sent < self._size:
            why = "it has become shorter meanwhile" if is_whole else self._pipe.complaint
            raise PodydError(
                f"{self._request.path!r} could not be read to its end: {why}.", code="file_cut_off"
            )

    def close(self) -> None:
        """Release the slot, and end the script if it still runs; may be called again."""
        self._slot.close()


class Incoming:
    """An upload to a pod; the file appears at its path when it is complete."""

    def __init__(
        self, transfers: Transfers, pod: Pod, request: PutFile, slot: contextlib.ExitStack
    ) -> None:
        self._transfers = transfers
        self._pod = pod
        self._request = request
        self._words = (request.path, secrets.token_hex(8))
        self._slot = slot

    async def run(self, receive: Receive) -> Log:
        """Write all that `receive` returns, up to None. Raises Conflict if the pod cannot."""
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
                    f"{path!r} is a directory.",
                    advice="Name a file in it.",
                    code="wrong_file_type",
                )
            case 23 | 25:
                wanted = "file" if code == 23 else "directory"
                return Conflict(f"{path!r} exists and is not a {wanted}.", code="wrong_file_type")
            case 24:
                complaint = "it was changed in the pod during the transfer"
        if "quota exceeded" in complaint:
            return full(self._pod)
        # Not every filesystem in a pod is its disk.
        is_full = "No space left" in complaint
        return Conflict(
            f"It could not be written in the pod: {complaint}.",
            code="disk_full" if is_full else "not_taken",
        )

    def close(self) -> None:
        """Release the slot; may be called again."""
        self._slot.close()


def _silent(seconds: float) -> TimedOut:
    return TimedOut(
        f"The pod has given, or taken, nothing for {seconds:.0f} s.",
        advice="See what it is busy with.",
        code="pod_is_silent",
    )


def _caller_is_silent() -> TimedOut:
    return TimedOut(
        f"You have sent, or taken, nothing for {CALLER_SECONDS:.0f} s.",
        advice="Begin again.",
        code="caller_is_silent",
    )


async def _taken(sending: Awaitable[None]) -> None:
    """Wait until a chunk is sent to the caller. Raises TimedOut."""
    task = asyncio.ensure_future(sending)
    task.add_done_callback(seen)
    try:
        if not (await asyncio.wait({task}, timeout=CALLER_SECONDS))[0]:
            raise _caller_is_silent()
        task.result()
    finally:
        task.cancel()


def _about(match: re.Match[bytes]) -> tuple[FileType, int, str, str | None]:
    """Type, size in bytes, mode and time of change."""
    kind, size, mode, modified = match.group(1, 2, 3, 4)
    seconds = int(modified)
    # Linux has times beyond Python's dates, and ISO 8601 requires four digits for the year.
    is_date = _FIRST_TIME <= seconds <= _LAST_TIME
    when = iso_of(seconds) if is_date else None
    return _TYPES.get(kind, "link"), int(size), mode.decode().rjust(4, "0"), when


def _entries(data: bytes, is_cut: bool) -> list[Entry] | None:
    """A directory's entries, at most MAX_ENTRIES + 1; None if the output is malformed."""
    *lines, rest = data.split(b"/\n", MAX_ENTRIES + 1)
    matches = [_LISTED.fullmatch(line) for line in lines]
    if not all(matches) or (rest and not is_cut and len(lines) <= MAX_ENTRIES):
        return None
    entries = [
        Entry(item[5].decode(errors="replace"), *_about(item))
        for item in matches
        if item is not None
    ]
    return sorted(entries, key=lambda entry: entry.name)


def _file_headers(about: FileInfo) -> dict[str, str]:
    headers = {
        "Content-Type": "application/octet-stream",
        # A browser must not show a file from a pod as a page of podyd.
        "Content-Disposition": "attachment",
        "X-Podyd-Size": str(about.size),
        "X-Podyd-Mode": about.mode,
    }
    if about.modified is not None:
        headers["X-Podyd-Modified"] = about.modified
    return headers | ({"Content-Length": str(about.size)} if about.size else {})
