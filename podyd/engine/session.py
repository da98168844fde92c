"""One command in an instance, with an end that can be relied on.

LXD's own exec falls short in three ways (measured on 5.0.2): it kills the leading process only,
it reports the exit code only once every holder of stdout is gone, and it cannot tell what the
leading process wrote from what a child writes later. So the command runs inside a few lines of
`sh` in the instance, which

- put it into a cgroup of its own, so that everything it started can be killed at once, whatever
  called setsid or cleared its environment, even while it forks;
- say when it is over and with which code, by a mark with a nonce on both streams. What comes
  before the mark is the command's output; nothing needs to be waited for after it. The code is
  256 more where the kernel has killed something for memory meanwhile. A stream without its mark,
  of a `sh` that was not killed, is not whole: LXD 5.0.2 loses output where it closes a file twice
  (see Slipped), and says nothing of it;
- move what it left in the background out of the cgroup, and remove the cgroup.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from podyd.base.errors import Conflict, Missing, OutputLost
from podyd.base.tasks import seen, together
from podyd.engine.endings import Ending, quietly
from podyd.engine.rest import LxdClient, instance_path
from podyd.engine.websocket import Websocket

STDIN, STDOUT, STDERR = "0", "1", "2"
# Added to the code in the mark.
OOM_KILLED = 256
# The leading `sh` was killed and wrote no mark: its last output may still be on its way.
UNMARKED_GRACE = 0.5
# LXD has read all that there is, and has to send it yet.
SEND_SECONDS = 15.0
# The exit code of one that a signal has killed is above this.
SIGNALLED = 128
# Of an exit code, in the mark.
CODE_DIGITS = 3
# A mark is written at once; what has begun like one and does not go on so soon is output.
HELD_SECONDS = 0.02

_BOX = """
box=/sys/fs/cgroup
[ -d $box/unified ] && box=$box/unified
home=$box
box=$box/podyd-$1
"""

# $1: nonce; the rest are the words of the user's command. The box is missing where a pod's root has
# hidden cgroup2; then the command runs all the same, and a timeout ends its leading process only.
_RUN = (
    """exec 3>&1 4>&2 2>/dev/null
oom_killed() {
  killed=0
  while read -r name number; do
    [ "$name" = oom_kill ] && killed=$number
  done <$counter
}
"""
    + _BOX
    + """
nonce=$1
shift
# At a terminal, the keys for these reach all of the foreground; this has to see the end.
trap : INT QUIT
mkdir $box || { [ -d $box ] && rmdir $box && exit 137; box=; }
# Whom the kernel has killed for memory. Where cgroup2 has the memory, the box tells it of the
# command alone; else all commands count together, and services by themselves.
counter=$box/memory.events
if ! [ -e $counter ]; then
  counter=/sys/fs/cgroup/memory.events
  while IFS=: read -r _ name path; do
    [ "$name" = memory ] && counter=/sys/fs/cgroup/memory$path/memory.oom_control
  done </proc/self/cgroup
fi
oom_killed
before=$killed
# Images without bash (Alpine, busybox) have a sh that will do for most.
[ "$1" != /bin/bash ] || [ -x /bin/bash ] || { shift; set -- /bin/sh "$@"; }
(
  [ -z "$box" ] || echo 0 >$box/cgroup.procs || exit 125
  exec "$@" 2>&4 3>&- 4>&-
)
code=$?
oom_killed
said=$code
[ $killed = $before ] || said=$((code + 256))
if [ -n "$box" ] && ! rmdir $box; then
  while IFS=: read -r id _ path; do [ "$id" = 0 ] && home=$home$path; done </proc/self/cgroup
  tries=0
  until [ $tries = 20 ] || ! [ -d $box ]; do
    while read -r pid; do echo $pid >$home/cgroup.procs; done <$box/cgroup.procs
    rmdir $box
    tries=$((tries + 1))
  done
fi
# What a command has made non-blocking, and filled, takes no mark until LXD has read some of it.
mark() {
  tries=0
  until printf '\\000podyd-%s:%d;' $nonce $said || [ $tries = 3000 ]; do
    sleep 0.02
    tries=$((tries + 1))
  done
}
mark
mark >&4
# LXD may lose what a terminal has shown when the leading process ends, so it asks before.
[ ! -t 1 ] || read -r _
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

# $2: the signal. A command that has only just been asked for has no process yet.
_SIGNAL = (
    """exec 2>/dev/null"""
    + _BOX
    + """
tries=0
until pids=$(cat $box/cgroup.procs) && [ -n "$pids" ] || [ $tries = 50 ]; do
  sleep 0.02
  tries=$((tries + 1))
done
kill -s $2 $pids
"""
)


