"""The host: disk, kernel, and the ids for pods' users."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator

from podyd.admin import ids, kernel
from podyd.admin.doctor.case import Case, HostPaths
from podyd.admin.doctor.finding import Remark, check, error, ok, warning
from podyd.engine.admin import Admin
from podyd.engine.dialect import Dialect
from podyd.node.host_files import ProcessFiles

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
    yield from about_ids(places.files.process(admin.server().pid), admin.dialect)


def about_ids(process: ProcessFiles, dialect: Dialect) -> Iterator[Remark]:
    """The same for an engine that is this process."""
    for problem in ids.problems(process, dialect):
        yield error(problem.what, problem.do)
    yield ok("Root has ranges of ids for pods.")
