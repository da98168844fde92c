"""`pody login` and `pody logout`, against a real podyd."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.integration.harness import PASSWORD, ROOT, Client, free_port, run
from tests.integration.test_accounts import shadow_line
from tests.integration.test_client import Fake, Pody, served


@dataclass(frozen=True)
class Desk:
    """A member's machine: what pody keeps there, and how it is typed."""

    client: Client
    config: Path

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.client.port}"

    def pody(self, *, password: str = "", user: str = "", base: str = "") -> Pody:
        environment = {"XDG_CONFIG_HOME": str(self.config), "LOGNAME": "nobody"}
        return Pody(base or self.base, user, password, environment)

    @property
    def file(self) -> Path:
        (path,) = (self.config / "pody").iterdir()
        return path

    def log_in(self) -> None:
        self.pody(password=PASSWORD, user=self.client.user)("login").ok

    def tokens(self) -> list[str]:
        return [item["id"] for item in self.client.get("/user/tokens").ok]


@pytest.fixture
def desk(new_user: Callable[[], Client], tmp_path: Path) -> Desk:
    return Desk(new_user(), tmp_path / "config")


def test_once_logged_in_pody_asks_for_nothing(desk: Desk) -> None:
    user = desk.client.user
    with desk.pody().at_terminal("login") as terminal:
        terminal.wait_for(f"User at {desk.base} [nobody]: ")
        terminal.type(f"{user}\n")
        terminal.wait_for(f"Password of {user!r} at {desk.base}: ")
        terminal.type(f"{PASSWORD}\n")
        assert terminal.end() == 0
    assert f"{user!r} is logged in at {desk.base} until 20" in terminal.text
    assert PASSWORD not in terminal.text
    assert "podyd_" not in terminal.text
    assert json.loads(desk.pody()("get", "user/info").ok)["user"]["name"] == user
    assert json.loads(desk.pody()("fetch", "pod/list").ok) == []
    (listed,) = desk.client.get("/user/tokens").ok
    assert listed["name"] == os.uname().nodename
    assert "logged out" in desk.pody()("logout").ok
    assert (desk.tokens(), list((desk.config / "pody").iterdir())) == ([], [])
    assert "not logged in" in desk.pody()("logout").ok
    assert "pody login" in desk.pody()("get", "user/info").failed(3)


def test_its_file_is_the_owners_alone_and_has_no_password(desk: Desk) -> None:
    desk.log_in()
    assert desk.file.stat().st_mode & 0o777 == 0o600
    assert desk.file.parent.stat().st_mode & 0o777 == 0o700
    kept = json.loads(desk.file.read_text())
    assert (kept["base"], kept["user"]) == (desk.base, desk.client.user)
    assert PASSWORD not in desk.file.read_text()


def test_the_file_is_never_seen_half_or_open(desk: Desk) -> None:
    done = subprocess.run(
        ["strace", "-f", "-e", "trace=openat,rename,chmod,fchmod", *desk.pody().command, "login"],
        env=desk.pody(password=PASSWORD, user=desk.client.user).whole_environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    made = [line for line in done.stderr.splitlines() if f"{desk.config}/pody/" in line]
    creations = [line for line in made if "O_CREAT" in line]
    assert len(creations) == 1
    assert "O_EXCL" in creations[0]
    assert "0600" in creations[0]
    assert any("rename" in line for line in made)
    assert "chmod" not in done.stderr


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_use_is_refused(desk: Desk, mode: int) -> None:
    desk.log_in()
    desk.file.chmod(mode)
    for words in (("get", "user/info"), ("logout",), ("login",)):
        message = desk.pody()(*words).failed(2)
        assert str(desk.file) in message
        assert "chmod 600" in message


def test_a_file_of_somebody_else_is_refused(desk: Desk) -> None:
    desk.log_in()
    os.chown(desk.file, 65534, 65534)
    assert "not your own" in desk.pody()("get", "user/info").failed(2)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"base": 1}', "\udcff", '{"base": "x"}'])
def test_a_file_that_pody_did_not_write(desk: Desk, text: str) -> None:
    desk.log_in()
    desk.file.write_bytes(text.encode(errors="surrogateescape"))
    assert "type 'pody login'" in desk.pody()("get", "user/info").failed(2)


