"""Running commands in instances: to their end, within a time, and with nothing left of them."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tornado.websocket import WebSocketClosedError

from podyd.base.longtext import LongText
from podyd.base.tasks import Tasks, seen
from podyd.engine.endings import Ending, Endings
from podyd.engine.rest import LxdClient
from podyd.engine.session import STDERR, STDIN, STDOUT, Session
from podyd.engine.streams import Streams
from podyd.engine.talk import AtTerminal, Piped, Terminal
from podyd.engine.websocket import Websocket

# After the deadline: killing may take this long, and what the dying wrote may still arrive.
KILL_TIMEOUT = 0.6
DRAIN_TIMEOUT = 0.2
# Eight bytes each; who changes from stdout to stderr more often than that has it not in order.
MAX_TURNS = 16_384
PIECE_BYTES = 16 * 1024

Afterwards = Callable[[], Awaitable[None]]


class Output:
    """What came on both streams, in the order of arrival, up to `limit` bytes each.

    The order is kept up to MAX_TURNS changes from one stream to the other; behind that comes the
    rest of stdout, and then that of stderr.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # One growing block each: thousands of small pieces would leave the heap full of holes.
        self._bytes = {STDOUT: bytearray(), STDERR: bytearray()}
        # Where each turn of a stream ends in its block; the streams take turns.
        self._ends = array("Q")
        self._first = self._last = ""
        self.truncated = False

    def add(self, stream: str, data: bytes) -> None:
        block = self._bytes[stream]
        kept = data[: max(0, self._limit - len(block))]
        self.truncated = self.truncated or len(kept) < len(data)
        if not kept or len(self._ends) > MAX_TURNS:
            block += kept
            return
        block += kept
        if stream == self._last:
            self._ends[-1] = len(block)
            return
        self._first = self._first or stream
        self._last = stream
        self._ends.append(len(block))

    @property
    def stdout(self) -> LongText:
        """Bytes that are not UTF-8 are replaced, here and below."""
        return LongText(partial(self._text, STDOUT))

    @property
    def stderr(self) -> LongText:
        return LongText(partial(self._text, STDERR))

    @property
    def log(self) -> LongText:
        """Both interleaved."""
        return LongText(self._interleaved)

    def _text(self, stream: str) -> Iterator[str]:
        decoder = _decoder()
        yield from self._decoded(stream, decoder, 0, len(self._bytes[stream]))
        yield decoder.decode(b"", final=True)

    def _interleaved(self) -> Iterator[str]:
        # A character may be cut by the other stream; it stands where it is complete.
        decoders = {STDOUT: _decoder(), STDERR: _decoder()}
        starts = {STDOUT: 0, STDERR: 0}
        stream, other = (STDOUT, STDERR) if self._first == STDOUT else (STDERR, STDOUT)
        # The last turn may not be its stream's last where there were too many.
        for end in self._ends[:MAX_TURNS]:
            yield from self._decoded(stream, decoders[stream], starts[stream], end)
            starts[stream] = end
            stream, other = other, stream
        for stream, decoder in decoders.items():
            end = len(self._bytes[stream])
            yield from self._decoded(stream, decoder, starts[stream], end)
            yield decoder.decode(b"", final=True)

    def _decoded(
        self, stream: str, decoder: codecs.IncrementalDecoder, start: int, end: int
    ) -> Iterator[str]:
        for begin in range(start, end, PIECE_BYTES):
            yield decoder.decode(bytes(self._bytes[stream][begin : min(end, begin + PIECE_BYTES)]))


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass(frozen=True)
class Exit:
    """How a command ended; `code` is None if time was up.

    `oom_killed` if the kernel has killed something for memory meanwhile; see session.py.
    """

    code: int | None
    oom_killed: bool


@dataclass(frozen=True)
class Finished:
    """How a command ended, and what it wrote."""

    exit: Exit
    output: Output


class _Collected(Session):
    """A command whose output is kept until it ends."""

    def __init__(self, client: LxdClient, instance: str, command: str, limit: int) -> None:
        super().__init__(client, instance, ("/bin/bash", "-c", command))
        self.output = Output(limit)

    async def attend(self, control: Websocket, streams: Mapping[str, Websocket]) -> int | None:
        with contextlib.suppress(WebSocketClosedError):  # The command may be over already.
            await streams[STDIN].write_message("")  # LXD's sign for the end of stdin
        return await self.read(control, {name: streams[name] for name in (STDOUT, STDERR)})

    async def take(self, stream: str, data: bytes) -> None:
        self.output.add(stream, data)


class Executor:
    """Runs commands; what has to be killed later is killed in `tasks`, or by `endings`."""

    def __init__(self, client: LxdClient, tasks: Tasks, endings: Endings) -> None:
        self._client = client
        self._tasks = tasks
        self._endings = endings

    async def run(self, instance: str, command: str, *, timeout: float, limit: int) -> Finished:
        """Run `command` with `/bin/bash -c` as root, for `timeout` seconds at most; with `/bin/sh`
        in a pod without bash.

        `limit` is in bytes for stdout and for stderr; what is above is read and dropped. When
        time is up, or when the caller is cancelled, all that the command started is killed; also
        when LXD is lost meanwhile, then as soon as it answers again.
        """
        session = _Collected(self._client, instance, command, limit)
        return Finished(await self._finish(session, timeout), session.output)

    async def talk(
        self,
        instance: str,
        words: Sequence[str],
        line: Streams,
        *,
        terminal: Terminal | None,
        timeout: float | None,
        then: Afterwards | None = None,
    ) -> Exit:
        """Run a command as root with its streams on a line, with a terminal or without.

        The end of time, or of the caller, is as in `run`; `then` is called once all of a command is
        dead whose caller was cancelled.
        """
        talked: Session = (
            Piped(self._client, instance, words, line)
            if terminal is None
            else AtTerminal(self._client, instance, words, line, terminal)
        )
        return await self._finish(talked, timeout, then)

    def end(self, ending: Ending) -> None:
        """End something in the background, now or when LXD answers again."""
        self._tasks.spawn(self._endings.do(ending), "ending something")

    async def _finish(
        self, session: Session, timeout: float | None, then: Afterwards | None = None
    ) -> Exit:
        """Run a session to its end."""
        work = asyncio.ensure_future(session.run())
        work.add_done_callback(seen)
        is_cut_off = False
        killing: asyncio.Task[None] | None = None
        try:
            done, _ = await asyncio.wait({work}, timeout=timeout)
            if done:
                return Exit(work.result(), session.oom_killed)
            if session.may_run:  # Without its websockets LXD never starts the command.
                killing = self._kill(session)
                await asyncio.wait({killing}, timeout=KILL_TIMEOUT)
                await asyncio.wait({work}, timeout=DRAIN_TIMEOUT)
            return Exit(None, oom_killed=False)
        except asyncio.CancelledError:
            is_cut_off = True
            raise
        finally:
            work.cancel()
            if session.may_run and killing is None:
                killing = self._kill(session)
            parting = _part(session, killing, then if is_cut_off else None)
            self._tasks.spawn(parting, "parting from a command")

    def _kill(self, session: Session) -> asyncio.Task[None]:
        return self._tasks.spawn(self._endings.do(session.killing), "killing a command")


async def _part(
    session: Session, killing: asyncio.Task[None] | None, then: Afterwards | None
) -> None:
    if killing is not None:
        await asyncio.wait({killing})
    await session.leave()
    if killing is not None and then is not None:
        await then()