class MarkedStream:
    """Finds the mark that ends a stream, also where it is cut into pieces.

    Who reads the nonce in the pod can write the mark too, and so end the own command early. What
    only looks like the mark is output: no more is held back than the mark is long.
    """

    def __init__(self, nonce: str) -> None:
        self._mark = f"\0podyd-{nonce}:".encode()
        self._end = re.compile(re.escape(self._mark) + rb"(\d{1,%d});" % CODE_DIGITS)
        self._held = b""
        # So much of what is held has been given all the same.
        self._given = 0
        self.exit_code: int | None = None

    @property
    def is_holding(self) -> bool:
        """Whether there is output that may be the beginning of the mark."""
        return len(self._held) > self._given

    def feed(self, data: bytes) -> bytes:
        """The output in `data`; what may be the beginning of the mark is held back."""
        output = self._before_mark(self._held + data)
        given = min(self._given, len(output))
        self._given -= given
        return output[given:]

    def _before_mark(self, data: bytes) -> bytes:
        self._held = b""
        if end := self._end.search(data):
            self.exit_code = int(end[1])
            return data[: end.start()]
        start = data.find(b"\0", max(0, len(data) - len(self._mark) - CODE_DIGITS))
        while start >= 0 and not self._may_go_on(data[start:]):
            start = data.find(b"\0", start + 1)
        if start < 0:
            return data
        self._held = data[start:]
        return data[:start]

    def _may_go_on(self, tail: bytes) -> bool:
        """Whether more could make it the mark."""
        code = tail.removeprefix(self._mark)
        return self._mark.startswith(tail) or (
            len(code) < len(tail) and len(code) <= CODE_DIGITS and code.isdigit()
        )

    def rest(self) -> bytes:
        """What was held back and seems not to be the mark."""
        held = self._held[self._given :]
        self._given = len(self._held)
        return held


