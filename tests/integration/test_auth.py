"""The auth helper on real accounts and the real PAM of this machine."""

from __future__ import annotations

import concurrent.futures
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from podyd.auth import client, pam, policy, protocol, server
from podyd.auth.accounts import NOBODY_UID, find
from tests.integration.harness import PASSWORD, ROOT, Accounts, run, wait_until

PAM_FILE = ROOT / "podyd/data/pam.d-podyd"
SERVICE = "podyd-test"
OTHER_SERVICE = "podyd-test-other"
NOLOGIN = Path("/etc/nologin")
NEW_PASSWORD = "battery-Staple-8"
PREFIX = f"podydt{os.getpid()}"
ODD_NAMES = ("2021302111", "li_meng", "a.b", "Zhang", PREFIX.ljust(32, "x"))
# libpam's delay after a wrong password is at least one second.
UNDELAYED_S = 0.8

Reply = dict[str, Any]


def children_of(parent: int) -> list[int]:
    """Zombies included."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            after_name = path.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == parent:
                children.append(int(path.parent.name))
    return children


def shadow_line(user: str) -> str:
    lines = Path("/etc/shadow").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{user}:"))


# Accounts


@pytest.fixture(scope="module")
def accounts() -> Iterator[Accounts]:
    accounts = Accounts()
    try:
        yield accounts
    finally:
        accounts.close()


@pytest.fixture(scope="module")
def member(accounts: Accounts) -> str:
    """An ordinary account that no test changes."""
    return accounts.user(f"{PREFIX}m")


@pytest.fixture
def fresh(accounts: Accounts) -> str:
    """An account for one test."""
    return accounts.user()


# Helpers under test


@dataclass(frozen=True)
class Running:
    """A helper process, and how to ask it."""

    process: subprocess.Popen[bytes]
    path: Path
    log: Path

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(15)
            connection.connect(str(self.path))
        except OSError:
            connection.close()
            raise
        return connection

    def ask_raw(self, line: bytes) -> Reply:
        with self.connect() as connection:
            connection.sendall(line)
            return reply_on(connection)

    def ask(self, op: str, **fields: object) -> Reply:
        return self.ask_raw(json.dumps({"op": op, **fields}).encode() + b"\n")

    def login(self, user: str, password: str = PASSWORD) -> Reply:
        return self.ask("login", user=user, password=password, remote="192.0.2.7")

    def passwd(self, user: str, old: str, new: str) -> Reply:
        return self.ask("passwd", user=user, old=old, new=new)

    def has_no_children(self) -> bool:
        return not children_of(self.process.pid)


def reply_on(connection: socket.socket) -> Reply:
    with connection.makefile("rb") as file:
        line = file.readline()
    assert line.endswith(b"\n"), "closed without an answer"
    reply: Reply = json.loads(line)
    return reply


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Where every user may go, which pytest's own directories do not allow."""
    path = Path(tempfile.mkdtemp(prefix="podydt", dir="/run"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def pam_service(name: str, text: str) -> Iterator[None]:
    path = pam.SERVICE_DIR / name
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink()


@pytest.fixture(scope="module", autouse=True)
def _pam_service() -> Iterator[None]:
    with pam_service(SERVICE, PAM_FILE.read_text()):
        yield


def launch(path: Path, log: Path, **options: object) -> subprocess.Popen[bytes]:
    """Start a helper in a process of its own, with an unfriendly umask."""
    settings = {"service": SERVICE, "allowed_uids": frozenset[int](), **options}
    program = (
        "import os; os.umask(0o077); from pathlib import Path;"
        " from podyd.auth import server;"
        f"server.serve(Path({str(path)!r}), **{settings!r})"
    )
    with log.open("wb") as stderr:
        return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=stderr)


@contextmanager
def helper(directory: Path, **options: object) -> Iterator[Running]:
    """A helper that must end well and leave nothing."""
    folder = Path(tempfile.mkdtemp(dir=directory))
    folder.chmod(0o755)
    path, log = folder / "made" / "auth.sock", folder / "log"
    running = Running(launch(path, log, **options), path, log)
    try:
        wait_until(path.exists, "the socket")
        yield running
        wait_until(running.has_no_children, "the children to be reaped")
        running.process.terminate()
        assert running.process.wait(10) == 0
        assert not path.exists()
    finally:
        running.process.kill()
        running.process.wait()
        print(log.read_text())


@pytest.fixture(scope="module")
def auth(directory: Path) -> Iterator[Running]:
    with helper(directory, max_children=64) as running:
        yield running


# Logging in


def test_right_password_gives_the_account(auth: Running, member: str) -> None:
    entry = pwd.getpwnam(member)
    reply = auth.login(member)
    assert len(reply.pop("mark")) == 32
    assert reply == {
        "ok": True,
        "account": {
            "name": member,
            "uid": entry.pw_uid,
            "gid": entry.pw_gid,
            "groups": ["users"],
            "home": entry.pw_dir,
            "shell": "/bin/bash",
        },
    }


@pytest.mark.alone
def test_wrong_password_is_denied_without_delay(auth: Running, member: str) -> None:
    began = time.monotonic()
    assert auth.login(member, "wrong") == {"error": "denied"}
    assert time.monotonic() - began < UNDELAYED_S


@pytest.mark.parametrize("password", ["", PASSWORD[:-1], f"{PASSWORD}\0", "x" * 600, "\ud800"])
def test_almost_right_passwords_are_denied(auth: Running, member: str, password: str) -> None:
    assert auth.login(member, password) == {"error": "denied"}


@pytest.mark.parametrize("user", ["podydt-nobody-of-that-name", "", "a\0b", "\ud800", "../etc"])
def test_unknown_user_is_denied(auth: Running, user: str) -> None:
    assert auth.login(user) == {"error": "denied"}
    assert auth.ask("account", user=user) == {"error": "denied"}


def test_system_accounts_are_denied_with_the_right_password(
    auth: Running, accounts: Accounts
) -> None:
    system = accounts.user(f"{PREFIX}s", "--system")
    before = shadow_line(system)
    assert auth.login(system) == {"error": "denied"}
    assert auth.passwd(system, PASSWORD, NEW_PASSWORD) == {"error": "denied"}
    assert shadow_line(system) == before
    for user in ("root", "daemon", "nobody"):
        assert auth.login(user) == {"error": "denied"}
        assert auth.ask("account", user=user) == {"error": "denied"}


def test_system_accounts_are_not_shown_to_pam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pam, "authenticate", lambda *_: pytest.fail("PAM was asked about root"))
    settings = policy.Policy(SERVICE, frozenset(), 1, 1.0, 1000)
    assert policy.judge(protocol.LoginRequest("root", "x"), settings).error is protocol.Error.DENIED


