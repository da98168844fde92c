"""Ports of a pod on this machine: each connection is a relay in the pod, over podyd's WebSocket.

So no port of the server need be open, and what listens on the pod's loopback alone is reached too.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from podyd.client import output
from podyd.client.failure import Failure, Usage
from podyd.client.relay import NO_INTERPRETER, NOTHING_LISTENS, Lead, command
from podyd.client.server import Server
from podyd.client.stream import CHUNK_BYTES, WAIT_SECONDS, Stream, write_all

MAX_PORT = 65535


@dataclass(frozen=True)
class Ports:
    """One of this machine, 0 for any that is free, and one of the pod."""

    local: int
    inside: int

    @classmethod
    def of(cls, text: str) -> Ports:
        """Read `[LOCAL:]PORT`. Raises Usage."""
        match = re.fullmatch(r"(?:([0-9]{1,5}):)?([0-9]{1,5})", text)
        if match is None:
            raise _no_ports(text)
        inside = int(match[2])
        local = inside if match[1] is None else int(match[1])
        if not 1 <= inside <= MAX_PORT or local > MAX_PORT:
            raise _no_ports(text)
        return cls(local, inside)


def forward(server: Server, ins: str, pairs: Sequence[Ports]) -> None:
    """Forward connections to a pod until Ctrl-C. Raises Usage if a port cannot be listened on."""
    with selectors.DefaultSelector() as waiting:
        for ports in pairs:
            listener = _listener(ports.local)
            local = listener.getsockname()[1]
            waiting.register(listener, selectors.EVENT_READ, _Forwarded(server, ins, ports.inside))
            print(
                f"127.0.0.1:{local} is forwarded to port {ports.inside} of pod {ins}.", flush=True
            )
        print("Ctrl-C ends this.", file=sys.stderr)
        while True:
            for ready, _ in waiting.select(WAIT_SECONDS):
                with suppress(OSError):  # Who called has hung up already.
                    near, _ = ready.fileobj.accept()  # type: ignore[union-attr]
                    threading.Thread(target=ready.data.lead, args=(near,), daemon=True).start()


def lead_standard(server: Server, ins: str, port: int) -> None:
    """Forward standard input and output to a port of a pod. Raises Failure."""

    def end() -> None:
        # Not closed: what is opened next would take its place.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)

    lead = Lead(
        lambda: os.read(sys.stdin.fileno(), CHUNK_BYTES),
        lambda data: write_all(sys.stdout.fileno(), data),
        end,
    )
    _run(server, ins, port, lead)


class _Forwarded:
    """One port of a pod, and the last message about it."""

    def __init__(self, server: Server, ins: str, port: int) -> None:
        self._server = server
        self._ins = ins
        self._port = port
        self._shown = ""

    def lead(self, near: socket.socket) -> None:
        """Forward one connection; an error is shown once, and does not end the others."""

        def end() -> None:
            with suppress(OSError):  # It has hung up.
                near.shutdown(socket.SHUT_WR)

        with near:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lead = Lead(lambda: near.recv(CHUNK_BYTES), near.sendall, end)
            try:
                _run(self._server, self._ins, self._port, lead)
                self._shown = ""
            except Failure as failure:
                self._show(str(failure))
            except OSError:
                pass  # It has hung up.
            # For the thread that still reads of it.
            with suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)

    def _show(self, text: str) -> None:
        if text != self._shown:
            self._shown = text
            output.complain(text)


def _run(server: Server, ins: str, port: int, lead: Lead) -> None:
    """One connection. Raises Failure if the pod refuses it, or OSError if our end breaks off."""
    status = Stream(server, "pod/exec-stream", [("ins", ins)], lead).run({"cmd": command(port)})
    if status == NOTHING_LISTENS:
        raise Failure(f"Nothing listens on port {port} in pod {ins}.")
    if status == NO_INTERPRETER:
        raise Failure(
            f"Pod {ins} has neither perl nor python3, one of which must relay connections."
        )
    if status:
        raise Failure(f"The relay in pod {ins} ended with exit status {status}.")


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=64)
    except OSError as error:
        raise Usage(
            f"127.0.0.1:{port} cannot be listened on ({error.strerror}); choose another port of"
            " this machine, LOCAL:PORT, or 0:PORT for any."
        ) from error


def _no_ports(text: str) -> Usage:
    return Usage(f"{text!r} is no port; write PORT or LOCAL:PORT, each from 1 to {MAX_PORT}.")
