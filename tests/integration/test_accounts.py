"""Logins and passwords on real accounts, through the real PAM."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.harness import (
    PASSWORD,
    Answer,
    Client,
    Node,
    Server,
    run,
    stopped,
    wait_until,
)
from tests.integration.test_tokens import Bearer, token_of

ODD_NAMES = ["2021302111", "li_meng", "a.b", "Zhang", "podydt".ljust(32, "x")]


def test_an_unknown_user_and_a_wrong_password_look_the_same(
    server: Server, new_user: Callable[[], Client]
) -> None:
    wrong = server.client(new_user().user, "wrong").get("/user/info")
    unknown = server.client("podydt-nobody", "wrong").get("/user/info")
    assert wrong.refused(401) == unknown.refused(401)
    # PAM's own delay is two seconds.
    assert abs(wrong.seconds - unknown.seconds) < 1


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_log_in(node: Node, server: Server, name: str) -> None:
    node.accounts.user(name)
    assert server.client(name).get("/user/info").ok["user"]["name"] == name
    node.accounts.remove(name)


@pytest.mark.parametrize(
    "options",
    [("-e", "2020-01-01"), ("-s", "/usr/sbin/nologin"), ("-s", "/bin/false")],
    ids=["expired", "nologin", "false"],
)
def test_an_account_that_may_not_log_in(
    node: Node, server: Server, options: tuple[str, ...]
) -> None:
    user = node.accounts.user("", *options)
    assert server.client(user).get("/user/info").status in (401, 403)


def test_a_locked_account(node: Node, server: Server) -> None:
    user = node.accounts.user()
    run("usermod", "-L", user)
    server.client(user).get("/user/info").refused(401)


def test_an_expired_password_can_be_changed_and_nothing_else(
    node: Node, new_user: Callable[[], Client]
) -> None:
    before = new_user()
    user, secret = before.user, token_of(before).password
    run("chage", "-d", "0", user)
    server = node.serve()  # It remembers nobody.
    fresh, bearer = server.client(user), Bearer(server.port, user, secret)
    for refused in (
        fresh.get("/user/info"),
        fresh.get("/help"),
        fresh.get("/pod/list"),
        fresh.post("/user/token", name="x"),
    ):
        assert "pody passwd" in refused.refused(403, "password_expired")["advice"]
    bearer.get("/user/info").refused(403, "password_expired")
    bearer.post("/user/ch-passwd", passwd="Next-Horse-8").refused(403, "password_needed")
    wrong = server.client(user, "wrong")
    wrong.get("/user/info").refused(401, "unauthorized")
    wrong.post("/user/ch-passwd", passwd="Next-Horse-8").refused(401, "unauthorized")
    for weak in ("a", PASSWORD):
        message = fresh.post("/user/ch-passwd", passwd=weak).refused(400, "password_refused")
        assert "password" in message["detail"]
    assert "revoked: 1." in fresh.post("/user/ch-passwd", passwd="Next-Horse-8").ok["log"]
    fresh.get("/user/info").refused(401)
    server.client(user, "Next-Horse-8").get("/user/info").ok
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("chage", "-E", "0"), 403),
        (("chage", "-d", "18000", "-M", "10", "-I", "5"), 403),
        (("usermod", "-L"), 401),
    ],
    ids=["expired", "inactive", "locked"],
)
def test_an_expired_password_of_an_account_that_is_out(
    node: Node, server: Server, options: tuple[str, ...], status: int
) -> None:
    user = node.accounts.user()
    run("chage", "-d", "0", user)
    run(*options, user)
    before = shadow_line(user)
    for answer in (
        server.client(user).get("/user/info"),
        server.client(user).post("/user/ch-passwd", passwd="Next-Horse-8"),
    ):
        answer.refused(status, "account_refused" if status == 403 else "unauthorized")
    assert shadow_line(user) == before


def test_an_expired_password_of_no_member(node: Node) -> None:
    user, group = node.accounts.user(), node.accounts.group()
    run("chage", "-d", "0", user)
    server = node.serve({"auth": {"member_groups": [group]}})
    client, before = server.client(user), shadow_line(user)
    client.get("/user/info").refused(403, "not_a_member")
    client.post("/user/ch-passwd", passwd="Next-Horse-8").refused(403, "not_a_member")
    assert shadow_line(user) == before
    assert server.stop() == 0


@contextmanager
def maintenance(text: str) -> Iterator[None]:
    path = Path("/etc/nologin")
    assert not path.exists()
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink()


@pytest.mark.alone
def test_nobody_logs_in_during_maintenance(new_user: Callable[[], Client]) -> None:
    client = new_user()
    with maintenance("Back at noon.\n"):
        client.get("/user/info").refused(403, "account_refused")
    client.get("/user/info").ok


@pytest.mark.parametrize("is_root", [True, False])
def test_system_accounts_are_refused(node: Node, server: Server, is_root: bool) -> None:
    name = "root" if is_root else node.accounts.user("", "--system")
    server.client(name).get("/user/info").refused(401)


def test_only_the_configured_groups(node: Node) -> None:
    group, admins = node.accounts.group(), node.accounts.group()
    member = node.accounts.user("", "-G", group)
    boss = node.accounts.user("", "-G", admins)
    other = node.accounts.user()
    auth = {"member_groups": [group], "admin_groups": [admins]}
    server = node.serve({"auth": auth})
    assert server.client(member).get("/user/info").ok["user"]["is_admin"] == 0
    assert server.client(boss).get("/user/info").ok["user"]["is_admin"] == 1
    assert group in server.client(other).get("/user/info").refused(403, "not_a_member")["detail"]
    listed = {item["name"]: item["is_admin"] for item in server.client(member).get("/user/list").ok}
    assert listed == {member: 0, boss: 1}
    assert server.stop() == 0


# --- Changing a password ------------------------------------------------------------------------


def shadow_line(user: str) -> str:
    lines = Path("/etc/shadow").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{user}:"))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_new_password_replaces_the_old_one_at_once(
    new_user: Callable[[], Client], server: Server, method: str
) -> None:
    old = new_user()
    old.get("/user/info").ok
    answer = old.call(method, "/user/ch-passwd", {"passwd": "Grüße & 100%+x"})
    assert "Grüße" not in str(answer.ok)
    old.get("/user/info").refused(401)
    server.client(old.user, "Grüße & 100%+x").get("/user/info").ok


@pytest.mark.parametrize(
    "bad", ["", "a\nb", "a\rb", "a\0b", "x" * 512, "ü" * 256, "a\x7fb"], ids=repr
)
def test_a_bad_password_changes_nothing(new_user: Callable[[], Client], bad: str) -> None:
    client = new_user()
    before = shadow_line(client.user)
    body = client.post("/user/ch-passwd", passwd=bad).refused(400, "malformed_parameter")
    assert "passwd" in body["detail"]
    assert shadow_line(client.user) == before
    client.get("/user/info").ok


def test_the_longest_password_works(new_user: Callable[[], Client], server: Server) -> None:
    client = new_user()
    longest = "y" * 511
    client.call(
        "POST",
        "/user/ch-passwd",
        body=b"passwd=" + longest.encode(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ).ok
    server.client(client.user, longest).get("/user/info").ok
    server.client(client.user, longest[:-1]).get("/user/info").refused(401)


def test_nobody_changes_another_ones_password(
    new_user: Callable[[], Client], server: Server
) -> None:
    victim = new_user()
    before = shadow_line(victim.user)
    server.client(victim.user, "wrong").post("/user/ch-passwd", passwd="Mine-now-1").refused(401)
    body = new_user().post("/user/ch-passwd", passwd="Mine-now-1", user=victim.user)
    body.refused(400, "unknown_parameter")
    assert shadow_line(victim.user) == before


# --- Many failures ------------------------------------------------------------------------------


def test_wrong_passwords_do_not_slow_a_member(node: Node, new_user: Callable[[], Client]) -> None:
    server = node.serve()
    member = server.client(node.accounts.user())
    member.get("/user/info").ok
    victims = [node.accounts.user() for _ in range(5)]
    with ThreadPoolExecutor(51) as pool:
        wrong = [
            pool.submit(server.client(victims[number % 5], f"wrong{number}").get, "/user/info")
            for number in range(50)
        ]
        seconds = []
        # One who is not remembered, and must go through PAM meanwhile, gets in too.
        new = pool.submit(server.client(node.accounts.user()).get, "/user/info")
        while not all(future.done() for future in wrong):
            seconds.append(member.get("/user/info").seconds)
            member.get("/version").ok
            time.sleep(0.01)
        new.result().ok
    assert {future.result().status for future in wrong} == {401}
    assert len(seconds) > 5
    # In line with them it would be several times PAM's delay of two seconds.
    assert sorted(seconds)[len(seconds) // 2] < 0.5
    assert max(seconds) < 2
    assert server.stop() == 0


def test_failures_are_throttled_per_user(node: Node) -> None:
    server = node.serve({"auth": {"failures_per_user": 3, "failure_window": 60}})
    victim, other = node.accounts.user(), node.accounts.user()
    # One of three is for another place, where the user may be themselves.
    for number in range(2):
        server.client(victim, f"wrong{number}").get("/user/info").refused(401)
    answer = server.client(victim, "wrong").get("/user/info")
    body = answer.refused(429, "too_many_failed_logins")
    assert 0 < int(answer.headers["Retry-After"]) == body["retry_after"] < 60
    # The right password from there waits too, or a guesser would learn it.
    server.client(victim).get("/user/info").refused(429)
    server.client(other).get("/user/info").ok
    assert asked_about(node, victim) == 2, "what is throttled does not reach PAM"
    assert server.stop() == 0


def asked_about(node: Node, user: str) -> int:
    """How often PAM was asked about a user."""
    return (node.directory / "auth.log").read_text().count(f" {user} ")


def test_the_right_password_only_has_to_wait(node: Node) -> None:
    server = node.serve({"auth": {"failures_per_user": 2, "failure_window": 2}})
    victim = node.accounts.user()
    # The third of them has waited for its try, and so does what comes after it.
    for number in range(3):
        server.client(victim, f"wrong{number}").get("/user/info").refused(401)
    server.client(victim).get("/user/info").ok
    assert server.stop() == 0


GUESS = """
import base64, http.client, json, sys

