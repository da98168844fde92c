"""`podyd auth`: the small root process that asks PAM, behind a unix socket.

One JSON line in, one JSON line out, then the connection ends. Every connection gets a child of its
own: PAM modules block, leak and keep state, and a child can be killed. The parent never calls PAM
or NSS, so a hanging LDAP cannot hold it.

Requests and their answers (`ACCOUNT` is {name, uid, gid, groups, home, shell}):

    {"op": "ping"}                                    {"ok": true}
    {"op": "login", "user", "password", "remote"}     {"ok": true, "account": ACCOUNT, "mark"}
    {"op": "passwd", "user", "old", "new"}            {"ok": true}
    {"op": "account", "user", "remote"}               {"ok": true, "account": ACCOUNT, "mark"}
    {"op": "accounts"}                                {"ok": true, "accounts": [ACCOUNT, ...]}

or {"error": WORD}, with a sentence in `reason` where the user may read one; the words are in Error.
"expired" lets nobody in, but comes with `account` and `mark`: whom a `passwd` would be for. `mark`
is another one with each new password, and absent where this host does not keep the password.
"""

from __future__ import annotations

import enum
import grp
import json
import math
import os
import pwd
import select
import signal
import socket
import stat
import struct
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from syslog import LOG_INFO, LOG_NOTICE, LOG_WARNING
from types import FrameType
from typing import NoReturn

from podyd.auth import pam
from podyd.base.files import make_directory
from podyd.base.logs import stderr_is_journal

REQUEST_MAX_BYTES = 16 * 1024
REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 5.0
# After the alarm of a child itself, which a PAM module may have taken away.
KILL_AFTER_S = 1.0

DISMISSED_MAX = 64

NOBODY_UID = 65534
_INHERITED_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_PEERCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


class Error(enum.Enum):
    """Why a request was not done."""

    DENIED = "denied"  # wrong password, unknown user, system account
    REFUSED = "refused"  # the password is right, but the account may not
    EXPIRED = "expired"  # the same until `passwd` has changed it
    WEAK = "weak"  # the new password breaks a rule; nothing was changed
    INVALID = "invalid"  # the request itself is wrong; nothing was done
    UNAVAILABLE = "unavailable"  # PAM could not be asked, or took too long
    BUSY = "busy"  # as many children as allowed are at work
    FORBIDDEN = "forbidden"  # this peer may not ask


@dataclass(frozen=True)
class Account:
    """A Linux account, as NSS has it; `groups` are names, sorted, the primary one included."""

    name: str
    uid: int
    gid: int
    groups: tuple[str, ...]
    home: str
    shell: str


@dataclass(frozen=True)
class Answer:
    """What goes back; without an error it is a success."""

    error: Error | None = None
    reason: str = ""
    account: Account | None = None
    accounts: tuple[Account, ...] | None = None
    mark: str = ""

    def to_line(self) -> bytes:
        """The answer on the wire."""
        body: dict[str, object] = {"error": self.error.value} if self.error else {"ok": True}
        if self.reason:
            body["reason"] = self.reason
        if self.account is not None:
            body["account"] = asdict(self.account)
        if self.accounts is not None:
            body["accounts"] = [asdict(account) for account in self.accounts]
        if self.mark:
            body["mark"] = self.mark
        return json.dumps(body).encode() + b"\n"


@dataclass(frozen=True)
class Login:
    """Is this the password, and may this account log in now?"""

    user: str
    password: str = field(repr=False)
    remote: str = ""


@dataclass(frozen=True)
class Passwd:
    """Change a password, proven by the old one."""

    user: str
    old: str = field(repr=False)
    new: str = field(repr=False)


@dataclass(frozen=True)
class OneAccount:
    """May this account log in now, whoever asks? It proves nothing."""

    user: str
    remote: str = ""


@dataclass(frozen=True)
class AllAccounts:
    """Every account that could log in."""


@dataclass(frozen=True)
class Ping:
    """Is anybody there?"""


Request = Login | Passwd | OneAccount | AllAccounts | Ping

_OPERATIONS: dict[object, type[Request]] = {
    "login": Login,
    "passwd": Passwd,
    "account": OneAccount,
    "accounts": AllAccounts,
    "ping": Ping,
}


class RequestError(ValueError):
    """A request that cannot be read; the text never repeats what was sent."""


