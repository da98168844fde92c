"""LXD as root over its unix socket: for `podyd setup`, `podyd profiles` and `podyd doctor`.

Access to the unix socket is as good as root, so only these commands use it, never the service.
pylxd, which blocks, is used here only, as there are no concurrent requests.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from typing import Any
from urllib.parse import urlsplit

import pylxd
import pylxd.exceptions
import requests

from podyd.base.engine_words import ENGINE
from podyd.base.errors import SetupError
from podyd.engine.dialect import Dialect, Place, place_of
from podyd.engine.gpu_devices import has_driver, wants_cdi
from podyd.engine.profile_files import POOL, body_of
from podyd.engine.profiles import profile_of
from podyd.engine.refresh import is_possible
from podyd.engine.server import DISK, GIDS, PATHS, UIDS, card_of
from podyd.engine.types import Allowed, Instance, PciCard, Profile, is_set
from podyd.engine.view import instance_of

# Where both engines run, one of them has the first.
HTTPS_PORT, HTTPS_PORTS = 8443, 10
# Storage drivers with which a pod shares its image's blocks, the preferred first.
THIN_DRIVERS = ("btrfs", "zfs")
# Without it, on ZFS, LXD's disk limit includes snapshots, and not what is shared with the image.
REFQUOTA = "volume.zfs.use_refquota"
TIMEOUT = 120
# Each answer of a wait for an operation comes after so many seconds at the latest.
WAIT_SECONDS = 30
# LXD's words for a warning (db/warningtype/warning_type.go), up to 5.0 with "Couldn't".
_NO_CONTROLLER = re.compile(r"^Could(?:n't| not) find the CGroup (\w+) controller$")
# Incus asks for each of the host's interfaces while it makes a bridge (deleteChildren of
# internal/server/network/driver_bridge.go), and before 6.0.5 it gives up where one has gone since
# it listed them, as the interfaces of pods that stop do.
_INTERFACE_GONE = re.compile(r"delete bridge children interfaces: .*does not exist")
BRIDGE_TRIES = 10

# The certificate has access to this project only. Storage volumes are the project's own, so that no
# pod can mount another project's. In LXD, images are shared, so that the admin's are offered, and
# networks are the project's own, and it has none: access to a shared network includes changes, and
# `raw.dnsmasq` of a bridge is as good as root on the host. So pods have the bridge as a NIC's
# parent, which "managed" NICs may not; restricted.networks.access allows this parent only. In Incus
# it is the other way round (see Dialect). Proxy devices stay blocked, which is the default: with
# `bind=instance` one could forward LXD's own unix socket into a pod. Disks are those of the pools;
# if podyd.yaml mounts members' own directories, Openings allows these too. Pods are containers: the
# project takes no virtual machines, whose program the engine runs as a process of the host.
# See https://documentation.ubuntu.com/lxd/en/latest/reference/projects/
MACHINES = "limits.virtual-machines"
_PROJECT_CONFIG = {
    "features.profiles": "true",
    "features.storage.volumes": "true",
    "restricted": "true",
    DISK: "managed",
    "restricted.devices.gpu": "allow",
    "restricted.devices.nic": "allow",
    "restricted.snapshots": "allow",
    MACHINES: "0",
}

# Before the names of a project's limits while `podyd migrate` copies pods into it, and after one
# that was killed. It has none meanwhile (podyd/engine/moving.py).
ASIDE = "user.podyd.migration."

Say = Callable[[str], None]


def project_config(dialect: Dialect) -> dict[str, str]:
    """podyd's project, as far as it is the same on every host."""
    own = {
        "features.images": "true" if dialect.has_own_images else "false",
        "features.networks": "true" if dialect.has_own_networks else "false",
    }
    own_zones = {"features.networks.zones": "true"} if dialect.has_own_zones else {}
    return own | own_zones | _PROJECT_CONFIG


@dataclass(frozen=True)
class Openings(Allowed):
    """What pods may use of the host: the paths that they may mount, and the ids of their owners.

    The ids are in LXD's syntax: 1000, or 1000-1999.
    """

    def __or__(self, other: Openings) -> Openings:
        return Openings(self.paths | other.paths, self.uids | other.uids, self.gids | other.gids)

    def config(self) -> dict[str, str]:
        """The project's keys; "" is none."""
        # With 'allow' and no paths, LXD would allow pods to mount any path.
        return {
            DISK: "allow" if self.paths else _PROJECT_CONFIG[DISK],
            PATHS: ",".join(sorted(self.paths)),
            UIDS: ",".join(sorted(self.uids)),
            GIDS: ",".join(sorted(self.gids)),
        }


