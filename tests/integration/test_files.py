"""Files in and out of pods: whole, whatever they are called, and whoever goes away meanwhile."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import shlex
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.integration.harness import IMAGE, SMALL, Client, Json, Node, Server, started, wait_until
from tests.integration.test_client import Pody, as_user

MEGABYTE = 1024**2
ODD = "/root/odd -n\n'\"$(id) grüß\t"


@dataclass(frozen=True)
class Reply:
    """What podyd answered: a file, or words."""

    status: int
    body: bytes
    headers: http.client.HTTPMessage

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["code"])


def target(route: str, params: Mapping[str, object]) -> str:
    return f"{route}?{urlencode(params)}"


def fetch(client: Client, ins: str, path: str, **params: object) -> Reply:
    connection = client.connection(60)
    try:
        query = target("/pod/file", {"ins": ins, "path": path, **params})
        connection.request("GET", query, headers=client.login_header())
        response = connection.getresponse()
        return Reply(response.status, response.read(), response.headers)
    finally:
        connection.close()


def put(client: Client, ins: str, path: str, body: Any, **params: object) -> Reply:
    connection = client.connection(60)
    try:
        query = target("/pod/file-put", {"ins": ins, "path": path, **params})
        connection.request("POST", query, body, headers=client.login_header())
        response = connection.getresponse()
        return Reply(response.status, response.read(), response.headers)
    finally:
        connection.close()


def sh(client: Client, pod: str, command: str) -> str:
    done = client.exec(pod, command)
    assert done["exit_code"] == 0, done
    return str(done["stdout"])


def left_over(client: Client, pod: str) -> str:
    return sh(client, pod, "find / -xdev -name '.podyd-*' 2>/dev/null; true")


# --- Files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"x", b"\0\xff\r\n" * 300_000], ids=len)
def test_a_file_there_and_back(alice: Client, pod: str, body: bytes) -> None:
    assert put(alice, pod, ODD, body).status == 200
    answer = fetch(alice, pod, ODD)
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers["X-Podyd-Size"] == str(len(body))
    assert left_over(alice, pod) == ""


def test_mode_time_and_owner(alice: Client, pod: str) -> None:
    assert put(alice, pod, "/root/new", b"1").status == 200
    assert sh(alice, pod, "stat -c '%a %u' /root/new") == "644 0\n"
    assert put(alice, pod, "/root/new", b"2", mode="0751", mtime=86400).status == 200
    assert sh(alice, pod, "stat -c '%a %Y' /root/new; chown 7:8 /root/new") == "751 86400\n"
    # A file that is there keeps what it is.
    assert put(alice, pod, "/root/new", b"3").status == 200
    assert sh(alice, pod, "stat -c '%a %u %g' /root/new; cat /root/new") == "751 7 8\n3"
    about = fetch(alice, pod, "/root/new", format="stat").json
    assert (about["type"], about["size"], about["mode"]) == ("file", 1, "0751")
    assert put(alice, pod, "/root/new", b"", mode="4755").code == "malformed_parameter"


def test_a_body_of_unknown_length(alice: Client, pod: str) -> None:
    assert put(alice, pod, "/root/chunked", iter([b"one ", b"two"])).status == 200
    assert fetch(alice, pod, "/root/chunked").body == b"one two"


def test_links_are_followed_in_the_pod(alice: Client, pod: str) -> None:
    sh(alice, pod, "echo old >/root/behind; ln -sfn /root/behind /root/link")
    assert put(alice, pod, "/root/link", b"new").status == 200
    assert sh(alice, pod, "readlink /root/link; cat /root/behind") == "/root/behind\nnew"
    assert fetch(alice, pod, "/root/link").body == b"new"


def test_what_the_kernel_makes_up(alice: Client, pod: str) -> None:
    assert b"Linux" in fetch(alice, pod, "/proc/version").body


def test_directories_are_listed(alice: Client, pod: str) -> None:
    sh(alice, pod, "mkdir -p /root/many/sub; cd /root/many; printf 12345 >a; ln -sfn a b; mkfifo p")
    for _ in range(20):  # More than a member's places: each is given back.
        about = fetch(alice, pod, "/root/many").json
    entries = {entry["name"]: entry for entry in about["entries"]}
    assert (about["type"], about["truncated"], list(entries)) == (
        "directory",
        False,
        ["a", "b", "p", "sub"],
    )
    assert [entry["type"] for entry in entries.values()] == ["file", "link", "pipe", "directory"]
    assert entries["a"]["size"] == 5


@pytest.mark.parametrize(
    ("path", "params", "status", "code"),
    [
        ("/root/none", {}, 404, "no_such_file"),
        ("/etc/hostname", {"format": "tar"}, 409, "wrong_file_type"),
        ("/dev/zero", {}, 409, "wrong_file_type"),
        ("root", {}, 400, "malformed_parameter"),
        ("/a\0b", {}, 400, "malformed_parameter"),
        ("/" + "x" * 4095, {}, 400, "malformed_parameter"),
    ],
)
def test_what_cannot_be_fetched(
    alice: Client, pod: str, path: str, params: dict[str, str], status: int, code: str
) -> None:
    answer = fetch(alice, pod, path, **params)
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/root/no/such/file", 404, "no_such_file"),
        ("/root", 409, "wrong_file_type"),
        ("/dev/null", 409, "wrong_file_type"),
        ("/proc/x", 409, "not_taken"),
    ],
)
def test_what_cannot_be_put(alice: Client, pod: str, path: str, status: int, code: str) -> None:
    # More than any buffer has, so that the answer comes while the body is on its way.
    answer = put(alice, pod, path, b"x" * 20 * MEGABYTE)
    assert (answer.status, answer.code) == (status, code)
    assert left_over(alice, pod) == ""


def test_a_full_disk_is_said_and_the_old_file_stays(alice: Client, pod: str) -> None:
    sh(alice, pod, "mkdir -p /root/small; mount -t tmpfs -o size=1m none /root/small")
    sh(alice, pod, "echo old >/root/small/file")
    answer = put(alice, pod, "/root/small/file", b"x" * 8 * MEGABYTE)
    assert (answer.status, answer.code) == (409, "disk_full")
    wait_until(lambda: sh(alice, pod, "ls -A /root/small") == "file\n", "the half file to go")
    assert sh(alice, pod, "cat /root/small/file; umount /root/small") == "old\n"


def test_nothing_of_a_body_is_read_before_the_login(alice: Client, pod: str) -> None:
    bad = Client(alice.port, alice.user, "wrong")
    assert put(bad, pod, "/root/x", b"x" * 20 * MEGABYTE).status == 401
    assert put(alice, "none", "/root/x", b"x" * 20 * MEGABYTE).code == "no_such_pod"


def test_another_members_pod_is_not_there(bob: Client, pod: str) -> None:
    assert fetch(bob, pod, "/etc/hostname").code == "no_such_pod"
    assert put(bob, pod, "/root/x", b"").code == "no_such_pod"


def test_a_caller_who_hangs_up_leaves_nothing(alice: Client, pod: str) -> None:
    connection = alice.connection(60)
    connection.putrequest("POST", target("/pod/file-put", {"ins": pod, "path": "/root/half"}))
    for name, value in {**alice.login_header(), "Content-Length": str(10**9)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b"x" * MEGABYTE)
    wait_until(lambda: left_over(alice, pod) != "", "the file to come")
    connection.close()
    wait_until(lambda: left_over(alice, pod) == "", "the half file to go")
    assert fetch(alice, pod, "/root/half").code == "no_such_file"


def test_a_file_that_ends_early_is_not_taken_for_whole(alice: Client, pod: str) -> None:
    sh(alice, pod, "truncate -s 300M /root/big")
    connection = alice.connection(60)
    query = target("/pod/file", {"ins": pod, "path": "/root/big"})
    connection.request("GET", query, headers=alice.login_header())
    response = connection.getresponse()
    assert response.headers["Content-Length"] == str(300 * MEGABYTE)
    response.read(MEGABYTE)
    sh(alice, pod, "truncate -s 2M /root/big; pkill head; rm /root/big")
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()


def test_a_large_file_grows_nobody(alice: Client, server: Server, pod: str) -> None:
    piece = b"0123456789abcdef" * 65536
    put(alice, pod, "/root/warm", piece)
    before = server.rss_bytes()
    assert put(alice, pod, "/root/large", iter([piece] * 200)).status == 200
    connection = alice.connection(60)
    query = target("/pod/file", {"ins": pod, "path": "/root/large"})
    connection.request("GET", query, headers=alice.login_header())
    response = connection.getresponse()
    total = 0
    while data := response.read(MEGABYTE):
        total += len(data)
    connection.close()
    assert total == 200 * MEGABYTE
    assert server.rss_bytes() - before < 20 * MEGABYTE
    sh(alice, pod, "rm /root/large")


def test_a_member_has_so_many_files_on_their_way(alice: Client, pod: str) -> None:
    sh(alice, pod, "truncate -s 100M /root/hole")
    open_ones = []
    for _ in range(8):
        connection = alice.connection(60)
        query = target("/pod/file", {"ins": pod, "path": "/root/hole"})
        connection.request("GET", query, headers=alice.login_header())
        open_ones.append((connection, connection.getresponse()))
    assert fetch(alice, pod, "/root/hole", format="stat").code == "too_many_files"
    for connection, response in open_ones:
        response.close()
        connection.close()
    wait_until(lambda: fetch(alice, pod, "/root", format="stat").status == 200, "a free place")
    sh(alice, pod, "rm /root/hole")


@contextmanager
def program(client: Client, pod: str, name: str, script: str) -> Iterator[None]:
    """A program of the pod's root in place of the system's."""
    path = f"/usr/local/bin/{name}"
    text = shlex.quote(f"#!/bin/bash\n{script}\n")
    sh(client, pod, f"printf %s {text} >{path}; chmod +x {path}")
    try:
        yield
    finally:
        sh(client, pod, f"rm {path}")


@pytest.mark.parametrize(
    "script",
    ["head -c 9000 /dev/zero | tr '\\0' x", "echo 41ed 1 755 3e11", "echo 41ed 1 755 1"],
)
def test_a_pods_own_stat_is_not_believed(
    alice: Client, server: Server, pod: str, script: str
) -> None:
    before = server.rss_bytes()
    with program(alice, pod, "stat", script):
        assert fetch(alice, pod, "/root").code == "pod_answer_unusable"
    assert server.rss_bytes() - before < 20 * MEGABYTE


def test_a_time_that_no_calendar_has_is_null(alice: Client, pod: str) -> None:
    sh(alice, pod, "mkdir -p /root/times; touch -d @300000000000 /root/times/far /root/times")
    answer = fetch(alice, pod, "/root/times").json
    assert answer["modified"] is None
    assert [(item["name"], item["modified"]) for item in answer["entries"]] == [("far", None)]
    assert "X-Podyd-Modified" not in fetch(alice, pod, "/root/times/far").headers


# --- Folders ------------------------------------------------------------------------------------


def tar_of(*members: tuple[str, bytes | str]) -> bytes:
    """A tar file of files (bytes) and links (text)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
    return packed.getvalue()


