"""The listening sockets of a pod, read from /proc/PID/net of the pod's first process.

Every account may read that, so podyd need not enter the pod, nor run anything in it.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from podyd.node.procs import InstanceCgroup, cgroup_of

# The kernel lists what listens first; a pod can have any number of connections after that.
MAX_BYTES = 256 * 1024
LISTEN = "0A"  # TCP_LISTEN of the kernel's net/tcp_states.h


class ListeningSocket(NamedTuple):
    """A listening TCP socket; `address` in the usual notation."""

    port: int
    address: str


@dataclass(frozen=True)
class PodSockets:
    """The listening sockets in a process's network namespace, and its cgroup, read afterwards.

    The pid may have been reused, which the cgroup shows.
    """

    cgroup: InstanceCgroup | None
    listening: frozenset[ListeningSocket]


def pod_sockets(pid: int, proc: Path = Path("/proc")) -> PodSockets:
    """The listening sockets in the network namespace of this process. Raises OSError."""
    texts = [_head(proc / str(pid) / "net" / name) for name in ("tcp", "tcp6")]
    sockets = frozenset(item for text in texts for item in parse(text))
    return PodSockets(cgroup_of(pid, proc), sockets)


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode("ascii", errors="replace")
    except FileNotFoundError:
        if path.name == "tcp6":  # A kernel without IPv6.
            return ""
        raise


def parse(text: str) -> Iterator[ListeningSocket]:
    """Each line of /proc/net/tcp or tcp6 (proc(5)) that listens."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == LISTEN:
            address, _, port = fields[1].partition(":")
            yield ListeningSocket(int(port, 16), _address(address))


def _address(digits: str) -> str:
    """An address in the usual notation; the kernel prints 32-bit words in host byte order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    order = "<" if sys.byteorder == "little" else ">"
    return str(ipaddress.ip_address(struct.pack(f"{order}{len(words)}I", *words)))
