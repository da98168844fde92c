"""`podyd ports`: forwards TCP from ports of the host to pods, without rights and without the
engine.

`podyd serve` is its only client. It sends the whole table as a line of JSON whenever that changes:
host ports with the address and port of their target, or null for a port that is reserved while its
pod does not run.

    {"20001": ["10.0.3.7", 22], "20002": null}
    {"version": "0.1.0", "refused": {"20001": "Address already in use"}}

The line `null` asks for that answer alone. When podyd disconnects, the table and the connections
stay. This file imports little, and only from the standard library: it is run by itself, and stays
up for months.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial

MAX_CONNECTIONS = 8192
# A pod may forward what it gets, also back to a port of the host: limits end such a loop.
MAX_CONNECTIONS_PER_PORT, MAX_CONNECTIONS_PER_POD = 512, 1024
# So many connections are accepted at a port before other sockets are served.
ACCEPTS = 64
CONNECT_SECONDS = 10.0
# A peer that no longer answers is noticed after 60 + 6 * 15 seconds.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 6))
# So much of one direction is buffered in this process.
PIPE_BYTES = 256 * 1024
# So many splices of one direction before other connections are served.
ROUNDS = 16
SPARE_PIPES = 64
MAX_LINE_BYTES = 1024**2
# Those below are privileged.
FIRST_PORT = 1024
LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger of socket(7): close() sends a reset.
PEERCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR

Target = tuple[str, int]


def unfit(address: str) -> str:
    """Why an address is refused as a target, or "": it must be another machine's unicast IPv4."""
    try:
        first, second = socket.inet_pton(socket.AF_INET, address)[:2]
    except OSError:
        return "its target is not an IPv4 address"
    if first in (0, 127) or first >= 224 or (first, second) == (169, 254):
        return "its target is not the address of one machine"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.bind((address, 0))
        return "its target is this host"
    return ""


class End:
    """One socket of a connection; what is read from it is written to `other`, through `pipe`."""

    __slots__ = (
        "done",
        "ended",
        "fd",
        "other",
        "pending",
        "pipe",
        "readable",
        "socket",
        "writable",
    )

    other: End

    def __init__(self, item: socket.socket) -> None:
        self.socket = item
        self.fd = item.fileno()
        # As epoll reported, until a call would block: epoll is edge-triggered.
        self.readable = self.writable = False
        self.pipe: tuple[int, int] | None = None
        self.pending = 0  # bytes in the pipe
        self.ended = False  # EOF was read
        self.done = False  # and passed on to the other end


class Connection:
    """A connection to a port, and the one to the pod."""

    __slots__ = ("address", "far", "near", "port")

    def __init__(self, port: Port, address: str, near: End, far: End) -> None:
        self.port = port
        self.address = address
        self.near = near
        self.far = far
        near.other, far.other = far, near


class Port:
    """A port of the host; without a target it is bound, and connections are refused."""

    def __init__(self, number: int) -> None:
        """Raises OSError if another process has it."""
        self.target: Target | None = None
        self.connections: set[Connection] = set()
        self.socket = _bound(number)

    def forward(self, target: Target | None) -> None:
        """Accept connections for this target from now on; with None, accept none."""
        if target and not self.target:
            # Its own connections in TIME_WAIT must not keep it from listening again.
            self._share(True)
            try:
                self.socket.listen(socket.SOMAXCONN)
            except OSError:
                self._share(False)
                raise
        elif self.target and not target:
            # While it does not listen, no other process may bind the port with SO_REUSEADDR.
            self._share(False)
            # On Linux this ends listening, and the socket stays bound.
            self.socket.shutdown(socket.SHUT_RD)
        self.target = target

    def _share(self, shares: bool) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shares)


def _bound(number: int) -> socket.socket:
    """A socket that is bound to a port on all addresses, IPv4 and IPv6. Raises OSError."""
    try:
        item = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:  # A kernel without IPv6.
        item = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if item.family == socket.AF_INET6:
            item.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            item.bind(("", number))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Old connections in TIME_WAIT do not count; this still fails if anything listens.
            item.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            item.bind(("", number))
            # While this does not listen, no other process may bind it in the same way.
            item.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        item.close()
        raise
    return item


