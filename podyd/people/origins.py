"""The origin of a login, against which its failures count: an account of this host or an address.

All accounts of this host share its addresses, and can use any of 127.0.0.0/8; so the kernel is
asked which account owns the other end of the connection.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from dataclasses import dataclass

from podyd.base.errors import Unauthorized
from podyd.config.addresses import parse_address
from podyd.node.interface import Sockets
from podyd.node.sockdiag import SocketAddress

# Accounts of people begin here. A proxy runs as root or as a system account.
MIN_UID = 1000
# Whoever has one IPv6 address usually has the whole prefix.
IPV6_PREFIX = 64


@dataclass(frozen=True)
class Source:
    """Where a request comes from.

    `address` is the client's, as reported by a proxy if `is_forwarded`; `ends` are the peer's and
    our own address of the connection, None once it is closed.
    """

    address: str
    ends: tuple[SocketAddress, SocketAddress] | None
    is_forwarded: bool = False


class Origins:
    """Asks the kernel which account owns a connection."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    async def of(self, source: Source) -> Hashable:
        """The account on this host that has sent the request, or else the address.

        An account that pretends to be a proxy is still that account. Raises Unauthorized if the
        connection is closed, as the kernel then no longer knows its owner.
        """
        if source.ends is None:
            raise _gone()
        try:
            uid = await self._sockets.owner_of(*source.ends)
        except ConnectionError:
            raise _gone() from None
        except OSError:  # The kernel does not support it.
            uid = None
        if uid is None or (source.is_forwarded and uid < MIN_UID):
            return "address", network_of(source.address)
        return "uid", uid


def _gone() -> Unauthorized:
    return Unauthorized("The caller has hung up.", code="hung_up")


def network_of(address: str) -> str:
    """The addresses that whoever has this one is likely to have as well: of IPv6 its prefix."""
    parsed = parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((parsed, IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)
