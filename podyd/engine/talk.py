"""Commands whose caller talks to them while they run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tornado.websocket import WebSocketClosedError

from podyd.base.errors import PodydError
from podyd.base.tasks import beside
from podyd.engine import streams
from podyd.engine.rest import LxdClient
from podyd.engine.session import STDERR, STDIN, STDOUT, Session
from podyd.engine.streams import Signal, Size, Streams
from podyd.engine.websocket import Websocket

log = logging.getLogger(__name__)

NUMBERS = {STDIN: streams.STDOUT, STDOUT: streams.STDOUT, STDERR: streams.STDERR}
# LXD says so when a terminal's leading process has ended and all it wrote is sent.
LEAVE_SECONDS = 5.0


@dataclass(frozen=True)
class Terminal:
    """What a command finds itself at; `name` is for $TERM."""

    size: Size
    name: str


class Piped(Session):
    """A command with its stdin, stdout and stderr on a line."""

    end_of_input: bytes | str = ""  # LXD's sign for it

    def __init__(
        self, client: LxdClient, instance: str, words: Sequence[str], line: Streams
    ) -> None:
        super().__init__(client, instance, words)
        self._line = line
        self._taking = 0

    async def attend(self, control: Websocket, streams: Mapping[str, Websocket]) -> int | None:
        outputs = {name: streams[name] for name in self.streams if name != STDIN} or streams
        return await beside(
            self.read(control, outputs), self._feed(streams[STDIN]), self._obey(control)
        )

    async def take(self, stream: str, data: bytes) -> None:
        self._taking += 1
        try:
            await self._line.output(NUMBERS[stream], data)
        finally:
            self._taking -= 1

    def is_taking(self) -> bool:
        return self._taking > 0

    async def _feed(self, stdin: Websocket) -> None:
        # A command that is over, or has closed its stdin, reads no more.
        with contextlib.suppress(WebSocketClosedError):
            while (data := await self._line.input()) is not None:
                await stdin.write_message(data, binary=True)
            end = self.end_of_input
            await stdin.write_message(end, binary=isinstance(end, bytes))

    async def _obey(self, control: Websocket) -> None:
        with contextlib.suppress(WebSocketClosedError):
            while True:
                wish = await self._line.wish()
                if isinstance(wish, Signal):
                    await self._pass_on(wish)
                else:
                    await self.resize(control, wish)

    async def _pass_on(self, wish: Signal) -> None:
        try:
            await self.signal(wish.name)
        except PodydError as error:  # The pod has stopped this moment, or LXD is away.
            log.info("a signal did not reach its command: %s", error)

    async def resize(self, control: Websocket, size: Size) -> None:
        """Without a terminal there is nothing to do."""


class AtTerminal(Piped):
    """A command at a terminal of its own."""

    streams = (STDIN,)  # all that it has, in both directions
    end_of_input = b"\4"  # the key for it

    def __init__(
        self,
        client: LxdClient,
        instance: str,
        words: Sequence[str],
        line: Streams,
        terminal: Terminal,
    ) -> None:
        super().__init__(client, instance, words, line)
        self._terminal = terminal

    def options(self) -> Mapping[str, Any]:
        return {
            "interactive": True,
            "width": self._terminal.size.cols,
            "height": self._terminal.size.rows,
            "environment": {"TERM": self._terminal.name},
        }

    async def leave(self) -> None:
        # If the terminal's socket is closed before LXD has read all, it now and then never ends its
        # operation; and LXD does not close it first.
        with contextlib.suppress(asyncio.TimeoutError, WebSocketClosedError):
            if self.sockets:
                await self.sockets[-1].write_message(b"\n", binary=True)
                await asyncio.wait_for(_until_read(self.sockets[-1]), LEAVE_SECONDS)
        self.close()

    async def resize(self, control: Websocket, size: Size) -> None:
        arguments = {"width": str(size.cols), "height": str(size.rows)}
        await control.write_message(json.dumps({"command": "window-resize", "args": arguments}))


async def _until_read(terminal: Websocket) -> None:
    """Drop what comes, up to LXD's sign that there is no more: an empty text."""
    while await terminal.read_message() not in (None, ""):
        pass