def test_root_is_nobody_even_where_system_accounts_may_log_in() -> None:
    assert find("daemon", min_uid=0) is not None
    assert find("root", min_uid=0) is None


@pytest.mark.alone
def test_unknown_user_takes_as_long_as_a_wrong_password(auth: Running, member: str) -> None:
    def shortest_s(user: str) -> float:
        times = []
        for _ in range(3):
            began = time.monotonic()
            auth.login(user, "wrong")
            times.append(time.monotonic() - began)
        return min(times)

    assert shortest_s("podydt-nobody-of-that-name") > shortest_s(member) / 3


def test_success_without_a_question_is_no_proof(directory: Path, member: str) -> None:
    with (
        pam_service(OTHER_SERVICE, "auth required pam_permit.so\naccount required pam_permit.so\n"),
        helper(directory, service=OTHER_SERVICE) as running,
    ):
        assert running.login(member) == {"error": "denied"}


def test_locked_account_is_denied(auth: Running, fresh: str) -> None:
    run("passwd", "-l", fresh)
    assert auth.login(fresh) == {"error": "denied"}


def test_account_without_a_password_is_denied(auth: Running, fresh: str) -> None:
    run("passwd", "-d", fresh)
    for password in ("", "anything"):
        assert auth.login(fresh, password) == {"error": "denied"}
    before = shadow_line(fresh)
    assert auth.passwd(fresh, "anything", NEW_PASSWORD) == {"error": "denied"}
    assert shadow_line(fresh) == before


