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

from podyd import line as channels
from podyd.errors import PodydError
from podyd.line import Line, Signal, Size
from podyd.lxd.client import LxdClient
from podyd.lxd.session import STDERR, STDIN, STDOUT, Session, until_closed
from podyd.lxd.websocket import Websocket

log = logging.getLogger(__name__)

CHANNELS = {STDIN: channels.STDOUT, STDOUT: channels.STDOUT, STDERR: channels.STDERR}
# LXD closes a terminal's sockets when its leading process has ended.
LEAVE_SECONDS = 5.0


@dataclass(frozen=True)
class Terminal:
    """What a command finds itself at; `name` is for $TERM."""

    size: Size
    name: str


class Piped(Session):
    """A command with its stdin, stdout and stderr on a line."""

    end_of_input: bytes | str = ""  # LXD's sign for it

    def __init__(self, client: LxdClient, instance: str, words: Sequence[str], line: Line) -> None:
        super().__init__(client, instance, words)
        self._line = line
        self._taking = 0

    async def attend(self, control: Websocket, streams: Mapping[str, Websocket]) -> int | None:
        beside = [
            asyncio.ensure_future(self._feed(streams[STDIN])),
            asyncio.ensure_future(self._obey(control)),
        ]
        outputs = {name: streams[name] for name in self.streams if name != STDIN} or streams
        try:
            return await self.read(control, outputs)
        finally:
            for task in beside:
                task.cancel()

    async def take(self, stream: str, data: bytes) -> None:
        self._taking += 1
        try:
            await self._line.output(CHANNELS[stream], data)
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
            log.info("a signal did not reach its command: %s", error.detail)

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
        line: Line,
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
        # LXD now and then never ends its operation if the sockets of a terminal are closed first.
        with contextlib.suppress(asyncio.TimeoutError, WebSocketClosedError):
            if self.sockets:
                await self.sockets[-1].write_message(b"\n", binary=True)
            closing = asyncio.gather(*(until_closed(socket) for socket in self.sockets))
            await asyncio.wait_for(closing, LEAVE_SECONDS)
        self.close()

    async def resize(self, control: Websocket, size: Size) -> None:
        arguments = {"width": str(size.cols), "height": str(size.rows)}
        await control.write_message(json.dumps({"command": "window-resize", "args": arguments}))
