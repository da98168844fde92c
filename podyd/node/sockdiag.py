"""The TCP ports of the host that are listened on, and the owner of a connection: sock_diag(7).

It needs no rights. Encoded here, by the kernel's linux/inet_diag.h: pyroute2 can do the same, but
takes 7 MiB of a long-running process for these two requests.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DUMP_REQUEST = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ONE_REQUEST = 0x1  # NLM_F_REQUEST
_TCP_LISTEN = 10
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, -, states, -
# Of one socket: the ports, the addresses, the interface, and no cookie that it must have.
_ONE = struct.Struct("!BBBxIHH16s16s4s8s")
_NO_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
_PORT = struct.Struct("!4xH")  # the beginning of struct inet_diag_msg
_FOUND = struct.Struct("=xB62xII")  # all of it: the state, and at its end uid and inode
_BUFFER_BYTES = 64 * 1024
SECONDS = 5.0


def listening_ports() -> frozenset[int]:
    """The ports, on whatever address, IPv4 and IPv6. Raises OSError where the kernel is silent."""
    return frozenset(
        port for family in (socket.AF_INET, socket.AF_INET6) for port in _listening(family)
    )


class SocketAddress(NamedTuple):
    """One end of a TCP connection; `interface` is 0 unless the address is link-local."""

    address: str
    port: int
    interface: int = 0

    @classmethod
    def of(cls, name: tuple[Any, ...]) -> SocketAddress:
        """From a name of getsockname(2): of IPv6 also the flow label, not used here, and the
        zone."""
        return cls(name[0], name[1], *name[3:])


def owner_of(end: SocketAddress, other: SocketAddress) -> int | None:
    """The uid of the account that owns this end of a connection; None if it is on another host.

    Raises ConnectionError if the connection is closed, and OSError where the kernel is silent.
    """
    ours = _socket(end, other)
    if ours is not None:
        uid, inode = ours
        # Of a socket that its process has closed, the kernel reports root as the owner.
        if not inode:
            raise ConnectionResetError("closed by its owner")
        return uid
    if _socket(other, end) is None:
        raise ConnectionResetError("closed")
    return None


def _socket(end: SocketAddress, other: SocketAddress) -> tuple[int, int] | None:
    """Uid and inode of a connection's socket on this host."""
    family = socket.AF_INET6 if ":" in end.address else socket.AF_INET
    near, far = (socket.inet_pton(family, item.address) for item in (end, other))
    body = _ONE.pack(
        *(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF),
        *(end.port, other.port, near, far),
        *(end.interface.to_bytes(4, sys.byteorder), _NO_COOKIE),
    )
    try:
        (message,) = _asked(_ONE_REQUEST, body)
    except FileNotFoundError:
        return None
    state, uid, inode = _FOUND.unpack_from(message)
    # If there is no such connection, the kernel returns the socket that listens at that port.
    return None if state == _TCP_LISTEN else (uid, inode)


def _listening(family: int) -> Iterator[int]:
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
    for message in _asked(_DUMP_REQUEST, body):
        yield _PORT.unpack_from(message)[0]


def _asked(flags: int, body: bytes) -> Iterator[bytes]:
    """What the kernel answers: one message, or all of a dump."""
    head = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(SECONDS)
        kernel.sendto(head + body, (0, 0))
        while True:
            for kind, payload in _messages(kernel.recv(_BUFFER_BYTES)):
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", payload)[0]
                    raise OSError(number, os.strerror(number))
                yield payload
            if flags == _ONE_REQUEST:
                return


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each message; they begin at multiples of four bytes."""
    at = 0
    while at < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3