def test_expired_account_is_refused_to_who_knows_the_password(auth: Running, fresh: str) -> None:
    run("chage", "-E", "0", fresh)
    reply = auth.login(fresh)
    assert reply["error"] == "refused"
    assert "account has expired" in reply["reason"]
    assert auth.login(fresh, "wrong") == {"error": "denied"}
    assert auth.passwd(fresh, PASSWORD, NEW_PASSWORD)["error"] == "refused"


def long_ago(days: int) -> str:
    """A day as chage(1) takes it."""
    return str(int(time.time() / 86400) - days)


@pytest.mark.parametrize(
    "options",
    [("-d", "0"), ("-d", long_ago(100), "-M", "90"), ("-d", long_ago(100), "-M", "90", "-I", "30")],
    ids=["at first", "too old", "in the days of grace"],
)
def test_expired_password_lets_nobody_in_and_can_be_changed(
    auth: Running, fresh: str, options: tuple[str, ...]
) -> None:
    whole = auth.login(fresh)
    run("chage", *options, fresh)
    expired = {key: whole[key] for key in ("account", "mark")} | {
        "error": "expired",
        "reason": "The password has expired and must be changed.",
    }
    assert auth.login(fresh) == expired
    assert auth.ask("account", user=fresh) == expired
    assert auth.login(fresh, "wrong") == {"error": "denied"}
    assert auth.passwd(fresh, "wrong", NEW_PASSWORD) == {"error": "denied"}
    before = shadow_line(fresh)
    for weak in ("a", PASSWORD):
        reply = auth.passwd(fresh, PASSWORD, weak)
        assert reply["error"] == "weak"
        assert reply["reason"]
    assert shadow_line(fresh) == before
    assert auth.passwd(fresh, PASSWORD, NEW_PASSWORD) == {"ok": True}
    assert auth.login(fresh) == {"error": "denied"}
    assert auth.login(fresh, NEW_PASSWORD)["ok"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("chage", "-d", long_ago(100), "-M", "10", "-I", "5"), "Your account has expired"),
        (("chage", "-d", "0", "-E", "0"), "Your account has expired"),
        (("usermod", "-s", "/usr/sbin/nologin"), "The account has no login shell."),
    ],
    ids=["inactive", "account expired", "no shell"],
)
def test_expired_password_of_an_account_that_is_out(
    auth: Running, fresh: str, command: tuple[str, ...], reason: str
) -> None:
    run("chage", "-d", "0", fresh)
    run(*command, fresh)
    reply = auth.login(fresh)
    assert (reply["error"], set(reply)) == ("refused", {"error", "reason"})
    assert reply["reason"].startswith(reason)
    assert auth.login(fresh, "wrong") == {"error": "denied"}
    if command[0] == "chage":
        before = shadow_line(fresh)
        assert auth.passwd(fresh, PASSWORD, NEW_PASSWORD)["error"] == "refused"
        assert shadow_line(fresh) == before


def test_expired_password_of_a_locked_account(auth: Running, fresh: str) -> None:
    run("chage", "-d", "0", fresh)
    run("usermod", "-L", fresh)
    before = shadow_line(fresh)
    assert auth.login(fresh) == {"error": "denied"}
    assert auth.passwd(fresh, PASSWORD, NEW_PASSWORD) == {"error": "denied"}
    assert auth.ask("account", user=fresh)["error"] == "refused"
    assert shadow_line(fresh) == before


@pytest.mark.alone
def test_nologin_refuses_with_its_text(auth: Running, member: str) -> None:
    try:
        with NOLOGIN.open("x") as file:
            file.write("New disks until noon.\n")
    except FileExistsError:
        pytest.skip("this machine is closed for logins")
    try:
        right, wrong = auth.login(member), auth.login(member, "wrong")
    finally:
        NOLOGIN.unlink()
    assert right == {"error": "refused", "reason": "New disks until noon."}
    assert wrong == {"error": "denied"}
    assert auth.login(member)["ok"]


@pytest.mark.parametrize("shell", ["/usr/sbin/nologin", "/bin/false"])
def test_no_login_shell_is_refused_to_who_knows_the_password(
    auth: Running, fresh: str, shell: str
) -> None:
    run("usermod", "-s", shell, fresh)
    assert auth.login(fresh) == {"error": "refused", "reason": "The account has no login shell."}
    assert auth.login(fresh, "wrong") == {"error": "denied"}


