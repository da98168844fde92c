"""Which TCP ports of the host anything listens on: sock_diag(7), which needs no rights.

By hand, as the kernel lays it out in linux/inet_diag.h. pyroute2 asks the same, but takes 7 MiB in
a process that lives long for this one question.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DUMP_REQUEST = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_TCP_LISTEN = 10
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, -, states, -
_PORT = struct.Struct("!4xH")  # the beginning of struct inet_diag_msg
_BUFFER_BYTES = 64 * 1024
SECONDS = 5.0


def listening_ports() -> frozenset[int]:
    """The ports, on whatever address, IPv4 and IPv6. Raises OSError where the kernel is silent."""
    return frozenset(
        port for family in (socket.AF_INET, socket.AF_INET6) for port in _listening(family)
    )


def _listening(family: int) -> Iterator[int]:
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
    head = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _DUMP_REQUEST, 1, 0)
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
                yield _PORT.unpack_from(payload)[0]


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each message; they begin at multiples of four bytes."""
    at = 0
    while at < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3
