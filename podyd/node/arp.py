"""The IPv4 addresses of network interfaces, as in the kernel's ARP table.

Where the engine holds one to its hardware address and to the one address that its DHCP server gave
it (security.mac_filtering and security.ipv4_filtering drop ARP from any other), what the kernel
knows of its neighbours cannot be made up by a pod.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ARP = Path("/proc/net/arp")
# Of the flags in <linux/if_arp.h>: the hardware address is known.
_COMPLETE = 0x2
# "discard": whoever gets it has nothing to answer.
_PROBED_PORT = 9


class Nic(NamedTuple):
    """A network interface of a pod: the bridge (or the host's interface) that it is attached to,
    and its hardware address in lower case."""

    parent: str
    hardware: str


def neighbours(arp: Path = ARP) -> Mapping[Nic, frozenset[str]]:
    """The IPv4 addresses of each interface in the ARP table."""
    by_nic: dict[Nic, set[str]] = {}
    for line in arp.read_text().splitlines()[1:]:
        address, _, flags, hardware, _, interface = line.split()
        if int(flags, 16) & _COMPLETE:
            by_nic.setdefault(Nic(interface, hardware.lower()), set()).add(address)
    return {nic: frozenset(addresses) for nic, addresses in by_nic.items()}


def probe(interface: str, addresses: Iterable[str]) -> None:
    """Have the kernel send ARP requests for these addresses on one interface.

    `neighbours` returns the answers soon after.
    """
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_INET, kind) as asker, contextlib.suppress(OSError):
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        for address in addresses:
            # One that cannot be asked must not keep the others from it.
            with contextlib.suppress(OSError):
                asker.sendto(b"", (address, _PROBED_PORT))
