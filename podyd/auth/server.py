"""`podyd auth`: the small root process that asks PAM, behind a unix socket.

Every connection is one request, and gets a child of its own: PAM modules block, leak and keep
state, and a child can be killed. The parent never calls PAM or NSS, so a hanging LDAP cannot hold
it. What is asked and answered is in protocol.py, how it is judged in policy.py.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from syslog import LOG_WARNING
from types import FrameType
from typing import NoReturn

from podyd.auth import pam
from podyd.auth.log import log
from podyd.auth.policy import Policy, perform
from podyd.auth.protocol import Error, Reply, RequestError, parse, read_line
from podyd.base import unix_socket

ANSWER_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 5.0
# After the alarm of a child itself, which a PAM module may have taken away.
KILL_AFTER_S = 1.0

DISMISSED_MAX = 64

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def serve(
    socket_path: Path,
    *,
    allowed_uids: frozenset[int],
    service: str = "podyd",
    max_children: int = 32,
    limit_s: float = 30.0,
    min_uid: int = 1000,
    socket_owner: int = 0,
    socket_group: int = 0,
    socket_mode: int = 0o600,
    idle_s: float = 600.0,
) -> None:
    """Answer until SIGTERM or SIGINT. Root (uid 0) may always ask, others by `allowed_uids`.

    A listening socket inherited from systemd is used before `socket_path`; then this also ends
    when nobody has asked for `idle_s`, since systemd begins it again for who does. Raises OSError
    if the socket cannot be made or another process serves it.
    """
    # Prompts are told apart by their English words.
    os.environ["LC_ALL"] = "C"
    os.environ.pop("LANGUAGE", None)
    ready = pam.check(service)
    if ready.outcome is not pam.Outcome.OK:
        log(f"logins will fail: {ready.reason}", LOG_WARNING)
    policy = Policy(service, allowed_uids, max_children, limit_s, min_uid)
    inherited = unix_socket.inherited()
    if inherited is not None:
        with inherited:
            _Server(inherited, policy, idle_s).run()
        return
    with unix_socket.bound(socket_path, socket_owner, socket_group, socket_mode) as listener:
        _Server(listener, policy).run()


@dataclass(frozen=True)
class _Child:
    """A request under way. The parent keeps the connection, to answer for a child that dies."""

    connection: socket.socket
    deadline: float  # of time.monotonic()
    killed: bool = False  # it may stay a while: the disk of an NFS server, say


class _Server:
    """Accepts, forks, reaps. Single-threaded, since it forks."""

    def __init__(self, listener: socket.socket, policy: Policy, idle_s: float = math.inf) -> None:
        self._listener = listener
        self._wake, self._waker = socket.socketpair()
        self._policy = policy
        self._idle_s = idle_s
        self._idle_since = time.monotonic()
        self._children: dict[int, _Child] = {}
        self._dismissed: deque[socket.socket] = deque()
        self._stopping = False

    def run(self) -> None:
        """Until a signal says stop, or for too long nobody has asked.

        What is under way then gets STOP_TIMEOUT_S. Who comes in the last moment waits in the
        listener's backlog, which systemd sees and has too.
        """
        for end in (self._listener, self._wake, self._waker):
            end.setblocking(False)
        with self._wake, self._waker, self._signals():
            while not self._stopping and not self._is_idle():
                if self._wait(self._listener, until=self._next_deadline()):
                    self._accept()
            self._listener.close()
            self._finish()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # to be woken, no more
        fd = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(fd)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _is_idle(self) -> bool:
        return not self._children and time.monotonic() >= self._idle_since + self._idle_s

    def _next_deadline(self) -> float | None:
        if not self._children and self._idle_s < math.inf:
            return self._idle_since + self._idle_s
        return min((c.deadline for c in self._children.values() if not c.killed), default=None)

    def _wait(self, listener: socket.socket | None, *, until: float | None) -> bool:
        """Wait for something, see to the children; True if there is a connection to accept."""
        # Not epoll: its object would be shared with the children.
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if listener is not None:
            poll.register(listener, select.POLLIN)
        timeout = None if until is None else max(0.0, until - time.monotonic()) * 1000 + 1
        ready = {fd for fd, _event in poll.poll(timeout)}
        with suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass
        self._kill_overdue()
        self._reap()
        return listener is not None and listener.fileno() in ready

    def _accept(self) -> None:
        self._idle_since = time.monotonic()
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors, say; the next one may do better
            log(f"cannot accept a connection: {error.strerror}", LOG_WARNING)
            return
        if _has_hung_up(connection):
            connection.close()  # After we hung ourselves, PAM is not asked for nobody.
        elif not self._may_ask(connection):
            self._dismiss(connection, Reply(Error.FORBIDDEN))
        elif len(self._children) >= self._policy.max_children:
            self._dismiss(connection, Reply(Error.BUSY))
        else:
            self._start_child(connection)

    def _may_ask(self, connection: socket.socket) -> bool:
        uid = unix_socket.peer_uid(connection)
        allowed = uid == 0 or uid in self._policy.allowed_uids
        if not allowed:
            log(f"a process of uid {uid} connected and was refused", LOG_WARNING)
        return allowed

    def _start_child(self, connection: socket.socket) -> None:
        # Blocked, so that the child never runs the parent's handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_child(connection, before)
        except OSError as error:
            log(f"cannot fork: {error.strerror}", LOG_WARNING)
            self._dismiss(connection, Reply(Error.BUSY))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        deadline = time.monotonic() + self._policy.limit_s + KILL_AFTER_S
        self._children[pid] = _Child(connection, deadline)

    def _be_child(self, connection: socket.socket, mask: set[int | signal.Signals]) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            # A stop lets what is under way finish; modules that fork need SIGCHLD's default.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # The default action needs no Python, which does not run while C hangs.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self._policy.limit_s)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for held in (self._listener, self._wake, self._waker):
                held.close()
            for child in self._children.values():
                child.connection.close()
            _answer(connection, self._policy)
            code = 0
        finally:
            os._exit(code)

    def _kill_overdue(self) -> None:
        # Not the alarm's own work: lckpwdf(3) and modules take SIGALRM for themselves.
        now = time.monotonic()
        for pid, child in self._children.items():
            if child.deadline <= now and not child.killed:
                os.kill(pid, signal.SIGKILL)  # not yet reaped, so the pid is still its own
                self._children[pid] = replace(child, killed=True)

    def _reap(self) -> None:
        for pid in list(self._children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._conclude(self._children.pop(pid), status)

    def _conclude(self, child: _Child, status: int) -> None:
        self._idle_since = time.monotonic()
        if status == 0:
            child.connection.close()
            return
        code = os.waitstatus_to_exitcode(status)
        if -code in (signal.SIGALRM, signal.SIGKILL):
            reason = f"No answer from PAM within {self._policy.limit_s:g} seconds."
        else:
            reason = "internal error"
        log(f"a request was ended: {reason} (status {code})", LOG_WARNING)
        self._dismiss(child.connection, Reply(Error.UNAVAILABLE, reason))

    def _dismiss(self, connection: socket.socket, answer: Reply) -> None:
        """Answer without waiting for anything.

        The connection is closed later: a peer that is still sending its request would otherwise
        get EPIPE or ECONNRESET, and not the answer.
        """
        connection.setblocking(False)
        with suppress(OSError):  # the peer is gone
            connection.send(answer.to_line())
            connection.shutdown(socket.SHUT_WR)
        self._dismissed.append(connection)
        if len(self._dismissed) > DISMISSED_MAX:
            self._dismissed.popleft().close()

    def _finish(self) -> None:
        end = time.monotonic() + STOP_TIMEOUT_S
        while self._children and time.monotonic() < end:
            self._wait(None, until=end)
        for pid in list(self._children):
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            self._conclude(self._children.pop(pid), status)
        while self._dismissed:
            self._dismissed.popleft().close()


def _has_hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP, which is never masked: the peer has closed its end.
    return any(event & select.POLLHUP for _fd, event in poll.poll(0))


# The child


def _answer(connection: socket.socket, policy: Policy) -> None:
    """Read one request, do it, answer."""
    try:
        answer = perform(parse(read_line(connection)), policy)
    except RequestError as error:
        answer = Reply(Error.INVALID, str(error))
    except Exception as error:  # its text may hold what was sent
        log(f"internal error: {type(error).__name__}", LOG_WARNING)
        answer = Reply(Error.UNAVAILABLE, "internal error")
    connection.settimeout(ANSWER_TIMEOUT_S)
    with suppress(OSError):  # the peer is gone
        connection.sendall(answer.to_line())