class Session(abc.ABC):
    """One exec operation of LXD and its websockets."""

    # What LXD calls the streams, beside `control`.
    streams: tuple[str, ...] = (STDIN, STDOUT, STDERR)

    def __init__(self, client: LxdClient, instance: str, words: Sequence[str]) -> None:
        self._client = client
        self._instance = instance
        self._words = words
        self.sockets: list[Websocket] = []
        self._moved = False
        self.nonce = secrets.token_hex(8)
        # Whether the kernel has killed something for memory meanwhile; known at the end.
        self.oom_killed = False
        self._has_begun = False
        self._has_ended = False
        self._path = ""
        # As LXD says it, once it has read all output.
        self._returned: int | None = None

    @property
    def may_run(self) -> bool:
        """Whether the command may have begun, and its end is not known."""
        return self._has_begun and not self._has_ended

    @property
    def killing(self) -> Ending:
        """What kills all that the command has started."""
        return Ending(self._instance, ("/bin/sh", "-c", _KILL, "podyd", self.nonce))

    def options(self) -> Mapping[str, Any]:
        """What LXD is told beside the command."""
        return {"interactive": False}

    async def run(self) -> int:
        """Run the command to its end and return its exit code."""
        operation = await self._client.start(
            instance_path(self._instance, "exec"),
            {
                "command": ["/bin/sh", "-c", _RUN, "podyd", self.nonce, *self._words],
                "wait-for-websocket": True,
                **self.options(),
            },
        )
        # Nothing runs before the sockets are there: this is whom LXD has asked, or nobody.
        await self._client.check(self._instance)
        secret = operation["metadata"]["fds"]
        path = self._path = f"/1.0/operations/{operation['id']}"
        # Control comes first: the command starts as soon as all others are there, and LXD
        # refuses a control that comes after the end of a short one.
        control = await self._connect(path, secret["control"])
        self._has_begun = True
        found = await together(
            *(
                self._connect(path, secret[stream], answers_pings=stream == STDIN)
                for stream in self.streams
            )
        )
        code = await self.attend(control, dict(zip(self.streams, found, strict=True)))
        if code is None:
            return await self._unmarked_code()
        self._has_ended = True
        self.oom_killed = bool(code & OOM_KILLED)
        return code % OOM_KILLED

    @abc.abstractmethod
    async def attend(self, control: Websocket, streams: Mapping[str, Websocket]) -> int | None:
        """Serve the command's streams to its end; its exit code, if there was a mark."""

    @abc.abstractmethod
    async def take(self, stream: str, data: bytes) -> None:
        """Take output."""

    async def _connect(self, path: str, secret: str, *, answers_pings: bool = True) -> Websocket:
        socket = await self._client.websocket(
            f"{path}/websocket", secret=secret, answers_pings=answers_pings
        )
        self.sockets.append(socket)
        return socket

    async def read(self, control: Websocket, outputs: Mapping[str, Websocket]) -> int | None:
        """Take all output; the exit code, if there was a mark."""
        ended = asyncio.ensure_future(until_closed(control))
        collected = asyncio.ensure_future(self._collect_all(outputs))
        for task in (ended, collected):
            task.add_done_callback(seen)
        try:
            either: set[asyncio.Future[Any]] = {collected, ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            await self._until_silent(collected, UNMARKED_GRACE)
            if not collected.done():
                # While LXD does not answer this either, it is only slow.
                await self._ask_code()
                has_read_all = self._returned is not None
                grace = SEND_SECONDS if has_read_all else UNMARKED_GRACE
                await self._until_silent(collected, grace)
            return collected.result() if collected.done() else None
        finally:
            ended.cancel()
            collected.cancel()

    def is_taking(self) -> bool:
        """Whether output that has come is not taken yet."""
        return False

    async def _until_silent(self, collected: asyncio.Future[Any], grace: float) -> None:
        """Wait for the end of all output, or until none has come for so many seconds."""
        self._moved = True
        while not collected.done() and self._moved:
            self._moved = self.is_taking()
            await asyncio.wait({collected}, timeout=grace)

    async def _collect_all(self, outputs: Mapping[str, Websocket]) -> int | None:
        codes = await together(*(self._collect(*item) for item in outputs.items()))
        marked = [code for code in codes if code is not None]
        if 0 < len(marked) < len(codes):
            raise self._lost(marked[0] % OOM_KILLED)
        return marked[0] if marked else None

    def _lost(self, code: int) -> OutputLost:
        self._has_ended = True
        return OutputLost(
            f"The command has ended (exit code {code}), and LXD has lost some of what it wrote; run"
            " it again if doing so twice does no harm.",
            exit_code=code,
        )

    async def _collect(self, stream: str, socket: Websocket) -> int | None:
        marked = MarkedStream(self.nonce)
        while marked.exit_code is None:
            message = await self._next(stream, socket, marked)
            if message is None:
                await self.take(stream, marked.rest())
                break
            if isinstance(message, bytes):  # An empty text message is LXD's sign of EOF.
                self._moved = True
                await self.take(stream, marked.feed(message))
        return marked.exit_code

    async def _next(
        self, stream: str, socket: Websocket, marked: MarkedStream
    ) -> str | bytes | None:
        """The next message; what is held back does not wait for it long."""
        if not marked.is_holding:
            return await socket.read_message()
        reading = asyncio.ensure_future(socket.read_message())
        try:
            if not (await asyncio.wait({reading}, timeout=HELD_SECONDS))[0]:
                await self.take(stream, marked.rest())
            return await reading
        finally:
            reading.cancel()

    async def _ask_code(self) -> None:
        with contextlib.suppress(Missing):  # LXD forgets what is over after some seconds.
            metadata = await self._client.get(self._path)
            self._returned = (metadata["metadata"] or {}).get("return")

    async def _unmarked_code(self) -> int:
        """The exit code where the mark is missing: the leading process was killed."""
        if self._returned is None:
            await self._ask_code()
        code = self._returned
        if code in (126, 127):
            self._has_ended = True
            raise Conflict(
                "The pod has no /bin/sh that can be run, which all commands and files need.",
                code="no_shell",
            )
        if code is None or code < 0:
            raise Conflict(
                "The command was cut off: the pod stopped, the shell that ran it was killed, or the"
                " connection to LXD broke.",
                code="exec_cut_off",
            )
        # At a terminal LXD may lose the mark alone, and who sits there sees what has come.
        if code <= SIGNALLED and STDOUT in self.streams:
            raise self._lost(code)
        return int(code)

    async def signal(self, name: str) -> None:
        """Send a signal to all that the command has started."""
        words = ("/bin/sh", "-c", _SIGNAL, "podyd", self.nonce, name)
        await quietly(self._client, self._instance, words)

    async def leave(self) -> None:
        """Let go of a command that has ended."""
        self.close()

    def close(self) -> None:
        for socket in self.sockets:
            socket.close()


async def until_closed(socket: Websocket) -> None:
    """Read and drop what comes."""
    while await socket.read_message() is not None:
        pass
