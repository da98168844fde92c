"""Addresses of clients, and whether they are among the networks that podyd.yaml names."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from podyd.config.values import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> Address | None:
    """An address, or None; one of IPv4 in IPv6's clothes is taken for what it is."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def is_among(address: Address | None, networks: Sequence[Network]) -> bool:
    """Whether it is in one of the networks."""
    return address is not None and any(address in network for network in networks)