def test_a_token_goes_to_its_server_alone(desk: Desk) -> None:
    desk.log_in()
    with served(Fake(status=401, body=b'{"detail": "no", "code": "x"}')) as fake:
        assert "PODY_PASSWORD" in desk.pody(base=fake.base)("get", "user/info").failed(3)
        assert fake.asked == []
        # A file that was moved there has the other address in it.
        name = desk.file.name.replace(str(desk.client.port), str(fake.server_port))
        desk.file.rename(desk.file.with_name(name))
        assert "is malformed" in desk.pody(base=fake.base)("get", "user/info").failed(2)
        assert fake.asked == []


def test_a_token_crosses_no_network_in_the_clear(desk: Desk) -> None:
    assert "unencrypted" in desk.pody(base="http://192.0.2.1:8799")("login").failed(2)


def test_a_token_is_not_used_in_another_name(desk: Desk, alice: Client) -> None:
    desk.log_in()
    assert "no terminal" in desk.pody(user=alice.user)("get", "user/info").failed(3)
    info = desk.pody(user=alice.user, password=PASSWORD)("get", "user/info").ok
    assert json.loads(info)["user"]["name"] == alice.user
    named = desk.pody(user=desk.client.user)("get", "user/info").ok
    assert json.loads(named)["user"]["name"] == desk.client.user


def test_a_token_that_has_ended(desk: Desk) -> None:
    desk.log_in()
    desk.client.post("/user/token-revoke", id="all").ok
    message = desk.pody()("get", "user/info").failed(3)
    assert message == (
        "pody: This token does not work, or no longer. Type 'pody login' for a new one.\n"
    )
    desk.log_in()
    desk.pody()("get", "user/info").ok
    desk.client.post("/user/token-revoke", id="all").ok
    assert "logged out" in desk.pody()("logout").ok


def test_another_login_replaces_the_token(desk: Desk, new_user: Callable[[], Client]) -> None:
    desk.log_in()
    first = desk.tokens()
    desk.log_in()
    assert len(desk.tokens()) == 1
    assert desk.tokens() != first
    other = new_user()
    desk.pody(password=PASSWORD, user=other.user)("login").ok
    assert desk.tokens() == []
    assert json.loads(desk.pody()("get", "user/info").ok)["user"]["name"] == other.user


def test_a_wrong_password_changes_nothing(desk: Desk) -> None:
    desk.log_in()
    before = desk.file.read_text()
    desk.pody(password="wrong", user=desk.client.user)("login").failed(3)
    assert desk.file.read_text() == before
    desk.pody()("get", "user/info").ok


def test_a_token_that_cannot_be_kept_is_revoked(desk: Desk) -> None:
    nowhere = Desk(desk.client, Path("/proc/none"))
    pody = nowhere.pody(password=PASSWORD, user=desk.client.user)
    assert "cannot be stored" in pody("login").failed(2)
    assert desk.tokens() == []


def test_podyd_is_away_at_the_logout(desk: Desk) -> None:
    port = free_port()
    desk.log_in()
    before = desk.file
    before.write_text(before.read_text().replace(str(desk.client.port), str(port)))
    before.rename(before.with_name(before.name.replace(str(desk.client.port), str(port))))
    desk.pody(base=f"http://127.0.0.1:{port}")("logout").failed(4)
    assert desk.file.exists(), "to be tried again"


def test_a_new_password_is_proven_by_the_old_one(desk: Desk) -> None:
    desk.log_in()
    with desk.pody().at_terminal("fetch", "user/ch-passwd", "passwd:") as terminal:
        for prompt, answer in (
            ("New password: ", "Next-Horse-8"),
            ("Again: ", "Next-Horse-8"),
            (f"Password of {desk.client.user!r} at {desk.base}: ", PASSWORD),
        ):
            terminal.wait_for(prompt)
            terminal.type(f"{answer}\n")
        assert terminal.end() == 0
    assert "revoked: 1." in terminal.text
    assert "pody login" in desk.pody()("get", "user/info").failed(3)