@dataclass(frozen=True)
class ServerInfo:
    """LXD itself: its process, and `core.https_address` or ""."""

    version: str
    pid: int
    address: str


@dataclass(frozen=True)
class Pool:
    """A storage pool; `status` is Created, or why it cannot be used, `source` its path or device.

    `has_refquota` is whether it has REFQUOTA.
    """

    name: str
    driver: str
    source: str
    status: str
    used_bytes: int
    total_bytes: int
    has_refquota: bool = False


@dataclass(frozen=True)
class Bridge:
    """A bridge: its own IPv4 address, such as 10.0.0.1/24, or "", and whether pods get theirs."""

    name: str
    address: str
    has_dhcp: bool


@dataclass(frozen=True)
class Trust:
    """The permissions of a certificate."""

    restricted: bool
    projects: tuple[str, ...]


@dataclass(frozen=True)
class ExpandedInstance:
    """An instance: its own devices, and its configuration with that of its profiles.

    `has_driver` is whether the engine brings the NVIDIA driver's libraries into it.
    """

    name: str
    is_running: bool
    devices: Mapping[str, Mapping[str, str]]
    config: Mapping[str, str]
    has_driver: bool


class OperationFailedError(SetupError):
    """Something that the engine has begun has failed; in `detail` is the engine's reason."""


