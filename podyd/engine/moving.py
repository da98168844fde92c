"""What moves instances from one engine to another on the same host, as root.

The new engine fetches each from the old one over HTTPS, by the protocol with which both copy
between servers: its own `zfs send` or `btrfs send` where both pools are of that kind, else rsync.
Nothing lies on the disk meanwhile but the copy itself. Tried with LXD 5.0.2 and Incus 6.0.4:
snapshots come with their settings, and ids of files as the old engine has shifted them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pylxd.exceptions

from podyd.base.errors import SetupError
from podyd.engine.admin import (
    ASIDE,
    Admin,
    OperationFailedError,
    Say,
    project_config,
    translated,
)
from podyd.engine.instances import CHANGEABLE
from podyd.engine.profile_files import POOL
from podyd.engine.refusals import refusal
from podyd.engine.server import GIDS, PATHS, UIDS
from podyd.engine.start_log import why_not_started
from podyd.engine.types import Devices, Status
from podyd.engine.view import instance_of

STOP_SECONDS = 60
# Of an instance that is made and deleted at once: whether the new engine takes its settings.
TRIAL = "podyd-migrate-trial"
# What an engine runs when an instance that was copied starts: its image's templates, which would
# write /etc/hosts anew.
_TEMPLATES = "volatile.apply_template"
# What the new engine must not make up anew; all else of this kind is of how it ran.
_KEPT = ("volatile.uuid", "volatile.base_image", "volatile.cloud-init.instance-id")
_KEPT_OF_NICS = (".hwaddr", ".name")
# What podyd itself sets in its project on each host.
_OWN_SETTINGS = ("restricted.networks.access", PATHS, UIDS, GIDS)
# The project has none while it refuses nothing: in one with limits, Incus leaves out of a copy what
# nobody may set in a restricted one, its id among it
# (internal/server/project/permissions.go, checkRestrictionsOnVolatileConfig).
_LIMITS = "limits."


@dataclass(frozen=True)
class Original:
    """An instance with all that a copy of it needs, and how much its disk has."""

    name: str
    is_container: bool
    is_ephemeral: bool
    status: Status
    has_run: bool
    architecture: str
    description: str
    config: Mapping[str, str]
    devices: Mapping[str, Mapping[str, str]]
    expanded_devices: Mapping[str, Mapping[str, str]]
    profiles: tuple[str, ...]
    snapshots: tuple[str, ...]
    used_bytes: int
    # Those of its snapshots, by their names; the engine changes none of them.
    snapshot_configs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def uuid(self) -> str:
        """The engine's own id, which podyd's database knows the pod by."""
        return self.config.get("volatile.uuid", "")

    @property
    def base_image(self) -> str:
        """The fingerprint of the image that it was made of; "" if that is not known."""
        return self.config.get("volatile.base_image", "")

    @property
    def settings(self) -> dict[str, str]:
        """Its configuration without what the engine notes for itself."""
        return _without_volatile(self.config)


@dataclass(frozen=True)
class Offer:
    """Where to fetch something from: an address, its certificate in PEM, and what opens it, which
    opens it in this project alone."""

    address: str
    project: str
    certificate: str
    secrets: Mapping[str, str]


@dataclass(frozen=True)
class MovedImage:
    """An image of containers."""

    fingerprint: str
    aliases: tuple[str, ...]
    properties: Mapping[str, str]
    size_bytes: int


@dataclass(frozen=True)
class Limit:
    """A limit of a project: to change it, by an engine's `command`, it is `held` as this key."""

    key: str
    value: str
    held: str
    command: str


@dataclass(frozen=True)
class Volume:
    """A storage volume of a project's own; `size` is "" where it has no limit."""

    name: str
    pool: str
    size: str


