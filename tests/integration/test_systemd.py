"""`podyd serve` under a systemd of the tests' own: what it says, hands over, and takes back."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.harness import (
    PYTHON,
    Client,
    Node,
    Server,
    free_port,
    merged,
    wait_until,
)

# Begins podyd as systemd begins a service with a stored socket: as descriptor 3, and with its pid.
GIVE = (
    "import os, sys;"
    "fd = int(sys.argv[1]);"
    "fd == 3 or (os.dup2(fd, 3), os.close(fd));"
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='listen');"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass
class Systemd:
    """Listens at NOTIFY_SOCKET, and keeps the sockets that it is given.

    The real one closes a socket in a thread, which may take its time: this one never gets to it.
    """

    path: Path
    said: list[str] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._end.bind(str(self.path))
        self.path.chmod(0o666)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._end, 4096, 8)
            if not data:
                return
            text = data.decode()
            if text.startswith("FDSTORE=1"):
                self.stored += fds
            else:
                for fd in fds:
                    os.close(fd)
            if text.startswith("FDSTOREREMOVE=1"):
                self.dropped += self.stored
                self.stored.clear()
            self.said.append(text)

    def forget(self) -> None:
        for fd in (*self.stored, *self.dropped):
            os.close(fd)
        self.stored.clear()

    def lines(self) -> list[str]:
        return [line for text in self.said for line in text.splitlines()]

    def wait_for(self, text: str, limit: float = 10.0) -> None:
        wait_until(lambda: text in self.lines(), f"{text!r} in {self.said}", limit)

    def close(self) -> None:
        self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()
        self.forget()


@dataclass
class Unit:
    """podyd as a service of such a systemd."""

    node: Node
    systemd: Systemd
    config: Path
    environment: dict[str, str]
    process: Any = None
    log: Path = Path()

    def start(self) -> None:
        """As systemd does: with the stored socket, if there is one."""
        stored = self.systemd.stored[:1]
        prefix = [PYTHON, "-c", GIVE, str(stored[0])] if stored else []
        ready = self.systemd.lines().count("READY=1")
        self.process, self.log = self.node.launch(
            self.config, environment=self.environment, prefix=prefix, pass_fds=stored
        )
        wait_until(lambda: self.systemd.lines().count("READY=1") > ready, self.log.read_text(), 20)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.log.read_text()

    def configure(self, **changes: Any) -> None:
        data = yaml.safe_load(self.config.read_text())
        self.config.write_text(yaml.safe_dump(merged(data, changes)))


@pytest.fixture
def systemd(node: Node, tmp_path: Path) -> Iterator[Systemd]:
    # Where podyd's account may go, which pytest's own directories do not allow.
    path = node.directory / f"notify-{tmp_path.name}"
    systemd = Systemd(path)
    yield systemd
    systemd.close()
    path.unlink()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def unit(node: Node, systemd: Systemd, port: int) -> Iterator[Unit]:
    config = node.write_config({"listen": f"127.0.0.1:{port}"})
    unit = Unit(node, systemd, config, {"NOTIFY_SOCKET": str(systemd.path)})
    yield unit
    if unit.process is not None:
        unit.process.kill()
        unit.process.wait()


# --- What it says -------------------------------------------------------------------------------


def test_from_ready_to_stopping(unit: Unit, systemd: Systemd, port: int) -> None:
    unit.start()
    assert Client(port).get("/version").status == 200
    systemd.wait_for(f"STATUS=serving http://127.0.0.1:{port}")
    unit.stop()
    systemd.wait_for("STOPPING=1")
    assert "WATCHDOG=1" not in systemd.lines()


def test_a_reload_begins_and_ends(unit: Unit, systemd: Systemd) -> None:
    unit.start()
    systemd.said.clear()
    unit.process.send_signal(signal.SIGHUP)
    systemd.wait_for("READY=1")
    assert systemd.lines()[0] == "RELOADING=1"
    unit.configure(quota={"default": {"max_pods": "many"}})
    unit.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "; not reloaded: " in systemd.lines()[-1], str(systemd.said))
    assert "quota.default.max_pods" in systemd.lines()[-1]
    unit.stop()


def test_a_hung_one_does_not_feed_the_watchdog(unit: Unit, systemd: Systemd) -> None:
    unit.environment["WATCHDOG_USEC"] = "400000"
    unit.start()
    wait_until(lambda: systemd.lines().count("WATCHDOG=1") >= 4, "the watchdog to be fed")
    unit.process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    fed = systemd.lines().count("WATCHDOG=1")
    time.sleep(0.6)
    assert systemd.lines().count("WATCHDOG=1") == fed
    unit.process.send_signal(signal.SIGCONT)
    unit.stop()


def test_why_it_does_not_start_is_the_status(unit: Unit, systemd: Systemd) -> None:
    unit.configure(lisen="127.0.0.1:1")
    process, log = unit.node.launch(unit.config, environment=unit.environment)
    assert process.wait(20) == 78
    systemd.wait_for(f"STATUS={log.read_text().removeprefix('podyd: ').strip()}")
    assert "READY=1" not in systemd.lines()


# --- The listening socket -----------------------------------------------------------------------


def test_who_connects_while_it_is_down_waits(unit: Unit, port: int) -> None:
    unit.start()
    unit.stop()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: podyd\r\n\r\n")
        unit.start()
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    unit.stop()
    assert unit.systemd.lines().count("FDSTORE=1") == 1


def test_a_restart_refuses_nobody(unit: Unit, port: int) -> None:
    unit.start()
    statuses: deque[int] = deque()
    ended = threading.Event()

    def call() -> None:
        while not ended.is_set():
            statuses.append(Client(port).get("/version").status)

    callers = [threading.Thread(target=call) for _ in range(4)]
    failures: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", failures.append)
        for caller in callers:
            caller.start()
        for _ in range(2):
            before = len(statuses)
            wait_until(lambda at=before: len(statuses) > at + 50, "answers")  # type: ignore[misc]
            unit.stop()
            unit.start()
        ended.set()
        for caller in callers:
            caller.join(20)
    assert not failures
    assert set(statuses) == {200}
    unit.stop()


def test_a_socket_of_another_address_is_dropped(unit: Unit, systemd: Systemd, port: int) -> None:
    unit.start()
    unit.stop()
    # The old one would be in the way of the new one.
    unit.configure(listen=f"0.0.0.0:{port}", insecure=True)
    unit.start()
    assert "FDSTOREREMOVE=1" in systemd.lines()
    assert Client(port).get("/version").status == 200
    wait_until(lambda: len(systemd.stored) == 1, "the new one to be stored")
    with socket.socket(fileno=os.dup(systemd.stored[0])) as stored:
        assert stored.getsockname() == ("0.0.0.0", port)
    unit.stop()


def test_status_says_that_ports_cannot_be_reached(
    node: Node, unit: Unit, systemd: Systemd, port: int
) -> None:
    unit.configure(ports={"socket": str(node.directory / "no.sock")})
    unit.start()
    systemd.wait_for(
        f"STATUS=serving http://127.0.0.1:{port}; ports of pods cannot be reached: 'podyd ports'"
        " does not answer (No such file or directory)"
    )
    unit.stop()


# --- The journal --------------------------------------------------------------------------------


@dataclass
class Journal:
    """The socket that the journal listens at, in a mount namespace of podyd's own."""

    directory: Path

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.directory.chmod(0o755)
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._end.bind(str(self.directory / "socket"))
        (self.directory / "socket").chmod(0o666)

    def entries(self) -> list[dict[str, str]]:
        """What has come since."""
        fields = []
        while select.select([self._end], [], [], 0.5)[0]:
            fields.append(_fields(self._end.recv(65536)))
        return fields

    def close(self) -> None:
        self._end.close()


