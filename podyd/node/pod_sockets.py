"""What listens in a pod, as the kernel has it in /proc of the pod's first process.

Everybody may read that, so podyd need not enter the pod, nor run anything in it.
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
    """A TCP socket that takes connections; `address` as people write it."""

    port: int
    address: str


@dataclass(frozen=True)
class PodSockets:
    """What listens where a process is, and in which cgroup of LXC's that was afterwards.

    A pid may be another process' by now, and its cgroup tells.
    """

    cgroup: InstanceCgroup | None
    listening: frozenset[ListeningSocket]


def pod_sockets(pid: int, proc: Path = Path("/proc")) -> PodSockets:
    """What listens where this process is. Raises OSError."""
    texts = [_head(proc / str(pid) / "net" / name) for name in ("tcp", "tcp6")]
    found = frozenset(item for text in texts for item in parse(text))
    return PodSockets(cgroup_of(pid, proc), found)


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
    """As people write it; the kernel prints words of 32 bits in the machine's own order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    order = "<" if sys.byteorder == "little" else ">"
    return str(ipaddress.ip_address(struct.pack(f"{order}{len(words)}I", *words)))
