"""What makes an LXD instance a pod.

LXD is the database. A pod is an instance with the key `user.podyd.owner`; the other keys below
say what LXD does not know. An instance without an owner is nobody's and is never shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from podyd.base.errors import NotFound
from podyd.engine.types import Instance, Status

OWNER = "user.podyd.owner"
# Which account of that name podyd has meant, "alice:1001": another one may have the name some day.
ACCOUNT = "user.podyd.account"
INS = "user.podyd.ins"
IMAGE = "user.podyd.image"
# The host's ports that lead into it: "20001:22,20002:8888", or "none".
PORTS = "user.podyd.ports"
# The `raw.idmap` that podyd has set; another one is an admin's.
IDMAP = "user.podyd.idmap"
# The limit of its disk in bytes, while podyd has added a reserve so that it can start.
DISK = "user.podyd.disk"
# The instance's own name, written when podyd begins to make it and removed when it runs. An
# instance that has it and was never started was left half-made by a podyd that was killed; it will
# be deleted, so no whole pod may keep it: a copy that an admin renamed was never started either.
MADE_AS = "user.podyd.made_as"
# Of an image: the LXD project of whoever made it, as several podyds of one LXD have their images in
# one place.
PROJECT = "user.podyd.project"
# How the names of those begin that an image is made of, and that never run.
TEMPLATE = "podyd-commit-"


class Owner(Protocol):
    """An account that has pods."""

    @property
    def name(self) -> str: ...

    @property
    def uid(self) -> int: ...


@dataclass(frozen=True)
class Pod:
    """An instance with an owner, under the name that the owner uses."""

    owner: str
    ins: str
    instance: Instance

    @property
    def name(self) -> str:
        return self.instance.name

    def is_of(self, owner: Owner) -> bool:
        """Whether it is this account's."""
        return owns(owner, self.owner, uid_of(self.instance.config))

    @property
    def status(self) -> Status:
        return self.instance.status

    @property
    def image(self) -> str:
        config = self.instance.config
        return config.get(IMAGE) or config.get("image.description", "")


def owner_keys(owner: Owner) -> dict[str, str]:
    """The keys that make an instance, or an image, an account's own."""
    return {OWNER: owner.name, ACCOUNT: f"{owner.name}:{owner.uid}"}


def uid_of(keys: Mapping[str, str]) -> str:
    """The uid of the owner that these keys name, "" if they say none.

    Pods of an older podyd do not, nor those that an admin has given away: what podyd has noted is
    then of another name.
    """
    name, _, uid = keys.get(ACCOUNT, "").rpartition(":")
    return uid if name == keys.get(OWNER) else ""


def owns(owner: Owner, name: str, uid: str) -> bool:
    """Whether a name and `uid_of` mean this account, and not an earlier one of its name."""
    return name == owner.name and uid in ("", str(owner.uid))


def pods_of(instances: Iterable[Instance]) -> list[Pod]:
    """The pods among these instances, without the half-made ones, by owner and name.

    An admin's `lxc copy` copies the keys too: of two with the same name the older one keeps it,
    the other goes by its name in LXD.
    """
    pods: list[Pod] = []
    # By owner and name, the uids of the accounts that see it; "" is whoever has the owner's name.
    taken: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for instance in sorted(instances, key=lambda item: (item.created, item.name)):
        owner = instance.config.get(OWNER)
        if not owner or is_half_made(instance):
            continue
        ins = instance.config.get(INS) or instance.name.removeprefix(f"{owner}-")
        uid = uid_of(instance.config)
        others = taken[owner, ins]
        if others and (not uid or others & {"", uid}):
            ins = instance.name
        taken[owner, ins].add(uid)
        pods.append(Pod(owner, ins, instance))
    return sorted(pods, key=lambda pod: (pod.owner, pod.ins, pod.name))


def is_half_made(instance: Instance) -> bool:
    """Whether podyd began to make this instance and it has never run."""
    return instance.config.get(MADE_AS) == instance.name and instance.started is None


def no_such_snapshot(pod: Pod, name: str) -> NotFound:
    """What is raised for a snapshot that a pod does not have."""
    return NotFound(
        f"Pod {pod.ins!r} has no snapshot {name!r}.",
        advice="See /pod/snapshots.",
        code="no_such_snapshot",
    )
