"""`podyd cards`: has the kernel refuse NVIDIA cards to pods, and ends processes that have one open.

It is root and answers root and podyd's account alone, in lines of JSON, one for each request:

    {"permit": {"alice-main": ["195:0"]}}   -> {"way": "bpf", "problem": ""}
    {"enforcement": null}                   -> {"way": "bpf", "problem": ""}
    {"holders": null}                       -> {"holders": [{"cgroup", "pid", "started", "numbers",
                                                             "is_init", "dormant"}]}
    {"end": [{"pid": 1, "started": 2}], "kill": false}          -> {"ended": 1}

and {"error": "..."} to all else. See card_access.py for what they mean. An attacker who controls
podyd gains little by it: the helper refuses only NVIDIA's cards, only to podyd's pods, and ends
only processes of theirs that have one open.

The last table is stored, and applies until podyd sends another: pods may start at boot before podyd
does. Before the first table nothing is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from syslog import LOG_INFO, LOG_WARNING
from typing import Any

from podyd.base import systemd, unix_socket
from podyd.base.files import make_directory
from podyd.base.logs import stderr_is_journal
from podyd.node.card_access import MAX_ENDED, MAX_PROBLEM, Enforcement
from podyd.node.card_enforcement import Enforcer
from podyd.node.card_holders import Holders
from podyd.node.card_rules import Kept, kept_of, table_of
from podyd.node.line_client import MAX_ANSWER_BYTES
from podyd.node.procs import MAX_PID

MAX_CONNECTIONS = 16
# Between threads: a new cgroup must get its rules soon, also while a thread reads processes.
SWITCH_SECONDS = 0.0005


def serve(path_of: Callable[[], Path], kept: Path, *, project: str, uid: int, gid: int) -> None:
    """Answer root and the account `uid` until SIGTERM or SIGINT; the table is in the file `kept`.

    A listening socket inherited from systemd is used instead of one at `path_of()`. Raises OSError
    if the socket cannot be created or another process serves it.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    with contextlib.ExitStack() as held:
        listener = unix_socket.inherited()
        if listener is None:
            listener = held.enter_context(unix_socket.bound(path_of(), uid, gid, 0o600))
        held.enter_context(listener)
        asyncio.run(_Server(Enforcer(project, _read(kept)), kept, uid).run(listener))


def kept_project(kept: Path) -> str:
    """The project of the helper that kept this file; "" if it is not known."""
    return _read(kept).project


def _read(path: Path) -> Kept:
    try:
        return kept_of(path.read_text())
    except FileNotFoundError:
        return Kept()
    except (OSError, ValueError) as error:
        # Then all cards are refused to all pods until podyd sends a table.
        _log(f"{path} cannot be used: {error}", LOG_WARNING)
        return Kept({})


class _Server:
    def __init__(self, enforcer: Enforcer, kept: Path, uid: int) -> None:
        self._enforcer = enforcer
        self._holders = Holders()
        self._kept = kept
        self._uid = uid
        self._looking = asyncio.Lock()
        self._logged: str | None = None
        self._written = ""
        self._connections = 0

    async def run(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        enforcement = self._enforcer.enforce()
        self._report(enforcement.problem, f"refuses cards by {enforcement.way}")
        loop.add_reader(self._enforcer.inotify.fileno(), self._heard)
        listener.setblocking(False)
        server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_ANSWER_BYTES)
        systemd.ready("Refuses cards to pods.")
        await ended.wait()
        # Not for the connections, which podyd keeps.
        server.close()

    def _heard(self) -> None:
        self._report(self._enforcer.heard())
        self._keep()

    def _report(self, problem: str, well: str = "") -> None:
        text = f"cards are not refused: {problem}" if problem else well
        if text and text != self._logged:
            _log(text, LOG_WARNING if problem else LOG_INFO)
            self._logged = text

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asking = unix_socket.peer_uid(writer.get_extra_info("socket"))
        self._connections += 1
        try:
            if asking not in (0, self._uid):
                _log(f"a process of uid {asking} connected and was refused", LOG_WARNING)
                writer.write(b'{"error": "forbidden"}\n')
            elif self._connections > MAX_CONNECTIONS:
                writer.write(b'{"error": "too many connections"}\n')
            else:
                await self._converse(reader, writer)
        # The client has gone, its line is too long, or this process ends.
        except (OSError, ValueError, asyncio.CancelledError):
            pass
        finally:
            self._connections -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                answer = await self._answer(json.loads(line))
            except (OSError, ValueError, RecursionError) as error:
                answer = {"error": str(error)[:MAX_PROBLEM]}
                _log(f"refused a request: {answer['error']}", LOG_WARNING)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    async def _answer(self, request: Any) -> dict[str, Any]:
        """Raises ValueError for what is no request, OSError."""
        match request:
            case {"permit": table}:
                return dataclasses.asdict(self._permit(table))
            case {"enforcement": None}:
                return dataclasses.asdict(self._enforcer.enforce())
            case {"holders": None}:
                return {"holders": await self._look()}
            case {"end": list(processes), "kill": bool(kill)} if len(processes) <= MAX_ENDED:
                return {"ended": sum([await self._end(process, kill) for process in processes])}
            case _:
                raise ValueError("no such request")

    def _permit(self, data: Any) -> Enforcement:
        table = table_of(data)
        enforcement = self._enforcer.permit(table)
        self._keep()
        self._report(enforcement.problem, f"refuses cards by {enforcement.way}")
        return enforcement

    def _keep(self) -> None:
        """Store what the next helper needs; without space on the disk this one continues."""
        text = self._enforcer.kept.packed()
        if text == self._written:
            return
        try:
            make_directory(self._kept.parent)
            partial = self._kept.with_name(f".{self._kept.name}.new")
            partial.write_text(text)
            partial.replace(self._kept)
            self._written = text
        except OSError as error:
            _log(f"{self._kept} cannot be written: {error.strerror}", LOG_WARNING)

    async def _look(self) -> list[dict[str, Any]]:
        async with self._looking:
            again = self._enforcer.look_again()
            if again is not None:
                self._report(again.problem)
            holders = await self._holders.holders(
                self._enforcer.hierarchy,
                self._enforcer.payloads,
                self._enforcer.cards,
                self._enforcer.withdrawn,
                self._enforcer.had_none,
            )
        return [
            {**dataclasses.asdict(holder), "numbers": sorted(holder.numbers)} for holder in holders
        ]

    async def _end(self, process: Any, kill: bool) -> bool:
        match process:
            case {"pid": int(pid), "started": int(begun)} if 0 < pid <= MAX_PID:
                pass
            case _:
                raise ValueError("no process")
        if self._enforcer.hierarchy is None:
            return False
        payloads = frozenset(self._enforcer.payloads)
        try:
            # It refers to this process alone, also if the pid is reused while it is looked at.
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if not await self._holders.is_still(
                (pid, begun), self._enforcer.hierarchy, payloads, self._enforcer.cards
            ):
                return False
            signal.pidfd_send_signal(pidfd, signal.SIGKILL if kill else signal.SIGTERM)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True


def _log(text: str, level: int) -> None:
    """Write one line; the journal removes the prefix with the level (sd-daemon(3))."""
    prefix = f"<{level}>" if stderr_is_journal() else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{prefix}podyd cards: {text}\n".encode())
