"""The page's files over HTTP, and which requests of a browser count as the page's."""

from __future__ import annotations

import asyncio
import base64
import configparser
import contextlib
import fnmatch
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.testing import bind_unused_port
from tornado.web import Application

from podyd.api.address import is_encrypted
from podyd.api.application import WEB
from podyd.api.credentials import credentials
from podyd.api.cross_site import has_own_login, need_own_page, page_key, refuse_other_sites
from podyd.api.page import MEDIA, Page, page_policy, read_page
from podyd.api.session_cookie import MAX_COOKIES, cookie_name, cookies_in, set_cookie
from podyd.base.errors import Forbidden, Unauthorized
from podyd.cli.serve import MAX_HEADER_BYTES
from podyd.config.values import parse_networks
from podyd.people.tokens import is_token
from podyd.people.web_sessions import halves, is_web_cookie, is_web_secret, joined

SECRET = "podydweb_" + "aB3-_" * 8 + "xyz"
HTML = {"Accept": "text/html,*/*"}
TEXT = b"body { color: black }\n" * 50


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "js").mkdir()
    (tmp_path / "index.html").write_bytes(b"<!doctype html>")
    (tmp_path / "style.css").write_bytes(TEXT)
    (tmp_path / "js" / "app.mjs").write_bytes(b"1;")
    (tmp_path / "notes.org").write_bytes(b"not for browsers")
    return tmp_path


def fetch(
    root: Path,
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    is_on: bool = True,
) -> HTTPResponse:
    """The answer of a server with the page below `root`."""

    async def ask() -> HTTPResponse:
        async with serving(root, is_on=is_on) as port:
            client = AsyncHTTPClient(force_instance=True)
            try:
                return await client.fetch(
                    f"http://127.0.0.1:{port}{path}",
                    method=method,
                    headers=dict(headers or {}),
                    decompress_response=False,
                    raise_error=False,
                    allow_nonstandard_methods=True,
                )
            finally:
                client.close()

    return asyncio.run(ask())


@contextlib.asynccontextmanager
async def serving(root: Path, *, is_on: bool = True) -> AsyncIterator[int]:
    """The port of a server with the page below `root`."""
    parts = {
        "files": read_page(root),
        "is_on": lambda: is_on,
        "suggest": lambda path: "See /help.",
        "address_of": lambda request: request.remote_ip,
    }
    routes = [("/", Page, parts), ("/web/(.*)", Page, parts)]
    application = Application(routes, log_function=lambda _: None)  # type: ignore[arg-type]
    server = HTTPServer(application, max_header_size=MAX_HEADER_BYTES)
    sock, port = bind_unused_port()
    server.add_socket(sock)
    try:
        yield port
    finally:
        server.stop()
        await server.close_all_connections()


# --- Files --------------------------------------------------------------------------------------


def test_a_browser_gets_the_page_and_a_program_the_answer_of_old(root: Path) -> None:
    page = fetch(root, "/", HTML)
    assert (page.code, page.body) == (200, b"<!doctype html>")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        answer = fetch(root, "/", headers)
        assert (answer.code, json.loads(answer.body)["code"]) == (404, "no_such_route")
        assert answer.headers["Content-Type"] == "application/json"


def test_nothing_may_frame_the_page_or_add_to_it(root: Path) -> None:
    for path in ("/", "/web/style.css"):
        headers = fetch(root, path, {**HTML, "Host": "pods.example.org:8443"}).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert (
            "connect-src 'self' ws://pods.example.org:8443 wss://pods.example.org:8443;" in policy
        )
        assert "base-uri 'none'" in policy
        assert policy.endswith("frame-ancestors 'none'")
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("host", ["", "x y", "x;script-src *", "a/b", "a@b", "[::1", "x" * 300])
def test_a_host_that_is_none_is_not_named(host: str) -> None:
    assert "connect-src 'self';" in page_policy(host)


@pytest.mark.parametrize("host", ["localhost:8799", "[fe80::1]:8799", "pods.example.org"])
def test_a_host_is_named(host: str) -> None:
    assert f"connect-src 'self' ws://{host} wss://{host};" in page_policy(host)