class RelayServer:
    """The event loop: one thread, which blocks in epoll only."""

    def __init__(
        self, control: socket.socket, version: str, unfit: Callable[[str], str] = unfit
    ) -> None:
        """`control` listens for podyd; `unfit` says why an address may not be relayed to."""
        self._control = control
        self._version = version
        self._unfit = unfit
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._ports: dict[int, Port] = {}
        self._refused: dict[str, str] = {}
        self._callers: set[socket.socket] = set()
        # Connections, by the address of their target.
        self._counts: Counter[str] = Counter()
        # With the monotonic time at which each is given up, the soonest first.
        self._connecting: OrderedDict[Connection, float] = OrderedDict()
        self._busy: set[Connection] = set()
        self._closing: list[socket.socket] = []
        self._spare: list[tuple[int, int]] = []
        self._limit = min(MAX_CONNECTIONS, _descriptors() // 8)
        control.setblocking(False)
        self._watch(control.fileno(), self._accept_podyd, select.EPOLLIN)

    def run(self) -> None:
        """Relay until the process ends."""
        while True:
            self.turn()

    def close(self) -> None:
        """Close all sockets and pipes."""
        self.use({})
        self._close_the_closing()
        for item in [*self._callers]:
            self._hang_up(item)
        for pipe in self._spare:
            for fd in pipe:
                os.close(fd)
        self._control.close()
        self._epoll.close()

    def turn(self) -> None:
        """Wait for events, and handle them."""
        for fd, events in self._epoll.poll(self._timeout()):
            # A handler before it in this turn may have closed it.
            if fd in self._handlers:
                self._handlers[fd](events)
        busy, self._busy = self._busy, set()
        for connection in busy:
            self._carry(connection)
        now = time.monotonic()
        while self._connecting and next(iter(self._connecting.values())) <= now:
            self._reset(next(iter(self._connecting)))
        self._close_the_closing()

    def _close_the_closing(self) -> None:
        # Not sooner: a new socket could get the number, and the events that were for this one.
        while self._closing:
            self._closing.pop().close()

    def _timeout(self) -> float | None:
        if self._busy:
            return 0
        if self._connecting:
            return max(0.0, next(iter(self._connecting.values())) - time.monotonic())
        return None

    def _watch(self, fd: int, handler: Callable[[int], None], events: int = EVENTS) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def _forget(self, item: socket.socket) -> None:
        if self._handlers.pop(item.fileno(), None):
            self._epoll.unregister(item)

    # --- podyd -----------------------------------------------------------------------------------

    def _accept_podyd(self, _events: int) -> None:
        with contextlib.suppress(OSError):
            item, _ = self._control.accept()
            _, uid, _ = PEERCRED.unpack(
                item.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEERCRED.size)
            )
            if uid not in (0, os.geteuid()):
                _log(f"a process of uid {uid} connected and was refused")
                item.close()
                return
            item.setblocking(False)
            self._callers.add(item)
            received = bytearray()
            self._watch(item.fileno(), lambda _events: self._hear(item, received), select.EPOLLIN)

    def _hear(self, item: socket.socket, received: bytearray) -> None:
        try:
            part = item.recv(65536)
            received += part
            if not part or len(received) > MAX_LINE_BYTES:
                raise ConnectionError
            while b"\n" in received:
                line, _, rest = received.partition(b"\n")
                received[:] = rest
                table = json.loads(line)
                if table is not None:
                    self.use(table)
                answer = {"version": self._version, "refused": self._refused}
                item.sendall(json.dumps(answer).encode() + b"\n")
        except (OSError, ValueError, TypeError, AttributeError):
            self._hang_up(item)

    def _hang_up(self, item: socket.socket) -> None:
        self._callers.discard(item)
        self._forget(item)
        item.close()

    def use(self, table: dict[str, list[object] | None]) -> None:
        """Forward the ports as in this table; those that it does not name are closed."""
        refused = {}
        wanted: dict[int, Target | None] = {}
        for name, target in table.items():
            try:
                wanted.update([self._checked(name, target)])
            except ValueError as error:
                refused[name] = str(error)
        for number in [*self._ports]:
            if number not in wanted:
                port = self._ports.pop(number)
                self._cut(port)
                self._forget(port.socket)
                port.socket.close()
        for number, goal in wanted.items():
            try:
                self._forward(number, goal)
            except OSError as error:
                refused[str(number)] = str(error.strerror)
        self._refused = refused

    def _checked(self, name: str, target: list[object] | None) -> tuple[int, Target | None]:
        number = int(name)
        if not FIRST_PORT <= number < 65536:
            raise ValueError(f"it is not from {FIRST_PORT} to 65535")
        if target is None:
            return number, None
        address, inner = target
        if not isinstance(inner, int) or not 0 < inner < 65536:
            raise ValueError("its target has no port from 1 to 65535")
        if why := self._unfit(str(address)):
            raise ValueError(why)
        return number, (str(address), inner)

    def _forward(self, number: int, target: Target | None) -> None:
        port = self._ports.get(number)
        if port is None:
            port = self._ports[number] = Port(number)
        if port.target != target:
            self._cut(port)
            self._forget(port.socket)
            port.forward(target)
            if target:
                self._watch(port.socket.fileno(), partial(self._accept, port), select.EPOLLIN)

    def _cut(self, port: Port) -> None:
        for connection in [*port.connections]:
            self._reset(connection)

    # --- Connections -----------------------------------------------------------------------------

    def _accept(self, port: Port, _events: int) -> None:
        for _ in range(ACCEPTS):
            try:
                item, _ = port.socket.accept()
            except OSError:  # There are no more, or it was closed already.
                return
            if port.target is None or self._is_full(port, port.target):
                _close_hard(item)
            else:
                self._connect(port, item, port.target)

    def _is_full(self, port: Port, target: Target) -> bool:
        return (
            len(port.connections) >= MAX_CONNECTIONS_PER_PORT
            or self._counts[target[0]] >= MAX_CONNECTIONS_PER_POD
            or self._counts.total() >= self._limit
        )

    def _connect(self, port: Port, item: socket.socket, target: Target) -> None:
        far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for one in (item, far):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE:
                one.setsockopt(socket.IPPROTO_TCP, option, value)
        connection = Connection(port, target[0], End(item), End(far))
        port.connections.add(connection)
        self._counts[target[0]] += 1
        if far.connect_ex(target) not in (0, errno.EINPROGRESS):
            self._reset(connection)
            return
        self._connecting[connection] = time.monotonic() + CONNECT_SECONDS
        for end in (connection.near, connection.far):
            self._watch(end.fd, partial(self._tell, connection, end))

    def _tell(self, connection: Connection, end: End, events: int) -> None:
        end.readable |= bool(events & READABLE)
        end.writable |= bool(events & WRITABLE)
        if connection in self._connecting:
            far = connection.far
            if not far.writable:
                return
            if far.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._reset(connection)
                return
            del self._connecting[connection]
        self._carry(connection)

    def _carry(self, connection: Connection) -> None:
        """Move what is there in both directions."""
        if connection not in connection.port.connections:
            return
        near, far = connection.near, connection.far
        try:
            # Not `or`: both directions are served.
            if self._move(near) | self._move(far):
                self._busy.add(connection)
        except OSError:
            self._reset(connection)
            return
        if near.done and far.done:
            self._close(connection)

    def _move(self, source: End) -> bool:
        """Move what comes from one end; True if there may be more without waiting."""
        sink = source.other
        for _ in range(ROUNDS):
            if not source.pending:
                if source.ended:
                    if not source.done:
                        sink.socket.shutdown(socket.SHUT_WR)
                        source.done = True
                        self._put_back(source)
                    return False
                if not source.readable:
                    return False
                if source.pipe is None:
                    source.pipe = self._spare.pop() if self._spare else _pipe()
                # The pipe is empty, so None means that the socket has no more.
                count = _splice(source.fd, source.pipe[1], PIPE_BYTES)
                if count is None:
                    source.readable = False
                    self._put_back(source)
                    return False
                source.ended = count == 0
                source.pending = count
            else:
                assert source.pipe is not None
                if not sink.writable:
                    return False
                count = _splice(source.pipe[0], sink.fd, source.pending)
                if count is None:
                    sink.writable = False
                    return False
                source.pending -= count
        return True

    def _put_back(self, end: End) -> None:
        """Release a pipe; an empty one is kept for another connection."""
        if end.pipe is None:
            return
        if end.pending or len(self._spare) >= SPARE_PIPES:
            for fd in end.pipe:
                os.close(fd)
        else:
            self._spare.append(end.pipe)
        end.pipe = None

    def _reset(self, connection: Connection) -> None:
        """Close it with a TCP reset at both ends."""
        for end in (connection.near, connection.far):
            with contextlib.suppress(OSError):
                end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        connection.port.connections.discard(connection)
        self._counts[connection.address] -= 1
        if not self._counts[connection.address]:
            del self._counts[connection.address]
        self._connecting.pop(connection, None)
        for end in (connection.near, connection.far):
            self._put_back(end)
            self._forget(end.socket)
            self._closing.append(end.socket)
            del end.other  # A reference cycle, which would be freed late.


