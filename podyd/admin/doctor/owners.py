"""Pods without an owner's account: nobody can use them until an admin sets another owner."""

from __future__ import annotations

import pwd
from collections.abc import Iterator

from podyd.admin.doctor.case import Case
from podyd.admin.doctor.finding import Remark, check, ok, warning
from podyd.engine.admin import Admin
from podyd.model.pod import ACCOUNT, OWNER, Pod, pods_of, uid_of


@check
def pod_owners(admin: Admin, case: Case) -> Iterator[Remark]:
    """Each pod's owner has an account, and it is the one that created the pod."""
    pods = pods_of(admin.as_podyd_reads_them())
    uids = {owner: _uid(owner) for owner in {pod.owner for pod in pods}}
    for pod in pods:
        yield from about_owner(pod, uids[pod.owner], case)
    yield ok("The owner of every pod has an account.")


def about_owner(pod: Pod, uid: int | None, case: Case) -> Iterator[Remark]:
    """Problems with a pod's owner, whose name has this uid now."""
    was = uid_of(pod.instance.config)
    if uid is None:
        yield warning(
            f"Pod {pod.name} is of {pod.owner}, and no account of that name is found.",
            f"{case.in_project(f'config set {pod.name} {OWNER}=SOMEBODY')}, or"
            f" {case.in_project(f'delete -f {pod.name}')}",
        )
    elif was not in ("", str(uid)):
        yield warning(
            f"Pod {pod.name} is of an earlier account {pod.owner} (uid {was}), and so not of the"
            f" one that has this name now (uid {uid}).",
            f"to give it to that one: {case.in_project(f'config unset {pod.name} {ACCOUNT}')}; to"
            f" another: {case.in_project(f'config set {pod.name} {OWNER}=SOMEBODY')}; or"
            f" {case.in_project(f'delete -f {pod.name}')}",
        )


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None
