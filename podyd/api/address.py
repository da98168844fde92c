"""From which address a request comes, also behind a proxy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tornado.httputil import HTTPServerRequest

from podyd.config.addresses import Address, is_among, parse_address
from podyd.config.values import Network
from podyd.node.sockdiag import SocketAddress
from podyd.people.origins import Source


def client_address(request: HTTPServerRequest, proxies: Sequence[Network]) -> str:
    """The peer's address; if that is one of `proxies`, the one that it got the request from.

    Each proxy adds its peer to the right end of X-Forwarded-For, and the client may have sent
    anything to the left of that: so what counts is the first from the right that is no proxy.
    """
    peer = request.remote_ip or ""
    if not is_among(_parse(peer), proxies):
        return peer
    for item in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        found = _parse(item.strip())
        if found is None:
            return peer
        if not is_among(found, proxies):
            return str(found)
    return peer


def source_of(request: HTTPServerRequest, address: str) -> Source:
    """Who sends a request: the client's address, and the connection by which it has come."""
    return Source(address, _ends(request), is_forwarded=address != request.remote_ip)


def _ends(request: HTTPServerRequest) -> tuple[SocketAddress, SocketAddress] | None:
    connection: Any = request.connection
    sock = connection.stream.socket
    try:
        return (
            (SocketAddress.of(sock.getpeername()), SocketAddress.of(sock.getsockname()))
            if sock
            else None
        )
    except OSError:  # The caller has hung up.
        return None


def _parse(text: str) -> Address | None:
    """Without a zone (RFC 4007), which may be any text, and which no client beyond a proxy has."""
    return None if "%" in text else parse_address(text)
