"""Ports of the host that lead into pods, and what listens in these."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.harness import IMAGE, Client, Json, Node, Server, wait_until

SECONDS = 20.0
# The base image has no more than systemd for this.
ECHO = "systemd-run systemd-socket-activate -a --inetd -l 7 cat"


@pytest.fixture(scope="module")
def carol(node: Node, server: Server) -> Client:
    """A member with two pods, which run."""
    client = server.client(node.accounts.user())
    for ins in ("one", "two"):
        client.post("/pod/create", ins=ins, image=IMAGE).ok
    return client


@pytest.fixture(scope="module")
def echo(carol: Client) -> int:
    """A port of the host that leads to an echo in `one`."""
    begin_echo(carol)
    port = mapped(carol.post("/pod/port", ins="one", port=7).ok)[7]
    wait_for(port, b"x")
    return port


def begin_echo(carol: Client) -> None:
    """Echo what comes, at port 7 of `one`; it takes a pod's systemd a while to be there."""
    wait_until(lambda: carol.exec("one", ECHO)["exit_code"] == 0, "systemd", SECONDS)


def mapped(info: Json) -> dict[int, int]:
    """The host's port of each port in the pod."""
    pairs = (entry.split(":") for entry in info["port_mapping"])
    return {int(inner): int(host) for host, inner in pairs}


def ports_in(client: Client, ins: str) -> dict[int, int]:
    return mapped(client.get("/pod/info", ins=ins).ok)


def connect(port: int, host: str = "127.0.0.1", seconds: float = SECONDS) -> socket.socket:
    return socket.create_connection((host, port), seconds)


def says(port: int, seconds: float = SECONDS) -> bytes:
    """What is answered to an x; nothing where the port leads nowhere."""
    with contextlib.suppress(OSError), connect(port, seconds=seconds) as item:
        item.sendall(b"x")
        return item.recv(100)
    return b""


def wait_for(port: int, answer: bytes) -> None:
    wait_until(lambda: says(port).startswith(answer), f"{answer!r} at {port}", SECONDS)


def is_refused(port: int) -> bool:
    with socket.socket() as item:
        try:
            item.connect(("127.0.0.1", port))
        except (ConnectionRefusedError, ConnectionResetError):
            return True
        return False


def test_a_new_pods_ssh_is_reached(node: Node, carol: Client) -> None:
    first, last = map(int, node.base["ports"]["range"].split("-"))
    ports = [ports_in(carol, ins)[22] for ins in ("one", "two")]
    assert len(set(ports)) == 2
    assert all(first <= port <= last for port in ports)
    for port in ports:
        wait_for(port, b"SSH-2.0-")
    with connect(ports[0], "::1") as item:
        assert item.recv(100).startswith(b"SSH-2.0-")


def test_much_in_both_directions_at_once_and_the_end(echo: int) -> None:
    data = random.Random(7).randbytes(50 * 1000**2)
    with connect(echo) as item:

        def send() -> None:
            item.sendall(data)
            item.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while part := item.recv(1 << 20):
            received += part
        sender.join()
    assert received == data


def test_connections_outlive_podyd(node: Node, server: Server, echo: int) -> None:
    other = node.serve()
    with connect(echo) as item:
        item.sendall(b"1")
        assert item.recv(1) == b"1"
        assert other.stop() == 0
        last = node.serve()
        item.sendall(b"2")
        assert item.recv(1) == b"2"
        assert last.stop() == 0
        item.sendall(b"3")
        assert item.recv(1) == b"3"


def test_a_relay_that_is_killed_comes_back(node: Node, server: Server, echo: int) -> None:
    node.relay.kill()
    node.relay.wait()
    server.wait_for_log("ports of pods cannot be reached: 'podyd ports'")
    assert not says(echo)
    node.start_relay()
    wait_for(echo, b"x")
    server.wait_for_log("ports of pods can be reached")


def test_a_stopped_pods_port_is_refused_and_its_own(carol: Client, echo: int) -> None:
    before = ports_in(carol, "one")
    with connect(echo) as item:
        item.sendall(b"1")
        assert item.recv(1) == b"1"
        carol.post("/pod/stop", ins="one").ok
        wait_until(lambda: is_refused(echo), "the port to close")
        with contextlib.suppress(ConnectionResetError):
            assert item.recv(1) == b""
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", echo))
    carol.post("/pod/start", ins="one").ok
    assert ports_in(carol, "one") == before
    begin_echo(carol)
    wait_for(echo, b"x")


def test_a_pod_that_takes_anothers_address_gets_nothing_of_it(carol: Client, echo: int) -> None:
    own = ports_in(carol, "two")[22]
    lost = mapped(carol.post("/pod/port", ins="two", port=7).ok)[7]
    (address,) = carol.get("/pod/info", ins="one").ok["addresses"]
    bridge = address.rpartition(".")[0] + ".1"
    for taken in (address, bridge):
        # It also asks the bridge something, from there.
        carol.exec(
            "two",
            f"ip addr flush dev eth0; ip addr add {taken}/24 dev eth0;"
            f" timeout 0.3 bash -c ': >/dev/tcp/{address}/22'",
        )
        # LXD believes what a pod says of itself.
        assert carol.get("/pod/info", ins="two").ok["addresses"] == [taken]
        # A change, so that all is looked at anew.
        carol.post("/pod/port-delete", ins="one", port=9)
        carol.post("/pod/port", ins="one", port=9).ok
        assert says(echo) == b"x"
        assert not says(lost, 0.5)
    carol.post("/pod/port-delete", ins="two", port=7).ok
    carol.post("/pod/restart", ins="two").ok
    wait_for(own, b"SSH-2.0-")