@dataclass(frozen=True)
class Settings:
    """How the helper judges: `limit_s` is the longest that one request may take."""

    service: str
    allowed_uids: frozenset[int]
    max_children: int
    limit_s: float
    min_uid: int


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
        _log(f"logins will fail: {ready.reason}", LOG_WARNING)
    settings = Settings(service, allowed_uids, max_children, limit_s, min_uid)
    inherited = _inherited_listener()
    if inherited is not None:
        with inherited:
            _Server(inherited, settings, idle_s).run()
        return
    with _own_listener(socket_path, socket_owner, socket_group, socket_mode) as listener:
        _Server(listener, settings).run()


# The socket


def _inherited_listener() -> socket.socket | None:
    """The socket of systemd's socket activation, if this process was meant."""
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    listener = socket.socket(fileno=_INHERITED_FD)
    listener.set_inheritable(False)
    return listener


@contextmanager
def _own_listener(path: Path, owner: int, group: int, mode: int) -> Iterator[socket.socket]:
    """A new listening socket at `path`, removed afterwards if it is still ours."""
    make_directory(path.parent)
    _refuse_if_taken(path)
    # Bound under another name, so that at `path` it never has the wrong owner or mode.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(draft))
        finally:
            os.umask(before)
        os.chown(draft, owner, group)
        draft.chmod(mode)
        listener.listen(128)
        ours = draft.stat().st_ino
        draft.replace(path)
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if path.lstat().st_ino == ours:
                    path.unlink()


