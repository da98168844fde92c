"""Storage pools: that they have free space, enforce the limits of pods' disks, and have their
snapshots restored."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from podyd.admin.advisories import load
from podyd.admin.doctor.advisories import package_of
from podyd.admin.doctor.case import Case
from podyd.admin.doctor.finding import Remark, check, error, note, ok, warning
from podyd.base.engine_words import ENGINE
from podyd.base.quantities import UNLIMITED
from podyd.config.schema import Config
from podyd.engine.admin import REFQUOTA, Admin, Pool
from podyd.engine.refresh import REFUSES
from podyd.engine.types import root_of
from podyd.node.host_files import HostFiles, MountEntry
from podyd.pods.disks import BTRFS, DIR, ZFS

NEARLY_FULL, FULL = 0.85, 0.95
# The mount options of ext4 and XFS for project quotas.
_PROJECT_QUOTAS = {"prjquota", "pquota"}


@check
def disk_space(admin: Admin, engine_directory: Path) -> Iterator[Remark]:
    """Neither a pool nor the engine's own filesystem is nearly full."""
    for pool in admin.pools():
        yield from about_room(
            pool.used_bytes / max(1, pool.total_bytes),
            f"Storage pool {pool.name} is {{}} full; when it is, all pods stop writing. Quotas of"
            " disk ('disk_limit', 'disk_total' in podyd.yaml) keep a member from filling it.",
            f"{ENGINE.command} list --all-projects -c nD",
        )
    disk = os.statvfs(engine_directory)
    used = disk.f_blocks - disk.f_bfree
    # As df(1): without the blocks reserved for root.
    part = used / max(1, used + disk.f_bavail)
    yield from about_room(
        part,
        f"The disk that {engine_directory} is on is {{}} full; a pool that is a file there then"
        " fails, however empty it is itself.",
        f"df -h {engine_directory}",
    )
    yield ok(f"The disk of {engine_directory} is {part:.0%} full, and no pool is nearly full.")


def about_room(part: float, what: str, do: str) -> Iterator[Remark]:
    """Remarks about something of which this part is used."""
    if part > NEARLY_FULL:
        yield (error if part > FULL else warning)(what.format(f"{part:.0%}"), do)


@check
def snapshot_restores(admin: Admin, case: Case) -> Iterator[Remark]:
    """Snapshots can be restored in every pool with pods, as far as the engine's version says so."""
    table = load()
    installed = package_of(case.dialect, table, case.places)
    refuses = installed and table.has_fix(case.dialect.key, installed, REFUSES)
    if refuses is None:
        return
    used = _pools_of(_roots(admin))
    for pool in admin.pools():
        if refuses and pool.name in used and not admin.can_refresh(pool):
            yield note(
                f"In storage pool {pool.name} ({pool.driver}), a snapshot of a pod that ran when it"
                " was made, or that was restored since, is not restored (409"
                f" snapshot_not_restorable): {ENGINE} with the fix of {REFUSES} refuses it, and"
                " podyd has no other way there.",
                "pody copy POD/SNAPSHOT NEW, which makes a pod of it",
            )
    yield ok("Snapshots can be restored in every pool that pods use.")


@check
def disk_limits(admin: Admin, case: Case) -> Iterator[Remark]:
    """Every pool with a pod whose disk has a limit enforces it."""
    everywhere = has_quota(case.config)
    limited = _pools_of(root for root in _roots(admin) if root.get("size") or everywhere)
    pid = admin.server().pid
    process = case.places.files.process(pid)
    for pool in admin.pools():
        if pool.name in limited:
            yield from about_limits(pool, process.mounts(), case.places.files, pid)
    yield ok("What limits the disks of pods holds.")


def _roots(admin: Admin) -> list[Mapping[str, str]]:
    """The root disks that profiles and pods have."""
    devices = [profile.devices for profile in admin.profiles()]
    devices += [instance.devices for instance in admin.instances()]
    return [root_of(item)[1] for item in devices]


def _pools_of(roots: Iterable[Mapping[str, str]]) -> set[str | None]:
    return {root.get("pool") for root in roots}


def has_quota(config: Config) -> bool:
    """Whether podyd.yaml limits any disks."""
    quota = config.quota
    limits: set[int | None] = {quota.default.disk_limit, quota.default.disk_total}
    for part in (*quota.groups.values(), *quota.users.values()):
        limits |= {part.disk_limit, part.disk_total}
    return not limits <= {None, UNLIMITED}


def about_limits(
    pool: Pool, mounted: Sequence[MountEntry], files: HostFiles, pid: int
) -> Iterator[Remark]:
    """Why a pool does not enforce limits, if it does not."""
    if pool.driver == DIR:
        below = [item for item in mounted if Path(pool.source).is_relative_to(item.path)]
        mount = max(below, key=lambda item: len(item.path.parts), default=None)
        if mount is None or not mount.options & _PROJECT_QUOTAS:
            where = mount.path if mount else pool.source
            yield warning(
                f"Storage pool {pool.name} is of kind dir, on a filesystem without project quotas:"
                " no limit of a pod's disk holds there, and what is used is not known.",
                f"mount {where} with prjquota (ext4, XFS), or let profiles use a pool of btrfs or"
                " ZFS",
            )
    if pool.driver == ZFS and not pool.has_refquota:
        yield note(
            f"In storage pool {pool.name} (ZFS), the limit of a pod's disk counts its snapshots, so"
            " that deleting files of which there is a snapshot makes no room, and not what it"
            " shares with its image.",
            f"{ENGINE.command} storage set {pool.name} {REFQUOTA} true; it holds for new pods,"
            " and for"
            " others from their next /pod/limits on",
        )
    if pool.driver == BTRFS:
        for item in mounted:
            is_it = item.kind == BTRFS and item.path.parts[-2:] == ("storage-pools", pool.name)
            if is_it and files.btrfs_has_lost_count(item.source):
                yield warning(
                    f"btrfs has lost count of what is used in storage pool {pool.name}, which"
                    " happens when pods are deleted: no limit of a pod's disk holds there until it"
                    " counts anew.",
                    f"nsenter -t {pid} -m btrfs quota rescan -w {item.path}",
                )
