"""Members' own directories of the host in their pods."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import IMAGE, SMALL, Client, Node, Server
from tests.integration.test_confinement import Certified, error_of
from tests.lab.nvml import FakeDriver


@dataclass(frozen=True)
class Disk:
    """Two places on the host with members' directories, and a podyd that mounts them."""

    node: Node
    prefix: Path
    changes: Mapping[str, Any]
    server: Server

    def setup(self) -> str:
        return self.node.podyd("setup", "--user", self.node.account, changes=self.changes)

    def own(self, user: str) -> Path:
        return self.prefix / "data" / user

    def make(self, user: str) -> None:
        """A directory of a member's own in both places."""
        account = pwd.getpwnam(user)
        for place in ("data", "ref"):
            path = self.prefix / place / user
            path.mkdir(mode=0o700)
            os.chown(path, account.pw_uid, account.pw_gid)


@pytest.fixture(scope="module")
def disk(node: Node, driver: FakeDriver) -> Iterator[Disk]:
    prefix = node.directory / "disk"
    for place in ("data", "ref"):
        (prefix / place).mkdir(parents=True)
    mounts = [f"{prefix}/data/$user:/workspace", f"{prefix}/ref/$user:/ref:ro"]
    changes = {"pods": {"mounts": mounts}}
    yield Disk(node, prefix, changes, node.serve(changes, environment=driver.environment))
    shutil.rmtree(prefix)


def member(disk: Disk, *options: str) -> Client:
    user = disk.node.accounts.user("", *options)
    disk.make(user)
    disk.node.accounts.allow_root(user)
    return disk.server.client(user)


@pytest.fixture(scope="module")
def two(disk: Disk) -> Iterator[tuple[Client, Client]]:
    """Ann, of the group users, and Ben, with a group of his own; each has a pod `main`."""
    ann, ben = member(disk), member(disk, "-g", disk.node.accounts.group())
    disk.setup()
    for client in (ann, ben):
        client.post("/pod/create", ins="main", image=SMALL).ok
    yield ann, ben
    for client in (ann, ben):
        for ins in client.get("/pod/list").ok:
            client.post("/pod/delete", ins=ins).ok
    closed = disk.node.podyd("setup", "--user", disk.node.account)
    assert "restricted.devices.disk.paths" in closed
    config = disk.node.lxd.get(f"/1.0/projects/{disk.node.project}")["config"]
    assert config["restricted.devices.disk"] == "managed"
    assert not config.get("restricted.idmap.uid")


@pytest.fixture
def ann(two: tuple[Client, Client]) -> Client:
    return two[0]


@pytest.fixture
def ben(two: tuple[Client, Client]) -> Client:
    return two[1]


def stdout(client: Client, cmd: str, ins: str = "main") -> str:
    done = client.exec(ins, cmd)
    assert done["exit_code"] == 0, done
    text: str = done["stdout"]
    return text


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_has_its_owner_on_both_sides(
    disk: Disk, two: tuple[Client, Client], number: int
) -> None:
    client = two[number]
    account = pwd.getpwnam(client.user)
    own = disk.own(client.user)
    there = own / "from the host"
    there.write_text("hello")
    os.chown(there, account.pw_uid, account.pw_gid)
    cmd = "cd /workspace; stat -c %U:%G . *; cat *; echo more > 'from the pod'; mkdir d"
    assert stdout(client, cmd) == "root:root\nroot:root\nhello"
    for path in (own / "from the pod", own / "d"):
        assert (path.stat().st_uid, path.stat().st_gid) == (account.pw_uid, account.pw_gid)


def test_what_is_setuid_is_the_members_own(disk: Disk, ann: Client) -> None:
    stdout(ann, "cp /bin/true /workspace/setuid; chmod 6755 /workspace/setuid")
    made = (disk.own(ann.user) / "setuid").stat()
    account = pwd.getpwnam(ann.user)
    assert made.st_mode & stat.S_ISUID
    assert (made.st_uid, made.st_gid) == (account.pw_uid, account.pw_gid)
    assert ann.exec("main", "mknod /workspace/null c 1 3")["exit_code"] == 1
    # Root of the host is nobody in the pod, so that no file can be given to it.
    theirs = disk.own(ann.user) / "of the host's root"
    theirs.write_text("")
    assert stdout(ann, "stat -c %u /workspace/of*") == "65534\n"
    assert ann.exec("main", "chmod 4755 /workspace/of*")["exit_code"] == 1


