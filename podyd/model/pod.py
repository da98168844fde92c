"""Pods, and the keys of instances in which podyd stores their data.

The engine is the database. A pod is an instance with the key `user.podyd.owner`; the other keys
below have what the engine does not store itself. An instance without an owner is never shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from podyd.base.errors import NotFound
from podyd.engine.types import Instance, Status

OWNER = "user.podyd.owner"
# The owner's name and uid, "alice:1001": a later account may have the same name.
ACCOUNT = "user.podyd.account"
INS = "user.podyd.ins"
IMAGE = "user.podyd.image"
# The host's ports that are forwarded to it: "20001:22,20002:8888", or "none".
PORTS = "user.podyd.ports"
# The `raw.idmap` that podyd has set; any other was set by an admin.
IDMAP = "user.podyd.idmap"
# The limit of its disk in bytes, while podyd has added a reserve so that it can start.
DISK = "user.podyd.disk"
# Written with a `limits.memory.swap` of podyd's own, which is there only until the pod has another
# limit of memory or is started anew (kernel_limits.py).
SWAP = "user.podyd.swap"
# The `limits.cpu` that it had, or "none", while that has another text so that the engine sets it
# anew.
CPU_BEFORE = "user.podyd.cpu"
# The instance's own name, written when podyd creates it and removed once it runs. An instance that
# has it and was never started was left half-made by a podyd that was killed, and is deleted. So a
# finished pod must not keep it: a copy that an admin renamed was never started either.
MADE_AS = "user.podyd.made_as"
# Of an image: the project of the podyd that made it, as all podyds of one engine can share
# the images of its default project.
PROJECT = "user.podyd.project"
# The prefix of instances that an image is made from, and that never run.
TEMPLATE = "podyd-commit-"


class Owner(Protocol):
    """An account that has pods."""

    @property
    def name(self) -> str: ...

    @property
    def uid(self) -> int: ...


@dataclass(frozen=True)
class Pod:
    """An instance with an owner, with the name that the owner uses."""

    owner: str
    ins: str
    instance: Instance

    @property
    def name(self) -> str:
        return self.instance.name

    def is_of(self, owner: Owner) -> bool:
        """Whether this account owns it."""
        return owns(owner, self.owner, uid_of(self.instance.config))

    @property
    def account(self) -> str:
        """The account that owns it, as its key says, "alice:1001"; "alice" is any of that name."""
        uid = uid_of(self.instance.config)
        return account_key(self.owner, uid) if uid else self.owner

    @property
    def status(self) -> Status:
        return self.instance.status

    @property
    def image(self) -> str:
        config = self.instance.config
        return config.get(IMAGE) or config.get("image.description", "")


def owner_keys(owner: Owner) -> dict[str, str]:
    """The keys that make an account the owner of an instance or an image."""
    return {OWNER: owner.name, ACCOUNT: account_key(owner.name, owner.uid)}


def account_key(name: str, uid: int | str) -> str:
    """An account apart from later ones of its name: "alice:1001"."""
    return f"{name}:{uid}"


def uid_of(keys: Mapping[str, str]) -> str:
    """The owner's uid in these keys, "" if they have none.

    Pods of older versions have none, nor pods that an admin has given to another owner, as the
    stored account then has another name.
    """
    name, _, uid = keys.get(ACCOUNT, "").rpartition(":")
    return uid if name == keys.get(OWNER) else ""


def owns(owner: Owner, name: str, uid: str) -> bool:
    """Whether a name and `uid_of` belong to this account, and not to an earlier one of its name."""
    return name == owner.name and uid in ("", str(owner.uid))


def pods_of(instances: Iterable[Instance]) -> list[Pod]:
    """The pods among these instances, without the half-made ones, by owner and name.

    An admin's `lxc copy` copies the keys too: of two with the same name the older one keeps it, and
    the other has its name in the engine.
    """
    pods: list[Pod] = []
    # By owner and name, the uids of the accounts that see it; "" is any account of that name.
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
    """Whether podyd has begun to create this instance and it has never run."""
    return instance.config.get(MADE_AS) == instance.name and instance.started is None


def no_such_snapshot(pod: Pod, name: str) -> NotFound:
    """The error for a snapshot that a pod does not have."""
    return NotFound(
        f"Pod {pod.ins!r} has no snapshot {name!r}.",
        advice="See /pod/snapshots.",
        code="no_such_snapshot",
    )