def _splice(source: int, sink: int, count: int) -> int | None:
    """The number of bytes that splice(2) moved; None if it would block."""
    try:
        return os.splice(source, sink, count, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
    except BlockingIOError:
        return None


def _pipe() -> tuple[int, int]:
    pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # The kernel limits an account's memory in pipes; a smaller one only takes more rounds.
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return pipe


def _close_hard(item: socket.socket) -> None:
    with item:
        item.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)


def _descriptors() -> int:
    """Raise the limit of open file descriptors to the hard one, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def listen(path: str) -> socket.socket:
    """The listening socket for podyd, in a directory that only this account may enter.

    Raises OSError, also if another process listens there.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        status = probe.connect_ex(path)
    if status not in (errno.ENOENT, errno.ECONNREFUSED):
        raise OSError(errno.EADDRINUSE, "another process serves it")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
    control = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        control.bind(path)
    finally:
        os.umask(before)
    control.listen()
    return control


def _log(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"podyd ports: {text}\n".encode())


def main(arguments: list[str]) -> int:
    """Relay until a signal ends it. Arguments: the path of the socket for podyd, and the version to
    report."""
    path, version = arguments
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        control = listen(path)
    except OSError as error:
        _log(f"cannot serve {path}: {error.strerror}")
        return 1
    RelayServer(control, version).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