class Side(Admin):
    """One of the two engines. Methods raise SetupError with the engine's reason."""

    def speak(self) -> None:
        """Have sentences name this engine."""
        self.dialect.speak()

    # --- What there is ---------------------------------------------------------------------------

    def is_clustered(self) -> bool:
        """Whether it is one of several servers."""
        self.speak()
        return bool(self._environment().get("server_clustered"))

    def originals(self) -> list[Original]:
        """The project's instances; none if there is no such project."""
        self.speak()
        if self.project_config() is None:
            return []
        with translated(f"{self.dialect.name} could not be asked for its instances"):
            answer = self._in_project.api.instances.get(params={"recursion": 2})
        found = [
            # One that changes just then may be there with its name alone, and be gone.
            self.original(item["name"]) if item.get("config") is None else _original(item)
            for item in answer.json()["metadata"] or ()
        ]
        return sorted(filter(None, found), key=lambda it: it.name)

    def original(self, name: str) -> Original | None:
        """One instance; None if there is none of this name."""
        self.speak()
        with translated(f"{self.dialect.name} could not be asked for {name}"):
            try:
                answer = self._in_project.api.instances[name].get(params={"recursion": 1})
            except pylxd.exceptions.NotFound:
                return None
            return _original(answer.json()["metadata"])

    def moved_images(self) -> list[MovedImage]:
        """The images that the project's containers can be made of."""
        self.speak()
        with translated(f"{self.dialect.name} could not be asked for its images"):
            stored = self._get(self._in_project.api.images)
        return [
            MovedImage(
                item["fingerprint"],
                tuple(alias["name"] for alias in item["aliases"] or ()),
                item["properties"],
                item["size"],
            )
            for item in stored
            if item["type"] == "container" and not item.get("cached")
        ]

    # --- The one that instances leave ------------------------------------------------------------

    def set_keys(self, name: str, keys: Mapping[str, str | None]) -> None:
        """Set keys of an instance in one step; None removes one."""
        self._edit(name, keys)

    def _edit(
        self, name: str, keys: Mapping[str, str | None], devices: Devices | None = None
    ) -> None:
        self.speak()
        instance = self._in_project.api.instances[name]
        with translated(f"{self.dialect.name} could not change {name}"):
            data = instance.get().json()["metadata"]
            merged = {**data["config"], **keys}
            body = {key: data[key] for key in CHANGEABLE}
            body["config"] = {key: value for key, value in merged.items() if value is not None}
            if devices is not None:
                body["devices"] = devices
            try:
                self._wait(instance.put(json=body))
            except SetupError:
                # Where the instance's disk is full, it cannot be written there (LXD 5.0.2).
                data = instance.get().json()["metadata"]
                made = _without_volatile(data["config"]), data["devices"]
                if made != (_without_volatile(body["config"]), body["devices"]):
                    raise

    def stop(self, name: str) -> None:
        """Shut an instance down; what does not end within STOP_SECONDS is ended."""
        self.speak()
        state = self._in_project.api.instances[name].state
        with translated(f"{self.dialect.name} could not stop {name}"):
            if state.get().json()["metadata"]["status"] == "Frozen":
                self._wait(state.put(json={"action": "unfreeze", "timeout": STOP_SECONDS}))
            for force in (False, True):
                body = {"action": "stop", "timeout": STOP_SECONDS, "force": force}
                with contextlib.suppress(SetupError):
                    self._wait(state.put(json=body))
                if state.get().json()["metadata"]["status"] == "Stopped":
                    return
        raise SetupError(f"{self.dialect.name} could not stop {name}.")

    def offer(self, name: str) -> Offer:
        """Let somebody who has the answer fetch an instance that does not run."""
        self.speak()
        with translated(f"{self.dialect.name} could not offer {name}"):
            body = {"name": name, "migration": True}
            answer = self._in_project.api.instances[name].post(json=body).json()
        return self._offer(answer["operation"], answer["metadata"]["metadata"])

    def offer_image(self, fingerprint: str) -> Offer:
        """The same for an image."""
        self.speak()
        with translated(f"{self.dialect.name} could not offer image {fingerprint[:12]}"):
            answer = self._in_project.api.images[fingerprint].secret.post(json={}).json()
        return self._offer("", answer["metadata"]["metadata"])

    def _offer(self, path: str, secrets: Mapping[str, str]) -> Offer:
        address = self.prepare_address(lambda text: None) + path.partition("?")[0]
        return Offer(address, self._project, self.server_certificate(), secrets)

    # --- The one that they come to ---------------------------------------------------------------

    def fetch(self, name: str, like: Original, offer: Offer) -> None:
        """Make an instance with this one's settings out of what is offered."""
        self.speak()
        source = {
            "type": "migration",
            "mode": "pull",
            "operation": offer.address,
            "certificate": offer.certificate,
            "secrets": offer.secrets,
        }
        body = _body(like) | {"name": name, "source": source}
        body["config"] |= {key: like.config[key] for key in like.config if _is_kept(key)}
        with translated(f"{self.dialect.name} could not fetch {name}"):
            self._wait(self._in_project.api.instances.post(json=body))

    def finish(self, name: str, like: Original, keys: Mapping[str, str | None]) -> None:
        """As `set_keys`, for an instance that was fetched: it is no copy, but the same, and the
        engine has given it a root disk of its own where it has that of a profile."""
        self._edit(name, {**keys, _TEMPLATES: None}, like.devices)

    def try_out(self, like: Original) -> None:
        """Find out whether the engine takes an instance's settings; nothing is left of it.

        What it notes for others, it does not look at: the trial is nobody's pod.
        """
        self.speak()
        self.delete(TRIAL)
        body = _body(like) | {"name": TRIAL, "source": {"type": "none"}}
        body["config"] = {
            key: text for key, text in like.settings.items() if not key.startswith("user.")
        }
        with translated(f"{self.dialect.name} does not take the settings of {like.name}"):
            self._wait(self._in_project.api.instances.post(json=body))
        self.delete(TRIAL)

    def start(self, name: str) -> None:
        """Start an instance; it may run already."""
        self.speak()
        state = self._in_project.api.instances[name].state
        with translated(f"{self.dialect.name} could not start {name}"):
            if state.get().json()["metadata"]["status"] != "Running":
                begun = state.put(json={"action": "start", "timeout": STOP_SECONDS})
                try:
                    self._wait(begun)
                except OperationFailedError as error:
                    if refusal(error.detail).is_telling:
                        raise
                    why = self._why_not_started(name) or error.detail
                    raise OperationFailedError(why) from error

    def _why_not_started(self, name: str) -> str:
        """LXC's words; "" if there are none."""
        try:
            log = self._in_project.api.instances[name].logs["lxc.log"].get()
        except pylxd.exceptions.LXDAPIException:
            return ""
        return why_not_started(log.text)

    def delete(self, name: str) -> None:
        """Delete an instance that does not run; there may be none."""
        self.speak()
        with translated(f"{self.dialect.name} could not delete {name}"):
            try:
                self._wait(self._in_project.api.instances[name].delete())
            except pylxd.exceptions.NotFound:
                return
            except pylxd.exceptions.LXDAPIException as error:
                if error.response.status_code != 404:
                    raise

    def fetch_image(self, image: MovedImage, offer: Offer) -> None:
        """Store an image that is offered, without its aliases."""
        self.speak()
        source = {
            "type": "image",
            "mode": "pull",
            "protocol": self.dialect.key,
            "server": offer.address,
            "project": offer.project,
            "certificate": offer.certificate,
            "secret": offer.secrets["secret"],
            "fingerprint": image.fingerprint,
        }
        with translated(f"{self.dialect.name} could not fetch image {image.fingerprint[:12]}"):
            body = {"source": source, "auto_update": False}
            self._wait(self._in_project.api.images.post(json=body))

    def name_image(self, alias: str, fingerprint: str) -> None:
        """Give an image a name that no other one has."""
        self.speak()
        with translated(f"{self.dialect.name} could not name an image {alias}"):
            body = {"name": alias, "target": fingerprint}
            self._in_project.api.images.aliases.post(json=body)

    def wait_until_idle(self) -> None:
        """Wait for what the engine still does in the project: it goes on after whoever asked."""
        self.speak()
        with translated(f"{self.dialect.name} could not be asked for what it does"):
            operations = self._in_project.api.operations.get(params={"recursion": 1}).json()
            for item in (operations["metadata"] or {}).get("running", ()):
                if item["class"] == "task":
                    with contextlib.suppress(SetupError):
                        self._wait_for(item["id"])

    # --- Its project -----------------------------------------------------------------------------

    def take_settings(self, other: Mapping[str, str], say: Say) -> None:
        """Take over what an admin has set in the other engine's project, and not in this one's."""
        self.speak()
        mine = _with_limits(self.project_config() or {})
        added = {key: value for key, value in self._admins(other).items() if key not in mine}
        if added:
            self._patch_project(added)
            say(f"project {self._project}: set {', '.join(sorted(added))}")

    def kept_settings(self, other: Mapping[str, str]) -> dict[str, str]:
        """What `take_settings` leaves as it is here, where the other engine's project differs."""
        self.speak()
        mine = _with_limits(self.project_config() or {})
        keys = self._admins(other)
        return {key: mine[key] for key, value in keys.items() if mine.get(key, value) != value}

    def limits(self, other: Side) -> list[Limit]:
        """Those that the project will have once it has taken the other engine's settings; podyd's
        own are not among them."""
        ours = project_config(self.dialect)
        held: dict[str, Limit] = {}
        # Of one that is aside as well, that is what counts.
        for side in (other, self):
            side.speak()
            config = side.project_config() or {}
            command = side.dialect.command
            for key, value in sorted(config.items(), key=lambda item: item[0].startswith(ASIDE)):
                limit = key.removeprefix(ASIDE)
                if limit.startswith(_LIMITS) and limit not in ours and value:
                    held[limit] = Limit(limit, value, key, command)
        return [held[key] for key in sorted(held)]

    def volumes(self) -> list[Volume]:
        """The project's own storage volumes, which are nobody's root disk."""
        self.speak()
        found = []
        with translated(f"{self.dialect.name} could not be asked for its storage volumes"):
            for pool in self.pools():
                volumes = self._in_project.api.storage_pools[pool.name].volumes.custom
                found += [
                    Volume(item["name"], pool.name, item["config"].get("size", ""))
                    for item in self._get(volumes)
                ]
        return found

    def pool(self) -> str:
        """The pool that pods come to: setup makes one where there is none."""
        self.speak()
        names = [pool.name for pool in self.pools()]
        with translated(f"{self.dialect.name} could not be asked for its storage pools"):
            return self._preferred("pool", names) if names else POOL

    def is_open(self) -> bool:
        """Whether a move that was ended has left the project without its limits, and unrestricted
        as it may be."""
        self.speak()
        return any(key.startswith(ASIDE) for key in self.project_config() or {})

    def _admins(self, config: Mapping[str, str]) -> dict[str, str]:
        """Of a project's keys those that are not podyd's."""
        ours = project_config(self.dialect)
        return {
            key: value
            for key, value in config.items()
            if key.startswith(("restricted.", "limits.", "user."))
            and key not in ours
            and key not in _OWN_SETTINGS
        }

    def confine(self, *, restricted: bool) -> None:
        """Whether the project refuses what podyd's may not have, ids of files of another engine
        among it. Where not, podyd's certificate must not be trusted; and it has no limits then,
        until `restore_limits`."""
        self.speak()
        self._change_project(_confined if restricted else _opened)

    def _patch_project(self, keys: Mapping[str, str]) -> None:
        self._change_project(lambda config: {**config, **keys})

    def distrust(self, fingerprint: str) -> None:
        """Remove a certificate; there may be none."""
        self.speak()
        if self.trust(fingerprint) is not None:
            with translated(f"{self.dialect.name} could not remove podyd's certificate"):
                self._client.api.certificates[fingerprint].delete()

    def trusted(self) -> dict[str, str]:
        """The certificates that are confined to the project, or to it and others: their names by
        their fingerprints."""
        self.speak()
        with translated(f"{self.dialect.name} could not be asked for its certificates"):
            certificates = self._get(self._client.api.certificates)
        return {
            item["fingerprint"]: item["name"]
            for item in certificates
            if self._project in (item.get("projects") or ())
        }