@pytest.mark.parametrize("name", ODD_NAMES, ids=[*ODD_NAMES[:-1], "long"])
def test_odd_names_log_in_and_change_their_password(
    auth: Running, accounts: Accounts, name: str
) -> None:
    accounts.user(name)
    assert auth.login(name)["account"]["name"] == name
    assert auth.passwd(name, PASSWORD, NEW_PASSWORD) == {"ok": True}
    assert auth.login(name, NEW_PASSWORD)["ok"]


# Whether an account may log in, without its password


def test_an_account_that_may_log_in(auth: Running, member: str) -> None:
    assert auth.ask("account", user=member, remote="192.0.2.7") == auth.login(member)
    assert f"account {member} from 192.0.2.7: ok" in auth.log.read_text()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("usermod", "-L"), "The account is locked."),
        (("passwd", "-l"), "The account is locked."),
        (("usermod", "-s", "/usr/sbin/nologin"), "The account has no login shell."),
        (("chage", "-E", "0"), "Your account has expired; please contact your system"),
    ],
    ids=lambda item: item if isinstance(item, str) else " ".join(item),
)
def test_an_account_that_may_not_log_in(
    auth: Running, fresh: str, command: tuple[str, ...], reason: str
) -> None:
    assert auth.ask("account", user=fresh)["ok"]
    run(*command, fresh)
    reply = auth.ask("account", user=fresh)
    assert reply["error"] == "refused"
    assert reply["reason"].startswith(reason)


def test_pams_account_rules_hold_without_a_password(directory: Path, member: str) -> None:
    rules = "auth required pam_permit.so\naccount required pam_deny.so\n"
    with (
        pam_service(OTHER_SERVICE, rules),
        helper(directory, service=OTHER_SERVICE) as running,
    ):
        assert running.ask("account", user=member)["error"] == "refused"


def test_the_mark_is_that_of_the_password(auth: Running, fresh: str) -> None:
    def mark() -> str:
        answer: str = auth.ask("account", user=fresh)["mark"]
        return answer

    before = mark()
    run("usermod", "-L", fresh)
    run("usermod", "-U", fresh)
    assert mark() == before
    run("chpasswd", stdin=f"{fresh}:{PASSWORD}\n")
    assert mark() != before, "set anew, be it to the same"
    assert shadow_line(fresh).split(":")[1] not in json.dumps(auth.login(fresh))


# Accounts


def test_accounts_lists_people_with_their_groups(auth: Running, accounts: Accounts) -> None:
    name = accounts.user(f"{PREFIX}g", "-G", "audio,games")
    hidden = accounts.user(f"{PREFIX}h", "-s", "/usr/sbin/nologin", password="")
    listed = {account["name"]: account for account in auth.ask("accounts")["accounts"]}
    assert listed[name] == auth.ask("account", user=name)["account"]
    assert listed[name]["groups"] == ["audio", "games", "users"]
    assert not {hidden, "root", "nobody", "daemon"} & set(listed)


# Changing a password


def test_changed_password_counts_at_once(auth: Running, fresh: str) -> None:
    assert auth.passwd(fresh, PASSWORD, NEW_PASSWORD) == {"ok": True}
    assert auth.login(fresh) == {"error": "denied"}
    assert auth.login(fresh, NEW_PASSWORD)["ok"]


@pytest.mark.parametrize("new", ["pässwört-秘密-🔑", "x y" * 170 + "z"])
def test_long_and_non_ascii_passwords(auth: Running, fresh: str, new: str) -> None:
    assert auth.passwd(fresh, PASSWORD, new) == {"ok": True}
    assert auth.login(fresh, new)["ok"]
    assert auth.login(fresh, new[:-1]) == {"error": "denied"}


def test_wrong_old_password_changes_nothing(auth: Running, fresh: str) -> None:
    before = shadow_line(fresh)
    for old in ("wrong", "", f"{PASSWORD}\0"):
        assert auth.passwd(fresh, old, NEW_PASSWORD) == {"error": "denied"}
    assert shadow_line(fresh) == before


