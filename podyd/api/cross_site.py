"""Which requests a browser sends for the page of another site, with its user's login added."""

from __future__ import annotations

from tornado.httputil import HTTPHeaders

from podyd.base.errors import Forbidden


def refuse_other_sites(headers: HTTPHeaders) -> None:
    """Refuse cross-site requests: a browser adds its user's login to them. Raises Forbidden."""
    site = headers.get("Sec-Fetch-Site", "none")
    is_foreign = "Origin" in headers and not _has_own_origin(headers)
    if site not in ("none", "same-origin") or is_foreign:
        raise Forbidden(
            "podyd answers no requests that the page of another site makes.", code="cross_site"
        )


def need_own_page(headers: HTTPHeaders) -> None:
    """Refuse a request with the page's cookie unless the browser says that podyd's page has made
    it. Raises Forbidden.

    A WebSocket needs its Origin: SameSite lets in pages on other ports and sibling names, and not
    every browser sends Sec-Fetch-Site with one.
    """
    site = headers.get("Sec-Fetch-Site")
    is_socket = headers.get("Upgrade", "").lower() == "websocket"
    by_fetch = site == "same-origin" and not is_socket
    by_origin = site in (None, "same-origin") and _has_own_origin(headers)
    if not (by_fetch or by_origin):
        raise Forbidden(
            "A login on podyd's page counts only for requests that this page makes.",
            advice="Open the page, or log in with your password or a token.",
            code="cross_site",
        )


def _has_own_origin(headers: HTTPHeaders) -> bool:
    """Whether the request has an Origin, and that is the host that it is sent to."""
    origin, host = headers.get("Origin", ""), headers.get("Host", "")
    return bool(host) and str(origin).partition("://")[2] == host