def _refuse_if_taken(path: Path) -> None:
    """Only a socket on which nobody listens may be replaced."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is somebody, too
        with suppress(ConnectionRefusedError):
            with suppress(BlockingIOError):
                probe.connect(str(path))
            raise FileExistsError(f"{path} is served by another process")


# The parent


@dataclass(frozen=True)
class _Child:
    """A request under way. The parent keeps the connection, to answer for a child that dies."""

    connection: socket.socket
    deadline: float  # of time.monotonic()
    killed: bool = False  # it may stay a while: the disk of an NFS server, say


class _Server:
    """Accepts, forks, reaps. Single-threaded, since it forks."""

    def __init__(
        self, listener: socket.socket, settings: Settings, idle_s: float = math.inf
    ) -> None:
        self._listener = listener
        self._wake, self._waker = socket.socketpair()
        self._settings = settings
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
            _log(f"cannot accept a connection: {error.strerror}", LOG_WARNING)
            return
        if _has_hung_up(connection):
            connection.close()  # After we hung ourselves, PAM is not asked for nobody.
        elif not self._may_ask(connection):
            self._dismiss(connection, Answer(Error.FORBIDDEN))
        elif len(self._children) >= self._settings.max_children:
            self._dismiss(connection, Answer(Error.BUSY))
        else:
            self._start_child(connection)

    def _may_ask(self, connection: socket.socket) -> bool:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        _pid, uid, _gid = _PEERCRED.unpack(raw)
        allowed = uid == 0 or uid in self._settings.allowed_uids
        if not allowed:
            _log(f"a process of uid {uid} asked and may not", LOG_WARNING)
        return allowed

    def _start_child(self, connection: socket.socket) -> None:
        # Blocked, so that the child never runs the parent's handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_child(connection, before)
        except OSError as error:
            _log(f"cannot fork: {error.strerror}", LOG_WARNING)
            self._dismiss(connection, Answer(Error.BUSY))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        deadline = time.monotonic() + self._settings.limit_s + KILL_AFTER_S
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
            signal.setitimer(signal.ITIMER_REAL, self._settings.limit_s)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for held in (self._listener, self._wake, self._waker):
                held.close()
            for child in self._children.values():
                child.connection.close()
            _answer(connection, self._settings)
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
            reason = f"No answer from PAM within {self._settings.limit_s:g} seconds."
        else:
            reason = "internal error"
        _log(f"a request was ended: {reason} (status {code})", LOG_WARNING)
        self._dismiss(child.connection, Answer(Error.UNAVAILABLE, reason))

    def _dismiss(self, connection: socket.socket, answer: Answer) -> None:
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


def _answer(connection: socket.socket, settings: Settings) -> None:
    """Read one request, do it, answer."""
    try:
        answer = _perform(_parse(_read_line(connection)), settings)
    except RequestError as error:
        answer = Answer(Error.INVALID, str(error))
    except Exception as error:  # its text may hold what was sent
        _log(f"internal error: {type(error).__name__}", LOG_WARNING)
        answer = Answer(Error.UNAVAILABLE, "internal error")
    connection.settimeout(ANSWER_TIMEOUT_S)
    with suppress(OSError):  # the peer is gone
        connection.sendall(answer.to_line())


def _read_line(connection: socket.socket) -> bytes:
    end = time.monotonic() + REQUEST_TIMEOUT_S
    received = b""
    while b"\n" not in received:
        if len(received) > REQUEST_MAX_BYTES:
            raise RequestError(f"A request has at most {REQUEST_MAX_BYTES} bytes.")
        connection.settimeout(max(0.001, end - time.monotonic()))
        try:
            part = connection.recv(REQUEST_MAX_BYTES + 1)
        except TimeoutError as error:
            raise RequestError(f"No request within {REQUEST_TIMEOUT_S:g} seconds.") from error
        except ConnectionError as error:
            raise RequestError("The connection broke.") from error
        if not part:
            raise RequestError("A request is one line.")
        received += part
    line, rest = received.split(b"\n", 1)
    if rest or len(line) > REQUEST_MAX_BYTES:
        raise RequestError(f"A request is one line of at most {REQUEST_MAX_BYTES} bytes.")
    return line


def _parse(line: bytes) -> Request:
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        # Without `from`: the JSON error holds the request.
        raise RequestError("The request is not JSON.") from None
    if not isinstance(body, dict):
        raise RequestError("The request is not an object.")
    op = body.pop("op", None)
    kind = _OPERATIONS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise RequestError(f"`op` is one of {', '.join(map(str, _OPERATIONS))}.")
    known = {item.name for item in fields(kind)}
    needed = {item.name for item in fields(kind) if item.default is MISSING}
    texts = {name: value for name, value in body.items() if isinstance(value, str)}
    if len(texts) != len(body) or not needed <= set(texts) <= known:
        raise RequestError(f"`{op}` takes these, all texts: {', '.join(sorted(known)) or '-'}.")
    return kind(**texts)


def _perform(request: Request, settings: Settings) -> Answer:
    match request:
        case Login() | Passwd() | OneAccount():
            return _judge(request, settings)
        case AllAccounts():
            return Answer(accounts=_all_accounts(settings.min_uid))
        case Ping():
            return Answer()


def _judge(request: Login | Passwd | OneAccount, settings: Settings) -> Answer:
    """Answer about one account, and log what was said."""
    began = time.monotonic()
    entry = _find(request.user, settings.min_uid)
    match request:
        case Login():
            what, remote, answer = "login", request.remote, _login(request, entry, settings)
        case OneAccount():
            what, remote, answer = "account", request.remote, _one(request, entry, settings)
        case Passwd():
            what, remote, answer = "passwd", "-", _passwd(request, entry, settings)
    outcome = answer.error.value if answer.error else "ok"
    took_ms = (time.monotonic() - began) * 1000
    # An unknown name may be a password that was typed in the wrong place.
    who = _quoted(entry.pw_name) if entry else "somebody unknown"
    level = _LEVELS.get(answer.error, LOG_INFO) if answer.error else LOG_INFO
    _log(f"{what} {who} from {_quoted(remote)}: {outcome}, {took_ms:.0f} ms", level)
    return answer


def _login(request: Login, entry: pwd.struct_passwd | None, settings: Settings) -> Answer:
    if entry is None:
        pam.spend_time(request.password)
        return Answer(Error.DENIED)
    # Before: a password that changes meanwhile must not leave its mark on this login.
    secret = pam.secret_of(entry.pw_name)
    result = pam.authenticate(entry.pw_name, request.password, settings.service, request.remote)
    return _admit(entry, secret, result)


def _one(request: OneAccount, entry: pwd.struct_passwd | None, settings: Settings) -> Answer:
    if entry is None:
        return Answer(Error.DENIED)
    secret = pam.secret_of(entry.pw_name)
    if secret.locked:
        return Answer(Error.REFUSED, "The account is locked.")
    result = pam.may_log_in(entry.pw_name, settings.service, request.remote)
    return _admit(entry, secret, result)


def _admit(entry: pwd.struct_passwd, secret: pam.Secret, result: pam.Result) -> Answer:
    if result.outcome not in (pam.Outcome.OK, pam.Outcome.EXPIRED):
        return _from_pam(result)
    if not _has_login_shell(entry):  # told only to who is let in otherwise
        return Answer(Error.REFUSED, "The account has no login shell.")
    return replace(_from_pam(result), account=_account(entry), mark=secret.mark)


def _passwd(request: Passwd, entry: pwd.struct_passwd | None, settings: Settings) -> Answer:
    problem = _unusable(request.new)
    if problem:
        return Answer(Error.INVALID, problem)
    if entry is None:
        pam.spend_time(request.old)
        return Answer(Error.DENIED)
    return _from_pam(
        pam.change_password(entry.pw_name, entry.pw_uid, request.old, request.new, settings.service)
    )


def _from_pam(result: pam.Result) -> Answer:
    if result.outcome is pam.Outcome.OK:
        return Answer()
    return Answer(Error(result.outcome.value), result.reason)


def _unusable(password: str) -> str:
    """Why this cannot be a password at all, or nothing."""
    if not password:
        return "The new password is empty."
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in password):
        return "The new password holds a control character, such as a line break."
    try:
        length = len(password.encode())
    except UnicodeEncodeError:
        return "The new password is not valid Unicode."
    if length > pam.PASSWORD_MAX_BYTES:
        return f"The new password is longer than {pam.PASSWORD_MAX_BYTES} bytes."
    return ""


# Accounts


def _find(user: str, min_uid: int) -> pwd.struct_passwd | None:
    """The account, if it is a person's; PAM is never asked about root or a system account."""
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):  # ValueError: NUL, or half a surrogate pair
        return None
    return entry if _is_person(entry, min_uid) else None