@pytest.mark.parametrize(
    ("new", "word"),
    [
        ("", "empty"),
        (f"{NEW_PASSWORD}\n", "control"),
        (f"{NEW_PASSWORD}\nroot:x", "control"),
        (f"{NEW_PASSWORD}\0", "control"),
        (f"{NEW_PASSWORD}\x7f", "control"),
        (f"{NEW_PASSWORD}\ud800", "Unicode"),
        ("aB3-" * 128, "longer than 511 bytes"),
        ("ä" * 256, "longer than 511 bytes"),
    ],
)
def test_unusable_new_password_changes_nothing(
    auth: Running, member: str, new: str, word: str
) -> None:
    before = shadow_line(member)
    reply = auth.passwd(member, PASSWORD, new)
    assert reply["error"] == "invalid"
    assert word in reply["reason"]
    assert shadow_line(member) == before


@pytest.mark.parametrize("new", ["a", PASSWORD])
def test_weak_new_password_is_refused_with_the_reason(auth: Running, member: str, new: str) -> None:
    before = shadow_line(member)
    reply = auth.passwd(member, PASSWORD, new)
    assert reply["error"] == "weak"
    if new == "a":  # the rules of this very host, but none lets it pass without a word
        assert "password" in reply["reason"].lower()
    assert reply["reason"]
    assert shadow_line(member) == before


# Requests


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"not json\n",
        b"[" * 9000 + b"\n",
        b"[]\n",
        b'"ping"\n',
        b"\xff\n",
        b'{"op": "nothing"}\n',
        b'{"op": ["ping"]}\n',
        b'{"op": "ping", "more": "x"}\n',
        b'{"op": "login", "user": "x"}\n',
        b'{"op": "login", "user": "x", "password": 1}\n',
        b'{"op": "ping"}\n{"op": "ping"}\n',
        b'{"op": "account", "user": "' + b"x" * protocol.REQUEST_MAX_BYTES + b'"}\n',
    ],
)
def test_unreadable_requests_are_invalid(auth: Running, line: bytes) -> None:
    reply = auth.ask_raw(line)
    assert reply["error"] == "invalid"
    assert reply["reason"]


def test_request_may_arrive_in_pieces(auth: Running) -> None:
    with auth.connect() as connection:
        for byte in b'{"op": "ping"}\n':
            connection.send(bytes([byte]))
        assert reply_on(connection) == {"ok": True}


def test_half_a_request_is_invalid(auth: Running) -> None:
    with auth.connect() as connection:
        connection.sendall(b'{"op": "ping"}')
        connection.shutdown(socket.SHUT_WR)
        assert reply_on(connection)["error"] == "invalid"


def test_log_has_users_and_outcomes_and_no_passwords(auth: Running, member: str) -> None:
    auth.login(member, "Secret-Wrong-1")
    auth.login("Secret-Wrong-0", "typed in the wrong place")
    auth.login(f"{member}\nroot", "Secret-Wrong-1")
    auth.passwd(member, "Secret-Wrong-2", "Secret-Wrong-3")
    auth.ask_raw(b'{"op": "login", "password": "Secret-Wrong-4"\n')
    log = auth.log.read_text()
    assert f"login {member} from 192.0.2.7: denied" in log
    assert log.count("login somebody unknown from 192.0.2.7: denied") >= 2
    assert f"passwd {member} from -: denied" in log
    assert "Secret" not in log
    assert PASSWORD not in log
    assert NEW_PASSWORD not in log


def test_passwords_are_not_in_a_repr() -> None:
    assert "secret" not in repr(protocol.LoginRequest("u", "secret"))
    assert "secret" not in repr(protocol.Passwd("u", "secret", "secret"))


def test_missing_service_file_is_unavailable(directory: Path, member: str) -> None:
    with helper(directory, service="podyd-test-missing") as running:
        reply = running.login(member)
        assert "logins will fail" in running.log.read_text()
    assert reply["error"] == "unavailable"
    assert "/etc/pam.d/podyd-test-missing" in reply["reason"]


# Peers and load


def ping_as(uid: int, path: Path) -> Reply:
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.send(b\'{"op": "ping"}\\n\'); print(s.recv(999).decode())'
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", program, str(path)],
        user=uid,
        check=True,
        capture_output=True,
    )
    reply: Reply = json.loads(done.stdout)
    return reply


