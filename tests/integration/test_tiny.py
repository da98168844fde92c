"""A pod of an image that has busybox and nothing else, as Alpine's."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from podyd.engine.dialect import INCUS
from tests.integration.harness import (
    DIALECT,
    SMALL,
    Client,
    Node,
    open_holes,
    started,
    wait_until,
)
from tests.integration.talking import shell, streamed
from tests.integration.test_client import as_user
from tests.integration.test_files import fetch, put, sh, tar_of
from tests.integration.test_images import assert_nothing_left, committed

GIB = 1024**3


@pytest.fixture(scope="module")
def tiny(alice: Client) -> Iterator[str]:
    """A running pod of alice's with busybox."""
    yield alice.post("/pod/create", ins="tiny", image=SMALL).ok["ins"]
    alice.post("/pod/delete", ins="tiny").ok


def test_commands_run_in_sh(alice: Client, tiny: str) -> None:
    done = alice.exec(tiny, "echo $0; echo err >&2; [ -e /bin/bash ] || exit 3")
    assert (done["stdout"], done["stderr"], done["exit_code"]) == ("/bin/sh\n", "err\n", 3)
    with streamed(alice, tiny, "read x; echo got $x; exit 4") as talk:
        talk.type(b"it\n")
        assert (talk.end()["exit_code"], talk.out) == (4, b"got it\n")


def test_time_up_kills_all_that_the_command_started(alice: Client, tiny: str) -> None:
    command = "setsid sleep 98767 & (trap '' TERM; sleep 98767) & echo begun; sleep 98767"
    began = time.monotonic()
    done = alice.exec(tiny, command, timeout=1)
    assert time.monotonic() - began < 10
    assert (done["timed_out"], done["stdout"]) == (True, "begun\n")
    wait_until(lambda: started("sleep 98767") == 0, "their end")
    assert alice.exec(tiny, "ls -d /sys/fs/cgroup/podyd-*")["stdout"].count("podyd-") == 1


def test_a_shell_at_a_terminal(alice: Client, tiny: str) -> None:
    with shell(alice, tiny) as talk:
        talk.type(b"echo $((6*7)); tty; exit 5\n")
        assert talk.end()["exit_code"] == 5
    assert b"42" in talk.out
    assert b"/dev/pts/" in talk.out


def test_a_signal_reaches_all_of_a_command(alice: Client, tiny: str) -> None:
    with streamed(
        alice, tiny, "trap 'echo caught; exit 6' TERM; echo up; sleep 98768 & wait"
    ) as talk:
        talk.wait_for(b"up")
        talk.control(signal="TERM")
        assert talk.end()["exit_code"] == 6
    wait_until(lambda: started("sleep 98768") == 0, "what has the signal to end")


def test_files_and_folders(alice: Client, tiny: str) -> None:
    assert put(alice, tiny, "/root/new", b"one", mode="640", mtime=86400).status == 200
    assert put(alice, tiny, "/root/new", b"\0two").status == 200
    answer = fetch(alice, tiny, "/root/new")
    assert (answer.body, answer.headers["X-Podyd-Mode"]) == (b"\0two", "0640")
    assert fetch(alice, tiny, "/proc/version").body.startswith(b"Linux")
    assert fetch(alice, tiny, "/none").code == "no_such_file"
    body = tar_of(("a b/c\n", b"1"), ("link", "a b/c\n"))
    assert put(alice, tiny, "/root/folder", body, format="tar").status == 200
    more = tar_of(("a b/d", b"22"), ("link", b"3"))
    assert put(alice, tiny, "/root/folder", more, format="tar").status == 200
    entries = fetch(alice, tiny, "/root/folder").json["entries"]
    assert [(item["name"], item["type"]) for item in entries] == [
        ("a b", "directory"),
        ("link", "file"),
    ]
    entries = fetch(alice, tiny, "/root/folder/a b").json["entries"]
    assert [(item["name"], item["size"]) for item in entries] == [("c\n", 1), ("d", 2)]
    back = fetch(alice, tiny, "/root/folder", format="tar")
    with tarfile.open(fileobj=io.BytesIO(back.body)) as tar:
        names = {info.name.removeprefix("./").rstrip("/") for info in tar.getmembers()}
    assert names - {".", ""} == {"a b", "a b/c\n", "a b/d", "link"}
    assert sh(alice, tiny, "ls -A /root") == "folder\nnew\n"


def test_its_log_is_the_console(alice: Client, tiny: str) -> None:
    assert alice.get("/pod/logs", ins=tiny).ok["source"] == "console"


