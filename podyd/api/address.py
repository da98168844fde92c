"""From which address a request comes, also behind a proxy."""

from __future__ import annotations

from collections.abc import Sequence

from tornado.httputil import HTTPServerRequest

from podyd.addresses import Address, is_among, parse_address
from podyd.config import Network


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


def _parse(text: str) -> Address | None:
    """Without a zone (RFC 4007), which may be any text, and which no client beyond a proxy has."""
    return None if "%" in text else parse_address(text)
