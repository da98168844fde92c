"""Which requests a browser sends for the page of another site, with its user's login added."""

from __future__ import annotations

from tornado.httputil import HTTPHeaders

from podyd.base.errors import Forbidden

# A script of the page sends it with each request: the key of its login, or anything before that.
OWN_PAGE = "X-Podyd-Page"
# With it, the login in a request of the page is one that its user has typed there.
TYPED = "X-Podyd-Login"
# A WebSocket has no headers of a script's own, but names of protocols, of which one is answered.
PROTOCOL, _KEY_PROTOCOL = "podyd", "podyd-key."


def refuse_other_sites(headers: HTTPHeaders) -> None:
    """Refuse cross-site requests: a browser adds its user's login to them. Raises Forbidden."""
    site = headers.get("Sec-Fetch-Site", "none")
    is_foreign = "Origin" in headers and not _has_own_origin(headers)
    if site not in ("none", "same-origin") or is_foreign:
        raise Forbidden(
            "podyd answers no requests that the page of another site makes.", code="cross_site"
        )


def need_own_page(headers: HTTPHeaders, *, is_encrypted: bool) -> None:
    """Refuse a request with the page's cookie unless the browser says that podyd's page has made
    it. One that `is_encrypted` is not of a page that came without TLS: whoever is on the network
    path can make such a page of the same host. Raises Forbidden.

    A WebSocket needs its Origin: SameSite lets in pages on other ports and sibling names, and not
    every browser sends Sec-Fetch-Site with one. By plain HTTP, but to localhost, browsers send no
    Sec-Fetch-Site, nor an Origin with GET; there the page's own header stands for both: for another
    site a browser would first ask podyd whether that may send it, which podyd refuses.
    """
    site = headers.get("Sec-Fetch-Site")
    is_socket = headers.get("Upgrade", "").lower() == "websocket"
    by_fetch = site == "same-origin" and not is_socket
    has_own_origin = _has_own_origin(headers) and (
        not is_encrypted or headers["Origin"].startswith("https://")
    )
    by_origin = site in (None, "same-origin") and has_own_origin
    by_header = site is None and "Origin" not in headers and OWN_PAGE in headers and not is_socket
    if not (by_fetch or by_origin or by_header):
        raise Forbidden(
            "A login on podyd's page counts only for requests that this page makes.",
            advice="Open the page, or log in with your password or a token.",
            code="cross_site",
        )


def has_own_login(headers: HTTPHeaders) -> bool:
    """Whether the login in `Authorization` counts.

    To what the page asks, a browser adds a login that it was once given elsewhere, such as by the
    link http://mallory:password@host/ of another site: its user would work as somebody else.
    """
    is_of_page = OWN_PAGE in headers or PROTOCOL in _protocols(headers)
    return "Authorization" in headers and (not is_of_page or TYPED in headers)


def page_key(headers: HTTPHeaders) -> str:
    """The key of a login on the page, "" without one."""
    for name in _protocols(headers):
        if name.startswith(_KEY_PROTOCOL):
            return name.removeprefix(_KEY_PROTOCOL)
    return str(headers.get(OWN_PAGE, ""))


def _protocols(headers: HTTPHeaders) -> list[str]:
    return [name.strip() for name in headers.get("Sec-WebSocket-Protocol", "").split(",")]


def is_of_script(headers: HTTPHeaders) -> bool:
    """Whether a script in a browser has made the request, and not its user or a program."""
    return headers.get("Sec-Fetch-Mode", "navigate") != "navigate" or OWN_PAGE in headers


def _has_own_origin(headers: HTTPHeaders) -> bool:
    """Whether the request has an Origin, and that is the host that it is sent to."""
    origin, host = headers.get("Origin", ""), headers.get("Host", "")
    return bool(host) and str(origin).partition("://")[2] == host