def test_holes_stay_holes_in_an_image(alice: Client, tiny: str) -> None:
    alice.exec(tiny, "truncate -s 300M /root/hole; echo end >>/root/hole; sync")
    made = alice.post("/pod/commit", ins=tiny, tag="holes").ok
    image = made["image_name"]
    # With the fix of this one, it takes no option for what packs them.
    fix = "CVE-2026-28384" if DIALECT is INCUS else "CVE-2026-48755"
    is_kept = made["holes"] == "kept"
    assert is_kept or not open_holes().get(fix)
    assert alice.post("/pod/create", ins="holes", image=image).ok["status"] == "running"
    used, _, text = alice.exec(
        "holes", "du -k /root/hole; wc -c </root/hole; tail -c 4 /root/hole"
    )["stdout"].partition("\t")
    assert text == "/root/hole\n314572804\nend\n"
    assert (int(used) == 4) == is_kept
    alice.post("/pod/delete", ins="holes").ok
    alice.post("/image/delete", image=image).ok
    alice.exec(tiny, "rm /root/hole")


def copies(node: Node) -> list[str]:
    return [name for name in node.instances() if "commit" in name]


def at_work(node: Node) -> list[str]:
    """What LXD does in the tests' project, but for commands that somebody talks to."""
    return [
        item["description"]
        for item in node.operations()
        if item["status_code"] < 200 and item["class"] == "task"
    ]


@pytest.mark.parametrize("stage", ["copying", "looking", "packing", "storing"])
def test_a_commit_is_cancelled_at_each_stage(
    node: Node, alice: Client, tiny: str, stage: str
) -> None:
    """What LXD itself shows says which one it is."""
    fill = {
        "looking": "mkdir /root/more && cd /root/more && seq 4000 | xargs mkdir",
        "packing": "mkdir /root/more && dd if=/dev/urandom of=/root/more/file bs=1M count=70",
    }
    alice.exec(tiny, f"{fill.get(stage, 'true')}; sync", timeout=60)

    def is_there() -> bool:
        assert not committing.done(), committing.result().body
        match stage:
            case "copying":
                return bool(copies(node))
            case "looking":
                return bool(copies(node)) and not at_work(node)
            case "packing":
                return bool(alice.get("/pod/progress", ins=tiny).ok["percent"])
        return bool(committed(node, alice.user))

    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(alice.post, "/pod/commit", ins=tiny, tag="cut")
        wait_until(is_there, stage, 180)
        ended = alice.post("/pod/commit-cancel", ins=tiny)
        if stage == "storing" and ended.status == 409:
            # It had its name already.
            ended.refused(409, "commit_done")
            alice.post("/image/delete", image=committing.result().ok["image_name"]).ok
        else:
            assert "nothing of it is left" in ended.ok["log"]
            committing.result().refused(409, "commit_cancelled")
    assert_nothing_left(node, alice.user)
    alice.exec(tiny, "rm -rf /root/more")


def test_the_hosts_last_room_ends_a_commit(node: Node, alice: Client, tiny: str) -> None:
    """A large file of the host's stands for all that may fill it up meanwhile."""
    images = Path(node.lab_state.socket).parent / "images"
    status = os.statvfs(images)
    floor = status.f_bavail * status.f_frsize - 2 * GIB
    server = node.serve(constants={"podyd.engine.room.FLOOR_BYTES": floor})
    client = server.client(alice.user)
    client.exec(tiny, "truncate -s 8G /root/hole; sync")
    with ThreadPoolExecutor(1) as pool, tempfile.TemporaryFile(dir=images.parent) as large:
        committing = pool.submit(client.post, "/pod/commit", ins=tiny, tag="cut")
        wait_until(lambda: client.get("/pod/progress", ins=tiny).ok["percent"], "packing", 180)
        os.posix_fallocate(large.fileno(), 0, 5 * GIB)
        body = committing.result().refused(409, "disk_full")
    assert body["free"] <= floor
    assert_nothing_left(node, alice.user)
    client.exec(tiny, "rm /root/hole")
    assert server.stop() == 0


def test_ctrl_c_before_anything_is_packed(node: Node, alice: Client, tiny: str) -> None:
    # So much that its packing is not over before it is cancelled.
    alice.exec(tiny, "head -c 150000000 /dev/urandom >/root/large; sync", timeout=60)
    with as_user(alice).at_terminal("commit", tiny, "cut") as terminal:
        terminal.wait_for("Making image")
        terminal.type("\3")
        assert terminal.end() == 130
        assert "nothing of it is left" in terminal.text
    assert_nothing_left(node, alice.user)
    alice.exec(tiny, "rm /root/large")


def test_without_sh_it_is_said_once(alice: Client, tiny: str) -> None:
    alice.exec(tiny, "mv /bin/sh /bin/sh-away")
    body = alice.post("/pod/exec", ins=tiny, cmd="true").refused(409, "no_shell")
    assert "/bin/sh" in body["detail"]
    assert fetch(alice, tiny, "/root").code == "no_shell"
