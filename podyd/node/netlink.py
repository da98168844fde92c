"""The host's addresses and routes, through rtnetlink. The only importer of pyroute2."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator

from pyroute2 import IPRoute

from podyd.base.engine_words import ENGINE
from podyd.base.errors import SetupError

Network = ipaddress.IPv4Network
PRIVATE = ipaddress.IPv4Network("10.0.0.0/8")


def used_networks() -> list[Network]:
    """Every IPv4 network that the host has an address or a route in, the default route left out."""
    with IPRoute() as route:
        return [
            *_networks(route.get_addr(family=2), "IFA_ADDRESS", "prefixlen"),
            *_networks(route.get_routes(family=2), "RTA_DST", "dst_len"),
        ]


def _networks(messages: object, attribute: str, length: str) -> Iterator[Network]:
    for message in messages:  # type: ignore[attr-defined]
        address = message.get_attr(attribute)
        if address is not None:
            yield Network(f"{address}/{message[length]}", strict=False)


def free_network(used: list[Network]) -> Network:
    """A /24 of 10.0.0.0/8 that overlaps none of `used`. Raises SetupError if there is none."""
    candidates = list(PRIVATE.subnets(new_prefix=24))
    # Random, so that two servers of a lab rarely choose the same.
    random.shuffle(candidates)
    for candidate in candidates:
        if not any(candidate.overlaps(network) for network in used):
            return candidate
    raise SetupError(
        "No /24 of 10.0.0.0/8 is free for a bridge.",
        advice=(
            f"Make one yourself: {ENGINE.command} network create NAME ipv4.address=ADDRESS/24"
            " ipv4.nat=true."
        ),
    )
