"""The host: disk, kernel, and the ids for pods' users."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from podyd.admin import kernel
from podyd.admin.doctor.case import Case, HostPaths
from podyd.admin.doctor.finding import Remark, check, error, ok, warning
from podyd.base.engine_words import ENGINE
from podyd.engine.admin import Admin
from podyd.node.host_files import ProcessFiles

# The engine accepts no smaller range: a pod needs the ids from root to nobody.
MIN_IDS = 65536
# Lower ids are the host's own accounts.
FIRST_FREE_ID = 100000
# Members will create more pods.
SPARE_PODS = 10


@check
def cgroup2(places: HostPaths) -> Iterator[Remark]:
    """The kernel can kill a whole tree of processes."""
    where = places.files.cgroup2()
    if where is not None:
        yield ok(f"cgroup2 is mounted at {where}.")
        return
    yield warning(
        f"cgroup2 is not mounted below {places.files.cgroups}: when a command's time is up, what it"
        " started in the background may live on.",
        "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line",
    )


@check
def other_processes(case: Case) -> Iterator[Remark]:
    """The service can see whose processes hold a GPU."""
    options = case.places.files.proc_options()
    if options.get("hidepid", "0") in ("0", "off"):
        yield ok("The service sees other accounts' processes.")
        return
    account = pwd.getpwuid(case.config.data_dir.stat().st_uid)
    gid = int(options.get("gid", "0"))
    if gid in os.getgrouplist(account.pw_name, account.pw_gid):
        yield ok(f"The service sees other accounts' processes, as one of /proc's group {gid}.")
        return
    yield warning(
        f"/proc is mounted with hidepid={options['hidepid']}, and {account.pw_name} is not in its"
        " group: whose processes hold a GPU is not known.",
        f"mount -o remount,gid={account.pw_gid} /proc, and add gid={account.pw_gid} beside hidepid"
        " in /etc/fstab"
        if gid == 0
        else f"usermod -a -G {gid} {account.pw_name}; systemctl restart podyd",
    )


@check
def kernel_limits(admin: Admin, places: HostPaths) -> Iterator[Remark]:
    """The kernel's limits for all pods together are sufficient, with a reserve."""
    yield from about_limits(len(admin.instances()), places)


def about_limits(pods: int, places: HostPaths) -> Iterator[Remark]:
    """The same for this number of pods."""
    for limit in kernel.limits(places.files):
        if limit.pods < pods + SPARE_PODS:
            yield warning(
                f"{limit.name} is {limit.now}, which all pods share, and that is enough for"
                f" {limit.pods}; there are {pods}. A pod that gets nothing of it comes up without"
                " some of its services, such as its network.",
                f"sysctl -w {limit.name}={limit.wanted}; what sets it lower at boot:"
                f" grep -r {limit.name} /etc/sysctl.conf /etc/sysctl.d",
            )
    yield ok(f"The kernel's limits are enough for {pods + SPARE_PODS} pods.")


@check
def id_ranges(admin: Admin, places: HostPaths) -> Iterator[Remark]:
    """Root has a range of user ids and of group ids that the engine can give to pods."""
    yield from about_ids(places.files.process(admin.server().pid))


def about_ids(process: ProcessFiles) -> Iterator[Remark]:
    """The same for an engine that is this process.

    As LXD 5 and 6 read it (shared/idmap, DefaultIdmapSet): the first big enough range of root's in
    its own /etc/subuid; without any, ids from 1000000 on. liblxc then leaves the mapping to
    newuidmap where that is installed, and newuidmap wants a range of root's.
    """
    shadow = has_newuidmap(process)
    for kind in ("uid", "gid"):
        file = f"/etc/sub{kind}"
        lines = lines_of(process.root / file[1:])
        ranges = ranges_of_root(lines)
        usable = [(first, count) for first, count in ranges if count >= MIN_IDS]
        kernel = process.ids(kind)
        do = _how_to_have(kernel, file)
        malformed = [line for line in lines if line.count(":") < 2]
        if malformed:
            yield error(
                f"Pods cannot start: {ENGINE} does not understand {malformed[0]!r} in {file}.",
                f"delete it from {file}, and restart {ENGINE}",
            )
        elif ranges and not usable:
            yield error(
                f"Pods cannot start: no range of root's in {file} has {MIN_IDS} ids.",
                f"delete root's lines from {file}; {do}",
            )
        elif not ranges and shadow:
            yield error(
                f"Pods cannot start: newuidmap is installed, and root has no range in {file}.", do
            )
        elif usable and not _within(usable[0], kernel):
            first, count = usable[0]
            yield error(
                f"Pods cannot start: root's range {first}:{count} in {file} is more than this"
                " machine has itself, which is a container.",
                f"delete root's lines from {file}; {do}",
            )
    yield ok("Root has ranges of ids for pods.")


def _how_to_have(kernel: Sequence[tuple[int, int]], file: str) -> str:
    """The command that gives root a range, of ids that exist."""
    wanted = [(1000000, 1000000000), *((max(FIRST_FREE_ID, low), MIN_IDS) for low, _ in kernel)]
    for first, count in wanted:
        if _within((first, count), kernel):
            return f"echo root:{first}:{count} >>{file}, and restart {ENGINE}"
    return f"give this container {MIN_IDS} ids above {FIRST_FREE_ID} first"


def lines_of(path: Path) -> list[str]:
    """The lines of a file such as /etc/subuid, without comments; none if there is no file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [text for line in lines if (text := line.partition("#")[0])]


def ranges_of_root(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Root's ranges: the first id and the count of each."""
    ranges = []
    for line in lines:
        owner, first, count = [*line.split(":"), "", ""][:3]
        if owner == "root" and first.isdigit() and count.isdigit():
            ranges.append((int(first), int(count)))
    return ranges


def _within(wanted: tuple[int, int], ranges: Sequence[tuple[int, int]]) -> bool:
    first, count = wanted
    return any(low <= first and first + count <= low + size for low, size in ranges)


def has_newuidmap(process: ProcessFiles) -> bool:
    """Whether the engine finds a newuidmap that has the right to map ids."""
    for directory in process.search_path():
        path = process.root / directory.lstrip("/") / "newuidmap"
        if path.is_file():
            if path.stat().st_mode & stat.S_ISUID:
                return True
            with contextlib.suppress(OSError):  # Not every filesystem has capabilities.
                return "security.capability" in os.listxattr(path)
    return False
