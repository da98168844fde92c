"""From which address a request comes, also behind a proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from tornado.httputil import HTTPServerRequest

from podyd.config import Network

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def client_address(request: HTTPServerRequest, proxies: Sequence[Network]) -> str:
    """The peer's address; if that is one of `proxies`, the one that it got the request from.

    Each proxy adds its peer to the right end of X-Forwarded-For, and the client may have sent
    anything to the left of that: so what counts is the first from the right that is no proxy.
    """
    peer = request.remote_ip or ""
    if not _is_proxy(_parse(peer), proxies):
        return peer
    for item in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        found = _parse(item.strip())
        if found is None:
            return peer
        if not _is_proxy(found, proxies):
            return str(found)
    return peer


def _is_proxy(address: _Address | None, proxies: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in proxies)


def _parse(text: str) -> _Address | None:
    """An address, or None; one of IPv4 in IPv6's clothes is taken for what it is.

    Without a zone (RFC 4007), which may be any text, and which no client beyond a proxy has.
    """
    if "%" in text:
        return None
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
