"""Tokens: what they may do, and when they end, on real accounts and the real PAM."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone

import pytest

from tests.integration.harness import IMAGE, PASSWORD, SMALL, Client, Node, Server, run, wait_until
from tests.integration.test_shell import refused

# As a parameter, which is never written 5e-06, and what is longer.
MOMENT_DAYS, MOMENT_SECONDS = "0.00001", 1.0


@dataclass(frozen=True)
class Bearer(Client):
    """Calls with a token as its password, in a header of its own."""

    def login_header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.password}"}


def token_of(client: Client, **params: object) -> Bearer:
    """A caller with a new token of the client's."""
    made = client.post("/user/token", **{"name": "laptop", **params}).ok
    return Bearer(client.port, client.user, made["token"])


def id_of(bearer: Bearer) -> str:
    """The id of the one token that its owner has."""
    (answer,) = bearer.get("/user/tokens").ok
    return str(answer["id"])


# --- Making and using ---------------------------------------------------------------------------


def test_a_token_is_shown_once_and_listed_without_its_secret(
    new_user: Callable[[], Client],
) -> None:
    client = new_user()
    before = int(time.time())
    made = client.post("/user/token", name="grün: 1", days=2).ok
    assert set(made) == {"token", "id", "name", "scope", "created", "expires"}
    assert made["token"].startswith("podyd_")
    created, expires = (datetime.fromisoformat(made[key][:-1]) for key in ("created", "expires"))
    assert created.replace(tzinfo=timezone.utc).timestamp() >= before
    assert (expires - created).total_seconds() == pytest.approx(2 * 86400, abs=1)
    (listed,) = client.get("/user/tokens").ok
    shown = {key: made[key] for key in ("id", "name", "scope", "created", "expires")}
    assert listed == shown | {"last_used": None}
    assert (listed["name"], listed["scope"]) == ("grün: 1", "all")


def test_a_token_stands_for_the_password(
    new_user: Callable[[], Client], server: Server, ins: str
) -> None:
    client = new_user()
    bearer = token_of(client)
    assert bearer.get("/user/info").ok["user"]["name"] == client.user
    # As a client does that knows Basic alone, such as pody 0.4.
    basic = server.client(client.user, bearer.password)
    basic.post("/pod/create", ins=ins, image=SMALL).ok
    assert bearer.exec(ins, "echo x")["stdout"] == "x\n"
    basic.post("/pod/delete", ins=ins).ok
    (listed,) = client.get("/user/tokens").ok
    assert listed["last_used"] >= listed["created"]


def test_the_access_log_has_the_user_and_no_log_has_the_token(
    new_user: Callable[[], Client], server: Server, node: Node
) -> None:
    client = new_user()
    bearer = token_of(client)
    bearer.get("/host/spec").ok
    server.wait_for_log(f"200 GET /host/spec user={client.user}")
    helper = (node.directory / "auth.log").read_text()
    assert f"account {client.user} from 127.0.0.1: ok" in helper
    for text in (server.log_text(), helper):
        assert bearer.password.removeprefix("podyd_") not in text


def test_the_database_has_no_token(new_user: Callable[[], Client], node: Node) -> None:
    bearer = token_of(new_user())
    with sqlite3.connect(node.directory / "state" / "data" / "podyd.db") as database:
        rows = database.execute("SELECT * FROM tokens WHERE owner = ?", (bearer.user,)).fetchall()
    database.close()
    assert len(rows) == 1
    secret = bearer.password.removeprefix("podyd_")
    assert not [value for value in rows[0] if secret in str(value)]


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({"days": 366}, 403, "days_too_many"),
        ({"days": 0}, 400, "malformed_parameter"),
        ({"days": "forever"}, 400, "malformed_parameter"),
        ({"scope": "write"}, 400, "malformed_parameter"),
        ({"name": ""}, 400, "malformed_parameter"),
    ],
)
def test_what_cannot_be_made(
    alice: Client, params: dict[str, object], status: int, code: str
) -> None:
    alice.post("/user/token", **{"name": "x", **params}).refused(status, code)


def test_the_admin_says_how_long(node: Node) -> None:
    server = node.serve({"auth": {"token_days_max": 7}})
    client = server.client(node.accounts.user())
    assert client.post("/user/token", name="x", days=8).refused(403)["limit"] == 7
    made = client.post("/user/token", name="x").ok
    days = datetime.fromisoformat(made["expires"][:-1]) - datetime.fromisoformat(
        made["created"][:-1]
    )
    assert days.total_seconds() == pytest.approx(7 * 86400, abs=1)
    assert server.stop() == 0