def test_only_allowed_peers_may_ask(directory: Path) -> None:
    with helper(directory, socket_mode=0o666) as running:
        assert ping_as(NOBODY_UID, running.path) == {"error": "forbidden"}
        assert running.ask("ping") == {"ok": True}


def test_socket_belongs_to_the_peer_alone(directory: Path) -> None:
    uid = NOBODY_UID
    with helper(directory, socket_owner=uid, allowed_uids=frozenset({uid})) as running:
        status = running.path.stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (uid, 0o600)
        assert stat.S_IMODE(running.path.parent.stat().st_mode) == 0o755
        assert ping_as(uid, running.path) == {"ok": True}


@pytest.mark.alone
def test_full_helper_is_busy_at_once(directory: Path) -> None:
    with helper(directory, max_children=1) as running, running.connect() as first:
        began = time.monotonic()
        assert running.ask_raw(b"") == {"error": "busy"}
        assert time.monotonic() - began < 1
        with running.connect() as late:
            # The parent works in order: once it has answered this one, it is done with `late`.
            assert running.ask("ping") == {"error": "busy"}
            late.sendall(b'{"op": "ping"}\n')
            assert reply_on(late) == {"error": "busy"}
        for _ in range(server.DISMISSED_MAX + 10):
            assert running.ask("ping") == {"error": "busy"}
        first.sendall(b'{"op": "ping"}\n')
        assert reply_on(first) == {"ok": True}
        wait_until(running.has_no_children, "the first child")
        assert running.ask("ping") == {"ok": True}


def test_who_has_hung_up_is_not_asked_about(directory: Path, fresh: str) -> None:
    """A helper that hung for a while must not work through what nobody waits for any more."""
    request = json.dumps({"op": "login", "user": fresh, "password": "wrong"}).encode() + b"\n"
    with helper(directory, max_children=4) as running:
        running.process.send_signal(signal.SIGSTOP)
        for _ in range(40):
            with running.connect() as gone:
                gone.sendall(request)
        running.process.send_signal(signal.SIGCONT)
        assert running.login(fresh)["ok"]
        assert running.log.read_text().count(fresh) == 1


@contextmanager
def hanging_service(directory: Path, user: str) -> Iterator[None]:
    """A PAM service that runs a program for one user, which hangs until this ends."""
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    holder = os.open(fifo, os.O_RDWR)  # while it is open the program waits for a line
    text = (
        f"auth [success=ignore default=1] pam_succeed_if.so quiet user = {user}\n"
        f"auth required pam_exec.so quiet /bin/cat {fifo}\n"
    )
    try:
        with pam_service(OTHER_SERVICE, text + PAM_FILE.read_text()):
            yield
    finally:
        os.close(holder)
        fifo.unlink()


def test_hanging_pam_is_ended_and_others_are_answered(
    directory: Path, member: str, fresh: str
) -> None:
    with (
        hanging_service(directory, fresh),
        helper(directory, service=OTHER_SERVICE, limit_s=4.0) as running,
        running.connect() as hung,
    ):
        request = {"op": "login", "user": fresh, "password": PASSWORD}
        hung.sendall(json.dumps(request).encode() + b"\n")
        assert running.login(member)["ok"]
        # The other login has not waited for the hung one.
        wait_until(lambda: len(children_of(running.process.pid)) == 1, "its own process to go")
        reply = reply_on(hung)
        assert reply == {"error": "unavailable", "reason": "No answer from PAM within 4 seconds."}
        assert "status -14" in running.log.read_text()


def test_child_whose_alarm_is_taken_is_killed(directory: Path, fresh: str) -> None:
    """lckpwdf(3) uses SIGALRM itself while another program holds the lock."""
    before = shadow_line(fresh)
    with (
        helper(directory, limit_s=1.5) as running,
        Path("/etc/.pwd.lock").open("r+b") as lock,
    ):
        fcntl.lockf(lock, fcntl.LOCK_EX)
        reply = running.passwd(fresh, PASSWORD, NEW_PASSWORD)
        assert reply["error"] == "unavailable"
        assert "status -9" in running.log.read_text()
    assert shadow_line(fresh) == before