def _fields(data: bytes) -> dict[str, str]:
    """As JOURNAL_NATIVE_PROTOCOL has it: NAME=VALUE, or NAME, the length in 8 bytes, and VALUE."""
    values = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[9 + length :]
        values[name.decode()] = value.decode()
        data = rest
    return values


@pytest.fixture
def journal(node: Node) -> Iterator[Journal]:
    journal = Journal(node.directory / "journal")
    yield journal
    journal.close()


def test_a_request_is_one_entry_with_its_parts_and_no_secret(
    node: Node, journal: Journal, server: Server, port: int
) -> None:
    user = node.accounts.user()
    config = node.write_config({"listen": f"127.0.0.1:{port}"})
    log = node.directory / f"{config.stem}.log"
    log.touch()
    status = log.stat()
    # The journal's socket has one name, so podyd gets another /run/systemd.
    script = (
        "mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/journal"
        f" && mount --bind {journal.directory} /run/systemd/journal && exec setpriv"
        f' --reuid {node.account} --regid {node.account} --clear-groups "$@"'
    )
    process, _ = node.launch(
        config,
        environment={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
        prefix=["unshare", "--mount", "sh", "-c", script, "sh"],
        as_root=True,
    )
    try:
        client = Client(port, user)
        wait_until(lambda: _answers(client), "podyd", 20)
        journal.entries()
        client.post("/pod/exec", ins="first", cmd="echo sEcret-1").refused(404)
        (entry,) = (item for item in journal.entries() if "PODYD_STATUS" in item)
        assert log.read_text() == ""
    finally:
        process.terminate()
        assert process.wait(20) == 0
    milliseconds = float(entry.pop("PODYD_MILLISECONDS"))
    assert milliseconds > 0
    assert {key: value for key, value in entry.items() if key.startswith("PODYD_")} == {
        "PODYD_STATUS": "404",
        "PODYD_METHOD": "POST",
        "PODYD_PATH": "/pod/exec",
        "PODYD_USER": user,
        "PODYD_POD": f"{user}-first",
        "PODYD_ADDRESS": "127.0.0.1",
    }
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("6", "podyd")
    assert entry["MESSAGE"].startswith(f"404 POST /pod/exec user={user} from=127.0.0.1 ")
    assert "sEcret" not in json.dumps(entry)
    assert client.password not in json.dumps(entry)


def _answers(client: Client) -> bool:
    with contextlib.suppress(OSError):
        return client.get("/version").status == 200
    return False
