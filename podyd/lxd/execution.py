"""Running one command in an instance, with an end that can be relied on.

LXD's own exec falls short in three ways (measured on 5.0.2): it kills the leading process only,
it reports the exit code only once every holder of stdout is gone, and it cannot tell what the
leading process wrote from what a child writes later. So the command runs inside a few lines of
`sh` in the instance, which

- put it into a cgroup of its own, so that everything it started can be killed at once, whatever
  called setsid or cleared its environment, even while it forks;
- say when it is over and with which code, by a mark with a nonce on both streams. What comes
  before the mark is the command's output; nothing needs to be waited for after it;
- move what it left in the background out of the cgroup, and remove the cgroup.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tornado.websocket import WebSocketClosedError

from podyd.errors import Conflict, LxdRefused, PodydError
from podyd.lxd.client import LxdClient, instance_path
from podyd.lxd.websocket import Websocket
from podyd.tasks import Tasks

log = logging.getLogger(__name__)

STDOUT, STDERR = "1", "2"
# After the deadline: killing may take this long, and what the dying wrote may still arrive.
KILL_TIMEOUT = 0.6
DRAIN_TIMEOUT = 0.2
# The leading `sh` was killed and wrote no mark: its last output may still be on its way.
UNMARKED_GRACE = 0.5

_BOX = """
box=/sys/fs/cgroup
[ -d $box/unified ] && box=$box/unified
home=$box
box=$box/podyd-$1
"""

# $1: nonce, $2: the user's command. The box is missing where a pod's root has hidden cgroup2;
# then the command runs all the same, and a timeout ends its leading process only.
_RUN = (
    """exec 3>&1 4>&2 2>/dev/null"""
    + _BOX
    + """
mkdir $box || { [ -d $box ] && rmdir $box && exit 137; box=; }
(
  [ -z "$box" ] || echo 0 >$box/cgroup.procs || exit 125
  exec /bin/bash -c "$2" 2>&4 3>&- 4>&-
)
code=$?
if [ -n "$box" ] && ! rmdir $box; then
  while IFS=: read -r id _ path; do [ "$id" = 0 ] && home=$home$path; done </proc/self/cgroup
  tries=0
  until [ $tries = 20 ] || ! [ -d $box ]; do
    while read -r pid; do echo $pid >$home/cgroup.procs; done <$box/cgroup.procs
    rmdir $box
    tries=$((tries + 1))
  done
fi
printf '\\000podyd-%s:%d;' $1 $code
printf '\\000podyd-%s:%d;' $1 $code >&4
exit $code
"""
)

# Where the command has not begun, the box that this makes keeps it from doing so. Where it is just
# about to enter its box, it is killed there a round later, or finds the box gone and gives up.
_KILL = (
    """exec 2>/dev/null"""
    + _BOX
    + """
tries=0
if mkdir $box; then
  until ! [ -d $box ] || [ $tries = 250 ]; do sleep 0.02; tries=$((tries + 1)); done
  rmdir $box
  exit 0
fi
until rmdir $box || ! [ -d $box ] || [ $tries = 100 ]; do
  echo 1 >$box/cgroup.kill
  sleep 0.02
  tries=$((tries + 1))
