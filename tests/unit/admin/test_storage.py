"""What `podyd doctor` says of storage pools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from podyd.admin.doctor import storage
from podyd.admin.doctor.case import Case, HostPaths
from podyd.admin.doctor.finding import Finding, Level
from podyd.config.loader import parse
from podyd.engine.admin import Admin, Pool
from podyd.node.host_files import HostFiles

GIB = 1024**3
LIMITED = "quota: {groups: {students: {disk_limit: 50GiB}}}"
LINES = """\
21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw{quotas}
71 21 0:45 / /var/lib/lxd/storage-pools/fast rw - btrfs /dev/sdb rw,subvol=/
"""


def pool(driver: str, name: str = "fast", used: int = 0, source: str = "/dev/sdb") -> Pool:
    return Pool(name, driver, source, "Created", used * GIB, 100 * GIB)


def root(pool: str, **keys: str) -> dict[str, dict[str, str]]:
    return {"root": {"type": "disk", "path": "/", "pool": pool, **keys}}


# Whether their snapshots can be copied over pods.
REFRESHED = {"btrfs": True, "zfs": False}
# The fix after which the engine refuses snapshots of pods that ran, by where it is and is not.
FIXED, OPEN = "5.0.2+git20231211.1364ae4-9+deb13u7", "5.0.2-5+deb12u6"


def findings(
    tmp_path: Path,
    *pools: Pool,
    text: str = LIMITED,
    size: str = "",
    lost: str = "0",
    quotas: str = "",
) -> list[Finding]:
    places = HostPaths(files=HostFiles(tmp_path / "proc", tmp_path / "sys", tmp_path / "dev"))
    info = places.files.proc / "7/mountinfo"
    flag = places.files.sysfs / "fs/btrfs/uuid/qgroups/inconsistent"
    device = places.files.sysfs / "fs/btrfs/uuid/devices/sdb"
    for path, content in ((info, LINES.format(quotas=quotas)), (flag, lost), (device, "")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    roots = [root(item.name, **({"size": size} if size else {})) for item in pools]
    admin = SimpleNamespace(
        pools=lambda: list(pools),
        profiles=lambda: [SimpleNamespace(devices=root) for root in roots],
        instances=lambda: [SimpleNamespace(devices={})],
        server=lambda: SimpleNamespace(pid=7),
    )
    findings: list[Finding] = storage.disk_limits(
        cast(Admin, admin), Case(parse(text), Path("podyd.yaml"), places)
    )
    return findings


def test_limits_that_hold(tmp_path: Path) -> None:
    zfs = replace(pool("zfs"), has_refquota=True)
    for pools in ((pool("btrfs"),), (zfs,), (pool("btrfs"), pool("lvm", "slow"))):
        (finding,) = findings(tmp_path, *pools)
        assert finding.level is Level.OK


def test_zfs_that_counts_snapshots(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, pool("zfs"))
    assert finding.level is Level.NOTE
    assert "lxc storage set fast volume.zfs.use_refquota true" in finding.do


@pytest.mark.parametrize("text", [LIMITED, "quota: {default: {disk_total: 1TiB}}"])
def test_a_pool_of_directories_needs_project_quotas(tmp_path: Path, text: str) -> None:
    of_directories = pool("dir", source="/srv/pods")
    (finding,) = findings(tmp_path, of_directories, text=text)
    assert finding.level is Level.WARNING
    assert "mount / with prjquota" in finding.do
    (finding,) = findings(tmp_path, of_directories, text=text, quotas=",prjquota")
    assert finding.level is Level.OK


def test_nobody_is_told_of_limits_that_are_not_set(tmp_path: Path) -> None:
    of_directories = pool("dir", source="/srv/pods")
    (finding,) = findings(tmp_path, of_directories, text="quota: {users: {ann: {max_pods: 9}}}")
    assert finding.level is Level.OK
    (finding,) = findings(tmp_path, of_directories, text="{}", size="20GiB")
    assert finding.level is Level.WARNING


def test_btrfs_that_has_lost_count(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, pool("btrfs"), lost="1\n")
    assert finding.level is Level.WARNING
    path = "/var/lib/lxd/storage-pools/fast"
    assert finding.do == f"nsenter -t 7 -m btrfs quota rescan -w {path}"
    (finding,) = findings(tmp_path, pool("btrfs", "other"), lost="1\n")
    assert finding.level is Level.OK


@pytest.mark.parametrize(
    ("used", "level"), [(85, None), (86, Level.WARNING), (95, Level.WARNING), (96, Level.ERROR)]
)
def test_a_pool_that_is_nearly_full(used: int, level: Level | None, tmp_path: Path) -> None:
    admin = cast(Admin, SimpleNamespace(pools=lambda: [pool("btrfs", used=used)]))
    findings: list[Finding] = storage.disk_space(admin, tmp_path)
    of_pool = [item for item in findings if "Storage pool" in item.what]
    assert [item.level for item in of_pool] == ([] if level is None else [level])
    assert all(f"fast is {used}% full" in item.what for item in of_pool)


def restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> list[Finding]:
    """What is said of pools of btrfs and ZFS, both of which pods use, and of one that none uses."""
    monkeypatch.setenv("LXD_DIR", str(tmp_path / "lxd"))
    program = tmp_path / "bin/dpkg-query"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho lxd installed {version}\n" if version else "#!/bin/sh\n")
    program.chmod(0o755)
    places = HostPaths(docs=tmp_path, snaps=tmp_path, path=f"{program.parent}:/usr/bin:/bin")
    admin = SimpleNamespace(
        pools=lambda: [pool("btrfs", "fast"), pool("zfs", "slow"), pool("zfs", "unused")],
        profiles=lambda: [SimpleNamespace(devices=root("fast"))],
        instances=lambda: [SimpleNamespace(devices=root("slow"))],
        can_refresh=lambda item: REFRESHED[item.driver],
    )
    found: list[Finding] = storage.snapshot_restores(
        cast(Admin, admin), Case(parse("engine: lxd"), Path("podyd.yaml"), places)
    )
    return found


def test_snapshots_that_are_not_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = restores(tmp_path, monkeypatch, FIXED)
    assert finding.level is Level.NOTE
    assert "In storage pool slow (zfs)" in finding.what
    assert "(409 snapshot_not_restorable)" in finding.what
    assert finding.do.startswith("pody copy POD/SNAPSHOT NEW")


def test_snapshots_that_are_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = restores(tmp_path, monkeypatch, OPEN)
    assert finding.level is Level.OK


@pytest.mark.parametrize("version", ["", "5.9-1"])
def test_nothing_is_said_where_that_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    assert restores(tmp_path, monkeypatch, version) == []