class Admin:
    """LXD, with all permissions."""

    def __init__(
        self, dialect: Dialect, project: str, timeout: float = TIMEOUT, place: Place | None = None
    ) -> None:
        """Raises SetupError if the engine does not answer at `place` (default: where it runs);
        each request has `timeout` seconds."""
        self.dialect = dialect
        self.place = place or place_of(dialect)
        socket = self.place.socket
        address = f"http+unix://{str(socket).replace('/', '%2F')}"
        self._project = project
        with translated(f"{ENGINE} does not answer at {socket}"):
            self._client = pylxd.Client(endpoint=address, timeout=timeout)
            self._in_project = pylxd.Client(endpoint=address, project=project, timeout=timeout)

    # --- The steps of setup, in this order; each does nothing if it is done already. --------------

    def prepare_pool(self, say: Say) -> str:
        """The storage pool for pods; creates one only if LXD has none."""
        with translated(f"{ENGINE} could not make a storage pool"):
            names = [pool["name"] for pool in self._get(self._client.api.storage_pools)]
            if names:
                return self._preferred("pool", names)
        supported = {item["Name"] for item in self._environment()["storage_supported_drivers"]}
        for driver in filter(supported.__contains__, THIN_DRIVERS):
            try:
                options = {REFQUOTA: "true"} if driver == "zfs" else {}
                self._make_pool(driver, {"size": f"{_half_of_free_gib()}GiB", **options}, say)
            except SetupError as error:
                # LXD lists a driver if its programs are installed; the module, or a loop device,
                # may still be missing.
                say(f"no pool of {driver}: {error.detail}")
            else:
                return POOL
        self._make_pool("dir", {}, say)
        return POOL

    def _make_pool(self, driver: str, config: Mapping[str, str], say: Say) -> None:
        with translated(f"{ENGINE} could not make a storage pool"):
            pools = self._client.api.storage_pools
            self._change(pools.post, {"name": POOL, "driver": driver, "config": config})
        size = f" of up to {config['size']}" if "size" in config else ""
        say(f"made storage pool {POOL} ({driver}{size})")

    def prepare_bridge(self, free_network: Callable[[], IPv4Network], say: Say) -> str:
        """The bridge for pods; creates one, in a free network, only if LXD manages none."""
        bridges = self.bridges()
        with translated(f"{ENGINE} could not make a bridge"):
            if bridges:
                return self._preferred("network", [bridge.name for bridge in bridges])
            network = free_network()
            address = f"{next(network.hosts())}/{network.prefixlen}"
            name = self.dialect.bridge
            self._make_bridge(name, address)
        say(f"made bridge {name} ({address})")
        return name

    def _make_bridge(self, name: str, address: str) -> None:
        config = {"ipv4.address": address, "ipv4.nat": "true", "ipv6.address": "none"}
        body = {"name": name, "type": "bridge", "config": config}
        left = BRIDGE_TRIES
        while True:
            left -= 1
            try:
                self._change(self._client.api.networks.post, body)
            except (OperationFailedError, pylxd.exceptions.LXDAPIException) as error:
                if not left or not _INTERFACE_GONE.search(str(error)):
                    raise
            else:
                return

    def prepare_project(self, bridge: str, openings: Openings, say: Say) -> None:
        """Create or update the restricted project; keys that an admin added are kept, and limits
        that `podyd migrate` has put aside are set again."""
        wanted = project_config(self.dialect) | {"restricted.networks.access": bridge}
        projects = self._client.api.projects
        with translated(f"{ENGINE} could not make project {self._project}"):
            if not self._client.projects.exists(self._project):
                description = "podyd's pods; restricted, see 'podyd setup --help'"
                wanted |= openings.config()
                self._change(
                    projects.post,
                    {"name": self._project, "description": description, "config": wanted},
                )
                say(f"made restricted project {self._project}")
                return
            project = projects[self._project].get().json()["metadata"]
            wanted |= (openings | self.openings_in_use(openings.paths)).config()
            changed = {
                key: value
                for key, value in wanted.items()
                if project["config"].get(key, "") != value
            }
            if MACHINES in changed and self._has_machines():
                # The engine would refuse all of it.
                del changed[MACHINES]
                say(f"project {self._project} has virtual machines, and may have more: {MACHINES}")
            if changed:
                self._change(
                    projects[self._project].put,
                    {
                        "description": project["description"],
                        "config": project["config"] | changed,
                    },
                )
                say(f"project {self._project}: set {', '.join(sorted(changed))}")
        self.restore_limits(say)

    def restore_limits(self, say: Say) -> None:
        """Set limits again that are ASIDE, each by itself; one that is too low by now stays so."""
        with translated(f"{ENGINE} could not be asked for project {self._project}"):
            project = self._client.api.projects[self._project].get().json()["metadata"]
        for aside, value in sorted(project["config"].items()):
            if aside.startswith(ASIDE):
                try:
                    self._change_project(partial(_with_limit, aside))
                except SetupError as error:
                    say(
                        f"{error.detail} So it is without {aside.removeprefix(ASIDE)}={value}:"
                        f" raise it ('{self.dialect.command} project set {self._project}"
                        f" {aside}=NUMBER'), or lower or delete what is too much, and call this"
                        " again."
                    )

    def _change_project(self, change: Callable[[Mapping[str, str]], Mapping[str, str]]) -> None:
        project = self._client.api.projects[self._project]
        with translated(f"{self.dialect.name} could not change project {self._project}"):
            data = project.get().json()["metadata"]
            body = {"description": data["description"], "config": change(data["config"])}
            self._wait(project.put(json=body))

    def prepare_address(self, say: Say) -> str:
        """The `https://` address at which podyd reaches LXD; sets one only if there is none."""
        with translated(f"{ENGINE} could not be made to listen"):
            config = self._client.api.get().json()["metadata"]["config"]
            address = config.get("core.https_address", "")
            if not address:
                address = self._listen()
                say(f"{ENGINE} listens on {address}")
        return f"https://{_local(address)}"

    def _listen(self) -> str:
        """Have it listen at its usual port, or at the next one that nothing else has."""
        for port in range(HTTPS_PORT, HTTPS_PORT + HTTPS_PORTS):
            address = f"127.0.0.1:{port}"
            try:
                self._change(self._client.api.patch, {"config": {"core.https_address": address}})
            except pylxd.exceptions.LXDAPIException as error:
                if (
                    "address already in use" not in str(error)
                    or port == HTTPS_PORT + HTTPS_PORTS - 1
                ):
                    raise
            else:
                break
        return address

    def server_certificate(self) -> str:
        """LXD's own certificate in PEM."""
        return str(self._environment()["certificate"])

    def prepare_trust(self, certificate_pem: str, fingerprint: str, say: Say) -> None:
        """Add podyd's certificate to LXD's trust store, for the project only."""
        confined = {"restricted": True, "projects": [self._project]}
        certificates = self._client.api.certificates
        with translated(f"{ENGINE} could not be made to trust podyd's certificate"):
            trusted = self._get(certificates)
            if not any(item["fingerprint"] == fingerprint for item in trusted):
                body = "".join(certificate_pem.strip().splitlines()[1:-1])
                self._change(
                    certificates.post,
                    {"type": "client", "certificate": body, "name": self._project} | confined,
                )
                say(f"{ENGINE} trusts podyd's certificate, for project {self._project} alone")
                return
            known = certificates[fingerprint].get().json()["metadata"]
            if any(known[key] != value for key, value in confined.items()):
                kept = {key: known[key] for key in ("type", "name", "certificate")}
                self._change(certificates[fingerprint].put, kept | confined)
                say(f"podyd's certificate is confined to project {self._project} again")

    def has_instances(self) -> bool:
        """Whether the engine has any instance, of whatever project."""
        with translated(f"{ENGINE} could not be asked for its instances"):
            parameters = {"all-projects": "true"}
            return bool(self._client.api.instances.get(params=parameters).json()["metadata"])

    def has_pods(self) -> bool:
        """Whether there is an instance in the project, which there has to be."""
        with translated(f"{ENGINE} could not be asked for its instances"):
            return bool(self._get(self._in_project.api.instances))

    def _has_machines(self) -> bool:
        instances = self._get(self._in_project.api.instances)
        return any(item["type"] == "virtual-machine" for item in instances)

    # --- Profiles --------------------------------------------------------------------------------

    def profile(self, name: str) -> Profile | None:
        """A profile, None if LXD has none of this name."""
        with translated(f"{ENGINE} could not show profile {name}"):
            try:
                data = self._in_project.api.profiles[name].get().json()["metadata"]
            except pylxd.exceptions.NotFound:
                return None
        return Profile(name, data["description"], data["config"], data["devices"])

    def put_profile(self, profile: Profile) -> None:
        """Create or overwrite a profile."""
        with translated(f"{ENGINE} did not take profile {profile.name}"):
            profiles = self._in_project.api.profiles
            if self.profile(profile.name) is None:
                self._change(profiles.post, {"name": profile.name} | body_of(profile))
            else:
                self._change(profiles[profile.name].put, body_of(profile))

    def pool_and_bridge(self) -> tuple[str, str]:
        """The pool and the bridge that pods use. Raises SetupError if setup has not been run."""
        with translated(f"{ENGINE} could not be asked for its storage pools"):
            pools = [pool["name"] for pool in self._get(self._client.api.storage_pools)]
        bridges = self.bridges()
        if not pools or not bridges:
            raise SetupError(
                f"{ENGINE} has no storage pool or no bridge.",
                advice="Run 'podyd setup' first.",
            )
        names = [bridge.name for bridge in bridges]
        return self._preferred("pool", pools), self._preferred("network", names)

    # --- What doctor reads; nothing here changes anything. ---------------------------------------

    def server(self) -> ServerInfo:
        """LXD's version, process and address."""
        with translated(f"{ENGINE} does not answer"):
            data = self._client.api.get().json()["metadata"]
        environment = data["environment"]
        address = data["config"].get("core.https_address", "")
        return ServerInfo(environment["server_version"], environment["server_pid"], address)

    def missing_controllers(self) -> set[str]:
        """The cgroup controllers that LXD did not find when it started, by their names there."""
        with translated(f"{ENGINE} could not be asked for its warnings"):
            warnings = self._get(self._client.api.warnings)
        matches = (
            _NO_CONTROLLER.search(item["type"]) for item in warnings if item["status"] != "resolved"
        )
        return {match[1].lower() for match in matches if match}

    def pools(self) -> list[Pool]:
        """The storage pools with their usage."""
        pools = []
        with translated(f"{ENGINE} could not be asked for its storage pools"):
            for data in self._get(self._client.api.storage_pools):
                name = data["name"]
                space = self._client.api.storage_pools[name].resources.get().json()["metadata"]
                used, total = space["space"].get("used", 0), space["space"].get("total", 0)
                source = data["config"].get("source", "")
                refquota = is_set(data["config"], REFQUOTA)
                pools.append(
                    Pool(name, data["driver"], source, data["status"], used, total, refquota)
                )
        return pools

    def bridges(self) -> list[Bridge]:
        """The bridges that LXD manages."""
        with translated(f"{ENGINE} could not be asked for its networks"):
            networks = self._get(self._client.api.networks)
        return [
            bridge_of(item) for item in networks if item["managed"] and item["type"] == "bridge"
        ]

    def project_config(self) -> Mapping[str, str] | None:
        """The project's configuration; None if there is no such project."""
        with translated(f"{ENGINE} could not be asked for its projects"):
            projects = self._get(self._client.api.projects)
        return next((item["config"] for item in projects if item["name"] == self._project), None)

    def trust(self, fingerprint: str) -> Trust | None:
        """The permissions of a certificate; None if LXD does not have it."""
        with translated(f"{ENGINE} could not be asked for its certificates"):
            certificates = self._get(self._client.api.certificates)
        for item in certificates:
            if item["fingerprint"] == fingerprint:
                return Trust(item["restricted"], tuple(item["projects"] or ()))
        return None

    def profiles(self) -> list[Profile]:
        """The project's profiles."""
        with translated(f"{ENGINE} could not be asked for its profiles"):
            profiles = self._get(self._in_project.api.profiles)
        return [profile_of(item) for item in profiles]

    def image_aliases(self, *, without: str) -> list[str]:
        """The aliases of images of containers without this property."""
        with translated(f"{ENGINE} could not be asked for its images"):
            stored = self._get(self._in_project.api.images)
        images = [
            item
            for item in stored
            if item["type"] == "container" and without not in item["properties"]
        ]
        return sorted(alias["name"] for item in images for alias in item["aliases"] or ())

    def instances(self) -> list[ExpandedInstance]:
        """The project's instances."""
        with translated(f"{ENGINE} could not be asked for its instances"):
            instances = self._get(self._in_project.api.instances)
        return [
            ExpandedInstance(
                item["name"],
                item["status"] == "Running",
                item["devices"],
                item["expanded_config"],
                has_driver(item["expanded_config"], item["expanded_devices"]),
            )
            for item in instances
        ]

    def as_podyd_reads_them(self) -> list[Instance]:
        """The project's instances, in the form of podyd's engine."""
        with translated(f"{ENGINE} could not be asked for its instances"):
            instances = self._get(self._in_project.api.instances)
        return [instance_of(item) for item in instances]

    def openings_in_use(self, paths: Collection[str]) -> Openings:
        """What instances use of the host, without paths below `paths`.

        LXD does not remove a permission of a project while an instance uses it.
        """
        with translated(f"{ENGINE} could not be asked for its instances"):
            instances = self._get(self._in_project.api.instances)
        below = tuple(f"{path}/" for path in paths)
        sources = {
            device["source"]
            for item in instances
            for device in item["expanded_devices"].values()
            if device["type"] == "disk" and not device.get("pool")
        }
        ids = [
            words[:2]
            for item in instances
            for line in item["expanded_config"].get("raw.idmap", "").splitlines()
            if len(words := line.split()) > 1
        ]
        return Openings(
            paths=frozenset(source for source in sources if not source.startswith(below)),
            uids=frozenset(host for kind, host in ids if kind != "gid"),
            gids=frozenset(host for kind, host in ids if kind != "uid"),
        )

    def init_pid(self, name: str) -> int:
        """The pid of an instance's init on the host; 0 if it does not run."""
        with translated(f"{ENGINE} could not be asked for {name}"):
            state = self._in_project.api.instances[name].state.get().json()["metadata"]
        return int(state["pid"])

    def cards(self) -> list[PciCard]:
        """The GPUs that LXD has found; without nvidia-container-cli it has no `uuid`."""
        with translated(f"{ENGINE} could not be asked for its GPUs"):
            cards = self._client.api.resources.get().json()["metadata"]["gpu"]["cards"] or []
            by_cdi = self.wants_cdi()
        return [card_of(item, by_cdi=by_cdi) for item in cards]

    def wants_cdi(self) -> bool:
        """Whether it is given cards by CDI ids alone."""
        return wants_cdi(self._extensions())

    def can_refresh(self, pool: Pool) -> bool:
        """Whether it can copy snapshots over their instances in a pool, as podyd has it do."""
        return is_possible(pool.driver, self._extensions())

    def cdi_uuids(self) -> Mapping[str, str] | None:
        """The cards' UUIDs by PCI address where they are given by CDI ids, else None."""
        if not self.wants_cdi():
            return None
        return {card.pci: card.uuid for card in self.cards()}

    def _change(self, request: Callable[..., requests.Response], body: Mapping[str, Any]) -> None:
        """A request that changes something, and the wait for its end."""
        self._wait(request(json=body))

    def _wait(self, response: requests.Response) -> None:
        """Wait for the end of what an answer says has begun, if it is an operation: for profiles
        from LXD 6.7 on (storage_and_profile_operations), for pools and networks from 6.8 on
        (storage_and_network_operations). Raises OperationFailedError."""
        answer = response.json()
        if answer["type"] == "async":
            self._wait_for(urlsplit(answer["operation"]).path.rpartition("/")[2])

    def _wait_for(self, identity: str) -> None:
        operation = self._client.api.operations[identity]
        while True:
            try:
                waited = operation.wait.get(params={"timeout": WAIT_SECONDS})
            except pylxd.exceptions.NotFound:
                return  # It has ended so long ago that it is forgotten.
            except pylxd.exceptions.LXDAPIException as error:
                # Incus, and LXD from 5.15 on: it has failed, or WAIT_SECONDS are over.
                waited = _as_it_is(operation, error)
            answer = waited.json()["metadata"]
            if answer["status_code"] >= 400:
                raise OperationFailedError(answer["err"])
            if answer["status_code"] >= 200:
                return

    def _get(self, collection: Any) -> list[Mapping[str, Any]]:
        """All members of a collection with their contents."""
        items: list[Mapping[str, Any]] = collection.get(params={"recursion": 1}).json()["metadata"]
        return items or []

    def _preferred(self, key: str, names: list[str]) -> str:
        """The pool or bridge that the default project's default profile uses, else the first."""
        profile = self._client.api.profiles["default"].get().json()["metadata"]
        used = [device.get(key) for device in profile["devices"].values()]
        return next((name for name in used if name in names), names[0])

    def _extensions(self) -> list[str]:
        with translated(f"{ENGINE} does not answer"):
            extensions: list[str] = self._client.api.get().json()["metadata"]["api_extensions"]
        return extensions

    def _environment(self) -> Mapping[str, Any]:
        with translated(f"{ENGINE} does not answer"):
            environment: Mapping[str, Any] = self._client.api.get().json()["metadata"][
                "environment"
            ]
        return environment