port, address, count, user, forwarded = json.loads(sys.argv[1])
statuses = []
for number in range(count):
    name = user or f"podydt-no{number}"
    source = (address.replace("*", str(number + 2)), 0)
    connection = http.client.HTTPConnection("127.0.0.1", port, 60, source)
    login = base64.b64encode(f"{name}:wrong{number}".encode()).decode()
    headers = {"Authorization": f"Basic {login}"}
    if forwarded:
        headers["X-Forwarded-For"] = forwarded.replace("*", str(number + 2))
    connection.request("GET", "/user/info", headers=headers)
    statuses.append(connection.getresponse().status)
    connection.close()
print(json.dumps(statuses))
"""


@dataclass(frozen=True)
class Neighbour:
    """Another account of this host, that tries passwords."""

    server: Server
    account: str

    def guess(
        self, user: str, count: int, *, address: str = "127.0.0.1", forwarded: str = ""
    ) -> list[int]:
        """What podyd says to so many guesses; a user of "" is another one each time.

        Where an address has a `*`, each comes from another one.
        """
        words = json.dumps([self.server.port, address, count, user, forwarded])
        command = ["/usr/bin/python3", "-I", "-c", GUESS, words]
        data: list[int] = json.loads(
            subprocess.run(
                command, user=self.account, cwd="/", check=True, capture_output=True
            ).stdout
        )
        return data


def test_nobody_on_this_host_locks_another_one_out(node: Node) -> None:
    limits = {"failures_per_user": 3, "failures_per_address": 3, "failure_window": 60}
    server = node.serve({"auth": limits})
    neighbour = Neighbour(server, node.accounts.user())
    victim = server.client(node.accounts.user())
    # Also from other addresses of this host.
    assert neighbour.guess(victim.user, 3) == [401] * 2 + [429]
    assert neighbour.guess(victim.user, 3, address="127.0.0.*") == [429] * 3
    victim.get("/user/info").ok
    # Once more, where podyd remembers the victim's place, and no longer their login.
    assert neighbour.guess(victim.user, 3) == [429] * 3
    victim.post("/user/token-revoke", id="0" * 16).refused(404)
    victim.get("/user/info").ok
    assert asked_about(node, victim.user) == 2 + 2
    # Wrong names are against the neighbour alone, too.
    assert neighbour.guess("", 3) == [401] + [429] * 2
    server.client(node.accounts.user()).get("/user/info").ok
    assert server.stop() == 0


def test_nobody_on_this_host_is_another_address_by_saying_so(node: Node) -> None:
    limits = {"failures_per_user": 3, "failures_per_address": 2, "failure_window": 60}
    server = node.serve({"auth": limits, "proxies": ["127.0.0.1"]})
    neighbour = Neighbour(server, node.accounts.user())
    victim, other = node.accounts.user(), node.accounts.user()
    statuses = neighbour.guess(victim, 4, forwarded="192.0.2.*")
    assert statuses == [401] * 2 + [429] * 2
    assert neighbour.guess(victim, 1, forwarded="198.51.100.7") == [429]

    def through_proxy(user: str, password: str, address: str) -> Answer:
        # The proxy is the system's, as this test is.
        client = server.client(user, password)
        return client.call("GET", "/user/info", headers={"X-Forwarded-For": address})

    through_proxy(victim, PASSWORD, "198.51.100.7").ok
    # Beyond a proxy it is the address that counts.
    for number in range(2):
        through_proxy(f"podydt-no{number}", "x", "198.51.100.8").refused(401)
    through_proxy(other, PASSWORD, "198.51.100.8").refused(429)
    through_proxy(other, PASSWORD, "198.51.100.9").ok
    assert server.stop() == 0


# --- Many calls ---------------------------------------------------------------------------------


@contextmanager
def flood(call: Callable[[], Answer], callers: int = 40) -> Iterator[list[int]]:
    """So many who call again and again; what each was told."""
    statuses: list[int] = []
    ended = threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            statuses.append(call().status)

    with ThreadPoolExecutor(callers) as pool:
        for _ in range(callers):
            pool.submit(go_on)
        try:
            wait_until(lambda: len(statuses) > callers, "the flood")
            yield statuses
        finally:
            ended.set()


@pytest.mark.parametrize(
    ("method", "path", "params"),
    [("GET", "/user/list", {}), ("POST", "/user/ch-passwd", {"passwd": "a"})],
    ids=["list", "passwd"],
)
def test_one_members_flood_keeps_nobody_out(
    node: Node, server: Server, method: str, path: str, params: dict[str, str]
) -> None:
    mallory, other = (server.client(node.accounts.user()) for _ in range(2))
    mallory.get("/user/info").ok
    other.get("/user/info").ok
    with flood(lambda: mallory.call(method, path, params)) as samples:
        before = len(samples)
        for _ in range(2):
            # A stranger's first login goes through PAM.
            server.client(node.accounts.user()).get("/user/info").ok
            other.get("/pod/list").ok
            # The password is asked for again.
            other.post("/user/token-revoke", id="0" * 16).refused(404)
        assert len(samples) > before, "it has gone on"
    assert set(samples) <= {200, 400, 429}


def test_failures_are_throttled_per_address(node: Node) -> None:
    server = node.serve({"auth": {"failures_per_address": 4, "failure_window": 60}})
    known = server.client(node.accounts.user())
    known.get("/user/info").ok
    for number in range(4):
        server.client(f"podydt-no{number}", "x").get("/user/info").refused(401)
    server.client("podydt-no9", "x").get("/user/info").refused(429, "too_many_failed_logins")
    known.get("/user/info").ok
    assert server.stop() == 0


def test_many_wrong_logins_at_once_count_too(node: Node) -> None:
    server = node.serve({"auth": {"failures_per_user": 5}})
    victim = node.accounts.user()
    with ThreadPoolExecutor(30) as pool:
        answers = list(
            pool.map(
                lambda number: server.client(victim, f"wrong{number}").get("/user/info").status,
                range(30),
            )
        )
    assert sorted(answers) == [401] * 4 + [429] * 26
    assert server.stop() == 0


@pytest.mark.alone
def test_a_hanging_pam_is_a_503_and_hangs_nobody_else(node: Node) -> None:
    server = node.serve(constants={"podyd.auth.client.TIMEOUT": 5.0})
    known = server.client(node.accounts.user())
    known.get("/user/info").ok
    assert known.password == PASSWORD
    # More than may be under way and wait in line.
    with stopped(node.helper), ThreadPoolExecutor(300) as pool:
        waiting = [
            pool.submit(server.client(known.user, f"w{number}").get, "/user/info")
            for number in range(300)
        ]
        wait_until(lambda: any(future.done() for future in waiting), "the line to be full")
        for _ in range(20):
            assert known.get("/user/info").seconds < 0.5
            assert known.get("/version").seconds < 0.5
            assert known.get("/pod/list").seconds < 0.5
        answers = [future.result() for future in waiting]
    assert {answer.status for answer in answers} == {503}
    assert {answer.body["code"] for answer in answers} == {"pam_busy", "pam_timeout"}
    server.client(known.user, "wrong").get("/user/info").refused(401)
    assert server.stop() == 0