def test_adding_and_removing(node: Node, server: Server, carol: Client, bob: Client) -> None:
    before = ports_in(carol, "two")
    info = carol.post("/pod/port", ins="two", port=8888).ok
    host = mapped(info)[8888]
    assert mapped(info) == {**before, 8888: host}
    assert carol.post("/pod/port", ins="two", port=8888).refused(409, "port_taken")["port"] == 8888
    for path in ("port", "port-delete"):
        bob.post(f"/pod/{path}", ins="two", port=8888).refused(404, "no_such_pod")
        for wrong in ("0", "65536", "x", "-1"):
            carol.post(f"/pod/{path}", ins="two", port=wrong).refused(400)
    assert "8888" in carol.post("/pod/port-delete", ins="two", port=8888).ok["log"]
    carol.post("/pod/port-delete", ins="two", port=8888).refused(404, "no_such_port")
    wait_until(lambda: is_refused(host), "the port to be given up")
    # A pod of the same name gets the same one again.
    assert mapped(carol.post("/pod/port", ins="two", port=8888).ok)[8888] == host
    carol.post("/pod/port-delete", ins="two", port=22).ok
    carol.post("/pod/port-delete", ins="two", port=8888).ok
    assert ports_in(carol, "two") == {}
    assert node.instance_of(carol.user, "two")["config"]["user.podyd.ports"] == "none"
    assert mapped(carol.post("/pod/port", ins="two", port=22).ok) == before
    config = {"quota": {"default": {"max_ports": 2}}}
    small = node.serve(config)
    client = small.client(carol.user)
    client.post("/pod/port", ins="two", port=1).ok
    refused = client.post("/pod/port", ins="two", port=2).refused(403, "quota_exceeded")
    assert (refused["limit"], refused["used"]) == (2, 2)
    client.post("/pod/port-delete", ins="two", port=1).ok
    assert small.stop() == 0


def test_what_listens_in_a_pod(carol: Client, echo: int, bob: Client) -> None:
    answer = carol.get("/pod/ports", ins="one").ok
    assert {"port": 7, "address": "::", "protocol": "tcp", "host_port": echo} in answer
    assert {item["port"]: item["host_port"] for item in answer}[22] == ports_in(carol, "one")[22]
    assert all(item["host_port"] is None for item in answer if item["port"] == 53)
    bob.get("/pod/ports", ins="one").refused(404, "no_such_pod")
    carol.post("/pod/stop", ins="two").ok
    carol.get("/pod/ports", ins="two").refused(409, "pod_not_running")
    carol.post("/pod/start", ins="two").ok


def test_pods_that_an_admin_makes_get_ports(node: Node, carol: Client) -> None:
    """Such as were made before podyd gave ports out, and copies, which have another's."""
    name = node.instance_of(carol.user, "one")["name"]
    before = ports_in(carol, "one")
    node.lxc("copy", name, f"{carol.user}-copied", "--instance-only")
    node.lxc("init", IMAGE, f"{carol.user}-bare", "-p", "podyd-base",
             "-c", f"user.podyd.owner={carol.user}")  # fmt: skip
    copied = f"{carol.user}-copied"
    assert ports_in(carol, copied) == {}
    wait_until(lambda: set(ports_in(carol, copied)) == set(before), "the copy's ports", SECONDS)
    wait_until(lambda: set(ports_in(carol, "bare")) == {22}, "the other one's port", SECONDS)
    assert ports_in(carol, "one") == before
    every = [*before.values(), *ports_in(carol, copied).values(), ports_in(carol, "bare")[22]]
    assert len(set(every)) == len(every)
    for ins in (copied, "bare"):
        carol.post("/pod/delete", ins=ins).ok


@pytest.fixture
def narrow(node: Node) -> Iterator[tuple[Server, int]]:
    """A podyd with four ports, of which something listens on the second; the first of them."""
    first = next(
        port for port in (30000 + 10 * random.randrange(200) for _ in range(50)) if is_free(port, 4)
    )
    with socket.create_server(("127.0.0.1", first + 1)):
        server = node.serve({"ports": {"range": f"{first}-{first + 3}"}})
        yield server, first
        assert server.stop() == 0


def is_free(first: int, count: int) -> bool:
    try:
        for port in range(first, first + count):
            with socket.socket() as item:
                item.bind(("", port))
    except OSError:
        return False
    return True


def test_a_full_range_and_a_port_that_is_in_use(
    node: Node, narrow: tuple[Server, int], carol: Client
) -> None:
    server, first = narrow
    client = server.client(carol.user)
    with ThreadPoolExecutor(5) as pool:
        answers = list(
            pool.map(lambda port: client.post("/pod/port", ins="two", port=port), range(100, 105))
        )
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 409, 409]
    for answer in answers:
        if answer.status != 200:
            assert "ports.range" in answer.refused(409, "no_free_port")["advice"]
    new = {port: host for port, host in ports_in(client, "two").items() if port in range(100, 105)}
    assert set(new.values()) == {first, first + 2, first + 3}
    before = set(node.instances())
    client.post("/pod/create", ins="full", image=IMAGE).refused(409, "no_free_port")
    client.post("/pod/copy", ins="one", to="full").refused(409, "no_free_port")
    assert set(node.instances()) == before
    for port in new:
        client.post("/pod/port-delete", ins="two", port=port).ok
    wait_until(lambda: is_free(first, 1), "the port to be given up")
    # What they had before is theirs, whatever the range is now.
    assert set(ports_in(client, "two")) == {22}