def test_a_file_is_sent_once_and_then_confirmed(root: Path) -> None:
    first = fetch(root, "/web/style.css")
    assert (first.code, first.body) == (200, TEXT)
    assert first.headers["Cache-Control"] == "no-cache"
    again = fetch(root, "/web/style.css", {"If-None-Match": first.headers["Etag"]})
    assert (again.code, again.body) == (304, b"")
    (root / "style.css").write_bytes(b"new")
    changed = fetch(root, "/web/style.css", {"If-None-Match": first.headers["Etag"]})
    assert (changed.code, changed.body) == (200, b"new")


@pytest.mark.parametrize("etags", ["*", '"1", {}', 'W/{}, "2"'])
def test_a_browser_names_what_it_has_in_any_way(root: Path, etags: str) -> None:
    etag = fetch(root, "/web/style.css").headers["Etag"]
    assert fetch(root, "/web/style.css", {"If-None-Match": etags.format(etag)}).code == 304


@pytest.mark.parametrize("span", ["bytes=0-0", "bytes=-1", "bytes=9-1", "bytes=0-,0-,0-"])
def test_a_file_comes_whole_whatever_part_is_asked_for(root: Path, span: str) -> None:
    answer = fetch(root, "/web/style.css", {"Range": span})
    assert (answer.code, answer.body) == (200, TEXT)


def test_a_client_of_http_1_0_gets_the_page(root: Path) -> None:
    async def ask() -> bytes:
        async with serving(root) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /web/style.css HTTP/1.0\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            return answer

    head, _, body = asyncio.run(ask()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connect-src 'self';" in head
    assert body == TEXT


def test_headers_have_a_bound(root: Path) -> None:
    async def ask() -> None:
        async with serving(root) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    writer.write(b"Cookie: " + b"podyd=x; " * 1000 + b"\r\n")
                    await writer.drain()
                assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()

    asyncio.run(ask())


@pytest.mark.parametrize("accepted", ["gzip", "br, GZIP;q=0.5", "deflate,gzip, br"])
def test_who_takes_gzip_gets_it(root: Path, accepted: str) -> None:
    answer = fetch(root, "/web/style.css", {"Accept-Encoding": accepted})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert len(answer.body) < len(TEXT) / 4
    assert gzip.decompress(answer.body) == TEXT
    plain = fetch(root, "/web/style.css", {"If-None-Match": answer.headers["Etag"]})
    assert plain.code == 200, "the other form is another one"


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "gzip; q=0.00", "xgzip"])
def test_who_does_not_gets_the_file(root: Path, accepted: str) -> None:
    answer = fetch(root, "/web/style.css", {"Accept-Encoding": accepted})
    assert "Content-Encoding" not in answer.headers
    assert answer.body == TEXT


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web/missing.js",
        "/web/notes.org",
        "/web/js",
        "/web/../style.css",
        "/web/js/../style.css",
        "/web/%2e%2e/etc/passwd",
        "/web//etc/passwd",
        "/web/style.css%00",
    ],
)
def test_no_other_file_is_served(root: Path, path: str) -> None:
    answer = fetch(root, path, HTML)
    assert (answer.code, json.loads(answer.body)["code"]) == (404, "no_such_route")


def test_a_module_has_the_type_of_a_script(root: Path) -> None:
    answer = fetch(root, "/web/js/app.mjs")
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert fetch(root, "/web/js/app.mjs", method="HEAD").headers["Content-Length"] == "2"
    assert fetch(root, "/web/js/app.mjs", method="POST").code == 404


@pytest.mark.parametrize("path", ["/", "/web/style.css"])
def test_the_page_may_be_turned_off(root: Path, path: str) -> None:
    answer = fetch(root, path, HTML, is_on=False)
    assert (answer.code, json.loads(answer.body)["code"]) == (404, "page_off")


