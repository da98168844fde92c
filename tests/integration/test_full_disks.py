"""A pod whose disk is full: what is said of it, and how it goes on.

LXD writes a file beside the pod's own at each start and each change of its settings, on the same
disk. Root in the pod can fill that to the last block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podyd.base.quantities import shown_size
from podyd.pods.disks import BTRFS
from tests.integration.harness import IMAGE, Answer, Client, Node, Pool, Server, wait_until
from tests.integration.test_client import Pody
from tests.integration.test_images import names_beside
from tests.lab import lab

MIB = 1024**2
LIMIT = 400 * MIB
# A large file, single blocks and small files, until none of them fits any more; what a pod that has
# just started frees meanwhile is filled, too.
FILL = """
mkdir -p /full
head -c 600M /dev/urandom >/full/big1
for round in $(seq 20); do
  sync -f /full
  dd if=/dev/urandom of=/full/block$round bs=4k count=100
  for number in $(seq 200); do echo x >/full/small$round.$number || break; done
  sync -f /full
  [ $round -lt 3 ] || echo x >/full/last$round || exit 0
done 2>/dev/null
exit 1
"""
EMPTY = "rm -rf /full; sync -f /"


@pytest.fixture(scope="module")
def full(node: Node, thin: Pool) -> Iterator[tuple[Client, Server]]:
    """A member with a pod `full` of 400 MiB, and the podyd that they use."""
    user = node.accounts.user()
    server = node.serve({"pods": {"user_profiles": {user: thin.profiles}}})
    client = server.client(user)
    client.post("/pod/create", ins="full", image=IMAGE, disk=str(LIMIT)).ok
    yield client, server
    client.post("/pod/delete", ins="full").ok
    assert server.stop() == 0


@pytest.fixture
def client(thin: Pool, full: tuple[Client, Server]) -> Iterator[Client]:
    """The member; after the test the pod runs, with room on its disk and its own limit."""
    client, _ = full
    thin.count_anew()
    yield client
    client.post("/pod/file-delete", ins="full", path="/full/big1")
    client.post("/pod/start", ins="full").ok
    client.exec("full", EMPTY)
    client.post("/pod/limits", ins="full", disk=str(LIMIT)).ok


def fill(client: Client) -> None:
    assert client.exec("full", FILL, timeout=60)["exit_code"] == 0


def cut_off(node: Node, client: Client) -> None:
    """Stop the pod with its disk as full as it is: what shuts down may remove files of its own."""
    # It stops, and LXD then fails to write what it keeps on the disk.
    node.lxc("stop", "--force", node.instance_of(client.user, "full")["name"], check=False)
    wait_until(lambda: client.get("/pod/info", ins="full").ok["status"] == "stopped", "its end")


def fill_and_cut_off(node: Node, client: Client, pool: Pool) -> None:
    """Stop the pod with its disk full. What is killed may have had deleted files open, whose room
    is free then; so it is filled until there is none."""
    for _ in range(5):
        fill(client)
        cut_off(node, client)
        if not lxd_has_room(node, client, pool):
            return
        client.post("/pod/start", ins="full").ok
    raise AssertionError("whenever the pod is killed, its disk is not full any more")


def when_full(client: Client, call: Callable[[], Answer], seen: Callable[[Answer], bool]) -> Answer:
    """What podyd answers to a call on a pod that runs with its disk full. Between the filling and
    the call the pod may free some, as journald does, and podyd is right then to do what it is
    asked for; so it is filled again until the answer is that of a full disk."""
    for _ in range(5):
        client.post("/pod/start", ins="full").ok
        fill(client)
        answer = call()
        if seen(answer):
            return answer
        answer.ok
    raise AssertionError("whenever it is called, the pod's disk is not full any more")


def lxd_has_room(node: Node, client: Client, pool: Pool) -> bool:
    """Whether LXD can write its own file on the pod's disk; on ZFS it always can."""
    if pool.driver != BTRFS:
        return False
    name = node.instance_of(client.user, "full")["name"]
    try:
        node.lxd.change("PATCH", f"/1.0/instances/{name}?project={node.project}", {"config": {}})
    except lab.LabError as error:
        assert "quota exceeded" in str(error), error
        return False
    return True


def size(node: Node, client: Client) -> int:
    """The limit that LXD holds."""
    return int(node.instance_of(client.user, "full")["devices"]["root"]["size"])


