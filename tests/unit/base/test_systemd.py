"""What is said to systemd and to the journal, and what is taken from them."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.netutil import bind_sockets

from podyd.base import logs, systemd

ROOT = Path(__file__).parents[3]


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where systemd reads what its services say."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(path))
        end.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield end


def test_a_status_is_one_line(heard: socket.socket) -> None:
    systemd.ready("serving\nSTOPPING=1")
    assert heard.recv(4096) == b"READY=1\nSTATUS=serving STOPPING=1"


def test_a_reload_carries_its_time(heard: socket.socket) -> None:
    systemd.reloading()
    first, second = heard.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    assert second.startswith(b"MONOTONIC_USEC=")


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.ready("serving")
    systemd.drop_stored_sockets([])


def test_a_systemd_that_has_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    systemd.ready("serving")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_of_this_process(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], seconds: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert systemd.watchdog_seconds() == seconds


def test_the_address_of_a_dropped_socket_is_free_though_systemd_has_it_still(
    heard: socket.socket,
) -> None:
    (stored,) = bind_sockets(0, "0.0.0.0")
    port = stored.getsockname()[1]
    with stored.dup():
        systemd.drop_stored_sockets([stored])
        assert heard.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=listen"
        (another,) = bind_sockets(port, "127.0.0.1")
        with another, socket.create_connection(another.getsockname(), timeout=5) as connection:
            another.settimeout(5)
            accepted, _ = another.accept()
            with accepted:
                assert accepted.getpeername() == connection.getsockname()


def test_systemd_may_listen_at_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"podyd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        end.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.status("serving")
        assert end.recv(4096) == b"STATUS=serving"


STORED = """
import os, sys
from podyd.base import systemd
if sys.argv[1] == "ours":
    os.environ["LISTEN_PID"] = str(os.getpid())
stored = systemd.stored_sockets()
print([item.getsockname()[1] for item in stored], os.get_inheritable(3))
print([name for name in os.environ if name.startswith("LISTEN_")])
"""


@pytest.mark.parametrize("whose", ["ours", "another's"])
def test_sockets_that_systemd_has_kept(whose: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept, open(os.devnull) as other:
        environment = {
            "LISTEN_PID": "1",
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": "listen:other",
            "PYTHONPATH": str(ROOT),
        }
        words = (sys.executable, "-c", STORED, whose)
        script = f'exec 3<&{kept.fileno()} 4<&{other.fileno()}; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "bash", *words],
            env=environment,
            pass_fds=(kept.fileno(), other.fileno()),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        ports = [kept.getsockname()[1]] if whose == "ours" else []
        assert done.stdout == f"{ports} {whose != 'ours'}\n[]\n"


# --- The log ------------------------------------------------------------------------------------


class Journal:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, message: str, **fields: Any) -> None:
        self.sent.append((message, fields))


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def log(journal: Journal) -> Iterator[logging.Logger]:
    """A logger that writes to `journal` alone."""
    handler = systemd.JournalHandler(journal.send)
    handler.setFormatter(logs.Formatter("%(message)s"))
    logger = logging.getLogger("podyd.test-journal")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_a_record_has_podyds_fields(log: logging.Logger, journal: Journal) -> None:
    log.warning("%s %s", 503, "/pod/list", extra={"PODYD_USER": "alice", "other": "x"})
    ((message, fields),) = journal.sent
    assert message == "503 /pod/list"
    kept = {key: fields[key] for key in ("PRIORITY", "SYSLOG_IDENTIFIER", "LOGGER", "PODYD_USER")}
    assert kept == {
        "PRIORITY": 4,
        "SYSLOG_IDENTIFIER": "podyd",
        "LOGGER": "podyd.test-journal",
        "PODYD_USER": "alice",
    }
    code = {"CODE_FILE", "CODE_LINE", "CODE_FUNC"}
    assert set(fields) == set(kept) | code


def test_an_exception_is_named_and_not_quoted(log: logging.Logger, journal: Journal) -> None:
    secret = "sEcret-1"

    def fail(text: str) -> None:
        try:
            os.environ[text]
        except KeyError as error:
            raise ValueError(text) from error

    try:
        fail(secret)
    except ValueError as error:
        log.error("%s died", "sweeping", exc_info=error)
    ((message, fields),) = journal.sent
    assert message.startswith("sweeping died\n")
    assert "in fail" in message
    assert "KeyError" in message
    assert message.endswith("ValueError")
    assert fields["PRIORITY"] == 3
    assert secret not in f"{message}{fields}"


def test_an_entry_as_the_journal_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    monkeypatch.setattr(systemd, "JOURNAL", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(path))
        end.settimeout(5)
        systemd.send_to_journal("two\nlines", PRIORITY=4)
        sizes = [(9).to_bytes(8, "little"), (1).to_bytes(8, "little")]
        assert end.recv(4096) == b"MESSAGE\n%stwo\nlines\nPRIORITY\n%s4\n" % (*sizes,)
        systemd.send_to_journal("x" * 10**6)
        assert len(end.recv(10**6)) < 10**5


def test_the_journals_stream_is_known_by_its_inode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stream").open("w") as stream:
        monkeypatch.setattr(logs, "STDERR", stream.fileno())
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not logs.stderr_is_journal()
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert logs.stderr_is_journal()
        monkeypatch.setattr(logs, "STDERR", sys.__stdout__.fileno())  # type: ignore[union-attr]
        assert not logs.stderr_is_journal()
