"""Talking to a command in a pod while it runs, over a WebSocket; /openapi.json says how.

One thread reads what podyd sends, so that its pings are answered whatever happens; one sends; one
reads the input. The thread that runs it writes the output: for our own streams the main one, which
is the one that signals reach.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from podyd.client import output, show, terminal
from podyd.client.failure import Away, Refused, whole_text
from podyd.client.server import Pairs, Server

STDIN, STDOUT, STDERR, END, CONTROL = range(5)
# So many bytes of output are held for a reader who is slow.
WINDOW_BYTES = 256 * 1024
CHUNK_BYTES = 32 * 1024
# podyd pings every 20 seconds.
SILENT_SECONDS = 60.0
# Windows sees Ctrl-C only when a wait ends.
WAIT_SECONDS = 0.5 if os.name == "nt" else None
INTERRUPTED, TIMED_OUT = 130, 124

Frame = tuple[int, bytes]


class Ends(Protocol):
    """What a command's streams lead to."""

    def read(self) -> bytes:
        """The next of the input, nothing at its end; OSError is its end too."""

    def write(self, channel: int, data: bytes) -> None:
        """Take output of STDOUT or STDERR, all of it."""


class Standard:
    """Our own streams."""

    def read(self) -> bytes:
        return os.read(sys.stdin.fileno(), CHUNK_BYTES)

    def write(self, channel: int, data: bytes) -> None:
        write_all((sys.stdout if channel == STDOUT else sys.stderr).fileno(), data)


class Stream:
    """One command, from its beginning to its end."""

    def __init__(self, server: Server, route: str, pairs: Pairs, ends: Ends | None = None) -> None:
        self._where = str(server.base)
        self._ends = ends or Standard()
        self._socket = server.websocket(route, pairs, SILENT_SECONDS)
        self._came: queue.SimpleQueue[Frame | Exception] = queue.SimpleQueue()
        self._to_send: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._may_send = threading.Condition()
        self._over = False
        # Of input, in bytes: how far podyd may be behind, what it has passed on, what it was sent.
        self._window = self._taken = self._sent = 0
        self._interrupts = 0
        # podyd's last message.
        self.ended: Mapping[str, Any] = {}

    def run(self, start: Mapping[str, Any]) -> int:
        """Run what `start` says; its exit status, as a shell would have it.

        Raises Refused or Away if it was cut off.
        """
        self.control({**start, "window": WINDOW_BYTES})
        for work in (self._read, self._send, self._feed):
            threading.Thread(target=work, daemon=True).start()
        try:
            self.ended = self._write_output()
            return self._status(self.ended)
        finally:
            self._end()

    def control(self, message: Mapping[str, Any]) -> None:
        """Send a control message; also from a signal's handler."""
        self._to_send.put((CONTROL, json.dumps(message).encode()))

    def _end(self) -> None:
        """Let the threads end, and podyd see at once that we have gone."""
        with self._may_send:
            self._over = True
            self._may_send.notify()
        self._to_send.put(None)
        connection = self._socket.sock
        if connection is not None:
            with suppress(OSError):
                # A thread that waits for it would keep it open.
                connection.shutdown(socket.SHUT_RDWR)
            self._socket.shutdown()

    def interrupt(self, *_: object) -> None:
        """Ctrl-C: the command gets SIGINT; a second one ends all that it started."""
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.control({"signal": "INT"})

    # --- Threads ---------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while frame := self._socket.recv():
                if frame[0] == CONTROL:
                    self._hear(json.loads(frame[1:]))
                else:
                    self._came.put((frame[0], frame[1:]))
        except Exception as error:  # Any error is passed to the main thread.
            self._came.put(error)
        self._came.put(ConnectionError("it hung up"))

    def _hear(self, message: Mapping[str, Any]) -> None:
        with self._may_send:
            self._window = message.get("window", self._window)
            self._taken = message.get("taken", self._taken)
            self._may_send.notify()

    def _send(self) -> None:
        try:
            while frame := self._to_send.get():
                self._socket.send_binary(bytes([frame[0]]) + frame[1])
        except Exception as error:  # As above.
            self._came.put(error)

    def _feed(self) -> None:
        try:
            while (data := self._ends.read()) and self._wait_for_room(len(data)):
                self._to_send.put((STDIN, data))
        except OSError:  # It is closed, or for writing only.
            pass
        self.control({"eof": True})

    def _wait_for_room(self, count: int) -> bool:
        """Wait until podyd takes so many bytes; False if the command has ended."""
        with self._may_send:
            self._may_send.wait_for(
                lambda: self._over or self._sent + count <= self._window + self._taken
            )
            self._sent += count
            return not self._over

    # --- The main thread -------------------------------------------------------------------------

    def _write_output(self) -> Mapping[str, Any]:
        """Write what comes to where it belongs; podyd's last message."""
        received = acknowledged = 0
        while True:
            frame = self._next()
            if isinstance(frame, Exception):
                raise Away(f"The connection to {self._where} is lost ({frame}).") from frame
            channel, data = frame
            if channel == END:
                end: Mapping[str, Any] = json.loads(data)
                return end
            self._ends.write(channel, data)
            received += len(data)
            if received - acknowledged >= WINDOW_BYTES // 4:
                acknowledged = received
                self.control({"taken": received})

    def _next(self) -> Frame | Exception:
        while True:
            try:
                return self._came.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                continue

    def _status(self, end: Mapping[str, Any]) -> int:
        if end.get("detail"):
            raise Refused(whole_text(end), json.dumps(end).encode())
        if self._interrupts:
            return INTERRUPTED
        return TIMED_OUT if end["timed_out"] else int(end["exit_code"])


def execute(server: Server, ins: str, command: str, timeout: str | None) -> int:
    """Run a command in a pod, with our own streams; its exit status."""
    stream = Stream(server, "pod/exec-stream", [("ins", ins)])
    start = {"cmd": command} | ({} if timeout is None else {"timeout": timeout})
    with handled({signal.SIGINT: stream.interrupt}):
        status = stream.run(start)
    if stream.ended.get("oom_killed"):
        output.complain(show.killed(stream.ended.get("memory_limit"), ins))
    return status


def shell(server: Server, ins: str, command: str | None) -> int:
    """A shell in a pod, or another command, at our own terminal; its exit status."""
    terminal.need("shell")
    rows, cols = terminal.size()
    pairs = [("ins", ins), ("rows", str(rows)), ("cols", str(cols))]
    stream = Stream(server, "pod/shell", pairs)
    start = {} if command is None else {"cmd": command}
    name = os.environ.get("TERM", "")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,39}", name):
        start["term"] = name

    def resized(*_: object) -> None:
        rows, cols = terminal.size()
        stream.control({"resize": {"rows": rows, "cols": cols}})

    def ended(number: int, _: object) -> None:
        sys.exit(128 + number)

    handlers: dict[int, Callable[..., None]] = {signal.SIGWINCH: resized}
    handlers |= {signal.SIGTERM: ended, signal.SIGHUP: ended}
    with handled(handlers), terminal.keys(all_of_them=True):
        return stream.run(start)


def write_all(descriptor: int, data: bytes) -> None:
    """Write it, however little is taken at once."""
    while data:
        data = data[os.write(descriptor, data) :]


@contextmanager
def handled(handlers: Mapping[int, Callable[..., None]]) -> Iterator[None]:
    """Handle signals meanwhile."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