def test_a_full_pod_starts_again_in_a_little_more_room(
    client: Client, node: Node, thin: Pool
) -> None:
    fill_and_cut_off(node, client, thin)
    full = f"its disk is full (its limit is {shown_size(LIMIT)})"
    assert full in client.post("/pod/start", ins="full").ok["log"]
    assert client.get("/pod/info", ins="full").ok["disk_limit"] == LIMIT
    assert LIMIT < size(node, client) <= LIMIT + 16 * MIB

    # What was lent is filled too: there is no more of it, and a restart would be an end.
    def restart() -> Answer:
        return client.post("/pod/restart", ins="full")

    def freeze_and_restart() -> Answer:
        node.lxc("pause", node.instance_of(client.user, "full")["name"])
        return restart()

    def is_refused(answer: Answer) -> bool:
        return answer.status == 409

    body = when_full(client, restart, is_refused).refused(409, "disk_full")
    assert body["limit"] == LIMIT
    client.sees("full", status="running")
    when_full(client, freeze_and_restart, is_refused).refused(409, "disk_full")
    client.sees("full", status="frozen")
    client.post("/pod/start", ins="full").ok
    fill_and_cut_off(node, client, thin)
    body = client.post("/pod/start", ins="full").refused(409, "disk_full")
    assert "/pod/file-delete" in body["advice"]
    assert client.post("/pod/file-delete", ins="full", path="/full/big1").ok
    client.post("/pod/start", ins="full").ok
    when_full(
        client,
        lambda: client.post("/pod/stop", ins="full"),
        lambda answer: full in answer.ok["log"],
    )


def test_what_was_lent_is_taken_back(client: Client, node: Node, thin: Pool) -> None:
    fill_and_cut_off(node, client, thin)
    client.post("/pod/start", ins="full").ok
    assert size(node, client) > LIMIT
    client.exec("full", EMPTY)
    client.post("/pod/restart", ins="full").ok
    assert size(node, client) == LIMIT
    assert "user.podyd.disk" not in node.instance_of(client.user, "full")["config"]


def test_a_full_pod_is_restarted(client: Client) -> None:
    fill(client)
    assert "running again" in client.post("/pod/restart", ins="full").ok["log"]


def test_a_podyd_that_was_killed_takes_it_back_later(
    client: Client, node: Node, thin: Pool
) -> None:
    fill_and_cut_off(node, client, thin)
    client.post("/pod/start", ins="full").ok
    assert size(node, client) > LIMIT
    client.exec("full", EMPTY)
    other = node.serve()
    wait_until(lambda: size(node, client) == LIMIT, "the limit as it was")
    assert other.stop() == 0


def test_settings_of_a_full_pod_change_all_the_same(client: Client) -> None:
    client.post("/pod/snapshot", ins="full", name="before").ok
    fill(client)
    info = client.post("/pod/limits", ins="full", memory="1GiB").ok
    assert info["memory_limit"] == 1024 * MIB
    client.post("/pod/limits", ins="full", memory="none").ok
    body = client.post("/pod/snapshot", ins="full").refused(409, "disk_full")
    assert body["limit"] == LIMIT
    assert [item["name"] for item in client.get("/pod/snapshots", ins="full").ok] == ["before"]
    client.post("/pod/snapshot-delete", ins="full", name="before").ok
    assert client.get("/pod/snapshots", ins="full").ok == []
    grown = client.post("/pod/limits", ins="full", disk=str(LIMIT + 64 * MIB)).ok
    assert grown["disk_limit"] == LIMIT + 64 * MIB
    assert client.exec("full", "echo x >/full/more")["exit_code"] == 0


def test_a_full_pod_is_an_image_and_a_copy(client: Client, ins: str) -> None:
    fill(client)
    image = client.post("/pod/commit", ins="full", tag=ins).ok["image_name"]
    client.post("/image/delete", image=image).ok
    # A copy has the limit of a new pod, which is none here.
    assert client.post("/pod/copy", ins="full", to=ins).ok["disk_limit"] == -1
    client.post("/pod/delete", ins=ins).ok
    body = client.post("/pod/copy", ins="full", to=ins, disk="350MiB").refused(409, "disk_full")
    assert body["limit"] == 350 * MIB