def test_each_file_of_the_page_is_served_and_installed() -> None:
    named = configparser.ConfigParser()
    named.read(WEB.parents[1] / "setup.cfg")
    patterns = named["options.package_data"]["podyd"].replace("\n", " ").split(",")
    files = [path for path in WEB.rglob("*") if path.is_file()]
    assert WEB / "index.html" in files
    for path in files:
        name = path.relative_to(WEB.parent)
        # Licences and hashes of what is vendored are for who reads the files, not for browsers.
        is_for_browsers = not path.name.startswith(("LICENSE", "SHA256SUMS"))
        assert (path.suffix in MEDIA) == is_for_browsers, name
        # As a shell has them: a * does not pass a /.
        depth = [
            pattern.strip() for pattern in patterns if pattern.count("/") == len(name.parts) - 1
        ]
        assert any(fnmatch.fnmatchcase(str(name), pattern) for pattern in depth), name


# --- The cookie ---------------------------------------------------------------------------------


def test_the_secret_is_no_token_and_counts_in_its_halves_alone() -> None:
    key = SECRET[-43:]
    whole = joined(SECRET, key)
    assert halves(whole) == (SECRET, key)
    assert is_web_cookie(SECRET) and not is_web_cookie(whole)
    assert is_web_secret(whole) and not is_web_secret(SECRET)
    assert not is_web_secret(joined(SECRET, "1"))
    assert not is_token(SECRET)
    basic = base64.b64encode(f"alice:{whole}".encode()).decode()
    for header in (f"Bearer {SECRET}", f"Bearer {whole}", f"Basic {basic}"):
        with pytest.raises(Unauthorized):
            credentials(header)


def test_the_key_is_in_a_header_or_among_a_sockets_protocols() -> None:
    assert page_key(HTTPHeaders({"X-Podyd-Page": "k"})) == "k"
    assert page_key(HTTPHeaders({"Sec-WebSocket-Protocol": "podyd, podyd-key.k"})) == "k"
    assert page_key(HTTPHeaders({"Sec-WebSocket-Protocol": "podyd"})) == ""
    assert page_key(HTTPHeaders()) == ""


@pytest.mark.parametrize(
    ("headers", "counts"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"X-Podyd-Page": "1"}, False),
        ({"X-Podyd-Page": "1", "X-Podyd-Login": "1"}, True),
        ({"Sec-WebSocket-Protocol": "podyd"}, False),
        ({"Sec-WebSocket-Protocol": "podyd-key.k, podyd"}, False),
        ({"Sec-WebSocket-Protocol": "chat"}, True),
    ],
    ids=str,
)
def test_a_login_that_a_browser_adds_to_what_the_page_asks_counts_for_nothing(
    headers: dict[str, str], counts: bool
) -> None:
    assert has_own_login(HTTPHeaders({"Authorization": "Basic x", **headers})) is counts
    assert has_own_login(HTTPHeaders(headers)) is False


def test_of_several_keys_the_first_counts() -> None:
    many = ", ".join(f"podyd-key.{number}" for number in range(5000))
    assert page_key(HTTPHeaders({"Sec-WebSocket-Protocol": f"podyd, {many}"})) == "0"
    assert not is_web_secret(joined(SECRET, "x" * 60_000))


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_cookie_comes_back(is_tls: bool) -> None:
    name, other = (cookie_name("lab:8799", is_encrypted=one) for one in (is_tls, not is_tls))
    pair, *attributes = set_cookie(name, SECRET).split("; ")
    assert cookies_in(f"other=1; {pair}", name) == [SECRET]
    assert cookies_in(pair, other) == []
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {*attributes}
    assert ("Secure" in attributes, pair.startswith("__Host-")) == (is_tls, is_tls)
    assert "Max-Age=0" not in attributes
    assert "Max-Age=0" in set_cookie(name, "")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost:8799", "podyd-8799"),
        ("localhost:8800", "podyd-8800"),
        ("lab", "podyd"),
        ("[::1]", "podyd"),
        ("[::1]:80", "podyd-80"),
        ("lab:1;x=2", "podyd"),
        ("lab:123456", "podyd"),
        ("lab:80\n", "podyd"),
        ("lab:\u0661", "podyd"),
        ("", "podyd"),
    ],
)
def test_two_podyds_of_one_host_name_have_a_cookie_each(host: str, name: str) -> None:
    assert cookie_name(host, is_encrypted=False) == name
    assert cookie_name(host, is_encrypted=True) == f"__Host-{name}"


