"""Whose a connection is, as the real kernel says it."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from podyd.node.sockdiag import SocketAddress, owner_of


@contextmanager
def connected(
    family: socket.AddressFamily, address: str, *zone: int
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection: the client's, and the one of who listens."""
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((address, 0, *zone))
        listener.listen()
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            yield client, accepted


def ends(accepted: socket.socket) -> tuple[SocketAddress, SocketAddress]:
    return SocketAddress.of(accepted.getpeername()), SocketAddress.of(accepted.getsockname())


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_the_kernel_says_whose_a_connection_is(family: socket.AddressFamily, address: str) -> None:
    with connected(family, address) as (client, accepted):
        both = ends(accepted)
        assert owner_of(*both) == socket_uid(client)
        # Half of it is closed: the answer can still be read.
        client.shutdown(socket.SHUT_WR)
        assert owner_of(*both) == socket_uid(client)
        client.close()
        with pytest.raises(ConnectionError):
            owner_of(*both)


def link_local() -> tuple[str, int]:
    """An address of this host that is one only together with its interface."""
    lines = Path("/proc/net/if_inet6").read_text().splitlines()
    for digits, index, _, scope, _, _ in map(str.split, lines):
        if scope == "20":  # IPV6_ADDR_LINKLOCAL
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)), int(index, 16)
    pytest.skip("no interface here has a link-local address")


def test_an_address_that_is_one_at_its_interface_alone() -> None:
    address, interface = link_local()
    with connected(socket.AF_INET6, address, 0, interface) as (client, accepted):
        assert owner_of(*ends(accepted)) == socket_uid(client)


def socket_uid(sock: socket.socket) -> int:
    status = subprocess.run(
        ["stat", "-L", "-c", "%u", f"/proc/self/fd/{sock.fileno()}"],
        pass_fds=[sock.fileno()],
        capture_output=True,
        check=True,
        text=True,
    )
    return int(status.stdout)


def test_one_that_was_reset_is_nobodys() -> None:
    with connected(socket.AF_INET, "127.0.0.1") as (client, accepted):
        both = ends(accepted)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionError):
            owner_of(*both)


def test_who_listens_at_a_port_is_not_who_connects_from_it() -> None:
    """Another host may choose the port from which it connects."""
    with connected(socket.AF_INET, "127.0.0.1") as (_, accepted), socket.socket() as everywhere:
        everywhere.bind(("", 0))
        everywhere.listen()
        port = everywhere.getsockname()[1]
        with pytest.raises(ConnectionError):
            owner_of(SocketAddress("192.0.2.7", port), ends(accepted)[1])