def test_many_wrong_logins_do_not_keep_a_right_one_out(auth: Running, member: str) -> None:
    passwords = ["wrong"] * 25 + [PASSWORD] + ["wrong"] * 25
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(passwords)) as pool:
        replies = list(pool.map(lambda password: auth.login(member, password), passwords))
    assert time.monotonic() - began < client.TIMEOUT, "podyd waits so long"
    assert replies.pop(25)["ok"]
    assert replies == [{"error": "denied"}] * 50
    wait_until(auth.has_no_children, "the children to be reaped")


# Starting and stopping


def test_stop_lets_a_request_finish(directory: Path) -> None:
    with helper(directory) as running, running.connect() as connection:
        assert running.ask("ping") == {"ok": True}  # so the connection before it has its child
        running.process.terminate()
        wait_until(lambda: not running.path.exists() or is_refused(running), "the listener")
        connection.sendall(b'{"op": "ping"}\n')
        assert reply_on(connection) == {"ok": True}
        assert running.process.wait(5) == 0


def is_refused(running: Running) -> bool:
    try:
        with running.connect():
            return False
    except (ConnectionRefusedError, FileNotFoundError):
        return True


def test_stale_socket_is_replaced(directory: Path) -> None:
    path, log = directory / "stale.sock", directory / "stale.log"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    old = path.stat().st_ino
    process = launch(path, log)
    running = Running(process, path, log)
    try:
        wait_until(lambda: path.stat().st_ino != old, "a new socket")
        assert running.ask("ping") == {"ok": True}
        second = launch(path, directory / "second.log")
        assert second.wait(10) != 0
        assert running.ask("ping") == {"ok": True}
    finally:
        process.terminate()
        assert process.wait(10) == 0
    assert not path.exists()


def test_other_files_are_not_replaced(directory: Path) -> None:
    path = directory / "precious"
    path.write_text("data")
    assert launch(path, directory / "other.log").wait(10) != 0
    assert path.read_text() == "data"


def activate(listener: socket.socket, **options: object) -> subprocess.Popen[bytes]:
    """Start a helper as systemd does where somebody has connected to `listener`."""
    fd = listener.fileno()
    settings = {"service": SERVICE, "allowed_uids": frozenset[int](), **options}
    program = (
        f"import os; os.dup2({fd}, 3);"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
        "from pathlib import Path; from podyd.auth import server;"
        f"server.serve(Path('/nonexistent/x'), **{settings!r})"
    )
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, pass_fds=[fd])


@pytest.mark.alone
def test_an_idle_one_ends_and_loses_nobody(directory: Path, member: str) -> None:
    path = directory / "idle.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        for _ in range(2):
            # Who came after the last one had ended is answered by the next one.
            process = activate(listener, idle_s=1.0)
            running = Running(process, path, directory / "unused")
            assert running.login(member)["ok"]
            time.sleep(0.7)
            assert running.ask("ping") == {"ok": True}, "it has not been idle for so long"
            began = time.monotonic()
            assert process.wait(10) == 0
            assert 0.8 < time.monotonic() - began < 2


def test_one_that_is_asked_is_not_idle(directory: Path) -> None:
    path = directory / "busy.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = activate(listener, idle_s=0.3)
        running = Running(process, path, directory / "unused")
        with running.connect() as connection:
            time.sleep(0.8)
            connection.sendall(b'{"op": "ping"}\n')
            assert reply_on(connection) == {"ok": True}
        assert process.wait(10) == 0


def test_the_journal_gets_levels(directory: Path, member: str) -> None:
    path, log = directory / "levels.sock", directory / "levels.log"
    log.touch()
    status = log.stat()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        process = launch(path, log)
    try:
        wait_until(path.exists, "the socket")
        running = Running(process, path, log)
        running.login(member)
        running.login(member, "wrong")
        running.ask("login", user=member, password="x\0")
    finally:
        process.terminate()
        assert process.wait(10) == 0
    first, second, *_ = log.read_text().splitlines()
    assert first.startswith(f"<6>podyd auth: login {member} from 192.0.2.7: ok")
    assert second.startswith(f"<5>podyd auth: login {member} from 192.0.2.7: denied")


def test_inherited_socket_is_used_and_kept(directory: Path) -> None:
    path = directory / "inherited.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = activate(listener)
    running = Running(process, path, directory / "unused")
    try:
        assert running.ask("ping") == {"ok": True}
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert path.exists()
