"""Whether the engine can limit pods: whether their cgroups have the kernel's controllers."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from podyd.admin.doctor.case import Case
from podyd.admin.doctor.finding import Remark, check, error, note, ok, warning
from podyd.base.engine_words import ENGINE
from podyd.engine.admin import Admin
from podyd.node.controllers import Controllers, controllers

# What is not limited, or not known, without a controller.
_WITHOUT = {
    "memory": "memory",
    "cpuset": "how many CPUs they have",
    "pids": "how many processes they have, so that a fork bomb in one takes the whole host down",
    "cpu": "CPU time, which is not counted either (/stat/cputime)",
    "io": "how much they read and write (limits.read and limits.write of disks)",
}
# podyd itself sets no such limit.
_OPTIONAL = {"io"}
# The engine's names of controllers in its warnings.
_NAMES = {"cpuacct": "cpu"}


@check
def engine_limits(admin: Admin, case: Case, unit: str) -> Iterator[Remark]:
    """The engine's pods have the controllers with which they are limited."""
    files = case.places.files
    of_engine = controllers(files.process(admin.server().pid), files.process(1))
    yield from about_limits(of_engine, admin.missing_controllers(), unit)


def about_limits(
    of_engine: Controllers, missed_at_start: Collection[str], unit: str
) -> Iterator[Remark]:
    """The same for these controllers; the engine, a unit of systemd, missed those in `untold` when
    it started."""
    missing = [name for name in _WITHOUT if name not in of_engine.seen & of_engine.passed]
    if serious := [name for name in missing if name not in _OPTIONAL]:
        why, do = _why(of_engine, serious, unit)
        level = warning if serious == ["cpu"] else error
        yield level(f"{ENGINE} cannot limit pods: {why}. {_what_follows(of_engine, serious)}", do)
    elif missed := {_NAMES.get(name, name) for name in missed_at_start} & set(_WITHOUT) - _OPTIONAL:
        names = [name for name in _WITHOUT if name in missed]
        yield error(
            f"{ENGINE} does not limit pods: when it started, there was no controller"
            f" {_listed(names)}."
            f" {_what_follows(of_engine, names)}",
            f"systemctl restart {unit}",
        )
    elif missing:
        yield note(f"{ENGINE} cannot limit {_WITHOUT['io']}: pods' cgroups have no controller io.")
    yield ok(f"{ENGINE} can limit memory, CPUs and processes of pods.")


def _what_follows(of_engine: Controllers, names: Collection[str]) -> str:
    follows = f"What has no limit then: {'; '.join(_WITHOUT[name] for name in names)}."
    # The engine has liblxc set limits of the controllers that it sees; if that fails, so does the
    # start.
    if failing := [name for name in names if name in of_engine.seen - of_engine.passed]:
        follows += (
            f" Pods with a limit of {_listed(failing)} do not start, and a quota in podyd.yaml is"
            " one."
        )
    return follows


def _why(of_engine: Controllers, names: Collection[str], unit: str) -> tuple[str, str]:
    """The reason, and what to type."""
    listed, restart = _listed(names), f"systemctl restart {unit}"
    if not of_engine.is_unified:
        unmounted = [name for name in names if name in of_engine.seen]
        if unmounted:
            mounts = "; ".join(
                f"mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} cgroup"
                f" /sys/fs/cgroup/{name}"
                for name in map(_of_v1, unmounted)
            )
            why = f"no cgroup hierarchy {_listed(unmounted)} is mounted where it looks"
            return why, f"{mounts}; {restart}"
        return _not_in_the_kernel(listed)
    lacking = [name for name in names if name not in of_engine.passed]
    if not lacking:
        return (
            f"its own cgroup {of_engine.engine_cgroup} has no controller {listed}; {ENGINE} uses"
            " no others",
            f"systemctl edit {unit}: [Service], Delegate=yes; then {restart}",
        )
    if of_engine.is_full:
        everything = " ".join(f"+{name}" for name in _WITHOUT)
        directory = f"/sys/fs/cgroup{of_engine.parent}".rstrip("/")
        return (
            f"{of_engine.parent}, the cgroup in which those of pods are made, has processes in it,"
            f" and so cannot pass the controller {_listed(lacking)} on",
            f"mkdir -p {directory}/init.scope; for pid in $(cat {directory}/cgroup.procs); do echo"
            f" $pid >{directory}/init.scope/cgroup.procs; done; echo {everything}"
            f" >{directory}/cgroup.subtree_control; then restart {ENGINE}",
        )
    if of_engine.is_root:
        return _not_in_the_kernel(listed)
    return (
        f"{of_engine.parent}, the cgroup in which those of pods are made, has no controller"
        f" {_listed(lacking)}",
        f"let what runs this container delegate it, and restart {ENGINE}",
    )


def _not_in_the_kernel(listed: str) -> tuple[str, str]:
    return (
        f"the kernel has no controller {listed}",
        "grep -o 'cgroup[^ ]*' /proc/cmdline; take cgroup_disable= away, or boot with"
        " cgroup_enable=memory",
    )


def _of_v1(name: str) -> str:
    return "cpu,cpuacct" if name == "cpu" else name


def _listed(names: Collection[str]) -> str:
    return ", ".join(names)