def test_a_user_has_so_many_at_most(new_user: Callable[[], Client]) -> None:
    client = new_user()
    client.get("/user/info").ok

    def make(number: int) -> int:
        return client.post("/user/token", name=str(number)).status

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(make, range(53)))
    assert sorted(answers) == [200] * 50 + [403] * 3
    body = client.post("/user/token", name="x").refused(403, "quota_exceeded")
    assert body["limit"] == 50
    assert client.post("/user/token-revoke", id="all").ok["log"].endswith(": 50.")
    token_of(client)


# --- What a token may do ------------------------------------------------------------------------


def test_a_token_makes_no_token_and_changes_no_password(new_user: Callable[[], Client]) -> None:
    client = new_user()
    bearer = token_of(client)
    basic = Client(client.port, client.user, bearer.password)
    for caller in (bearer, basic):
        for path, params in (
            ("/user/token", {"name": "more"}),
            ("/user/ch-passwd", {"passwd": "Mine-now-1"}),
        ):
            body = caller.post(path, **params).refused(403, "password_needed")
            assert "password" in body["detail"]
    bearer.get("/user/ch-passwd", passwd="Mine-now-1").refused(403, "password_needed")
    client.get("/user/info").ok


def test_a_token_that_reads(new_user: Callable[[], Client], ins: str) -> None:
    client = new_user()
    reader = token_of(client, scope="read")
    for path in ("/user/info", "/pod/list", "/host/gpus", "/user/tokens", "/help"):
        reader.get(path).ok
    for path, params in (
        ("/pod/create", {"ins": ins, "image": IMAGE}),
        ("/pod/exec", {"ins": ins, "cmd": "true"}),
        ("/gpu/release", {"ins": ins}),
    ):
        reader.post(path, **params).refused(403, "token_only_reads")
    reader.post("/user/token", name="x", scope="all").refused(403, "password_needed")
    reader.post("/user/token-revoke", id=id_of(reader)).ok


def test_a_token_that_reads_gets_nothing_out_of_a_pod(alice: Client, pod: str) -> None:
    reader = token_of(alice, scope="read")
    for path in ("/pod/shell", "/pod/exec-stream"):
        assert refused(reader, path, ins=pod) == 403
    for path, params in (
        ("/pod/file", {"path": "/etc/shadow"}),
        ("/pod/file", {"path": "/root", "format": "tar"}),
        ("/pod/logs", {}),
    ):
        body = reader.get(path, ins=pod, **params).refused(403, "token_only_reads")
        assert "scope all" in body["advice"]


@pytest.mark.parametrize("scope", ["read", "all"])
def test_each_operation_takes_the_tokens_that_the_document_says(admin: Client, scope: str) -> None:
    bearer = token_of(admin, scope=scope)
    described = bearer.get("/openapi.json").ok["paths"]
    documented, taken = set(), set()
    for path, methods in described.items():
        for method, operation in methods.items():
            if {"token": [scope]} in operation["security"]:
                documented.add((method, path))
            # The login is judged first: with a parameter that there is not, nothing else happens.
            status = (
                refused(bearer, path, nothing=1)
                if "x-websocket" in operation
                else bearer.call(method.upper(), path, {"nothing": 1}).status
            )
            assert status in (400, 403), (path, status)
            if status == 400:
                taken.add((method, path))
    assert taken == documented | {("get", "/version")}
    admin.post("/user/token-revoke", id="all").ok


def test_a_token_revokes_itself_alone(new_user: Callable[[], Client]) -> None:
    client = new_user()
    first = token_of(client)
    own = id_of(first)
    second = token_of(client)
    for params in ({"id": "all"}, {"id": "0" * 16}, {"id": own, "user": "root"}):
        first.post("/user/token-revoke", **params).refused(403, "password_needed")
    second.post("/user/token-revoke", id=own).refused(403, "password_needed")
    first.post("/user/token-revoke", id=own).ok
    first.get("/user/info").refused(401, "token_refused")
    second.get("/user/info").ok


def test_an_admins_token_is_an_admins(admin: Client) -> None:
    bearer = token_of(admin, scope="read")
    bearer.get("/pod/listall").ok
    bearer.post("/user/token-revoke", id="all").refused(403, "password_needed")
    admin.post("/user/token-revoke", id="all").ok