def test_an_image_that_does_not_fit(client: Client, thin: Pool, ins: str) -> None:
    answer = client.post("/pod/create", ins=ins, image=IMAGE, disk="100MiB")
    if answer.status == 200 and thin.has_lost_count():
        client.post("/pod/delete", ins=ins).ok
        thin.count_anew()
        answer = client.post("/pod/create", ins=ins, image=IMAGE, disk="100MiB")
    assert answer.refused(409, "disk_full")["limit"] == 100 * MIB
    assert ins not in client.get("/pod/list").ok


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_files_are_deleted(client: Client, status: str) -> None:
    make = "mkdir -p /full/a/b && cd /full/a && touch 1 '2 x' b/3 && ln -s /etc b/link && mkfifo p"
    client.exec("full", f"{make} && touch /full/-rf && ln -s a /full/link")
    if status == "stopped":
        client.post("/pod/stop", ins="full").ok

    def delete(path: str, **more: str) -> Answer:
        return client.post("/pod/file-delete", ins="full", path=path, **more)

    delete("/full/none").refused(404, "no_such_file")
    delete("/full/none/1").refused(404, "no_such_file")
    delete("/full/a/1/2").refused(404, "no_such_file")
    field, word = (
        ("advice", "recursive") if status == "running" else ("detail", "only while pod 'full' runs")
    )
    assert word in delete("/full/a").refused(409, "directory_not_empty")[field]
    for path in ("/", "//", "/full/..", "/full/a/."):
        delete(path, recursive="1").refused(400, "malformed_parameter")
    for path in ("/full/a/1", "/full/a/2 x", "/full/a/p", "/full/-rf"):
        delete(path).ok
    # Of a link, the link.
    delete("/full/link", recursive="1").ok
    if status == "running":
        delete("/full/a", recursive="1").ok
    else:
        delete("/full/a", recursive="1").refused(409, "directory_not_empty")
        for path in ("/full/a/b/3", "/full/a/b/link", "/full/a/b", "/full/a"):
            delete(path).ok
    delete("/full").ok
    client.post("/pod/start", ins="full").ok
    done = client.exec("full", "ls -d /full; ls /etc/passwd")
    assert done["stdout"] == "/etc/passwd\n"


def test_what_is_mounted_is_not_deleted(client: Client) -> None:
    # Of the same filesystem, as members' own directories are where the pool is on the host's.
    client.exec("full", r"mkdir -p '/full/a b/m' /keep && touch /full/f /keep/f")
    client.exec("full", "mount --bind /keep '/full/a b/m'")
    for path in ("/full", "/full/a b", "/full/a b/m"):
        body = client.post("/pod/file-delete", ins="full", path=path, recursive="1")
        assert "mounted" in body.refused(409, "not_deleted")["detail"]
    answer = client.exec("full", "ls /keep/f /full/f; umount '/full/a b/m'")
    assert answer["stdout"] == "/full/f\n/keep/f\n"
    # One that only begins so is another.
    client.exec("full", "mkdir '/full/a b/m2' && mount --bind /keep '/full/a b/m2'")
    client.post("/pod/file-delete", ins="full", path="/full/a b/m", recursive="1").ok
    client.exec("full", "umount '/full/a b/m2'; rm -r /keep")
    client.post("/pod/file-delete", ins="full", path="/full/a b", recursive="1").ok


def test_nothing_of_a_stopped_pod_is_run_beside_it(
    client: Client, node: Node, tmp_path: Path
) -> None:
    names_beside(node, client, "full", tmp_path)
    client.exec("full", "mkdir -p /full/a && touch /full/a/b; sync")
    client.post("/pod/stop", ins="full").ok
    for more in ({}, {"recursive": "1"}):
        answer = client.post("/pod/file-delete", ins="full", path="/full/a", **more)
        answer.refused(409, "directory_not_empty")
    client.post("/pod/file-delete", ins="full", path="/full/a/b").ok
    client.post("/pod/start", ins="full").ok
    assert client.exec("full", "ls /beside")["exit_code"] != 0


def test_pody_deletes_files(client: Client, node: Node) -> None:
    pody = Pody(f"http://127.0.0.1:{client.port}", client.user)
    client.exec("full", "mkdir -p /root/d && touch /root/d/f")
    assert "recursive" in pody("file-rm", "full:d").failed(1)
    assert "deleted" in json.loads(pody("file-rm", "-r", "full:d").ok)["log"]


def test_somebody_elses_pod(client: Client, bob: Client, pod: str) -> None:
    bob.post("/pod/file-delete", ins=pod, path="/etc/passwd").refused(404, "no_such_pod")


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_a_full_pod_is_restored(client: Client, node: Node, thin: Pool, status: str) -> None:
    # What writes it anew beside what it is by then finds no room for that.
    client.exec("full", "head -c 20M /dev/urandom >/kept; sync")
    kept = client.exec("full", "cksum /kept")["stdout"]
    client.post("/pod/snapshot", ins="full", name=status).ok
    client.exec("full", "head -c 20M /dev/urandom >/kept; sync")
    fill_and_cut_off(node, client, thin)
    # A start that fails so leaves LXD counting a mount too many, as an admin's does.
    name = node.instance_of(client.user, "full")["name"]
    node.lxc("start", name, check=False)
    if status != "stopped":
        client.post("/pod/start", ins="full").ok
    client.post("/pod/restore", ins="full", name=status).ok
    assert client.get("/pod/info", ins="full").ok["status"] == status
    client.post("/pod/start", ins="full").ok
    assert client.exec("full", "ls -d /full")["exit_code"] != 0
    assert client.exec("full", "cksum /kept && rm /kept")["stdout"] == kept
    assert client.get("/pod/info", ins="full").ok["disk_limit"] == LIMIT
    config = node.instance_of(client.user, "full")["config"]
    assert not [key for key in config if "quota" in key]