done
! [ -d $box ]
"""
)


@dataclass(frozen=True)
class Finished:
    """How a command ended; `exit_code` is None if time was up."""

    exit_code: int | None
    stdout: str
    stderr: str
    log: str
    truncated: bool


class Output:
    """What came on both streams, in the order of arrival, up to `limit` bytes each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # One growing block each: thousands of small pieces would leave the heap full of holes.
        self._bytes = {STDOUT: bytearray(), STDERR: bytearray()}
        self._order: list[tuple[str, int]] = []
        self.truncated = False

    def add(self, stream: str, data: bytes) -> None:
        kept = data[: self._limit - len(self._bytes[stream])]
        self.truncated = self.truncated or len(kept) < len(data)
        if not kept:
            return
        self._bytes[stream] += kept
        end = len(self._bytes[stream])
        if self._order and self._order[-1][0] == stream:
            self._order[-1] = stream, end
        else:
            self._order.append((stream, end))

    def texts(self) -> tuple[str, str, str]:
        """stdout, stderr and both interleaved; bytes that are not UTF-8 are replaced."""
        stdout, stderr = (
            bytes(self._bytes[stream]).decode(errors="replace") for stream in (STDOUT, STDERR)
        )
        if not stdout or not stderr:
            return stdout, stderr, stdout or stderr
        return stdout, stderr, "".join(self._interleaved())

    def _interleaved(self) -> Iterator[str]:
        # A character may be cut by the other stream; it stands where it is complete.
        decoder = codecs.getincrementaldecoder("utf-8")
        decoders = {STDOUT: decoder("replace"), STDERR: decoder("replace")}
        starts = {STDOUT: 0, STDERR: 0}
        for stream, end in self._order:
            yield decoders[stream].decode(self._bytes[stream][starts[stream] : end])
            starts[stream] = end
        for rest in decoders.values():
            yield rest.decode(b"", final=True)


class MarkedStream:
    """Finds the mark that ends a stream, also where it is cut into pieces."""

    def __init__(self, nonce: str) -> None:
        self._mark = f"\0podyd-{nonce}:".encode()
        self._held = b""
        self.exit_code: int | None = None

    def feed(self, data: bytes) -> bytes:
        """The output in `data`; what may be the beginning of the mark is held back."""
        data = self._held + data
        self._held = b""
        start = data.find(self._mark)
        if start >= 0:
            code = re.match(rb"(\d+);", data[start + len(self._mark) :])
            if code:
                self.exit_code = int(code[1])
            else:
                self._held = data[start:]
            return data[:start]
        start = data.find(b"\0", max(0, len(data) - len(self._mark) + 1))
        while start >= 0 and not self._mark.startswith(data[start:]):
            start = data.find(b"\0", start + 1)
        if start < 0:
            return data
        self._held = data[start:]
        return data[:start]

    def rest(self) -> bytes:
        """What was held back and turned out not to be the mark."""
        held, self._held = self._held, b""
        return held


