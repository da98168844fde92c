"""Execution of commands in the engine's instances, with a deadline, leaving no process behind.

All commands run this way, whatever their streams are connected to; the file reads from top to
bottom. The part that runs in the instance is in wrapper.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tornado.websocket import WebSocketClosedError

from podyd.base.engine_words import ENGINE
from podyd.base.errors import Conflict, Missing, OutputLost, PodydError
from podyd.base.tasks import Tasks, beside, seen, together
from podyd.engine import wrapper
from podyd.engine.endings import Endings, quietly
from podyd.engine.rest import RestClient, instance_path
from podyd.engine.streams import (
    STDERR,
    STDIN,
    STDOUT,
    Afterwards,
    Ending,
    Exit,
    Signal,
    Streams,
    Terminal,
    TerminalSize,
)
from podyd.engine.websocket import Websocket
from podyd.engine.wrapper import OOM_KILLED, MarkedStream

log = logging.getLogger(__name__)

# After the deadline: for killing, and then for output that is still on its way.
KILL_TIMEOUT = 0.6
DRAIN_TIMEOUT = 0.2
# If the leading `sh` was killed and wrote no mark: for output that is still on its way.
UNMARKED_GRACE = 0.5
# For the engine to send output that it has read already.
SEND_SECONDS = 15.0
# A mark is written at once; a beginning of one that is not continued within this is output.
HELD_SECONDS = 0.02
# For the engine's sign that a terminal's leading process has ended and its output is sent.
LEAVE_SECONDS = 5.0
# Exit codes of commands that a signal has killed are above this.
SIGNALLED = 128


class RestExecutor:
    """Runs commands; those that must be killed later are killed in `tasks`, or by `endings`."""

    def __init__(self, client: RestClient, tasks: Tasks, endings: Endings) -> None:
        self._client = client
        self._tasks = tasks
        self._endings = endings

    async def run(
        self,
        instance: str,
        words: Sequence[str],
        streams: Streams,
        *,
        timeout: float | None,
        terminal: Terminal | None = None,
        then: Afterwards | None = None,
    ) -> Exit:
        """See Executor."""
        command = Execution(self._client, instance, words, streams, terminal)
        work = asyncio.ensure_future(command.run())
        work.add_done_callback(seen)
        is_cut_off = False
        killing: asyncio.Task[None] | None = None
        try:
            done, _ = await asyncio.wait({work}, timeout=timeout)
            if done:
                return work.result()
            if command.may_run:  # Without its websockets the engine never starts the command.
                killing = self._kill(command)
                await asyncio.wait({killing}, timeout=KILL_TIMEOUT)
                await asyncio.wait({work}, timeout=DRAIN_TIMEOUT)
            return Exit(None, oom_killed=False)
        except asyncio.CancelledError:
            is_cut_off = True
            raise
        finally:
            work.cancel()
            if command.may_run and killing is None:
                killing = self._kill(command)
            parting = _part(command, killing, then if is_cut_off else None)
            self._tasks.spawn(parting, "parting from a command")

    def _kill(self, command: Execution) -> asyncio.Task[None]:
        return self._tasks.spawn(self._endings.do(command.killing), "killing a command")

    def end(self, ending: Ending) -> None:
        """See Executor."""
        self._tasks.spawn(self._endings.do(ending), "ending something")


async def _part(
    command: Execution, killing: asyncio.Task[None] | None, then: Afterwards | None
) -> None:
    if killing is not None:
        await asyncio.wait({killing})
    await command.leave()
    if killing is not None and then is not None:
        await then()


class Execution:
    """One exec operation of the engine and its websockets."""

    def __init__(
        self,
        client: RestClient,
        instance: str,
        words: Sequence[str],
        streams: Streams,
        terminal: Terminal | None,
    ) -> None:
        self._client = client
        self._instance = instance
        self._words = words
        self._streams = streams
        self._terminal = terminal
        self._nonce = secrets.token_hex(8)
        self._sockets: list[Websocket] = []
        self._has_begun = False
        self._has_ended = False
        # Whether output has come since it was last asked, and how much of it is not taken yet.
        self._moved = False
        self._taking = 0
        self._path = ""
        # The exit code that the engine reports, once it has read all output.
        self._returned: int | None = None

    @property
    def may_run(self) -> bool:
        """Whether the command may be running."""
        return self._has_begun and not self._has_ended

    @property
    def killing(self) -> Ending:
        """The clean-up that kills all processes of the command."""
        return Ending(self._instance, wrapper.killing(self._nonce))

    async def run(self) -> Exit:
        """Run the command to its end."""
        control, sockets = await self._begin()
        outputs = {STDOUT: sockets[STDIN]}  # A terminal has one, in both directions.
        if self._terminal is None:
            outputs = {stream: sockets[stream] for stream in (STDOUT, STDERR)}
        code = await beside(
            self._read(control, outputs), self._feed(sockets[STDIN]), self._obey(control)
        )
        if code is None:
            return Exit(await self._unmarked_code(), oom_killed=False)
        self._has_ended = True
        return Exit(code % OOM_KILLED, oom_killed=bool(code & OOM_KILLED))

    # --- Start -----------------------------------------------------------------------------------

    async def _begin(self) -> tuple[Websocket, Mapping[int, Websocket]]:
        """Have the engine start the command; its `control`, and a websocket for each stream."""
        operation = await self._client.start(
            instance_path(self._instance, "exec"),
            {
                "command": wrapper.wrapped(self._nonce, self._words),
                "wait-for-websocket": True,
                **_options(self._terminal),
            },
        )
        # The engine runs nothing before the sockets are connected, so nothing has run if this
        # raises.
        await self._client.check(self._instance)
        self._path = f"/1.0/operations/{operation['id']}"
        secret = operation["metadata"]["fds"]
        # Control comes first: the command starts as soon as all others are there, and the engine
        # refuses a control that comes after the end of a short one.
        control = await self._connect(secret["control"])
        self._has_begun = True
        streams = (STDIN, STDOUT, STDERR) if self._terminal is None else (STDIN,)
        sockets = await together(
            *(
                self._connect(secret[str(stream)], answers_pings=stream == STDIN)
                for stream in streams
            )
        )
        return control, dict(zip(streams, sockets, strict=True))

    async def _connect(self, secret: str, *, answers_pings: bool = True) -> Websocket:
        socket = await self._client.websocket(
            f"{self._path}/websocket", secret=secret, answers_pings=answers_pings
        )
        self._sockets.append(socket)
        return socket

    # --- Input -----------------------------------------------------------------------------------

    async def _feed(self, stdin: Websocket) -> None:
        # A command that has ended, or has closed its stdin, reads no more.
        with contextlib.suppress(WebSocketClosedError):
            while (data := await self._streams.input()) is not None:
                await stdin.write_message(data, binary=True)
            if self._terminal is None:
                await stdin.write_message("")  # The engine's sign for the end.
            else:
                await stdin.write_message(b"\4", binary=True)  # The key for it.

    async def _obey(self, control: Websocket) -> None:
        with contextlib.suppress(WebSocketClosedError):
            while True:
                wish = await self._streams.wish()
                if isinstance(wish, Signal):
                    await self._signal(wish)
                elif self._terminal is not None:
                    await control.write_message(_resized(wish))

    async def _signal(self, wish: Signal) -> None:
        try:
            words = wrapper.signalling(self._nonce, wish.name)
            await quietly(self._client, self._instance, words)
        except PodydError as error:  # The pod has just stopped, or the engine does not answer.
            log.info("a signal did not reach its command: %s", error)

    # --- Output ----------------------------------------------------------------------------------

    async def _read(self, control: Websocket, outputs: Mapping[int, Websocket]) -> int | None:
        """Read all output; returns the exit code, if there was a mark."""
        ended = asyncio.ensure_future(_until_closed(control))
        collected = asyncio.ensure_future(self._collect_all(outputs))
        for task in (ended, collected):
            task.add_done_callback(seen)
        try:
            either: set[asyncio.Future[Any]] = {collected, ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            await self._until_silent(collected, UNMARKED_GRACE)
            if not collected.done():
                # If the engine does not answer this either, it is only slow.
                await self._ask_code()
                has_read_all = self._returned is not None
                grace = SEND_SECONDS if has_read_all else UNMARKED_GRACE
                await self._until_silent(collected, grace)
            return collected.result() if collected.done() else None
        finally:
            ended.cancel()
            collected.cancel()

    async def _until_silent(self, collected: asyncio.Future[Any], grace: float) -> None:
        """Wait for the end of all output, or until none has come for `grace` seconds."""
        self._moved = True
        while not collected.done() and self._moved:
            self._moved = self._taking > 0
            await asyncio.wait({collected}, timeout=grace)

    async def _collect_all(self, outputs: Mapping[int, Websocket]) -> int | None:
        codes = await together(*(self._collect(*item) for item in outputs.items()))
        marked = [code for code in codes if code is not None]
        if 0 < len(marked) < len(codes):
            raise self._lost(marked[0] % OOM_KILLED)
        return marked[0] if marked else None

    async def _collect(self, stream: int, socket: Websocket) -> int | None:
        marked = MarkedStream(self._nonce)
        while marked.exit_code is None:
            message = await self._next(stream, socket, marked)
            if message is None:
                await self._give(stream, marked.rest())
                break
            if isinstance(message, bytes):  # An empty text message is the engine's sign of EOF.
                self._moved = True
                await self._give(stream, marked.feed(message))
        return marked.exit_code

    async def _next(
        self, stream: int, socket: Websocket, marked: MarkedStream
    ) -> str | bytes | None:
        """The next message; output that is held back is passed on if there is none soon."""
        if not marked.is_holding:
            return await socket.read_message()
        reading = asyncio.ensure_future(socket.read_message())
        try:
            if not (await asyncio.wait({reading}, timeout=HELD_SECONDS))[0]:
                await self._give(stream, marked.rest())
            return await reading
        finally:
            reading.cancel()

    async def _give(self, stream: int, data: bytes) -> None:
        self._taking += 1
        try:
            await self._streams.output(stream, data)
        finally:
            self._taking -= 1

    # --- End -------------------------------------------------------------------------------------

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
                f" connection to {ENGINE} broke.",
                code="exec_cut_off",
            )
        # At a terminal the engine may lose just the mark, and the user has seen the output.
        if code <= SIGNALLED and self._terminal is None:
            raise self._lost(code)
        return int(code)

    async def _ask_code(self) -> None:
        with contextlib.suppress(Missing):  # It is forgotten some seconds after its end.
            metadata = await self._client.get(self._path)
            self._returned = (metadata["metadata"] or {}).get("return")

    def _lost(self, code: int) -> OutputLost:
        self._has_ended = True
        return OutputLost(
            f"The command has ended (exit code {code}), and {ENGINE} has lost some of what it"
            " wrote.",
            advice="Run it again if doing so twice does no harm.",
            exit_code=code,
        )

    async def leave(self) -> None:
        """Close the connections of a command that has ended."""
        # If a terminal's socket is closed before the engine has read all, it now and then never
        # ends its operation; and the engine does not close it first.
        if self._terminal is not None and self._sockets:
            with contextlib.suppress(asyncio.TimeoutError, WebSocketClosedError):
                await self._sockets[-1].write_message(b"\n", binary=True)
                await asyncio.wait_for(_until_read(self._sockets[-1]), LEAVE_SECONDS)
        for socket in self._sockets:
            socket.close()


def _options(terminal: Terminal | None) -> Mapping[str, Any]:
    """The options of the engine's exec request."""
    if terminal is None:
        return {"interactive": False}
    return {
        "interactive": True,
        "width": terminal.size.cols,
        "height": terminal.size.rows,
        "environment": {"TERM": terminal.name},
    }


def _resized(size: TerminalSize) -> str:
    arguments = {"width": str(size.cols), "height": str(size.rows)}
    return json.dumps({"command": "window-resize", "args": arguments})


async def _until_closed(socket: Websocket) -> None:
    """Read and drop all messages until the socket is closed."""
    while await socket.read_message() is not None:
        pass


async def _until_read(terminal: Websocket) -> None:
    """Read and drop messages until the engine's sign of the end: an empty text."""
    while await terminal.read_message() not in (None, ""):
        pass