def _as_it_is(operation: Any, error: Exception) -> Any:
    """The answer with an operation of which a wait has ended in an error. Raises
    OperationFailedError."""
    try:
        return operation.get()
    except pylxd.exceptions.NotFound:
        raise OperationFailedError(str(error)) from error


def _with_limit(aside: str, config: Mapping[str, str]) -> dict[str, str]:
    """A project's configuration with a limit in its place that is aside."""
    rest = {key: value for key, value in config.items() if key != aside}
    return {**rest, aside.removeprefix(ASIDE): config[aside]}


def bridge_of(data: Mapping[str, Any]) -> Bridge:
    """From LXD's JSON of a bridge."""
    address = data["config"].get("ipv4.address", "none")
    has_dhcp = is_set({"ipv4.dhcp": "true", **data["config"]}, "ipv4.dhcp")
    return Bridge(data["name"], "" if address == "none" else address, has_dhcp)


def _local(address: str) -> str:
    """`core.https_address` as an address for this host; its port and host may be missing."""
    host, colon, port = address.rpartition(":")
    if not colon or "]" in port:
        host, port = address, str(HTTPS_PORT)
    if host in ("", "0.0.0.0", "[::]", "*"):  # noqa: S104 - compared, not listened on
        host = "127.0.0.1"
    return f"{host}:{port}"


def _half_of_free_gib() -> int:
    """The limit of a sparse loop file, in GiB: half of the free disk, as pods will fill it."""
    stat = os.statvfs("/var/lib")
    return int(max(5, stat.f_bavail * stat.f_frsize // 2 // 1024**3))


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """What the engine or its library raises becomes a SetupError, which begins with `what`."""
    try:
        yield
    except OperationFailedError as error:
        raise SetupError(f"{what}: {error.detail}.") from error
    except (pylxd.exceptions.LXDAPIException, pylxd.exceptions.ClientConnectionFailed) as error:
        raise SetupError(f"{what}: {error}.") from error
    except requests.RequestException as error:
        raise SetupError(f"{what}: {error}.") from error