class _Session:
    """One exec operation of LXD and its four websockets."""

    def __init__(self, client: LxdClient, instance: str, command: str, limit: int) -> None:
        self._client = client
        self._instance = instance
        self._command = command
        self._sockets: list[Websocket] = []
        self.nonce = secrets.token_hex(8)
        self.output = Output(limit)
        self.begun = False

    async def run(self) -> int:
        """Run the command to its end and return its exit code."""
        operation = await self._client.start(
            instance_path(self._instance, "exec"),
            {
                "command": ["/bin/sh", "-c", _RUN, "podyd", self.nonce, self._command],
                "wait-for-websocket": True,
                "interactive": False,
            },
        )
        secret = operation["metadata"]["fds"]
        path = f"/1.0/operations/{operation['id']}"
        # Control comes first: the command starts as soon as the other three are there, and LXD
        # refuses a control that comes after the end of a short one.
        control = await self._connect(path, secret["control"])
        self.begun = True
        stdin, stdout, stderr = await asyncio.gather(
            *(self._connect(path, secret[stream]) for stream in ("0", STDOUT, STDERR))
        )
        with contextlib.suppress(WebSocketClosedError):  # The command may be over already.
            await stdin.write_message("")  # LXD's sign for the end of stdin
        code = await self._read(control, stdout, stderr)
        return await self._unmarked_code(path) if code is None else code

    async def _connect(self, path: str, secret: str) -> Websocket:
        socket = await self._client.websocket(f"{path}/websocket", secret=secret)
        self._sockets.append(socket)
        return socket

    async def _read(
        self,
        control: Websocket,
        stdout: Websocket,
        stderr: Websocket,
    ) -> int | None:
        ended = asyncio.ensure_future(_until_closed(control))
        collected = asyncio.ensure_future(self._collect_both(stdout, stderr))
        try:
            either: set[asyncio.Future[Any]] = {collected, ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not collected.done():
                await asyncio.wait({collected}, timeout=UNMARKED_GRACE)
            return collected.result() if collected.done() else None
        finally:
            ended.cancel()
            collected.cancel()

    async def _collect_both(self, stdout: Websocket, stderr: Websocket) -> int | None:
        codes = await asyncio.gather(self._collect(STDOUT, stdout), self._collect(STDERR, stderr))
        return next((code for code in codes if code is not None), None)

    async def _collect(self, stream: str, socket: Websocket) -> int | None:
        marked = MarkedStream(self.nonce)
        while marked.exit_code is None:
            message = await socket.read_message()
            if message is None:
                self.output.add(stream, marked.rest())
                break
            if isinstance(message, bytes):  # An empty text message is LXD's sign of EOF.
                self.output.add(stream, marked.feed(message))
        return marked.exit_code

    async def _unmarked_code(self, path: str) -> int:
        """The exit code where the mark is missing: the leading process was killed."""
        metadata = await self._client.get(path)
        code = (metadata["metadata"] or {}).get("return")
        if code is None or code < 0:
            raise Conflict(
                "The command was cut off: the pod stopped, or it killed the shell that ran it.",
                code="exec_cut_off",
            )
        return int(code)

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()


async def _until_closed(socket: Websocket) -> None:
    while await socket.read_message() is not None:
        pass


class Executor:
    """Runs commands; what has to be killed later is killed in `tasks`."""

    def __init__(self, client: LxdClient, tasks: Tasks) -> None:
        self._client = client
        self._tasks = tasks

    async def run(self, instance: str, command: str, *, timeout: float, limit: int) -> Finished:
        """Run `command` with `/bin/bash -c` as root, for `timeout` seconds at most.

        `limit` is in bytes for stdout and for stderr; what is above is read and dropped. When
        time is up, or when the caller is cancelled, all that the command started is killed.
        """
        session = _Session(self._client, instance, command, limit)
        work = asyncio.ensure_future(session.run())
        code: int | None = None
        try:
            done, _ = await asyncio.wait({work}, timeout=timeout)
            if done:
                code = work.result()
            else:
                await self._end(instance, session, work)
        except asyncio.CancelledError:
            if session.begun and not work.done():
                self._tasks.spawn(self._kill(instance, session.nonce), "killing a command")
            raise
        finally:
            work.cancel()
            session.close()
        stdout, stderr, both = session.output.texts()
        return Finished(code, stdout, stderr, both, session.output.truncated)

    async def _end(self, instance: str, session: _Session, work: asyncio.Task[int]) -> None:
        if not session.begun:
            return  # Without its websockets LXD never starts the command.
        killing = self._tasks.spawn(self._kill(instance, session.nonce), "killing a command")
        await asyncio.wait({killing}, timeout=KILL_TIMEOUT)
        await asyncio.wait({work}, timeout=DRAIN_TIMEOUT)

    async def _kill(self, instance: str, nonce: str) -> None:
        body = {
            "command": ["/bin/sh", "-c", _KILL, "podyd", nonce],
            "wait-for-websocket": False,
            "interactive": False,
        }
        try:
            metadata = await self._client.change(
                "POST", instance_path(instance, "exec"), body, timeout=30
            )
            if metadata["metadata"]["return"] != 0:
                log.warning("a command in %s could not be killed as a whole", instance)
        except LxdRefused as error:
            # A pod that has stopped or gone meanwhile has taken the command with it.
            log.info("no command to kill in %s any more: %s", instance, error.detail)
        except PodydError as error:
            log.warning("a command in %s may still run: %s", instance, error.detail)