def _is_person(entry: pwd.struct_passwd, min_uid: int) -> bool:
    return entry.pw_uid >= min_uid and entry.pw_uid not in (0, NOBODY_UID)


def _has_login_shell(entry: pwd.struct_passwd) -> bool:
    return Path(entry.pw_shell).name not in ("nologin", "false")


def _account(entry: pwd.struct_passwd) -> Account:
    names = []
    for gid in os.getgrouplist(entry.pw_name, entry.pw_gid):
        with suppress(KeyError):  # a gid without a name is no group to configure
            names.append(grp.getgrgid(gid).gr_name)
    return _as_account(entry, names)


def _all_accounts(min_uid: int) -> tuple[Account, ...]:
    """All that NSS enumerates, by name; the groups are read once, not once per account."""
    primary: dict[int, str] = {}
    memberships: dict[str, list[str]] = defaultdict(list)
    for group in grp.getgrall():
        primary.setdefault(group.gr_gid, group.gr_name)
        for member in group.gr_mem:
            memberships[member].append(group.gr_name)
    people = {
        entry.pw_name: entry
        for entry in pwd.getpwall()
        if _is_person(entry, min_uid) and _has_login_shell(entry)
    }
    accounts = []
    for name, entry in sorted(people.items()):
        own = [primary[entry.pw_gid]] if entry.pw_gid in primary else []
        accounts.append(_as_account(entry, own + memberships[name]))
    return tuple(accounts)


def _as_account(entry: pwd.struct_passwd, groups: list[str]) -> Account:
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(sorted(set(groups))),
        home=entry.pw_dir,
        shell=entry.pw_shell,
    )


# The log


# Of what a person could want to see among many logins; else LOG_INFO.
_LEVELS = {
    Error.DENIED: LOG_NOTICE,
    Error.REFUSED: LOG_NOTICE,
    Error.EXPIRED: LOG_NOTICE,
    Error.UNAVAILABLE: LOG_WARNING,
}


def _log(text: str, level: int) -> None:
    """One line, written at once: children share stderr.

    The journal takes the level off its front; see sd-daemon(3).
    """
    prefix = f"<{level}>" if stderr_is_journal() else ""
    with suppress(OSError):
        os.write(2, f"{prefix}podyd auth: {text}\n".encode(errors="replace"))


def _quoted(text: str) -> str:
    """Whatever a stranger sent, in at most 64 harmless characters."""
    return ascii(text)[1:-1][:64]
