"""The relay of ports by itself, to targets that stand for pods."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podyd.node import relay
from podyd.node.relay import RelayServer, listen, unfit
from tests.integration.harness import free_port, wait_until

Serve = Callable[[Callable[[socket.socket], None]], list[object]]
SECONDS = 10.0


class Podyd:
    """What `podyd serve` is to the relay."""

    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(SECONDS)
        self._connection.connect(str(path))
        self._answers = self._connection.makefile("rb")

    def put(self, table: object) -> Any:
        """What the relay answers; of a table, the ports that it refuses."""
        self._connection.sendall(json.dumps(table).encode() + b"\n")
        answer = json.loads(self._answers.readline())
        assert answer["version"] == "1"
        return answer["refused"]

    def close(self) -> None:
        self._answers.close()
        self._connection.close()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A relay that may lead anywhere; the path of its socket."""
    monkeypatch.setattr(relay, "_descriptors", lambda: 1024)
    path = tmp_path / "ports" / "ports.sock"
    control = listen(str(path))
    over = threading.Event()
    server = RelayServer(control, "1", unfit=lambda address: "")

    def run() -> None:
        while not over.is_set():
            server.turn()

    thread = threading.Thread(target=run)
    thread.start()
    yield path
    last = Podyd(path)
    last.put({})
    over.set()
    last.close()  # It wakes the relay.
    thread.join(SECONDS)
    assert not thread.is_alive()
    server.close()


@pytest.fixture
def podyd(running: Path) -> Iterator[Podyd]:
    made = Podyd(running)
    yield made
    made.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves on a port of 127.0.0.1, a thread for each connection; gives what a table says."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def begin(talk: Callable[[socket.socket], None]) -> list[object]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer(item: socket.socket) -> None:
            item.settimeout(SECONDS)
            with item, contextlib.suppress(ConnectionError):
                talk(item)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threads.append(threading.Thread(target=answer, args=(listener.accept()[0],)))
                    threads[-1].start()

        threads.append(threading.Thread(target=accept))
        threads[-1].start()
        return ["127.0.0.1", listener.getsockname()[1]]

    yield begin
    for item in listeners:
        item.shutdown(socket.SHUT_RDWR)
        item.close()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), SECONDS)


def can_bind(port: int) -> bool:
    """Whether somebody else may have a port, who is content with what others have left."""
    with socket.socket() as item:
        item.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            item.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def is_reset(port: int) -> bool:
    """Whether a connection ends with a reset; that may come before it counts as made."""
    try:
        with connect(port) as item:
            item.recv(1)
    except ConnectionResetError:
        return True
    return False


def read_all(item: socket.socket) -> bytes:
    parts = []
    while part := item.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def echo(item: socket.socket) -> None:
    while part := item.recv(1 << 16):
        item.sendall(part)


def test_what_goes_in_comes_back_and_the_end_is_passed_on(podyd: Podyd, serve: Serve) -> None:
    port = free_port()
    assert podyd.put({str(port): serve(echo)}) == {}
    data = random.Random(1).randbytes(8 << 20)
    for host in ("127.0.0.1", "::1"):
        with connect(port, host) as item:

            def send(item: socket.socket = item) -> None:
                item.sendall(data)
                item.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert read_all(item) == data
            sender.join()


def test_a_side_that_has_ended_still_hears(podyd: Podyd, serve: Serve) -> None:
    heard = threading.Event()
    got: list[bytes] = []

    def end_first(item: socket.socket) -> None:
        item.sendall(b"bye")
        item.shutdown(socket.SHUT_WR)
        got.append(read_all(item))
        heard.set()

    port = free_port()
    podyd.put({str(port): serve(end_first)})
    with connect(port) as item:
        assert read_all(item) == b"bye"
        item.sendall(b"still here")
    assert heard.wait(SECONDS)
    assert got == [b"still here"]


def test_who_does_not_read_is_not_read_ahead_of(podyd: Podyd, serve: Serve) -> None:
    def pour(item: socket.socket) -> None:
        sent = 0
        item.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while sent < 1 << 28:
                sent += item.send(bytes(1 << 20))
        counts.append(sent)

    counts: list[int] = []
    port = free_port()
    podyd.put({str(port): serve(pour)})
    with connect(port) as item:
        wait_until(lambda: bool(counts), "the sender to give up")
        received = len(read_all(item))
    # What two sockets and a pipe hold, as this kernel sizes them.
    assert received == counts[0] < 64 << 20


def test_a_reset_is_one_on_the_other_side_too(podyd: Podyd, serve: Serve) -> None:
    seen: list[str] = []
    over = threading.Event()

    def talk(item: socket.socket) -> None:
        item.sendall(b"x")
        try:
            seen.append(f"read {item.recv(1)!r}")
        except ConnectionResetError:
            seen.append("reset")
        over.set()

    port = free_port()
    podyd.put({str(port): serve(talk)})
    item = connect(port)
    assert item.recv(1) == b"x"
    item.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, relay.LINGER_NONE)
    item.close()
    assert over.wait(SECONDS)
    assert seen == ["reset"]


