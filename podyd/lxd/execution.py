"""Running commands in instances: to their end, within a time, and with nothing left of them."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tornado.websocket import WebSocketClosedError

from podyd.line import Streams
from podyd.lxd.client import LxdClient
from podyd.lxd.session import STDERR, STDIN, STDOUT, Session
from podyd.lxd.talk import AtTerminal, Piped, Terminal
from podyd.lxd.websocket import Websocket
from podyd.tasks import Tasks

# After the deadline: killing may take this long, and what the dying wrote may still arrive.
KILL_TIMEOUT = 0.6
DRAIN_TIMEOUT = 0.2

Afterwards = Callable[[], Awaitable[None]]


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
    """Runs commands; what has to be killed later is killed in `tasks`."""

    def __init__(self, client: LxdClient, tasks: Tasks) -> None:
        self._client = client
        self._tasks = tasks

    async def run(self, instance: str, command: str, *, timeout: float, limit: int) -> Finished:
        """Run `command` with `/bin/bash -c` as root, for `timeout` seconds at most.

        `limit` is in bytes for stdout and for stderr; what is above is read and dropped. When
        time is up, or when the caller is cancelled, all that the command started is killed.
        """
        session = _Collected(self._client, instance, command, limit)
        code = await self._finish(session, timeout)
        stdout, stderr, both = session.output.texts()
        return Finished(code, stdout, stderr, both, session.output.truncated)

    async def talk(
        self,
        instance: str,
        words: Sequence[str],
        line: Streams,
        *,
        terminal: Terminal | None,
        timeout: float | None,
        then: Afterwards | None = None,
    ) -> int | None:
        """Run a command as root with its streams on a line, with a terminal or without.

        Returns its exit code, None if time was up. The end of time, or of the caller, is as in
        `run`; `then` is called once all of a command is dead whose caller was cancelled.
        """
        talked: Session = (
            Piped(self._client, instance, words, line)
            if terminal is None
            else AtTerminal(self._client, instance, words, line, terminal)
        )
        return await self._finish(talked, timeout, then)

    async def _finish(
        self, session: Session, timeout: float | None, then: Afterwards | None = None
    ) -> int | None:
        """Run a session to its end; None if time was up."""
        work = asyncio.ensure_future(session.run())
        is_cut_off = False
        try:
            done, _ = await asyncio.wait({work}, timeout=timeout)
            if done:
                return work.result()
            await self._end(session, work)
            return None
        except asyncio.CancelledError:
            is_cut_off = session.begun and not work.done()
            raise
        finally:
            work.cancel()
            self._tasks.spawn(_part(session, is_cut_off, then), "parting from a command")

    async def _end(self, session: Session, work: asyncio.Task[int]) -> None:
        if not session.begun:
            return  # Without its websockets LXD never starts the command.
        killing = self._tasks.spawn(session.kill(), "killing a command")
        await asyncio.wait({killing}, timeout=KILL_TIMEOUT)
        await asyncio.wait({work}, timeout=DRAIN_TIMEOUT)


async def _part(session: Session, is_cut_off: bool, then: Afterwards | None) -> None:
    if is_cut_off:
        await session.kill()
    await session.leave()
    if is_cut_off and then is not None:
        await then()
