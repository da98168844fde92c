"""Members' own directories of the host, mounted in each of their pods.

A pod's root is its owner on the host: `raw.idmap` gives it their uid and gid. So a file has the
right owner on both sides, whoever makes it; nothing in the pod is root on the host, and the kernel
refuses it what the owner may not have. The engine lets podyd's certificate map no ids but those
that `podyd setup` has listed, and mount nothing but what is below the directories of podyd.yaml.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from podyd.base.engine_words import ENGINE
from podyd.base.errors import Conflict, Unavailable, engine_could_not
from podyd.config.current import Settings
from podyd.config.values import Mount
from podyd.engine.interface import Instances, Server
from podyd.engine.types import Devices, Profile
from podyd.model.member import Member
from podyd.model.pod import IDMAP, Pod
from podyd.node.directories import Directory, to_make
from podyd.node.interface import Directories

RAW = "raw.idmap"
DEVICE = "podyd-mount-"
LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class MountConfig:
    """The keys and devices of an instance with its owner's directories; a key of None is unset."""

    config: Mapping[str, str | None]
    devices: Devices


NOTHING = MountConfig({RAW: None, IDMAP: None}, {})


class Mounts:
    """Decides what a pod has mounted, and updates it before the pod starts."""

    def __init__(
        self,
        *,
        server: Server,
        instances: Instances,
        directories: Directories,
        settings: Settings,
    ) -> None:
        self._server = server
        self._instances = instances
        self._directories = directories
        self._settings = settings

    async def new(self, member: Member, profiles: Sequence[Profile]) -> MountConfig:
        """The mounts of a new pod of these profiles; none if they map ids themselves.

        Raises Conflict, which says what the admin has to do, and Unavailable.
        """
        if any(profile.config.get(RAW) for profile in profiles):
            return NOTHING
        return await self._of(member)

    async def due(self, member: Member, pod: Pod) -> MountConfig | None:
        """The mounts of a pod before it starts, None if it has them already; raises as `new` does.

        If an admin maps ids, on the instance or in its profiles, nothing is changed.
        """
        instance = pod.instance
        mapped = instance.config.get(IDMAP)
        if instance.expanded_config.get(RAW, "") != (mapped or ""):
            return None
        wanted = await self._of(member)
        mounted = {name: device for name, device in instance.own_devices.items() if _is_own(name)}
        return None if (mapped, mounted) == (wanted.config[IDMAP], wanted.devices) else wanted

    async def apply(self, pod: Pod, due: MountConfig | None) -> None:
        """Write these mounts to a stopped pod."""
        if due is None:
            return
        with engine_could_not("mount your directories"):
            await self._instances.edit(
                pod.name,
                config=due.config,
                devices=lambda devices: {
                    **{name: device for name, device in devices.items() if not _is_own(name)},
                    **due.devices,
                },
            )

    async def _of(self, member: Member) -> MountConfig:
        mounts = self._settings.current.pods.mounts
        if not mounts:
            return NOTHING
        for mount in mounts:
            await self._check(member, mount)
        await self._check_project(member, mounts)
        idmap = f"uid {member.uid} 0\ngid {member.gid} 0"
        devices = {
            f"{DEVICE}{number}": {
                "type": "disk",
                "source": f"{mount.prefix}/{member.name}",
                "path": mount.pod,
                **({"readonly": "true"} if mount.readonly else {}),
            }
            for number, mount in enumerate(mounts)
        }
        return MountConfig({RAW: idmap, IDMAP: idmap}, devices)

    async def _check(self, member: Member, mount: Mount) -> None:
        directory = Directory(Path(mount.prefix, member.name), member.name, member.uid, member.gid)
        try:
            fitness = await asyncio.wait_for(self._directories.fitness(directory), LOOK_SECONDS)
        except asyncio.TimeoutError:
            raise Unavailable(
                f"Your directory {directory.path} is on a disk that does not answer.",
                advice="Tell your admin.",
                code="directory_hangs",
            ) from None
        if problem := fitness.unsafe or fitness.unfit:
            raise Conflict(
                f"Your pods have {directory.path}, but {problem}.",
                advice="Tell your admin that 'podyd doctor' says what to do."
                if fitness.unsafe
                else f"Ask your admin to type: {to_make(directory)} && podyd setup.",
                code="directory_unfit",
            )

    async def _check_project(self, member: Member, mounts: Sequence[Mount]) -> None:
        """Raise what the engine itself would refuse too, with an error that members understand."""
        allowed = await self._server.allowed()
        is_known = (
            {mount.prefix for mount in mounts} <= allowed.paths
            and str(member.uid) in allowed.uids
            and str(member.gid) in allowed.gids
        )
        if not is_known:
            raise Conflict(
                f"{ENGINE} does not yet let pods have your own directory.",
                advice="Tell your admin to type 'podyd setup'.",
                code="directory_not_set_up",
            )


def _is_own(device: str) -> bool:
    return device.startswith(DEVICE)
