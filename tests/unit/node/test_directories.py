"""Members' own directories on the host: which of them podyd mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podyd.admin.doctor import mounts
from podyd.admin.doctor.finding import Level
from podyd.base.errors import ConfigError
from podyd.config.loader import parse as parse_config
from podyd.config.values import Mount
from podyd.engine.admin import Openings
from podyd.node.directories import Directory, is_mappable, to_make, unfit, unsafe
from podyd.node.host_files import ProcessFiles


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/data/$user:/workspace", Mount("/data", "/workspace", False)),
        ("/srv/lab-1/a.b/$user:/mnt/ref_1:ro", Mount("/srv/lab-1/a.b", "/mnt/ref_1", True)),
    ],
)
def test_a_mount(text: str, mount: Mount) -> None:
    assert parse_config(f"pods: {{mounts: ['{text}']}}").pods.mounts == (mount,)
    assert str(mount) == text


@pytest.mark.parametrize(
    "text",
    [
        "[/data:/workspace]",
        "[/$user:/workspace]",
        "[/data/$user/x:/workspace]",
        "[/data/x-$user:/workspace]",
        "[/data/../$user:/workspace]",
        "[/data//$user:/workspace]",
        "['/data,/etc/$user:/workspace']",
        "[data/$user:/workspace]",
        "[/home/$user:/workspace]",
        "[/home/lab/$user:/workspace]",
        "[/proc/$user:/workspace]",
        "[/data/$user:/]",
        "[/data/$user:/dev/shm]",
        "[/data/$user:/a/../b]",
        "[/data/$user:workspace]",
        "[/data/$user:/workspace:rw]",
        "[/data/$user:/workspace, /ref/$user:/workspace]",
        "{/data/$user: /workspace}",
        "/data/$user:/workspace",
        "[7]",
    ],
)
def test_what_is_no_mount(text: str) -> None:
    with pytest.raises(ConfigError, match=r"key 'pods.mounts' is .*; expected a list such as"):
        parse_config(f"pods: {{mounts: {text}}}")


def test_only_root_may_change_the_way_there() -> None:
    assert unsafe(Path("/usr/share")) == ""
    assert unsafe(Path("/tmp/x")) == "others than root may write to /tmp"
    missing = unsafe(Path("/usr/nowhere"))
    assert missing == "/usr/nowhere cannot be looked at (No such file or directory)"
    link = next(path for path in Path("/").iterdir() if path.is_symlink())
    assert unsafe(link / "x") == f"{link} is not a directory itself"


def test_whose_it_is(tmp_path: Path) -> None:
    def about(name: str, uid: int = 1000, gid: int = 1000) -> str:
        return unfit(Directory(tmp_path / name, name, uid, gid))

    (tmp_path / "alice").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("alice")
    if os.geteuid() == 0:
        os.chown(tmp_path / "alice", 1000, 1000)
        assert about("alice") == ""
    assert about("alice", 1001) == f"{tmp_path}/alice does not belong to alice"
    assert about("file") == f"{tmp_path}/file is not a directory itself"
    assert about("link") == f"{tmp_path}/link is not a directory itself"
    assert about("nobody's") == f"{tmp_path}/nobody's is not there"
    for name in ("..", ".", "a/b", "../alice"):
        assert "is not the name of a directory" in about(name)
    assert "cannot be looked at" in about("a\0b")
    for uid, gid in ((0, 1000), (999, 1000), (1000, 0), (1000, 42), (65534, 1000), (1000, 65534)):
        assert "one of the system's own" in about("alice", uid, gid)
    assert is_mappable(1000, 100)


def test_what_an_admin_types_has_no_surprise() -> None:
    own = Directory(Path("/data/a b;reboot"), "a b;reboot", 1000, 1000)
    assert to_make(own) == "install -d -m 700 -o 'a b;reboot' -g 1000 '/data/a b;reboot'"


def test_a_project_with_no_openings_has_no_disk_of_the_host() -> None:
    assert Openings().config()["restricted.devices.disk"] == "managed"
    opened = Openings(frozenset({"/b", "/a"}), frozenset({"1000"}))
    assert (opened | Openings(uids=frozenset({"1001"}))).config() == {
        "restricted.devices.disk": "allow",
        "restricted.devices.disk.paths": "/a,/b",
        "restricted.idmap.uid": "1000,1001",
        "restricted.idmap.gid": "",
    }


@pytest.mark.parametrize(
    ("subuid", "newuidmap", "do"),
    [
        ("root:100000:200000\nroot:1000:59000\n", True, ""),
        ("root:1000:1\nroot:1001:1\nroot:200000:1\n", True, ""),
        ("root:100000:65536\n", False, ""),
        ("root:1000:1\nroot:200000:1\n", True, "usermod --add-subuids 1000-59999 root"),
        ("root:1000:2\n", True, "usermod --add-subuids 200000-200000 root"),
        ("", True, "usermod --add-subuids 1000-59999 --add-subuids 200000-200000 root"),
    ],
)
def test_ids_that_root_may_map(tmp_path: Path, subuid: str, newuidmap: bool, do: str) -> None:
    (tmp_path / "environ").write_bytes(b"PATH=/usr/bin\0")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/subuid").write_text(subuid)
    if newuidmap:
        (tmp_path / "root/usr/bin").mkdir(parents=True)
        (tmp_path / "root/usr/bin/newuidmap").touch()
        (tmp_path / "root/usr/bin/newuidmap").chmod(0o4755)
    findings = list(mounts.about_own_ids(ProcessFiles(tmp_path), [1000, 1001, 200000], []))
    assert [item.do for item in findings if item.level is Level.ERROR] == ([do] if do else [])
