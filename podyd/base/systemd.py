"""systemd's interfaces: readiness, watchdog, stored sockets and the journal.

See sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3) and, for the journal,
https://systemd.io/JOURNAL_NATIVE_PROTOCOL. Each takes a few lines on a socket; systemd's own
library needs a compiler and its headers when it is installed from PyPI. In a process that systemd
has not started, the functions do nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from syslog import LOG_CRIT, LOG_DEBUG, LOG_ERR, LOG_INFO, LOG_WARNING

JOURNAL = "/run/systemd/journal/socket"
# Of one field; a whole entry must fit into a datagram.
MAX_FIELD_BYTES = 64 * 1024
FIRST_FD = 3  # SD_LISTEN_FDS_START
# FDNAME of the listening sockets in systemd's store (FileDescriptorStoreMax= of
# systemd.service(5)).
STORED_AS = "listen"
PRIORITIES = (
    (logging.CRITICAL, LOG_CRIT),
    (logging.ERROR, LOG_ERR),
    (logging.WARNING, LOG_WARNING),
    (logging.INFO, LOG_INFO),
)


def ready(status: str) -> None:
    """Say that podyd serves; `systemctl status` shows `status`."""
    _notify("READY=1", _status(status))


def status(text: str) -> None:
    """Set what `systemctl status` shows."""
    _notify(_status(text))


def reloading() -> None:
    """Say that the configuration is being reloaded, until `ready` is called again; the time is what
    Type=notify-reload asks for."""
    _notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(status: str) -> None:
    """Say that podyd finishes its open requests and then ends."""
    _notify("STOPPING=1", _status(status))


def failed(reason: str) -> None:
    """Say why podyd ends without having served."""
    _notify(_status(reason))


def watchdog_seconds() -> float | None:
    """systemd's watchdog timeout for this process, in seconds; None if it has none."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(wanted) / 1e6 if wanted.isdigit() and pid == str(os.getpid()) else None


async def feed_watchdog(seconds: float) -> None:
    """Send keep-alives twice per timeout of `seconds`, until cancelled: the event loop runs."""
    while True:
        _notify("WATCHDOG=1")
        await asyncio.sleep(seconds / 2)


def stored_sockets() -> list[socket.socket]:
    """The listening sockets that an earlier podyd has stored in systemd."""
    # Removed, so that child processes do not take them for theirs.
    pid, count, names = (
        os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    fds = range(FIRST_FD, FIRST_FD + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    named = zip(fds, names.split(":"), strict=False)
    return [socket.socket(fileno=fd) for fd, name in named if name == STORED_AS]


def store_sockets(sockets: Sequence[socket.socket]) -> None:
    """Store sockets in systemd, so that connections made during a restart wait for its end."""
    _notify("FDSTORE=1", f"FDNAME={STORED_AS}", fds=[item.fileno() for item in sockets])


def drop_stored_sockets(sockets: Sequence[socket.socket]) -> None:
    """Close these stored sockets; when this returns their addresses are free."""
    for item in sockets:
        # systemd closes its own end in a thread, and of that no barrier tells. One that listens no
        # more, as a podyd that was killed here has left it, is in nobody's way.
        with contextlib.suppress(OSError):
            item.shutdown(socket.SHUT_RDWR)
        item.close()
    _notify("FDSTOREREMOVE=1", f"FDNAME={STORED_AS}")


def send_to_journal(message: str, **fields: object) -> None:
    """Write one entry. Raises OSError if there is no journal."""
    lines = (_field(name, value) for name, value in {"MESSAGE": message, **fields}.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.sendto(b"".join(lines), JOURNAL)


def _field(name: str, value: object) -> bytes:
    """One field in the journal's native format, which allows values of several lines."""
    data = str(value).encode(errors="replace")[:MAX_FIELD_BYTES]
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)


class JournalHandler(logging.Handler):
    """Writes to the journal, with a record's PODYD_ attributes as fields.

    Other attributes are left out: the arguments and the exception's text may contain a password.
    """

    def __init__(self, send: Callable[..., None] = send_to_journal) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send one entry; as with all handlers, an error here is not raised."""
        fields = {name: value for name, value in vars(record).items() if name.startswith("PODYD_")}
        try:
            self._send(
                self.format(record),
                PRIORITY=_priority(record.levelno),
                SYSLOG_IDENTIFIER="podyd",
                LOGGER=record.name,
                CODE_FILE=record.pathname,
                CODE_LINE=record.lineno,
                CODE_FUNC=record.funcName,
                **fields,
            )
        except Exception:
            self.handleError(record)


def _priority(level: int) -> int:
    """The syslog(3) priority for a level of `logging`."""
    return next((priority for least, priority in PRIORITIES if level >= least), LOG_DEBUG)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"


def _notify(*lines: str, fds: Sequence[int] = ()) -> None:
    """Send lines to systemd, if it is there: podyd also serves without it."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        # A leading @ is written for the NUL of an abstract address.
        end.connect(f"\0{path[1:]}" if path.startswith("@") else path)
        socket.send_fds(end, ["\n".join(lines).encode()], fds)
