"""The kinds of LXD's errors: the only module that parses their texts.

The texts are of LXD 5.0.2, observed or from its source (with the file if that is not obvious);
those of Incus 6.0.4 to 7.0.1 and of later LXDs differ in capitals only, where nothing else is said.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from podyd.base.errors import (
    Busy,
    Changed,
    DidNotShutDown,
    DiskFull,
    Ending,
    EngineRefused,
    Gone,
    InUse,
    KeyForbidden,
    Lacks,
    Missing,
    NameTaken,
    NeedsStop,
    NotLimited,
    NotNewest,
    NotRunning,
    Running,
    Slipped,
)

# The first match counts. The reason may follow others: "Failed to …: …: the reason".
_SENTENCES: tuple[tuple[str, type[EngineRefused]], ...] = (
    # syscall.EDQUOT and ENOSPC, as Go and as other programs write them.
    (r"disk quota exceeded|no space left on device", DiskFull),
    # zfs(8); the second is for a limit that is lower than the pod's image.
    (r": out of space|size is less than current used or reserved space", DiskFull),
    # storage/drivers/driver_zfs_volumes.go
    (r"snapshot .* cannot be restored due to subsequent", NotNewest),
    # project/permissions.go, of keys that the engine itself has written; see refresh.py.
    (r'(setting|changing) "volatile\..+" on .+ in project .+ is forbidden$', KeyForbidden),
    (r"bad file descriptor|failed to change ownership", Slipped),
    # liblxc's, about its configuration file for a start; also if a disk on ZFS is full.
    (r"saving config file for the container failed", Slipped),
    # storage/drivers/driver_btrfs_utils.go: LXD looks for subvolumes in a pod that runs.
    (r"(lstat|readdirent|open|fdopendir) \S+/rootfs/.*: no such file or directory", Slipped),
    # go-lxc's, of an instance that runs: its cgroup has no such file, or the kernel has refused.
    (r"setting cgroup item for the container failed", NotLimited),
    # liblxc's in cgroups/cgfsng.c, in the log of a start: cgroup2, then cgroup v1, then both.
    (r'could not enable "[^"]*" controllers in the unified cgroup', NotLimited),
    (r'failed to setup limits for the "\w+" controller', NotLimited),
    (r'failed to set "(memory|cpu|cpuset|pids|io|blkio|hugetlb)\.', NotLimited),
    # instance/operationlock
    (r'instance is busy running an? "?(?P<operation>[\w -]+?)"? operation', Busy),
    # The same, if that operation was of the same kind: LXD has only waited for its end.
    (r"instance (?P<operation>\w+) operation: a matching .* operation has now succeeded", Busy),
    # storage/drivers/errors.go: LXD itself has the volume mounted, to copy it or to read files.
    (r"(^|: )in use$", InUse),
    (r"failed shutting down instance|cannot be cleanly shutdown", DidNotShutDown),
    # liblxc's, which is the only text also if it has stopped after all.
    (r"shutting down the container failed", DidNotShutDown),
    # instance/drivers/driver_lxc.go; a card by a CDI id, before LXD 6.8 (gpu_cdi_hotplug).
    (r"device cannot be (added|removed|started|stopped) when instance is running", NeedsStop),
    (r"(instance|container) is already (running|frozen)", Running),
    (r"(^|: )instance is running$", Running),
    (r"(^|: )instance is (?P<status>frozen)$", NotRunning),
    (r"(instance|container) (is not|isn't) running", NotRunning),
    (r"(instance|container) is already stopped", NotRunning),
    # Incus' instance/drivers/driver_common.go, of the first process of one that is being stopped.
    (r"invalid pid \S+$|^stat \S+: no such file or directory$", Ending),
    (r"(^|: )instance not found$", Gone),
    (r"snapshot \S+ does not exist$|requested profile \S+ (doesn't|does not) exist$", Missing),
    (r"(^|: )(image|profile|instancesnapshot|storage pool) not found$", Missing),
    (
        r'name .* already in use$|(alias|instance) .* already exists$|this "\w+" entry already'
        r" exists$",
        NameTaken,
    ),
    # Incus 6.0.4 hands the database's own sentence on; later ones say what LXD says.
    (r"unique constraint failed: instances(_snapshots)?\.", NameTaken),
    (r"etag (doesn't|does not) match", Changed),
    (r"executable file not found in \$path", Lacks),
)
_REFUSALS = tuple((re.compile(sentence, re.IGNORECASE), kind) for sentence, kind in _SENTENCES)

_STATUSES: dict[int, type[EngineRefused]] = {
    HTTPStatus.NOT_FOUND: Missing,
    HTTPStatus.PRECONDITION_FAILED: Changed,
}


def refusal(reason: str, status: int = 0) -> EngineRefused:
    """The error for LXD's text; `status` is HTTP's, 0 if an operation of LXD has failed."""
    for sentence, kind in _REFUSALS:
        if parts := sentence.search(reason):
            return kind(reason, **parts.groupdict())
    return _STATUSES.get(status, EngineRefused)(reason)