# --- The end of a token -------------------------------------------------------------------------


def test_a_revoked_token_ends_at_once(new_user: Callable[[], Client]) -> None:
    client = new_user()
    bearer = token_of(client)
    bearer.get("/user/info").ok
    token_id = id_of(bearer)
    client.post("/user/token-revoke", id=token_id).ok
    bearer.get("/user/info").refused(401, "token_refused")
    client.post("/user/token-revoke", id=token_id).refused(404, "no_such_token")
    assert client.get("/user/tokens").ok == []


def test_others_tokens_are_for_admins_to_revoke(
    new_user: Callable[[], Client], admin: Client
) -> None:
    client, other = new_user(), new_user()
    bearer = token_of(client)
    token_id = id_of(bearer)
    other.post("/user/token-revoke", id=token_id).refused(404, "no_such_token")
    other.post("/user/token-revoke", id="all", user=client.user).refused(403, "not_an_admin")
    bearer.get("/user/info").ok
    admin.post("/user/token-revoke", id=token_id, user=client.user).ok
    bearer.get("/user/info").refused(401)
    bearer = token_of(client)
    answer = admin.post("/user/token-revoke", id="all", user=client.user).ok["log"]
    assert answer == f"Tokens of {client.user} that are revoked: 1."
    bearer.get("/user/info").refused(401)


def test_an_expired_token(new_user: Callable[[], Client]) -> None:
    client = new_user()
    bearer = token_of(client, days="0.00004")
    bearer.get("/user/info").ok
    wait_until(lambda: bearer.get("/user/info").status != 200, "its end")
    bearer.get("/user/info").refused(401, "token_refused")
    assert client.get("/user/tokens").ok == []


def test_a_new_password_revokes_the_tokens(new_user: Callable[[], Client], server: Server) -> None:
    client = new_user()
    bearers = [token_of(client), token_of(client)]
    for bearer in bearers:
        bearer.get("/user/info").ok
    answer = client.post("/user/ch-passwd", passwd="Next-Horse-8").ok["log"]
    assert "revoked: 2." in answer
    for bearer in bearers:
        bearer.get("/user/info").refused(401, "token_refused")
    assert server.client(client.user, "Next-Horse-8").get("/user/tokens").ok == []


def test_a_password_changed_on_the_host_ends_the_tokens_too(
    new_user: Callable[[], Client],
) -> None:
    bearer = token_of(new_user())
    run("chpasswd", stdin=f"{bearer.user}:Next-Horse-8\n")
    bearer.get("/user/info").refused(401, "token_refused")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("usermod", "-L"), "account_refused"),
        (("usermod", "-e", "2020-01-01"), "account_refused"),
        (("usermod", "-s", "/usr/sbin/nologin"), "account_refused"),
        (("chage", "-d", "0"), "password_expired"),
    ],
    ids=["locked", "expired", "no shell", "password expired"],
)
def test_an_account_that_may_not_log_in(
    new_user: Callable[[], Client], command: tuple[str, ...], code: str
) -> None:
    bearer = token_of(new_user())
    run(*command, bearer.user)
    bearer.get("/user/info").refused(403, code)


def test_a_locked_account_that_is_unlocked(new_user: Callable[[], Client]) -> None:
    bearer = token_of(new_user())
    run("usermod", "-L", bearer.user)
    bearer.get("/user/info").refused(403, "account_refused")
    run("usermod", "-U", bearer.user)
    bearer.get("/user/info").ok


def test_an_account_that_is_removed_and_made_anew(node: Node, server: Server) -> None:
    def uid(user: str) -> int:
        return int(run("id", "-u", user))

    user = node.accounts.user()
    bearers = [token_of(server.client(user)) for _ in range(3)]
    before = uid(user)
    node.accounts.remove(user)
    bearers[0].get("/user/info").refused(401, "token_refused")
    # Whom another test has made meanwhile may have it, too.
    node.accounts.user(user, "-o", "-u", str(before))
    bearers[1].get("/user/info").refused(401, "token_refused")
    node.accounts.remove(user)
    node.accounts.user(user, "-o", "-u", str(before + 1000), password="Next-Horse-8")
    bearers[2].get("/user/info").refused(401, "token_refused")
    assert server.client(user, "Next-Horse-8").get("/user/tokens").ok == []