def test_a_folder_there_and_back(alice: Client, pod: str) -> None:
    body = tar_of(("a b/c\n", b"1"), ("grüß", b"22"), ("link", "a b/c\n"), ("out", "/etc/passwd"))
    assert put(alice, pod, "/root/folder", body, format="tar").status == 200
    answer = fetch(alice, pod, "/root/folder", format="tar")
    assert answer.headers["Content-Type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        names = {info.name.removeprefix("./"): info for info in tar.getmembers()}
        assert {name for name, info in names.items() if info.isfile()} == {"a b/c\n", "grüß"}
        assert names["link"].linkname == "a b/c\n"
        assert names["out"].linkname == "/etc/passwd"


def test_a_program_that_is_missing_is_named(alice: Client, pod: str, tmp_path: Path) -> None:
    sh(alice, pod, "mkdir -p /root/d; mv /usr/bin/tar /usr/bin/tar-away")
    try:
        for answer in (
            fetch(alice, pod, "/root/d", format="tar"),
            put(alice, pod, "/root/d", tar_of(), format="tar"),
        ):
            assert (answer.status, answer.code) == (409, "program_missing")
            assert (answer.json["program"], "'tar'" in answer.json["detail"]) == ("tar", True)
        done = as_user(alice)("cp", f"{pod}:/root/d", str(tmp_path))
        assert (done.status, "no 'tar'" in done.err) == (1, True)
    finally:
        sh(alice, pod, "mv /usr/bin/tar-away /usr/bin/tar")


def test_a_folder_goes_into_one_that_is_there(alice: Client, pod: str) -> None:
    sh(
        alice,
        pod,
        "rm -rf /root/there; mkdir -p /root/there/sub; cd /root/there; touch old sub/old",
    )
    body = tar_of(("sub/new", b"1"), ("old", b"2"))
    assert put(alice, pod, "/root/there", body, format="tar").status == 200
    assert sh(alice, pod, "cd /root/there; find . | sort; cat old") == (
        ".\n./old\n./sub\n./sub/new\n./sub/old\n2"
    )
    assert left_over(alice, pod) == ""


def test_what_is_no_tar_leaves_nothing(alice: Client, pod: str) -> None:
    answer = put(alice, pod, "/root/not", b"no tar at all" * 1000, format="tar")
    assert (answer.status, answer.code) == (409, "not_taken")
    wait_until(lambda: left_over(alice, pod) == "", "the half folder to go")
    assert fetch(alice, pod, "/root/not").code == "no_such_file"


# --- Logs ---------------------------------------------------------------------------------------


def log(client: Client, pod: str, line: str) -> None:
    """Write into the pod's journal, once it has one."""
    command = f"echo '{line}' | systemd-cat -t tester"
    wait_until(lambda: client.exec(pod, command)["exit_code"] == 0, "the pod's journal", 30)


def test_the_log_of_a_pod_that_runs(alice: Client, pod: str) -> None:
    log(alice, pod, "podyd-test \x1b[31mgrüß")
    wait_until(lambda: "tester" in alice.get("/pod/logs", ins=pod).ok["log"], "the line")
    answer = alice.get("/pod/logs", ins=pod, lines=5).ok
    assert answer["source"] == "journal"
    assert len(answer["log"].splitlines()) <= 5


def test_the_log_of_a_pod_that_does_not_run(
    new_user: Callable[[], Client], node: Any, ins: str
) -> None:
    client = new_user()
    client.post("/pod/create", ins=ins, image=SMALL).ok
    node.lxc("stop", "--force", node.instance_of(client.user, ins)["name"])
    client.sees(ins, status="stopped")
    assert client.get("/pod/logs", ins=ins).ok["source"] in ("console", "lxc")
    assert fetch(client, ins, "/etc/hostname").code == "pod_not_running"
    client.post("/pod/delete", ins=ins).ok


@pytest.fixture(scope="module")
def own_pod(node: Node, server: Server) -> Iterator[Client]:
    """A member with a pod `p`, whose journalctl a test may write."""
    client = server.client(node.accounts.user())
    client.post("/pod/create", ins="p", image=IMAGE).ok
    yield client
    client.post("/pod/delete", ins="p").ok


def test_the_log_of_a_frozen_pod_is_not_its_console(node: Node, own_pod: Client) -> None:
    name = node.instance_of(own_pod.user, "p")["name"]
    node.lxc("pause", name)
    try:
        own_pod.sees("p", status="frozen")
        body = own_pod.get("/pod/logs", ins="p").refused(409, "pod_not_running")
        assert (body["status"], body["advice"]) == ("frozen", "Resume it with /pod/start.")
        pody = as_user(own_pod)
        for words in ((), ("-f",)):
            output = pody("logs", "p", *words)
            assert (output.status, output.out) == (1, ""), output
            assert "is frozen" in output.err
            assert "/pod/start" in output.err
    finally:
        own_pod.post("/pod/start", ins="p").ok
    wait_until(
        lambda: own_pod.get("/pod/logs", ins="p").ok["source"] == "journal", "the journal", 30
    )


def test_a_journal_that_is_not_all_there_says_so(own_pod: Client) -> None:
    def journal(script: str) -> Json:
        """What podyd makes of it, where journalctl does this."""
        path = "/usr/local/bin/journalctl"
        own_pod.exec("p", f"printf '#!/bin/sh\n%s\n' '{script}' >{path}; chmod +x {path}")
        answer = own_pod.get("/pod/logs", ins="p")
        return answer.ok

    whole = journal("echo all of it")
    assert whole == {"log": "all of it\n", "source": "journal", "truncated": False}
    # Its output so far, and neither whole nor the console.
    assert journal("trap : TERM; echo begun; sleep 1000; sleep 1000") == {
        "log": "begun\n",
        "source": "journal",
        "truncated": True,
    }
    large = journal("yes | head -c 3000000")
    assert (len(large["log"]), large["truncated"]) == (1_000_000, True)
    shown = as_user(own_pod)("logs", "p")
    assert shown.status == 0
    assert "incomplete" in shown.err


# --- pody cp ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pody(alice: Client) -> Pody:
    return as_user(alice)


def test_cp_a_file_there_and_back(pody: Pody, pod: str, tmp_path: Path) -> None:
    odd = tmp_path / "odd -n: grüß"
    odd.write_bytes(b"\0\xff" * 1000)
    odd.chmod(0o751)
    os.utime(odd, (0, 86400))
    assert pody("cp", str(odd), f"{pod}:/root/cp-file").ok == ""
    assert pody("cp", f"{pod}:cp-file", str(tmp_path / "back")).ok == ""
    back = tmp_path / "back"
    assert back.read_bytes() == odd.read_bytes()
    assert (back.stat().st_mode & 0o777, back.stat().st_mtime) == (0o751, 86400)
    # Into a folder that is there, under its own name.
    assert pody("cp", str(odd), str(back), f"{pod}:/tmp").ok == ""
    assert pody("cp", f"{pod}:/tmp/{odd.name}", f"{pod}:/tmp/back", str(tmp_path)).ok == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", odd.name]


def test_cp_a_folder_there_and_back(alice: Client, pody: Pody, pod: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a").write_text("1")
    (folder / "link").symlink_to("sub/a")
    assert pody("cp", str(folder), f"{pod}:copied").ok == ""
    assert sh(alice, pod, "cd /root/copied; find . | sort; readlink link; stat -c %u sub/a") == (
        ".\n./link\n./sub\n./sub/a\nsub/a\n0\n"
    )
    assert pody("cp", str(folder), f"{pod}:copied").ok == ""
    assert sh(alice, pod, "ls /root/copied; rm -rf /root/copied/folder") == "folder\nlink\nsub\n"
    assert pody("cp", f"{pod}:/root/copied", str(tmp_path / "back")).ok == ""
    assert (tmp_path / "back/link").read_text() == "1"


def test_cp_refuses_a_link_out_of_the_target(
    alice: Client, pody: Pody, pod: str, tmp_path: Path
) -> None:
    sh(
        alice,
        pod,
        "rm -rf /root/evil; mkdir /root/evil; cd /root/evil; ln -s /etc/passwd p; touch q",
    )
    done = pody("cp", f"{pod}:evil", str(tmp_path / "evil"))
    assert (done.status, done.out) == (1, "")
    assert "outside" in done.err
    assert [path.name for path in (tmp_path / "evil").iterdir()] == ["q"]


def test_cp_standard_input_and_output(pody: Pody, pod: str) -> None:
    data = b"\0\xff\n" * 200_000
    assert pody("cp", "-", f"{pod}:/root/stdin", stdin=data).ok == ""
    assert pody("exec", pod, "--", "sha256sum </root/stdin").ok.split()[0] == (
        hashlib.sha256(data).hexdigest()
    )
    assert (
        pody("cp", f"{pod}:/etc/hostname", "-").ok == pody("exec", pod, "cat", "/etc/hostname").ok
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b"], "POD:PATH"),
        (["{pod}:a", "{pod}:b"], "pody copy"),
        (["{pod}:/none", "."], "no '/none'"),
        (["/none", "{pod}:/root/x"], "No such file"),
        (["/etc/hostname", "{pod}:/no/where/x"], "no directory '/no/where'"),
        (["/etc/hostname", "/etc/passwd", "{pod}:/root/x"], "Several"),
        (["-", "{pod}:/root"], "no name"),
        (["only"], "a source and a target"),
    ],
)
def test_cp_says_what_is_wrong(pody: Pody, pod: str, words: list[str], message: str) -> None:
    done = pody("cp", *(word.format(pod=pod) for word in words))
    assert done.status in (1, 2)
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_cp_hears_at_once_that_the_disk_is_full(alice: Client, pody: Pody, pod: str) -> None:
    sh(alice, pod, "mkdir -p /root/tiny; mount -t tmpfs -o size=1m none /root/tiny")
    done = pody("cp", "/dev/zero", f"{pod}:/root/tiny/x")
    assert (done.status, "No space left" in done.err) == (1, True)
    sh(alice, pod, "umount /root/tiny")


def test_cp_shows_how_far_it_is_and_ends_with_ctrl_c(alice: Client, pody: Pody, pod: str) -> None:
    with pody.at_terminal("cp", "/dev/zero", f"{pod}:/root/endless") as terminal:
        terminal.wait_for("MiB/s")
        terminal.type("\3")
        assert terminal.end() == 130
    wait_until(lambda: left_over(alice, pod) == "", "the half file to go")
    assert fetch(alice, pod, "/root/endless").code == "no_such_file"


# --- pody logs ----------------------------------------------------------------------------------


def test_logs_are_shown_harmless(alice: Client, pody: Pody, pod: str) -> None:
    log(alice, pod, "line-one \x1b[31mred")
    wait_until(lambda: "line-one" in pody("logs", pod).ok, "the line")
    assert len(pody("logs", pod, "-n", "3").ok.splitlines()) <= 3
    assert "\x1b" not in pody("logs", pod).ok


FOLLOWING = "journalctl --follow --quiet --no-pager --output=short-iso --lines=1"


def test_logs_follow_until_ctrl_c(alice: Client, pody: Pody, pod: str) -> None:
    with pody.at_terminal("logs", pod, "-f", "-n", "1") as terminal:
        wait_until(lambda: started(FOLLOWING) > 0, "journalctl in the pod")
        log(alice, pod, "line-two \x1b[31m")
        terminal.wait_for("line-two")
        assert "\x1b[31m" not in terminal.text
        terminal.type("\3")
        assert terminal.end() == 130
    wait_until(lambda: started(FOLLOWING) == 0, "journalctl to end")
    assert pody("logs", pod, "-f", "--since", "1h").failed(2)