NEW = "Next-Horse-8"


def test_the_first_login_with_a_password_that_must_be_changed(desk: Desk) -> None:
    run("chage", "-d", "0", desk.client.user)
    with desk.pody(user=desk.client.user).at_terminal("login") as terminal:
        for prompt, answer in (
            (f"Password of {desk.client.user!r} at {desk.base}: ", PASSWORD),
            ("New password: ", NEW),
            ("Again: ", NEW),
        ):
            terminal.wait_for(prompt)
            terminal.type(f"{answer}\n")
        assert terminal.end() == 0
    assert "has expired; choose a new one" in terminal.text
    assert "is logged in" in terminal.text
    assert NEW not in terminal.text
    desk.pody()("get", "user/info").ok
    replace(desk.client, password=NEW).get("/user/info").ok


@pytest.mark.parametrize(
    ("first", "again", "message", "status"),
    [(NEW, "Other-Horse-9", "not the same", 2), ("a", "a", "was not accepted", 1)],
)
def test_a_new_password_that_will_not_do(
    desk: Desk, first: str, again: str, message: str, status: int
) -> None:
    run("chage", "-d", "0", desk.client.user)
    before = shadow_line(desk.client.user)
    pody = desk.pody(user=desk.client.user, password=PASSWORD)
    with pody.at_terminal("login") as terminal:
        for prompt, answer in (("New password: ", first), ("Again: ", again)):
            terminal.wait_for(prompt)
            terminal.type(f"{answer}\n")
        assert terminal.end() == status
    assert message in terminal.text
    assert shadow_line(desk.client.user) == before


def test_an_expired_password_and_nobody_to_ask_for_a_new_one(desk: Desk) -> None:
    run("chage", "-d", "0", desk.client.user)
    pody = desk.pody(user=desk.client.user, password=PASSWORD)
    assert "pody passwd" in pody("login").failed(1)
    assert "no longer works" in pody("passwd", stdin=NEW.encode()).ok
    replace(desk.client, password=NEW).get("/user/info").ok


def test_pody_passwd_goes_on_with_the_new_one(desk: Desk) -> None:
    user = desk.client.user
    desk.log_in()
    (before,) = desk.tokens()
    with desk.pody().at_terminal("passwd") as terminal:
        for prompt, answer in (
            (f"Password of {user!r} at {desk.base}: ", PASSWORD),
            ("New password: ", NEW),
            ("Again: ", NEW),
        ):
            terminal.wait_for(prompt)
            terminal.type(f"{answer}\n")
        assert terminal.end() == 0
    assert "revoked: 1." in terminal.text
    desk.pody()("get", "user/info").ok
    (token,) = replace(desk.client, password=NEW).get("/user/tokens").ok
    assert token["id"] != before


def test_pody_passwd_asks_who_it_is_where_nobody_is_logged_in(desk: Desk) -> None:
    with desk.pody(password="wrong").at_terminal("passwd") as terminal:
        for prompt, answer in (
            (f"User at {desk.base} [nobody]: ", desk.client.user),
            ("New password: ", NEW),
            ("Again: ", NEW),
        ):
            terminal.wait_for(prompt)
            terminal.type(f"{answer}\n")
        assert terminal.end() == 3
    desk.client.get("/user/info").ok


def test_no_password_and_nobody_to_ask_for_a_new_one(desk: Desk) -> None:
    desk.log_in()
    done = desk.pody()("fetch", "user/ch-passwd", "passwd:", stdin=b"Next-Horse-8")
    assert "PODY_PASSWORD" in done.failed(3)
    desk.client.get("/user/info").ok


def test_a_token_as_the_password(desk: Desk) -> None:
    token = desk.client.post("/user/token", name="script").ok["token"]
    pody = desk.pody(password=token, user=desk.client.user)
    pody("get", "user/info").ok
    assert "needs your password" in pody("login").failed(1)


def test_ctrl_d_at_the_user(desk: Desk) -> None:
    with desk.pody().at_terminal("login") as terminal:
        terminal.wait_for("User at")
        terminal.type("\x04")
        assert terminal.end() == 3
    assert "Traceback" not in terminal.text