def _opened(config: Mapping[str, str]) -> dict[str, str]:
    """What a project has while it refuses nothing. One that was opened before, and not confined
    since, has the limits of then."""
    aside = {f"{ASIDE}{key}": value for key, value in config.items() if key.startswith(_LIMITS)}
    rest = {key: value for key, value in config.items() if not key.startswith(_LIMITS)}
    return {**aside, **rest, "restricted": "false"}


def _confined(config: Mapping[str, str]) -> dict[str, str]:
    """What it has first of all then: limits may be too low by now."""
    return {**config, "restricted": "true"}


def _with_limits(config: Mapping[str, str]) -> dict[str, str]:
    """What it has in the end, with its limits where they belong."""
    rest = {key: value for key, value in config.items() if not key.startswith(ASIDE)}
    limits = {
        key.removeprefix(ASIDE): value for key, value in config.items() if key.startswith(ASIDE)
    }
    return rest | limits


def _original(data: Mapping[str, Any]) -> Original:
    instance = instance_of(data)
    snapshots = {
        item["name"].rpartition("/")[2]: item["config"] for item in data["snapshots"] or ()
    }
    disks = ((data.get("state") or {}).get("disk") or {}).values()
    return Original(
        name=data["name"],
        is_container=data["type"] == "container",
        is_ephemeral=data["ephemeral"],
        status=instance.status,
        has_run=instance.started is not None,
        architecture=data["architecture"],
        description=data["description"],
        config=data["config"],
        devices=data["devices"],
        expanded_devices=data["expanded_devices"],
        profiles=instance.profiles,
        snapshots=tuple(snapshots),
        used_bytes=sum(max(0, disk.get("usage", 0)) for disk in disks),
        snapshot_configs=snapshots,
    )


def _body(like: Original) -> dict[str, Any]:
    return {
        "type": "container",
        "architecture": like.architecture,
        "description": like.description,
        "config": like.settings,
        "devices": {name: dict(device) for name, device in like.devices.items()},
        "profiles": list(like.profiles),
    }


def _without_volatile(config: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in config.items() if not key.startswith("volatile.")}


def _is_kept(key: str) -> bool:
    return key in _KEPT or (key.startswith("volatile.") and key.endswith(_KEPT_OF_NICS))