def test_nobody_gets_at_anothers(disk: Disk, ann: Client, ben: Client) -> None:
    (disk.own(ben.user) / "secret").write_text("")
    assert "secret" not in stdout(ann, "ls -R /workspace /ref")
    # Even where it is mounted, the kernel knows whose it is.
    name = disk.node.instance_of(ann.user, "main")["name"]
    source = f"source={disk.own(ben.user)}"
    disk.node.lxc("config", "device", "add", name, "bens", "disk", source, "path=/bens")
    try:
        for cmd in ("ls /bens", "touch /bens/mine", "chown 0:0 /bens", "mount -o remount /bens"):
            assert ann.exec("main", cmd)["exit_code"] != 0
    finally:
        disk.node.lxc("config", "device", "remove", name, "bens")


def test_what_is_only_to_be_read(ann: Client) -> None:
    for cmd in ("touch /ref/x", "mount -o remount,rw /ref", "mount -o remount,bind,rw /ref"):
        assert ann.exec("main", cmd)["exit_code"] != 0
    stdout(ann, "ls /ref")


def test_no_link_leads_elsewhere(disk: Disk, ann: Client, ben: Client) -> None:
    own = disk.own(ann.user)
    aside = own.with_name("aside")
    own.rename(aside)
    try:
        for target in ("/etc", "../../..", str(disk.own(ben.user)), ben.user):
            own.symlink_to(target)
            body = ann.post("/pod/restart", ins="main").refused(409, "directory_unfit")
            assert f"{own} is not a directory itself" in body["detail"]
            own.unlink()
        body = ann.post("/pod/restart", ins="main").refused(409, "directory_unfit")
        assert f"install -d -m 700 -o {ann.user}" in body["advice"]
        # It is refused before the pod is stopped.
        assert ann.get("/pod/info", ins="main").ok["status"] == "running"
        # What podyd did not see, LXD sees.
        own.symlink_to("/etc")
        name = disk.node.instance_of(ann.user, "main")["name"]
        source = f"source={own}"
        disk.node.lxc("config", "device", "add", name, "x", "disk", source, "path=/x", check=False)
        assert ann.exec("main", "ls /x")["exit_code"] != 0
        own.unlink()
    finally:
        aside.rename(own)


@pytest.mark.parametrize("how", ["owner", "mode"])
def test_what_members_could_replace_is_not_mounted(disk: Disk, ann: Client, how: str) -> None:
    place = disk.prefix / "data"
    if how == "owner":
        os.chown(place, pwd.getpwnam(ann.user).pw_uid, 0)
    else:
        place.chmod(0o775)
    try:
        body = ann.post("/pod/restart", ins="main").refused(409, "directory_unfit")
        assert "podyd doctor" in body["advice"]
        done = disk.node.command("doctor", "--config", str(disk.server.config))
        assert f"install -d -m 755 -o root -g root {place}" in done.stdout
    finally:
        os.chown(place, 0, 0)
        place.chmod(0o755)


def test_a_directory_of_somebody_else(disk: Disk, ann: Client) -> None:
    own = disk.own(ann.user)
    os.chown(own, 0, 0)
    try:
        detail = ann.post("/pod/restart", ins="main").refused(409, "directory_unfit")["detail"]
        assert f"{own} does not belong to {ann.user}" in detail
    finally:
        account = pwd.getpwnam(ann.user)
        os.chown(own, account.pw_uid, account.pw_gid)


def test_a_new_member(disk: Disk, two: tuple[Client, Client]) -> None:
    user = disk.node.accounts.user()
    client = disk.server.client(user)
    body = client.post("/pod/create", ins="main", image=SMALL).refused(409, "directory_unfit")
    assert f"{disk.own(user)} is not there" in body["detail"]
    disk.make(user)
    body = client.post("/pod/create", ins="main", image=SMALL).refused(409, "directory_not_set_up")
    assert "podyd setup" in body["advice"]
    assert "restricted.idmap.uid" in disk.setup()
    assert disk.setup() == "Nothing to do: all is set up.\n"
    # podyd may map these ids, but LXD may not.
    uid = pwd.getpwnam(user).pw_uid
    report = disk.node.command("doctor", "--config", str(disk.server.config)).stdout
    assert f"for the uids {uid}." in report
    assert "usermod --add-subuids 1000-59999 root" in report
    disk.node.accounts.allow_root(user)
    client.post("/pod/create", ins="main", image=SMALL).ok
    assert stdout(client, "stat -c %U /workspace") == "root\n"
    client.post("/pod/delete", ins="main").ok


