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

    Each proxy appends its peer to X-Forwarded-For, and the client may have sent anything before
    that: so the last address that is no proxy's is the client's.
    """
    peer = request.remote_ip or ""
    if not is_among(_parse(peer), proxies):
        return peer
    for item in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        address = _parse(item.strip())
        if address is None:
            return peer
        if not is_among(address, proxies):
            return str(address)
    return peer


def is_encrypted(request: HTTPServerRequest, proxies: Sequence[Network]) -> bool:
    """Whether the client's connection is TLS: to podyd itself, or to one of `proxies`, which says
    so."""
    if request.protocol == "https":
        return True
    last = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip()
    return last == "https" and is_among(_parse(request.remote_ip or ""), proxies)


def source_of(request: HTTPServerRequest, address: str) -> Source:
    """The source of a request: the client's address, and the connection it has come by."""
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
    """An address without a zone (RFC 4007): a zone may be any text, and means nothing on another
    host."""
    return None if "%" in text else parse_address(text)
