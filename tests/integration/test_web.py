"""The page's files and its login, over HTTP as a browser does it; test_page*.py has a real one."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.client import HTTPMessage

import pytest
import websocket
import yaml

from tests.integration.harness import Answer, Client, Node, Server, run, wait_until
from tests.integration.talking import connect, shell, streamed
from tests.integration.test_tokens import token_of

HTML = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}
# Of a script on the page.
SCRIPT = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True)
class Browser(Client):
    """Calls with a cookie, as a script on podyd's page does."""

    cookie: str = ""
    key: str = ""

    def login_header(self) -> dict[str, str]:
        own = {"Cookie": self.cookie, "X-Podyd-Page": self.key, **SCRIPT}
        return {**own, "Origin": f"http://127.0.0.1:{self.port}"}

    def bare(self, path: str, /, method: str = "GET", **headers: str) -> Answer:
        """A request that has the cookie and, of what a browser and the page add, these headers
        alone."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Client(self.port).call(method, path, headers={"Cookie": self.cookie, **named})


def enter(client: Client, **headers: str) -> Browser:
    """Log in on the page, as its form does."""
    answer = logged_in(client, **headers)
    return Browser(client.port, client.user, client.password, cookie_of(answer), answer.ok["key"])


def logged_in(client: Client, **headers: str) -> Answer:
    answer = client.call("POST", "/user/login", headers={**SCRIPT, **headers})
    assert answer.ok["user"]["name"] == client.user
    return answer


def cookie_of(answer: Answer) -> str:
    return str(answer.headers["Set-Cookie"]).partition(";")[0]


def raw(port: int, path: str, headers: dict[str, str]) -> tuple[int, HTTPMessage, bytes]:
    """Status, headers and body of an answer that need not be JSON."""
    connection = Client(port).connection(30)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def quick(node: Node) -> Server:
    """A podyd that remembers no login, behind a proxy on this host."""
    return node.serve(
        {"proxies": ["127.0.0.1"]},
        constants={
            "podyd.people.login.REMEMBERED_SECONDS": 0.0,
            "podyd.people.sessions.CHECK_SECONDS": 0.2,
        },
    )


# --- Files --------------------------------------------------------------------------------------


def test_a_browser_gets_the_page_and_curl_what_it_got(server: Server) -> None:
    status, headers, page = raw(server.port, "/", HTML)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert f"ws://127.0.0.1:{server.port}" in headers["Content-Security-Policy"]
    assert page.startswith(b"<!doctype html>")
    server.client().get("/").refused(404, "no_such_route")
    again = raw(server.port, "/", {**HTML, "If-None-Match": headers["Etag"]})
    assert (again[0], again[2]) == (304, b"")


def test_all_that_the_page_names_is_there(server: Server) -> None:
    """By relative URLs; test_page_login.py has them below a prefix."""
    page = raw(server.port, "/", HTML)[2]
    names = re.findall(r'(?:href|src)="(web/[^"]+)"', page.decode())
    assert {"web/style.css", "web/js/app.js"} <= {*names}
    for name in names:
        status, headers, body = raw(server.port, f"/{name}", {"Accept-Encoding": "gzip"})
        assert (status, bool(body)) == (200, True), name
        assert headers["Cache-Control"] == "no-cache"


def test_answers_of_the_api_are_for_no_other_page(alice: Client) -> None:
    headers = alice.get("/user/info").headers
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Content-Security-Policy"].endswith("frame-ancestors 'none'")


# --- Login and logout ---------------------------------------------------------------------------


def test_a_login_sets_a_cookie_that_stands_for_the_password(alice: Client, admin: Client) -> None:
    answer = logged_in(alice)
    assert answer.ok["expires"].endswith("Z")
    attributes = answer.headers["Set-Cookie"].split("; ")[1:]
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict"]
    browser = enter(alice)
    name, _, half = browser.cookie.partition("=")
    assert name == f"podyd-{alice.port}"
    assert half.startswith("podydweb_")
    # Of another server of this host name, for a longer path; a browser sends that first.
    hidden = replace(browser, cookie=f"{name}=podydweb_{'x' * 43}; {browser.cookie}")
    hidden.get("/user/info").ok
    assert browser.get("/user/info").ok["user"] == {"name": alice.user, "is_admin": 0}
    browser.get("/pod/listall").refused(403, "not_an_admin")
    assert enter(admin).get("/pod/listall").status == 200
    assert alice.user in {user["name"] for user in browser.get("/user/list").ok}


def test_it_does_what_its_user_may_but_for_what_needs_the_password(alice: Client, pod: str) -> None:
    browser = enter(alice)
    assert browser.exec(pod, "echo x")["stdout"] == "x\n"
    with streamed(browser, pod, "echo y") as talk:
        assert talk.end()["exit_code"] == 0
        assert talk.out == b"y\n"
    for path, params in (("/user/token", {"name": "x"}), ("/user/ch-passwd", {"passwd": "x"})):
        browser.post(path, **params).refused(403, "password_needed")
    browser.post("/user/login").refused(403, "password_needed")
    token_of(alice).post("/user/login").refused(403, "password_needed")
    # A login on the page may revoke what a token may not.
    made = alice.post("/user/token", name="other").ok
    browser.post("/user/token-revoke", id=made["id"]).ok


def test_a_wrong_password_opens_no_dialog_of_the_browsers(server: Server, alice: Client) -> None:
    wrong = server.client(alice.user, "wrong")
    answer = wrong.call("POST", "/user/login", headers=SCRIPT)
    answer.refused(401)
    assert "WWW-Authenticate" not in answer.headers
    by_plain_http = wrong.call("GET", "/user/info", headers={"X-Podyd-Page": "1"})
    assert "WWW-Authenticate" not in by_plain_http.headers
    assert "Set-Cookie" not in answer.headers
    for headers in ({}, {"Sec-Fetch-Mode": "navigate"}):
        assert (
            "Basic" in wrong.call("GET", "/user/info", headers=headers).headers["WWW-Authenticate"]
        )


def test_a_password_that_must_be_changed_says_so(node: Node, quick: Server) -> None:
    client = quick.client(node.accounts.user())
    run("chage", "-d", "0", client.user)
    client.call("POST", "/user/login", headers=SCRIPT).refused(403, "password_expired")
    changed = client.call("POST", "/user/ch-passwd", {"passwd": "Mine-now-1"}, headers=SCRIPT)
    assert changed.ok
    enter(replace(client, password="Mine-now-1")).get("/user/info").ok


def test_a_logout_ends_it_and_what_goes_on_with_it(own: Client) -> None:
    first, second = enter(own), enter(own)
    with contextlib.ExitStack() as held:
        events = connect(first, "/events")
        held.callback(events.shutdown)
        talk = held.enter_context(shell(first, "main"))
        talk.wait_for(b"#")
        answer = first.post("/user/logout")
        answer.ok
        assert answer.headers["Set-Cookie"].startswith(f"podyd-{own.port}=; ")
        assert talk.end()["code"] == "session_ended"
        while (message := events.recv_data())[0] != websocket.ABNF.OPCODE_CLOSE:
            pass
        assert message[1][2:] == b"session_ended"
    first.get("/user/info").refused(401, "session_ended")
    second.get("/user/info").ok
    own.post("/user/logout").refused(409, "no_session")


def test_logins_elsewhere_are_seen_and_ended(own: Client) -> None:
    here, lost, old = enter(own), enter(own), enter(own)
    logins = here.get("/user/logins").ok
    assert [item["address"] for item in logins[:3]] == ["127.0.0.1"] * 3
    (mine,) = [item for item in logins if item["here"]]
    (its,) = [item["id"] for item in lost.get("/user/logins").ok if item["here"]]
    assert its != mine["id"]
    here.post("/user/logout", id=its).ok
    lost.get("/user/info").refused(401, "session_ended")
    here.post("/user/logout", id=its).refused(404, "no_such_login")
    token_of(own).post("/user/logout", id="others").refused(403, "password_needed")
    here.post("/user/logout", id="others").ok
    old.get("/user/info").refused(401, "session_ended")
    assert [item["id"] for item in here.get("/user/logins").ok] == [mine["id"]]
    # Without a login on the page, all are others.
    own.post("/user/logout", id="others").ok
    here.get("/user/info").refused(401, "session_ended")


def test_the_secret_is_in_no_log_and_not_in_the_database(
    alice: Client, server: Server, node: Node
) -> None:
    browser = enter(alice)
    browser.get("/host/spec").ok
    server.wait_for_log(f"200 GET /host/spec user={alice.user}")
    for secret in (browser.cookie.partition("=podydweb_")[2], browser.key):
        assert secret not in server.log_text()
        for path in (node.directory / "state" / "data").glob("podyd.db*"):
            assert secret.encode() not in path.read_bytes(), path


def test_the_cookie_is_no_password_and_no_token(alice: Client, server: Server) -> None:
    browser = enter(alice)
    cookie = browser.cookie.removeprefix("podyd=")
    for secret in (cookie, f"{cookie}.{browser.key}"):
        server.client(alice.user, secret).get("/user/info").refused(401)
        bearer = {"Authorization": f"Bearer {secret}"}
        server.client().call("GET", "/user/info", headers=bearer).refused(401, "token_refused")


# --- Pages of others ----------------------------------------------------------------------------


def test_a_cookie_counts_only_where_podyds_page_asks(alice: Client) -> None:
    browser = enter(alice)
    own = f"http://127.0.0.1:{alice.port}"
    key = {"X_Podyd_Page": browser.key}
    assert browser.bare("/user/info", Sec_Fetch_Site="same-origin", **key).ok
    assert browser.bare("/user/info", Origin=own, **key).ok
    # By plain HTTP, where browsers send neither.
    assert browser.bare("/user/info", **key).ok
    preflight = browser.bare("/user/info", "OPTIONS", Origin=own)
    assert not [name for name in preflight.headers if name.startswith("Access-Control-")]
    for headers in (
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Origin": own},
        {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"},
    ):
        for method, path in (("GET", "/user/info"), ("POST", "/user/logout")):
            browser.bare(path, method, **headers).refused(403, "cross_site")
    assert browser.get("/user/info").ok, "nobody has logged them out"


def test_the_cookie_alone_is_half_a_login(alice: Client) -> None:
    """A browser sends it to what a pod serves on another port of this host name, too."""
    browser, other = enter(alice), enter(alice)
    for key in ("", "1", other.key, browser.key[:-1]):
        stolen = replace(browser, key=key)
        stolen.get("/user/info").refused(401, "session_ended")
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            connect(stolen, "/events")
        assert refused.value.status_code == 401
    connection = websocket.create_connection(
        f"ws://127.0.0.1:{alice.port}/events",
        header=[f"Cookie: {browser.cookie}"],
        origin=f"http://127.0.0.1:{alice.port}",
        subprotocols=["podyd", f"podyd-key.{browser.key}"],
        http_no_proxy=["127.0.0.1"],
    )
    with contextlib.closing(connection):
        assert connection.subprotocol == "podyd"
        assert json.loads(connection.recv())["whole"]


def test_a_login_in_the_header_goes_before_the_cookie(alice: Client, bob: Client) -> None:
    cookie = {"Cookie": enter(alice).cookie}
    assert bob.call("GET", "/user/info", headers=cookie).ok["user"]["name"] == bob.user


def test_a_login_that_the_browser_adds_makes_nobody_another_on_the_page(
    alice: Client, bob: Client
) -> None:
    page, added = enter(alice), bob.login_header()
    assert page.call("GET", "/user/info", headers=added).ok["user"]["name"] == alice.user
    # Nor does it log in where nobody is.
    left = replace(page, cookie="")
    left.call("GET", "/user/info", headers=added).refused(401)
    typed = {**added, "X-Podyd-Login": "1"}
    assert left.call("POST", "/user/login", headers=typed).ok["user"]["name"] == bob.user


@pytest.mark.parametrize("origin", ["", "http://evil.example", "http://127.0.0.1:1"])
def test_a_websocket_of_another_page_is_refused(alice: Client, pod: str, origin: str) -> None:
    browser = enter(alice)
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        websocket.create_connection(
            f"ws://127.0.0.1:{alice.port}/pod/exec-stream?ins={pod}",
            header=[f"Cookie: {browser.cookie}", "Sec-Fetch-Site: same-origin"],
            origin=origin or None,
            suppress_origin=not origin,
            http_no_proxy=["127.0.0.1"],
        )
    assert refused.value.status_code == 403


def test_behind_tls_the_cookie_is_of_this_host_alone(node: Node, quick: Server) -> None:
    client = quick.client(node.accounts.user())
    answer = logged_in(client, **{"X-Forwarded-Proto": "https"})
    pair, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert pair.startswith(f"__Host-podyd-{client.port}=podydweb_")
    assert "Secure" in attributes
    browser = Browser(client.port, client.user, cookie=pair, key=answer.ok["key"])
    asked = browser.call("GET", "/user/info", headers={"X-Forwarded-Proto": "https"})
    assert asked.ok["user"]["name"] == client.user
    browser.get("/user/info").refused(401)
    plain = replace(browser, cookie=pair.removeprefix("__Host-"))
    plain.call("GET", "/user/info", headers={"X-Forwarded-Proto": "https"}).refused(401)


# --- Its end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["revoke", "passwd", "chpasswd", "locked"])
def test_it_ends_with_the_login_of_its_user(node: Node, quick: Server, what: str) -> None:
    client = quick.client(node.accounts.user())
    browser, other = enter(client), enter(client)
    if what == "revoke":
        log = browser.post("/user/token-revoke", id="all").ok["log"]
        assert "Logins on the page that are ended: 2." in log
    elif what == "passwd":
        client.post("/user/ch-passwd", passwd="Mine-now-1").ok
    elif what == "chpasswd":
        run("chpasswd", stdin=f"{client.user}:Mine-now-1\n")
    else:
        run("usermod", "--expiredate", "1", client.user)
    for one in (browser, other):
        answer = one.get("/user/info")
        assert answer.status == (403 if what == "locked" else 401), answer.body
        assert what == "locked" or answer.body["code"] == "session_ended"
    if what == "locked":
        run("usermod", "--expiredate", "", client.user)
        browser.get("/user/info").ok


def test_an_admin_ends_those_of_others(new_user: Callable[[], Client], admin: Client) -> None:
    browser = enter(new_user())
    enter(admin).post("/user/token-revoke", id="all", user=browser.user).ok
    browser.get("/user/info").refused(401, "session_ended")


def test_it_outlives_podyd(alice: Client, quick: Server) -> None:
    before = enter(alice)
    # Of the same port, in a life that is not a test's.
    _, _, half = before.cookie.partition("=")
    browser = replace(before, port=quick.port, cookie=f"podyd-{quick.port}={half}")
    assert browser.get("/user/info").ok["user"]["name"] == alice.user


def test_without_its_user_it_ends_and_without_a_page_at_once(node: Node) -> None:
    idle = node.serve({"web": {"idle_hours": 0.0005}})
    client = idle.client(node.accounts.user())
    browser = enter(client)
    by_itself = {"X-Podyd-Live": "1"}

    def has_ended() -> bool:
        answer = browser.call("GET", "/user/info", headers=by_itself)
        return answer.status == 401 and answer.body["code"] == "session_ended"

    wait_until(has_ended, "the end of a login that is not used")
    idle.config.write_text(
        yaml.safe_dump({**yaml.safe_load(idle.config.read_text()), "web": False})
    )
    idle.signal(signal.SIGHUP)
    idle.wait_for_log("reloaded")
    client.call("POST", "/user/login", headers=SCRIPT).refused(404, "page_off")
    for path in ("/", "/web/js/app.js"):
        status, _, body = raw(idle.port, path, HTML)
        assert (status, json.loads(body)["code"]) == (404, "page_off")
    assert client.get("/user/info").ok, "the API goes on"
