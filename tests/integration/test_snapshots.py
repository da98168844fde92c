"""Snapshots and copies of pods."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.harness import IMAGE, Client, Node, wait_until

IDENTITY = "cat /etc/machine-id /etc/ssh/ssh_host_*_key.pub"


def test_a_snapshot_brings_the_disk_back(own: Client) -> None:
    assert own.get("/pod/snapshots", ins="main").ok == []
    own.exec("main", "echo old > /root/file; sync")
    taken = own.post("/pod/snapshot", ins="main", name="before").ok
    assert taken["name"] == "before"
    assert taken["size"] is None or taken["size"] > 0
    own.exec("main", "echo new > /root/file; sync")
    timed = own.post("/pod/snapshot", ins="main").ok["name"]
    assert [item["name"] for item in own.get("/pod/snapshots", ins="main").ok] == ["before", timed]
    own.post("/pod/snapshot", ins="main", name="before").refused(409, "name_taken")

    log = own.post("/pod/restore", ins="main", name="before").ok["log"]
    assert "running again" in log
    assert own.exec("main", "cat /root/file")["stdout"] == "old\n"
    own.post("/pod/stop", ins="main").ok
    assert "running" not in own.post("/pod/restore", ins="main", name=timed).ok["log"]
    assert own.get("/pod/info", ins="main").ok["status"] == "stopped"
    own.post("/pod/start", ins="main").ok
    assert own.exec("main", "cat /root/file")["stdout"] == "new\n"

    own.post("/pod/snapshot-delete", ins="main", name=timed).ok
    for path in ("restore", "snapshot-delete"):
        own.post(f"/pod/{path}", ins="main", name=timed).refused(404, "no_such_snapshot")
    assert [item["name"] for item in own.get("/pod/snapshots", ins="main").ok] == ["before"]


def test_somebody_elses_snapshots_are_like_none(own: Client, bob: Client) -> None:
    own.post("/pod/snapshot", ins="main", name="s").ok
    bob.get("/pod/snapshots", ins="main").refused(404, "no_such_pod")
    bob.post("/pod/copy", ins="main", to="mine").refused(404, "no_such_pod")
    bob.post("/pod/commit", ins="main").refused(404, "no_such_pod")
    for path in ("snapshot", "restore", "snapshot-delete"):
        bob.post(f"/pod/{path}", ins="main", name="s").refused(404, "no_such_pod")


@pytest.mark.parametrize("name", ["a/b", "../x", "a b", "-a", "a.", "", "x" * 64])
def test_names_that_are_refused(alice: Client, pod: str, name: str) -> None:
    alice.post("/pod/snapshot", ins=pod, name=name).refused(400)


def test_six_snapshots_at_once_make_as_many_as_allowed(node: Node, own: Client) -> None:
    server = node.serve({"quota": {"default": {"max_snapshots": 2}}})
    client = server.client(own.user)
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(
                lambda number: client.post("/pod/snapshot", ins="main", name=f"s{number}"), range(6)
            )
        )
    assert sorted(answer.status for answer in answers) == [200, 200, 403, 403, 403, 403]
    assert len(client.get("/pod/snapshots", ins="main").ok) == 2
    assert server.stop() == 0


# --- Settings are of now, the disk of then ------------------------------------------------------


def test_what_is_on_the_instance_stays_as_it_is_now(node: Node, own: Client) -> None:
    name = own.get("/pod/info", ins="main").ok["name"]
    stale = "user.podyd.lease.GPU-0=2020-01-01T00:00:00Z/2090-01-01T00:00:00Z"
    node.lxc("config", "set", name, "user.podyd.owner=somebody", stale, "limits.memory=1GiB")
    node.lxc("config", "device", "add", name, "old", "none")
    node.snapshot(name, "s")
    node.lxc("config", "unset", name, stale.partition("=")[0])
    node.lxc("config", "set", name, f"user.podyd.owner={own.user}", "limits.memory=300MiB")
    node.lxc("config", "device", "remove", name, "old")
    own.sees("main", memory_limit=300 * 1024**2)
    before = node.instance_of(own.user, "main")
    own.post("/pod/restore", ins="main", name="s").ok
    after = node.instance_of(own.user, "main")
    for key in ("devices", "profiles", "description"):
        assert after[key] == before[key]
    kept = [
        {key: value for key, value in item["config"].items() if not key.startswith("volatile.")}
        for item in (before, after)
    ]
    assert kept[0] == kept[1]
    assert not list((Path(node.base["state_dir"]) / "data/restoring").glob("*.json"))


def test_a_podyd_that_is_killed_in_the_middle_finishes_it(node: Node, own: Client) -> None:
    name = own.get("/pod/info", ins="main").ok["name"]
    own.post("/pod/stop", ins="main").ok
    node.snapshot(name, "s")
    node.lxc("config", "set", name, "limits.memory=300MiB")
    before = node.instance_of(own.user, "main")
    # As it stands when the disk is back and podyd is killed.
    node.restore(name, "s")
    assert "limits.memory" not in node.instance_of(own.user, "main")["config"]
    data = Path(node.base["state_dir"]) / "data"
    held = data / "restoring" / f"{name}.json"
    held.parent.mkdir(exist_ok=True)
    before["profiles"].append("since-gone")
    held.write_text(json.dumps(before))
    for path in (held.parent, held):
        path.chmod(0o700)
        os.chown(path, data.stat().st_uid, data.stat().st_gid)
    server = node.serve()
    client = server.client(own.user)
    server.wait_for_log("Profile not found")
    # What LXD refuses is kept, and is what everybody sees; nothing runs without it.
    message = client.post("/pod/start", ins="main").refused(409, "settings_not_back")
    assert "Profile not found" in message["detail"]
    assert client.get("/pod/info", ins="main").ok["memory_limit"] == 300 * 1024**2
    assert held.exists()
    node.lxc("profile", "create", "since-gone")
    wait_until(lambda: not held.exists(), "the settings of now")
    assert server.log_text().count("WARNING podyd.pods.snapshots") == 1
    assert node.instance_of(own.user, "main")["config"]["limits.memory"] == "300MiB"
    assert client.get("/pod/info", ins="main").ok["memory_limit"] == 300 * 1024**2
    client.post("/pod/start", ins="main").ok
    assert server.stop() == 0


# --- Copies -------------------------------------------------------------------------------------


def test_a_copy_is_a_machine_of_its_own(debian: Client) -> None:
    own = debian
    wait_until(lambda: own.exec("main", IDENTITY)["exit_code"] == 0, "the first identity")
    own.exec("main", "echo kept > /root/file; sync")
    own.post("/pod/snapshot", ins="main", name="s").ok
    own.exec("main", "rm /root/file; sync")
    made = own.post("/pod/copy", ins="main", to="twin", snapshot="s").ok
    assert (made["ins"], made["status"], made["image"]) == ("twin", "running", IMAGE)
    assert own.exec("twin", "cat /root/file")["stdout"] == "kept\n"
    assert own.exec("twin", "uname -n; cat /etc/hostname")["stdout"].split() == [made["name"]] * 2
    wait_until(lambda: own.exec("twin", IDENTITY)["exit_code"] == 0, "the copy's identity")
    first, second = (own.exec(ins, IDENTITY)["stdout"].splitlines() for ins in ("main", "twin"))
    assert len(first) == len(second) == 4
    assert not {line.split()[min(1, len(line.split()) - 1)] for line in first} & {
        line.split()[min(1, len(line.split()) - 1)] for line in second
    }
    assert own.get("/pod/snapshots", ins="twin").ok == []
    own.post("/pod/copy", ins="main", to="main").refused(409, "name_taken")
    own.post("/pod/copy", ins="main", to="third", snapshot="no").refused(404, "no_such_snapshot")
    assert own.get("/pod/list").ok == ["main", "twin"]


def test_a_copy_counts_and_takes_no_lease_along(node: Node, own: Client) -> None:
    name = own.get("/pod/info", ins="main").ok["name"]
    lease = "user.podyd.lease.GPU-0=2020-01-01T00:00:00Z/2090-01-01T00:00:00Z"
    node.lxc("config", "set", name, lease, "user.podyd.gpus=all")
    node.lxc("config", "device", "add", name, "old", "none")
    own.post("/pod/copy", ins="main", to="twin").ok
    twin = node.instance_of(own.user, "twin")
    config = twin["config"]
    assert "old" not in twin["devices"]
    assert not [key for key in config if key.startswith(("user.podyd.lease.", "user.podyd.gpus"))]
    server = node.serve({"quota": {"default": {"max_pods": 2}}})
    server.client(own.user).post("/pod/copy", ins="main", to="third").refused(403, "quota_exceeded")
    assert server.stop() == 0


def test_links_in_a_pod_lead_nowhere_on_the_host(debian: Client, tmp_path: Path) -> None:
    own = debian
    tmp_path.chmod(0o777)
    key, machine = tmp_path / "ssh_host_rsa_key", tmp_path / "machine-id"
    for path in (key, machine):
        path.write_text("the host's")
        path.chmod(0o666)
    up = "../" * 12
    own.exec(
        "main",
        f"rm -r /etc/ssh /etc/machine-id /etc/hostname /etc/hosts;"
        f"ln -s {up}{tmp_path} /etc/ssh; ln -s {machine} /etc/machine-id;"
        f"ln -s {up}{tmp_path}/hostname /etc/hostname; mkfifo /etc/hosts; sync",
    )
    own.post("/pod/copy", ins="main", to="twin").ok
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        key.name: "the host's",
        machine.name: "the host's",
    }
    assert own.exec("twin", "test ! -L /etc/machine-id; echo $?")["stdout"] == "0\n"


def test_a_copy_that_keeps_its_identity_is_not_made(node: Node, own: Client) -> None:
    own.exec("main", "rm /etc/machine-id; mkdir -p /etc/machine-id/x; sync")
    own.post("/pod/copy", ins="main", to="twin").refused(409, "identity_stays")
    assert own.get("/pod/list").ok == ["main"]
    wait_until(lambda: len([n for n in node.instances() if own.user in n]) == 1, "it to go")


def test_a_copy_has_no_pipe_in_place_of_its_identity(node: Node, own: Client) -> None:
    """A library of LXD's and of older Incus' (rs/xid) waits for what it reads there; it is gone in
    Incus 7, which deletes the pipe."""
    own.exec("main", "rm /etc/machine-id; mkfifo /etc/machine-id; sync")
    copied = own.post("/pod/copy", ins="main", to="twin")
    if copied.status == 200:
        assert own.exec("twin", "test -f /etc/machine-id")["exit_code"] == 0
        return
    copied.refused(409, "identity_stays")
    assert own.get("/pod/list").ok == ["main"]
    wait_until(lambda: len([n for n in node.instances() if own.user in n]) == 1, "it to go")
