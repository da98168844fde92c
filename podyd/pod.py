"""What makes an LXD instance a pod.

LXD is the database. A pod is an instance with the key `user.podyd.owner`; the other keys below
say what LXD does not know. An instance without an owner is nobody's and is never shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from podyd.errors import NotFound
from podyd.lxd.instances import Instance
from podyd.spec import PodStatus

OWNER = "user.podyd.owner"
INS = "user.podyd.ins"
IMAGE = "user.podyd.image"
# The host's ports that lead into it: "20001:22,20002:8888", or "none".
PORTS = "user.podyd.ports"
# The `raw.idmap` that podyd has set; another one is an admin's.
IDMAP = "user.podyd.idmap"
# The limit of its disk in bytes, while podyd has lent it some more to be started in.
DISK = "user.podyd.disk"
# The instance's own name, written when podyd begins to make it and taken away when it runs. An
# instance that has it and was never started was left half-made by a podyd that was killed; it will
# be deleted, so no whole pod may keep it: a copy that an admin renamed was never started either.
MADE_AS = "user.podyd.made_as"
# How the names of those begin that an image is made of, and that never run.
TEMPLATE = "podyd-commit-"

_STATUS: dict[str, PodStatus] = {"Running": "running", "Stopped": "stopped", "Frozen": "frozen"}


@dataclass(frozen=True)
class Pod:
    """An instance with an owner, under the name that the owner uses."""

    owner: str
    ins: str
    instance: Instance

    @property
    def name(self) -> str:
        return self.instance.name

    @property
    def status(self) -> PodStatus:
        return _STATUS.get(self.instance.status, "error")

    @property
    def image(self) -> str:
        config = self.instance.config
        return config.get(IMAGE) or config.get("image.description", "")


def pods_of(instances: Iterable[Instance]) -> list[Pod]:
    """The pods among these instances, without the half-made ones, by owner and name.

    An admin's `lxc copy` copies the keys too: of two with the same name the older one keeps it,
    the other goes by its name in LXD.
    """
    pods: dict[tuple[str, str], Pod] = {}
    for instance in sorted(instances, key=lambda item: (item.created, item.name)):
        owner = instance.config.get(OWNER)
        if not owner or is_half_made(instance):
            continue
        ins = instance.config.get(INS) or instance.name.removeprefix(f"{owner}-")
        if (owner, ins) in pods:
            ins = instance.name
        pods[owner, ins] = Pod(owner, ins, instance)
    return [pods[key] for key in sorted(pods)]


def is_half_made(instance: Instance) -> bool:
    """Whether podyd began to make this instance and it has never run."""
    return instance.config.get(MADE_AS) == instance.name and instance.started is None


def no_such_snapshot(pod: Pod, name: str) -> NotFound:
    """What is raised for a snapshot that a pod does not have."""
    return NotFound(
        f"Pod {pod.ins!r} has no snapshot {name!r}; see /pod/snapshots.", code="no_such_snapshot"
    )