def test_where_nobody_listens_the_connection_is_reset(podyd: Podyd) -> None:
    port = free_port()
    podyd.put({str(port): ["127.0.0.1", free_port()]})
    assert is_reset(port)


def test_who_does_not_answer_is_given_up(podyd: Podyd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "CONNECT_SECONDS", 0.2)
    port = free_port()
    podyd.put({str(port): ["192.0.2.99", 9]})  # Of TEST-NET-1, where nobody is.
    assert is_reset(port)


def test_a_port_without_a_pod_is_refused_and_nobody_elses(podyd: Podyd, serve: Serve) -> None:
    port = free_port()
    target = serve(echo)
    for table in ({str(port): None}, {str(port): target}, {str(port): None}):
        assert podyd.put(table) == {}
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    assert not can_bind(port)
    assert podyd.put({str(port): target}) == {}
    with connect(port) as item:
        item.sendall(b"x")
        assert item.recv(1) == b"x"
    podyd.put({})
    wait_until(lambda: can_bind(port), "the port to be given up")


def test_what_is_left_of_a_connection_keeps_no_port_from_leading_again(
    podyd: Podyd, serve: Serve
) -> None:
    """Which the pod has ended first: the kernel keeps its port for a minute then."""
    port, target = free_port(), serve(lambda item: item.sendall(b"x"))
    for _ in range(2):
        assert podyd.put({port: target}) == {}
        with connect(port) as item:
            assert read_all(item) == b"x"
        assert podyd.put({port: None}) == {}
        assert not can_bind(port)
        with pytest.raises(ConnectionRefusedError):
            connect(port)


def test_connections_live_on_until_their_port_leads_elsewhere(
    running: Path, podyd: Podyd, serve: Serve
) -> None:
    port, other = free_port(), free_port()
    target = serve(echo)
    podyd.put({str(port): target, str(other): target})
    with connect(port) as item, connect(other) as kept:
        podyd.close()
        again = Podyd(running)
        assert again.put({str(port): target, str(other): target}) == {}
        for one in (item, kept):
            one.sendall(b"x")
            assert one.recv(1) == b"x"
        again.put({str(port): serve(echo), str(other): target})
        with pytest.raises(ConnectionResetError):
            item.recv(1)
        kept.sendall(b"x")
        assert kept.recv(1) == b"x"
        again.close()


def test_too_many_at_a_port_are_reset(
    podyd: Podyd, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_CONNECTIONS_PER_PORT", 2)
    port, other = free_port(), free_port()
    target = serve(echo)
    podyd.put({str(port): target, str(other): target})
    with connect(port) as first, connect(port) as second:
        for item in (first, second):
            item.sendall(b"x")
            assert item.recv(1) == b"x"
        assert is_reset(port)
        with connect(other) as third:
            third.sendall(b"x")
            assert third.recv(1) == b"x"


def test_what_a_table_may_not_say(podyd: Podyd) -> None:
    good = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        refused = podyd.put(
            {"80": None, "x": None, str(busy): None, str(good): ["10.0.0.1", 0], "70000": None}
        )
    assert refused.pop(str(busy)) == "Address already in use"
    assert refused.pop(str(good)) == "its target has no port from 1 to 65535"
    assert sorted(refused) == ["70000", "80", "x"]
    # The same is asked for without a table.
    assert len(podyd.put(None)) == 5


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "127.0.0.1", "127.8.8.8", "169.254.1.1", "224.0.0.1", "255.255.255.255", "::1",
     "fe80::1", "2001:db8::1", "localhost", ""],
)  # fmt: skip
def test_addresses_that_are_no_pods(address: str) -> None:
    assert unfit(address)


def test_an_address_of_this_host_is_no_pods() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # Sends nothing.
        assert unfit(probe.getsockname()[0]) == "its target is this host"
    assert unfit("192.0.2.1") == ""


@pytest.mark.parametrize("line", [b"no json\n", b"[1]\n", b"1\n"])
def test_what_is_no_table_ends_the_talk_alone(running: Path, podyd: Podyd, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as item:
        item.settimeout(SECONDS)
        item.connect(str(running))
        item.sendall(line)
        assert item.recv(100) == b""
    assert podyd.put(None) == {}


def test_the_socket_is_private_and_one_relays_alone(running: Path) -> None:
    assert running.stat().st_mode & 0o777 == 0o600
    assert running.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(OSError, match="another process"):
        listen(str(running))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_other_accounts_are_not_heard(running: Path) -> None:
    running.parent.chmod(0o755)
    running.parent.parent.chmod(0o755)
    running.chmod(0o666)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as item:
                item.settimeout(SECONDS)
                item.connect(str(running))
                item.sendall(b"null\n")
                code = item.recv(1) != b""
        except ConnectionError:
            code = 0
        except PermissionError:
            code = 77
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, 77)
