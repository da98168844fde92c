"""Where logins come from, so that each of those who try passwords has failures of their own.

All who are on this host share its addresses, and can take any of 127.0.0.0/8: the kernel knows
which account has the other end of their connection.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from dataclasses import dataclass

from podyd.base.errors import Unauthorized
from podyd.config.addresses import parse_address
from podyd.node.interface import Sockets
from podyd.node.sockdiag import SocketAddress

# People's accounts begin there. A proxy runs as root or as an account of the system.
MIN_UID = 1000
# Whoever has one address of IPv6 has at least so many.
IPV6_PREFIX = 64


@dataclass(frozen=True)
class Source:
    """Where a request comes from.

    `address` is the client's, as a proxy says it if `is_forwarded`; `ends` are the peer's and ours
    of the connection, None once it is closed.
    """

    address: str
    ends: tuple[SocketAddress, SocketAddress] | None
    is_forwarded: bool = False


class Origins:
    """Asks the kernel whose a connection is."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    async def of(self, source: Source) -> Hashable:
        """The account on this host that asks, or else the address.

        An account that pretends to be a proxy is still that account. Raises Unauthorized if the
        caller has hung up, and so shows no longer who it is.
        """
        if source.ends is None:
            raise _gone()
        try:
            uid = await self._sockets.owner_of(*source.ends)
        except ConnectionError:
            raise _gone() from None
        except OSError:  # This kernel does not tell.
            uid = None
        if uid is None or (source.is_forwarded and uid < MIN_UID):
            return "address", _network(source.address)
        return "uid", uid


def _gone() -> Unauthorized:
    return Unauthorized("The caller has hung up.", code="hung_up")


def _network(address: str) -> str:
    found = parse_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((found, IPV6_PREFIX), strict=False))
    return address if found is None else str(found)