def test_a_copy_has_it_and_an_image_does_not(disk: Disk, ann: Client, server: Server) -> None:
    (disk.own(ann.user) / "kept out").write_text("")
    ann.post("/pod/copy", ins="main", to="second").ok
    assert "kept out" in stdout(ann, "ls /workspace", "second")
    stdout(ann, "echo of the pod > /root/kept; chown 33:33 /root/kept")
    image = ann.post("/pod/commit", ins="main", tag="t").ok["image_name"]
    # Made by a podyd that mounts nothing.
    other = server.client(ann.user)
    other.post("/pod/create", ins="plain", image=image).ok
    output = stdout(other, "ls -A /workspace /ref; stat -c %u:%g /root/kept /etc/passwd", "plain")
    assert output == "/ref:\n\n/workspace:\n33:33\n0:0\n"
    for ins in ("plain", "second"):
        ann.post("/pod/delete", ins=ins).ok
    assert (disk.own(ann.user) / "kept out").exists()
    ann.post("/image/delete", image=image).ok


def test_another_podyd_yaml_counts_from_the_next_start(
    disk: Disk, ben: Client, server: Server
) -> None:
    ben.post("/pod/snapshot", ins="main", name="mapped").ok
    other = server.client(ben.user)
    other.post("/pod/restart", ins="main").ok
    inside, outside = stdout(other, "ls -A /workspace; cat /proc/self/uid_map").split()[:2]
    assert (inside, int(outside) >= 100000) == ("0", True)
    config = disk.node.instance_of(ben.user, "main")["config"]
    assert not {"raw.idmap", "user.podyd.idmap"} & config.keys()
    stdout(other, "echo mine > /root/kept")
    # The disk of then has the ids of then.
    other.post("/pod/restore", ins="main", name="mapped").ok
    output = stdout(other, "stat -c %U / /etc/passwd; ls -A /root/kept /workspace || true")
    assert output.split() == ["root", "root", "/workspace:"]
    ben.post("/pod/stop", ins="main").ok
    ben.post("/pod/start", ins="main").ok
    assert stdout(ben, "stat -c %U /workspace /etc/passwd") == "root\nroot\n"


def test_what_an_admin_maps_stays(disk: Disk, ben: Client) -> None:
    name = disk.node.instance_of(ben.user, "main")["name"]
    account = pwd.getpwnam(ben.user)
    mine = f"uid {account.pw_uid} 1000\ngid {account.pw_gid} 1000"
    disk.node.lxc("config", "set", name, f"raw.idmap={mine}")
    ben.post("/pod/restart", ins="main").ok
    assert stdout(ben, "stat -c %u:%g /workspace") == "1000:1000\n"
    assert disk.node.instances()[name]["config"]["raw.idmap"] == mine
    ours = disk.node.instances()[name]["config"]["user.podyd.idmap"]
    disk.node.lxc("config", "set", name, f"raw.idmap={ours}")
    ben.post("/pod/restart", ins="main").ok
    assert stdout(ben, "stat -c %u:%g /workspace") == "0:0\n"


def test_setup_closes_nothing_that_a_pod_has(disk: Disk, ann: Client) -> None:
    """LXD would refuse that, and podyd would not start."""
    disk.node.podyd("setup", "--user", disk.node.account)
    config = disk.node.lxd.get(f"/1.0/projects/{disk.node.project}")["config"]
    assert str(disk.own(ann.user)) in config["restricted.devices.disk.paths"].split(",")
    assert str(disk.prefix / "data") not in config["restricted.devices.disk.paths"].split(",")
    disk.setup()
    ann.post("/pod/restart", ins="main").ok


def test_limits_and_cards_are_as_in_other_pods(ann: Client, lab_cards: None) -> None:
    assert ann.post("/pod/limits", ins="main", memory="1GiB").ok["memory_limit"] == 1024**3
    assert ann.post("/pod/gpus", ins="main", gpus="1,").ok["gpu_ids"] == [1]
    assert stdout(ann, "ls /dev/nvidia[0-9]") == "/dev/nvidia1\n"


@pytest.mark.parametrize(
    ("idmap", "source"),
    [
        ("uid 0 0", ""),
        ("both 0 0", ""),
        ("gid 42 0", ""),
        ("uid 1000-60000 1000-60000", ""),
        ("", "/etc"),
        ("", "{prefix}"),
        ("", "{prefix}/data/../.."),
        ("", "{prefix}/database"),
        ("", "ceph:pool/volume"),
    ],
)
def test_podyds_certificate_gets_no_further(
    disk: Disk, two: tuple[Client, Client], idmap: str, source: str
) -> None:
    device = {"type": "disk", "source": source.format(prefix=disk.prefix), "path": "/mnt"}
    body = {
        "name": "intruder",
        "source": {"type": "image", "alias": IMAGE},
        "profiles": ["podyd-base"],
        "config": {"raw.idmap": idmap} if idmap else {},
        "devices": {"x": device} if source else {},
    }
    intruder = Certified(disk.node.credentials, disk.node.project)
    message = error_of(intruder.call("POST", "/1.0/instances", body))
    assert "not allowed" in message or "is forbidden" in message