@pytest.mark.parametrize("header", ["", "podyd", "xpodyd=1", ";;=;", "Podyd=1", "podyd-1=1"])
def test_what_is_no_cookie_of_podyds(header: str) -> None:
    assert cookies_in(header, "podyd") == []


def test_of_the_cookies_of_its_name_each_counts_and_not_endlessly_many() -> None:
    assert cookies_in("podyd=1; podyd=2;podyd=1; podyd=", "podyd") == ["1", "2", ""]
    many = cookies_in("; ".join(f"podyd={number}" for number in range(5000)), "podyd")
    assert many == [str(number) for number in range(MAX_COOKIES)]


@pytest.mark.parametrize(
    ("peer", "sent", "expected"),
    [
        ("10.0.0.1", "https", True),
        ("10.0.0.1", "http, https", True),
        ("10.0.0.1", "https, http", False),
        ("10.0.0.1", "", False),
        ("10.0.0.2", "https", False),
    ],
)
def test_a_proxy_says_whether_it_was_reached_by_tls(peer: str, sent: str, expected: bool) -> None:
    request = HTTPServerRequest(method="GET", uri="/", headers=HTTPHeaders())
    request.headers["X-Forwarded-Proto"] = sent
    request.remote_ip = peer
    assert is_encrypted(request, parse_networks(["10.0.0.1"])) is expected


# --- Whose request it is ------------------------------------------------------------------------

OWN, FOREIGN = "https://lab:8799", "https://evil.example"


@pytest.mark.parametrize(
    ("headers", "is_accepted"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": OWN}, True),
        ({"Origin": OWN}, True),
        ({"X-Podyd-Page": "1"}, True),
        ({"X-Podyd-Page": "1", "Origin": OWN}, True),
        ({"X-Podyd-Page": "1", "Origin": FOREIGN}, False),
        ({"X-Podyd-Page": "1", "Sec-Fetch-Site": "cross-site"}, False),
        ({"X-Podyd-Page": "1", "Upgrade": "websocket"}, False),
        ({}, False),
        ({"Origin": FOREIGN}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": OWN}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Upgrade": "websocket", "Origin": OWN}, True),
        ({"Upgrade": "websocket", "Origin": OWN, "Sec-Fetch-Site": "same-origin"}, True),
        ({"Upgrade": "websocket", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Upgrade": "WebSocket", "Origin": "https://lab:80"}, False),
        ({"Upgrade": "websocket"}, False),
    ],
    ids=str,
)
def test_a_cookie_counts_on_podyds_own_page(headers: dict[str, str], is_accepted: bool) -> None:
    sent = HTTPHeaders({"Host": "lab:8799", **headers})
    if is_accepted:
        need_own_page(sent, is_encrypted=False)
        refuse_other_sites(sent)
        return
    with pytest.raises(Forbidden) as refused:
        need_own_page(sent, is_encrypted=False)
    assert refused.value.code == "cross_site"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "null"},
        {"Origin": FOREIGN},
        {"Origin": "https://lab"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "same-origin,cross-site"},
        {"Sec-Fetch-Site": ""},
    ],
    ids=str,
)
def test_another_site_logs_nobody_in_or_out(headers: dict[str, str]) -> None:
    """Also with a login of its own in the request, such as that of a form with another's name."""
    with pytest.raises(Forbidden) as refused:
        refuse_other_sites(HTTPHeaders({"Host": "lab:8799", **headers}))
    assert refused.value.code == "cross_site"


def test_without_a_host_nothing_is_its_origin() -> None:
    with pytest.raises(Forbidden):
        need_own_page(HTTPHeaders({"Host": "", "Origin": ""}), is_encrypted=False)


@pytest.mark.parametrize("more", [{}, {"Upgrade": "websocket"}], ids=["request", "socket"])
def test_under_tls_a_page_without_is_another_site(more: dict[str, str]) -> None:
    def need(scheme: str) -> None:
        sent = HTTPHeaders({"Host": "lab", "Origin": f"{scheme}://lab", **more})
        need_own_page(sent, is_encrypted=True)

    need("https")
    with pytest.raises(Forbidden):
        need("http")