def test_a_member_who_has_left_the_group(node: Node) -> None:
    group = node.accounts.group()
    user = node.accounts.user("", "-G", group)
    server = node.serve({"auth": {"member_groups": [group]}})
    stays, goes = token_of(server.client(user)), token_of(server.client(user))
    stays.get("/user/info").ok
    run("gpasswd", "-d", user, group)
    goes.get("/user/info").refused(403, "not_a_member")
    assert server.stop() == 0


def test_a_token_outlives_podyd_and_its_revocation_too(node: Node) -> None:
    first = node.serve()
    client = first.client(node.accounts.user())
    kept, revoked = token_of(client), token_of(client)
    revoked.post("/user/token-revoke", id=client.get("/user/tokens").ok[1]["id"]).ok
    first.process.kill()
    first.process.wait()
    second = node.serve()
    Bearer(second.port, kept.user, kept.password).get("/user/info").ok
    Bearer(second.port, kept.user, revoked.password).get("/user/info").refused(401)
    assert second.stop() == 0


# --- Wrong tokens -------------------------------------------------------------------------------


def test_all_that_is_no_token_looks_the_same(new_user: Callable[[], Client]) -> None:
    client, other = new_user(), new_user()
    expired = token_of(client, days=MOMENT_DAYS)
    revoked = token_of(client, days=1)
    client.post("/user/token-revoke", id="all").ok
    time.sleep(MOMENT_SECONDS)
    good = token_of(client)
    unknown = Bearer(client.port, "", "podyd_" + "x" * 43)
    answers = [
        expired.get("/user/info"),
        revoked.get("/user/info"),
        unknown.get("/user/info"),
        Client(client.port, other.user, good.password).get("/user/info"),
    ]
    assert len({json.dumps(answer.refused(401, "token_refused")) for answer in answers}) == 1
    assert all(answer.headers["WWW-Authenticate"].startswith("Basic") for answer in answers)
    assert max(item.seconds for item in answers) - min(item.seconds for item in answers) < 1
    malformed = Bearer(client.port, "", PASSWORD).get("/user/info")
    assert malformed.refused(401) == answers[0].body


def test_wrong_tokens_never_reach_pam(new_user: Callable[[], Client], node: Node) -> None:
    client = new_user()
    Client(client.port, client.user, "podyd_" + "x" * 43).get("/user/info").refused(401)
    assert client.user not in (node.directory / "auth.log").read_text()


def test_wrong_tokens_are_throttled_per_address(node: Node) -> None:
    server = node.serve({"auth": {"failures_per_address": 4, "failure_window": 60}})
    client = server.client(node.accounts.user())
    known, new = token_of(client), token_of(client)
    known.get("/user/info").ok
    for number in range(4):
        wrong = Bearer(client.port, "", f"podyd_{number}" + "x" * 42)
        wrong.get("/user/info").refused(401)
    wrong = Bearer(client.port, "", "podyd_" + "x" * 43)
    wrong.get("/user/info").refused(429, "too_many_failed_logins")
    # One that is right is no guess.
    new.get("/user/info").ok
    known.get("/user/info").ok
    client.get("/user/info").ok
    assert server.stop() == 0


def test_wrong_tokens_do_not_lock_their_alleged_owner_out(node: Node) -> None:
    server = node.serve({"auth": {"failures_per_user": 2}})
    user = node.accounts.user()
    for number in range(4):
        wrong = server.client(user, f"podyd_{number}" + "x" * 42)
        wrong.get("/user/info").refused(401, "token_refused")
    server.client(user).get("/user/info").ok
    assert server.stop() == 0


def test_one_token_that_has_ended_is_throttled_by_itself(node: Node) -> None:
    server = node.serve({"auth": {"failures_per_user": 2}})
    ended = Bearer(server.port, "", "podyd_" + "x" * 43)
    for _ in range(2):
        ended.get("/user/info").refused(401)
    ended.get("/user/info").refused(429)
    Bearer(server.port, "", "podyd_" + "y" * 43).get("/user/info").refused(401)
    assert server.stop() == 0


def test_without_a_database_passwords_go_on(node: Node) -> None:
    server = node.serve()
    client = server.client(node.accounts.user())
    bearer = token_of(client)
    path = node.directory / "state" / "data" / "podyd.db"
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        bearer.get("/user/info").refused(503, "database_failed")
        client.get("/user/info").ok
        other.rollback()
    other.close()
    wait_until(lambda: bearer.get("/user/info").status == 200, "the database to be tried again")
    assert server.stop() == 0
