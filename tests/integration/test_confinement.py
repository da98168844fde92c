"""What podyd's certificate cannot do: what somebody has who breaks into podyd, on each engine.

A row of the table is one request. The engine refuses it, or it is known to let it through: by a
hole that has an advisory, which `podyd doctor` reports where it is open, or by its design;
docs/security.md says what that means. Whether an advisory's hole is open is asked of doctor's table
(data/advisories.yaml), so this tests that table too. Nothing here is started, and nothing is
written but into a directory, a project or an image of the test's own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from podyd.admin.advisories import Reach, load
from podyd.admin.doctor.advisories import package_of
from podyd.admin.doctor.case import HOST
from tests.certificates import self_signed
from tests.integration.harness import DIALECT, Client, Node, Server
from tests.integration.small import packed
from tests.lab import lab

Json = Any
LXD, INCUS = "lxd", "incus"
# The versions of which this says what is let through by design; another one may refuse it.
KNOWN = {LXD: "5.0.2", INCUS: "6.0.4"}
# An engine's words for "not you", so that no row passes because it is malformed.
NOT_YOU = re.compile(
    r"not authorized|[Cc]ertificate is restricted|permission|forbidden|not allowed|isn't allowed"
    r"|cannot be changed|Only the certificate|already trusted"
)
OCTETS = {"Content-Type": "application/octet-stream"}


def holes(lxd: str = "", incus: str = "") -> Mapping[str, str]:
    """The advisory by which each engine lets a row through; one alone is the same for both."""
    return {LXD: lxd, INCUS: incus or lxd}


@dataclass(frozen=True)
class Row:
    """A request; {words} in it stand for what the scene has.

    It is let through if the engine does it and, with `shows`, the answer has that. `admin` is a
    request that root must be able to make: the same one, one that is like it, or none.
    """

    what: str
    method: str
    path: str
    body: Json = None
    project: str = "{own}"
    shows: str = ""
    advisory: Mapping[str, str] = field(default_factory=dict)
    # Engines that let it through by design.
    through: Collection[str] = ()
    on: Collection[str] = (LXD, INCUS)
    says: re.Pattern[str] = NOT_YOU
    admin: tuple[str, str, Json, str] | None = None

    def __str__(self) -> str:
        return self.what


def _instance(**changes: Json) -> Json:
    return {"name": "evil", "source": {"type": "none"}, "profiles": ["podyd-base"], **changes}


def config(key: str, value: str = "true", **kwargs: Any) -> Row:
    """A pod with this key; in a project without restrictions, a profile may have it."""
    given = {key: value}
    allowed = ("POST", "/1.0/profiles", {"name": "evil", "config": given}, "{next}")
    body = _instance(config=given)
    return Row(f"{key}={value!r}", "POST", "/1.0/instances", body, admin=allowed, **kwargs)


def device(**given: Any) -> Row:
    """A pod with this device; in a project without restrictions, a profile may have it."""
    words = {key: given.pop(key) for key in ("through", "on", "says", "advisory") if key in given}
    body = _instance(devices={"evil": given})
    what = " ".join(f"{key}={value}" for key, value in given.items())
    control = ("POST", "/1.0/profiles", {"name": "evil", "devices": {"evil": given}}, "{next}")
    return Row(what, "POST", "/1.0/instances", body, admin=control, **words)


def reading(path: str, **kwargs: Any) -> Row:
    """What belongs to the project beside podyd's; root reads it."""
    same = ("GET", path, None, "{next}")
    return Row(f"read {path} of another project", "GET", path, None, "{next}", admin=same, **kwargs)


def changing(method: str, path: str, body: Json = None, **kwargs: Any) -> Row:
    """A change in the project beside podyd's."""
    return Row(f"{method} {path} of another project", method, path, body, "{next}", **kwargs)


def listing(path: str, **kwargs: Any) -> Row:
    """A list of all projects, in which those of others must not be."""
    what = f"other projects in {path}"
    return Row(what, "GET", path, None, "", shows="{next}", says=re.compile(""), **kwargs)


def server(method: str, path: str, body: Json = None, **kwargs: Any) -> Row:
    """What belongs to the whole server."""
    what = f"{method} {path} {json.dumps(body) if body else ''}".strip()
    return Row(what, method, path, body, kwargs.pop("project", ""), **kwargs)


VOLUMES = "/1.0/storage-pools/{pool}/volumes/custom"
CERTIFICATE = "/1.0/certificates/{fingerprint}"
NOT_FOUND = re.compile("not found|isn't currently supported|Network not found")
NOT_THERE = re.compile(NOT_YOU.pattern + "|not found")
INTERCEPT = (
    "bpf",
    "bpf.devices",
    "mknod",
    "mount",
    "mount.shift",
    "sched_setscheduler",
    "setxattr",
)

CONFIGURATION = [
    config("security.privileged"),
    config("security.nesting"),
    config("raw.lxc", "lxc.apparmor.profile=unconfined"),
    config("raw.apparmor", "mount,"),
    config("raw.seccomp", "2\ndenylist\n"),
    config("raw.idmap", "both 0 0"),
    config("linux.kernel_modules", "loop"),
    *(config(f"security.syscalls.intercept.{name}") for name in INTERCEPT),
    config("security.syscalls.intercept.sysinfo", on={INCUS}),
    config("security.syscalls.intercept.mount.allowed", "ext4"),
    config("security.syscalls.intercept.mount.fuse", "ext4=fuse2fs"),
    config("security.idmap.base", "0"),
    config("security.idmap.size", "1"),
    config("security.devlxd.images", on={LXD}),
    config("security.guestapi.images", on={INCUS}),
    config("boot.host_shutdown_timeout", "1"),
    *(
        replace(config(key, value), admin=("POST", "/1.0/instances", body, "{next}"))
        for key, value in (("volatile.idmap.base", "0"), ("volatile.idmap.next", "[]"))
        for body in (_instance(config={key: value}, profiles=["default"]),)
    ),
    config(
        "nvidia.driver.capabilities",
        "compute\nlxc.environment = PODYD_EVIL=1",
        advisory=holes("CVE-2026-63298", "CVE-2026-81498"),
        says=re.compile("line break|newline|Invalid"),
    ),
    replace(
        config("environment.X", "1\nlxc.environment = PODYD_EVIL=1"),
        advisory=holes("CVE-2026-23953"),
        says=re.compile("line breaks"),
        admin=None,
    ),
    # Many hosts can have none at all.
    Row(
        "a virtual machine with raw.qemu",
        "POST",
        "/1.0/instances",
        _instance(type="virtual-machine", config={"raw.qemu": "-x"}),
        says=re.compile("."),
    ),
    # What the kernel asks other rights for, and what a pod does to itself.
    config("security.syscalls.deny_default", "false", through=(LXD, INCUS)),
    config("user.user-data", "#cloud-config\n", through=(LXD, INCUS)),
]

BRIDGED: Json = {"type": "nic", "nictype": "bridged", "parent": "{bridge}"}
DEVICES = [
    device(type="disk", source="/", path="/mnt"),
    device(type="disk", source="/etc", path="/mnt"),
    device(type="disk", source="/srv/../etc", path="/mnt"),
    # A link to /etc.
    device(type="disk", source="{host}/link", path="/mnt"),
    device(type="disk", source="cephfs:a/b", path="/mnt"),
    device(type="disk", pool="{pool}", source="secret", path="/mnt", says=NOT_FOUND),
    device(type="unix-char", source="/dev/mem", path="/dev/mem"),
    device(type="unix-char", major="1", minor="1", path="/dev/mem"),
    device(type="unix-block", source="/dev/sda", path="/dev/sda", required="false"),
    device(type="unix-hotplug", vendorid="0000", productid="0000"),
    device(type="usb", vendorid="0000"),
    replace(device(type="pci", address="0000:41:00.0"), admin=None),
    device(type="infiniband", nictype="physical", parent="ib0"),
    device(type="proxy", bind="instance", listen="tcp:127.0.0.1:8000", connect="unix:{socket}"),
    device(type="proxy", bind="host", listen="tcp:127.0.0.1:8999", connect="tcp:127.0.0.1:80"),
    device(type="proxy", nat="true", listen="tcp:127.0.0.1:8999", connect="tcp:10.0.0.1:80"),
    *(
        device(type="nic", nictype=kind, parent="eth0")
        for kind in ("physical", "bridged", "macvlan", "ipvlan", "sriov", "routed")
    ),
    # Incus' certificates may read the bridge, which is one that the project may use.
    replace(device(type="nic", network="{bridge}", through=(INCUS,)), says=NOT_FOUND, admin=None),
    # Without a parent, the project does not compare one.
    device(type="nic", nictype="routed", through=(LXD, INCUS)),
    device(type="nic", nictype="p2p", **{"ipv4.routes": "192.0.2.0/24"}, through=(LXD, INCUS)),
    device(**BRIDGED, **{"ipv4.routes": "192.0.2.0/24"}, through=(LXD, INCUS)),
]

EXISTING = [
    Row(
        f"{method} {path} with {what}",
        method,
        path,
        body,
        says=re.compile(NOT_YOU.pattern),
    )
    for method, path in (("PATCH", "/1.0/instances/mine"), ("PATCH", "/1.0/profiles/podyd-base"))
    for what, body in (
        ("security.privileged", {"config": {"security.privileged": "true"}}),
        ("raw.lxc", {"config": {"raw.lxc": "lxc.environment=X=1"}}),
        ("raw.idmap", {"config": {"raw.idmap": "both 0 0"}}),
        ("a disk /", {"devices": {"evil": {"type": "disk", "source": "/", "path": "/mnt"}}}),
    )
]

OTHERS = [
    reading("/1.0/instances"),
    *(
        reading(f"/1.0/instances/secret{what}")
        for what in (
            "",
            "/state",
            "/snapshots",
            "/snapshots/s0",
            "/logs",
            "/metadata",
            "/metadata/templates",
            "/files?path=/",
            "/backups",
        )
    ),
    reading("/1.0/profiles"),
    reading("/1.0/profiles/secret"),
    reading("/1.0/images", shows="{image}", says=re.compile("")),
    reading("/1.0/images/{image}", says=NOT_THERE),
    reading("/1.0/images/{image}/export", says=NOT_THERE),
    reading("/1.0/images/aliases/secret", says=NOT_THERE),
    reading(VOLUMES),
    reading(f"{VOLUMES}/secret"),
    reading(f"{VOLUMES}/secret/snapshots/s0"),
    reading("/1.0/networks"),
    reading("/1.0/network-acls"),
    reading("/1.0/metrics"),
    reading("/1.0/projects/{next}"),
    reading("/1.0/projects/{next}/state"),
    Row("read pods of the default project", "GET", "/1.0/instances", None, "default"),
    # Any certificate of Incus', as it must those of which a project makes use (driver_tls.go).
    Row(
        "read a profile of the default project",
        "GET",
        "/1.0/profiles/default",
        None,
        "default",
        through=(INCUS,),
    ),
    Row(
        "change a profile of the default project",
        "PATCH",
        "/1.0/profiles/default",
        {"config": {"user.x": "1"}},
        "default",
    ),
    changing("POST", "/1.0/instances", {"name": "evil", "source": {"type": "none"}}),
    changing("PUT", "/1.0/instances/secret/state", {"action": "start"}),
    changing("POST", "/1.0/instances/secret/exec", {"command": ["true"]}),
    changing("POST", "/1.0/instances/secret/console", {"type": "console"}),
    changing("PATCH", "/1.0/instances/secret", {"config": {"user.x": "1"}}),
    changing("DELETE", "/1.0/instances/secret"),
    changing("POST", "/1.0/instances/secret", {"name": "evil"}),
    changing("POST", "/1.0/instances/secret", {"name": "secret", "project": "{own}"}),
    changing("POST", "/1.0/instances/secret/snapshots", {"name": "evil"}),
    changing("POST", "/1.0/instances/secret/backups", {}),
    changing("POST", "/1.0/profiles", {"name": "evil"}),
    changing("PATCH", "/1.0/profiles/secret", {"config": {"user.x": "1"}}),
    changing("DELETE", "/1.0/profiles/secret"),
    changing("PATCH", "/1.0/images/{image}", {"public": True}),
    changing("DELETE", "/1.0/images/{image}"),
    changing("POST", "/1.0/images/{image}/secret"),
    changing("POST", "/1.0/images/aliases", {"name": "evil", "target": "{image}"}),
    changing("POST", VOLUMES, {"name": "evil"}),
    changing("PATCH", f"{VOLUMES}/secret", {"config": {"user.x": "1"}}),
    changing("POST", f"{VOLUMES}/secret", {"name": "evil", "pool": "{pool}"}),
    changing("POST", f"{VOLUMES}/secret/snapshots", {"name": "evil"}),
    changing("DELETE", f"{VOLUMES}/secret"),
    listing("/1.0/instances?all-projects=true&recursion=1"),
    listing("/1.0/profiles?all-projects=true&recursion=1", through=(INCUS,)),
    listing("/1.0/projects?recursion=1"),
    listing("/1.0/networks?all-projects=true&recursion=1"),
    listing("/1.0/storage-pools/{pool}/volumes?all-projects=true&recursion=1"),
    listing("/1.0/storage-pools/{pool}"),
    replace(
        listing("/1.0/certificates?recursion=1", through=(LXD, INCUS)), shows="{other_certificate}"
    ),
]

COPIES = [
    Row(
        f"copy {what} of another project",
        "POST",
        path,
        {"name": "evil", "source": {"type": "copy", "project": "{next}", **source}, **rest},
        advisory=advisory,
    )
    for what, path, source, rest, advisory in (
        (
            "an instance",
            "/1.0/instances",
            {"source": "secret"},
            {"profiles": ["podyd-base"]},
            holes("CVE-2026-55622"),
        ),
        (
            "a snapshot",
            "/1.0/instances",
            {"source": "secret/s0"},
            {"profiles": ["podyd-base"]},
            holes("CVE-2026-55622"),
        ),
        (
            "a volume",
            VOLUMES,
            {"name": "secret", "pool": "{pool}"},
            {},
            holes("CVE-2026-55621"),
        ),
        (
            "a snapshot of a volume",
            VOLUMES,
            {"name": "secret/s0", "pool": "{pool}"},
            {},
            holes("CVE-2026-55621"),
        ),
    )
] + [
    Row(
        f"an instance of another project's image, by {by}",
        "POST",
        "/1.0/instances",
        _instance(source={"type": "image", "project": "{next}", by: value}),
        says=re.compile("not provided|not found|" + NOT_YOU.pattern),
    )
    for by, value in (("fingerprint", "{image}"), ("alias", "secret"))
]

ITS_CHANGES: Sequence[Json] = (
    {"type": "server"},
    {"type": "metrics"},
    {"restricted": False},
    {"projects": []},
    {"projects": ["{own}", "{next}"]},
    {"restricted": False, "projects": []},
)
CERTIFICATES = [
    Row(f"{method} its certificate with {json.dumps(body)}", method, CERTIFICATE, body, project="")
    for method in ("PUT", "PATCH")
    for body in ITS_CHANGES
] + [
    server("POST", "/1.0/certificates", {"type": "client", "token": True, "name": "evil"}),
    Row(
        "DELETE another's certificate",
        "DELETE",
        "/1.0/certificates/{other_certificate}",
        project="",
        says=NOT_THERE,
    ),
]

POOL, NETWORK = "/1.0/storage-pools/{pool}", "/1.0/networks/{bridge}"
SERVER = [
    server("PATCH", "/1.0", {"config": {"user.x": "1"}}),
    server("PUT", "/1.0/cluster", {"server_name": "x", "enabled": False}),
    server("POST", "/1.0/cluster/members", {"server_name": "x"}),
    server("GET", "/1.0/warnings", admin=("GET", "/1.0/warnings", None, "")),
    server("GET", "/internal/ready", admin=("GET", "/internal/ready", None, "")),
    server("POST", "/internal/sql", {"database": "global", "query": "SELECT 1"}),
    server("PUT", "/1.0/projects/{own}", {"config": {"restricted": "false"}}),
    server("PATCH", "/1.0/projects/{own}", {"config": {"restricted.devices.disk": "allow"}}),
    server("POST", "/1.0/projects/{own}", {"name": "{own}-evil"}),
    server("POST", "/1.0/projects", {"name": "{own}-evil", "config": {}}),
    server("DELETE", "/1.0/projects/{next}"),
    server("POST", "/1.0/storage-pools", {"name": "evil", "driver": "dir", "config": {}}),
    server("PATCH", POOL, {"config": {"user.x": "1"}}),
    server("DELETE", POOL),
    # The unpacked form of an image, of whichever project: it is made again at the next create.
    server("DELETE", f"{POOL}/volumes/image/{{image}}", project="{own}", through=(LXD, INCUS)),
    *(
        server("POST", "/1.0/networks", {"name": "evil0", "type": kind, "config": {}}, project=own)
        for own in ("{own}",)
        for kind in ("bridge", "macvlan", "physical", "ovn")
    ),
    # In LXD podyd's project has networks of its own, none of which is the bridge.
    server("PATCH", NETWORK, {"config": {"user.x": "1"}}, project="{own}", says=NOT_THERE),
    # dnsmasq runs its `dhcp-script` as root.
    server("PATCH", NETWORK, {"config": {"raw.dnsmasq": "#"}}, project="{own}", says=NOT_THERE),
    server(
        "PATCH",
        NETWORK,
        {"config": {"bridge.external_interfaces": "eth0"}},
        project="{own}",
        says=NOT_THERE,
    ),
    server("DELETE", NETWORK, project="{own}", says=NOT_THERE),
    server(
        "POST",
        f"{NETWORK}/forwards",
        {"listen_address": "192.0.2.1"},
        project="{own}",
        says=NOT_THERE,
    ),
    server("GET", NETWORK, project="{own}", says=NOT_THERE, through=(INCUS,)),
    # Which would be the default project's, had podyd's none of its own.
    server("POST", "/1.0/network-zones", {"name": "{own}.example"}, project="{own}"),
    # In the default project, where it may not change it: no network has it.
    server(
        "POST",
        "/1.0/network-acls",
        {"name": "{own}"},
        project="{own}",
        through=(INCUS,),
        on=(INCUS,),
    ),
    server("POST", "/1.0/networks", {"name": "evil0", "type": "bridge"}, project="default"),
    server("PATCH", NETWORK, {"config": {"user.x": "1"}}, project="default"),
]

# Commands in place of a compression, which would write into the test's own directory. One that does
# not read all of its input would keep the engine from making images until it is restarted.
COMPRESSION = [
    Row(
        f"an image compressed by {command}",
        "POST",
        "/1.0/images",
        {
            "source": {"type": "container", "name": "mine"},
            "compression_algorithm": f"{command} {{host}}/written",
        },
        advisory=holes("CVE-2026-28384"),
        says=re.compile("Invalid compression algorithm|isn't currently supported"),
    )
    for command in ("tee", "/usr/bin/tee", "env tee")
] + [
    Row(
        f"a backup of {what}",
        "POST",
        path,
        {"name": "evil", "compression_algorithm": "tee {host}/written"},
        # The project forbids backups, so that CVE-2026-48755 needs an image.
        says=re.compile("doesn't allow for backup creation"),
    )
    for what, path in (
        ("a pod", "/1.0/instances/mine/backups"),
        ("a volume", f"{VOLUMES}/mine/backups"),
    )
]

IMAGE = "/1.0/images/{common}"
IMAGES = [
    # LXD's projects of restricted certificates share the images of the default one: podyd's too.
    Row(
        "export an image of the default project",
        "GET",
        f"{IMAGE}/export",
        through=(LXD,),
        says=NOT_THERE,
    ),
    Row(
        "change an image of the default project",
        "PATCH",
        IMAGE,
        {"public": False},
        through=(LXD,),
        says=NOT_THERE,
    ),
    Row("delete an image of the default project", "DELETE", IMAGE, through=(LXD,), says=NOT_THERE),
    # Incus lets whoever has a certificate read the default project's.
    Row(
        "export it by its project",
        "GET",
        f"{IMAGE}/export",
        None,
        "default",
        through=(INCUS,),
        says=NOT_THERE,
    ),
    Row("change it by its project", "PATCH", IMAGE, {"public": False}, "default"),
    Row("delete it by its project", "DELETE", IMAGE, None, "default"),
]

NAMES = [
    Row(f"{what} named {name!r}", "POST", path, {"name": name, **rest}, says=re.compile("."))
    for what, path, names, rest in (
        ("a pod", "/1.0/instances", ("..", "../x", "a/b", "x\ny"), {"source": {"type": "none"}}),
        ("a profile", "/1.0/profiles", ("..", "a/b"), {}),
        ("a volume", VOLUMES, ("../evil", "a/b"), {}),
        # None with "..": LXD 5.0.2 refuses it, and deletes the directory of its logs for that, with
        # which no command can be run in any pod that runs.
        ("a snapshot", "/1.0/instances/mine/snapshots", ("a/b",), {}),
    )
    for name in names
]

TEMPLATES = [
    Row(
        f"{method} a template {path}",
        method,
        f"/1.0/instances/mine/metadata/templates?path={path}",
        says=re.compile("Invalid template filename"),
    )
    for method in ("GET", "DELETE")
    for path in ("../../x", "../../../../../../etc/hostname")
] + [
    Row(
        f"read {path} of its own pod",
        "GET",
        f"/1.0/instances/mine/{path}",
        says=re.compile("not valid|not found", re.IGNORECASE),
    )
    for path in ("logs/..%2F..%2Fx", "logs/..")
]

TABLE = [
    *CONFIGURATION,
    *DEVICES,
    *EXISTING,
    *OTHERS,
    *COPIES,
    *CERTIFICATES,
    *SERVER,
    *COMPRESSION,
    *IMAGES,
    *NAMES,
    *TEMPLATES,
]


# --- Files for images and backups ---------------------------------------------------------------

Files = Sequence[tuple[str, bytes | str]]
METADATA = "architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  description: {}\n"


def image(what: str, *files: tuple[str, bytes | str]) -> bytes:
    """An image with nothing in it but these files."""
    return packed([("metadata.yaml", METADATA.format(what).encode()), ("rootfs", ""), *files])


def split_image(what: str, *files: tuple[str, bytes | str]) -> tuple[bytes, Mapping[str, str]]:
    """An image of two files, whose root file system has nothing; and its headers."""
    parts = [
        ("metadata", packed([("metadata.yaml", METADATA.format(what).encode()), *files])),
        ("rootfs", packed([("written", b"")])),
    ]
    body = b""
    for name, content in parts:
        head = f'Content-Disposition: form-data; name="{name}"; filename="{name}.tar"'
        body += f"--podyd\r\n{head}\r\n\r\n".encode() + content + b"\r\n"
    return body + b"--podyd--\r\n", {"Content-Type": "multipart/form-data; boundary=podyd"}


def backup(scene: Scene, given: Json, snapshot: Json = None) -> bytes:
    """A backup of a pod `evil` with these keys, and a snapshot `s0` with those."""

    def described(values: Json) -> Json:
        devices = {"root": {"type": "disk", "path": "/", "pool": scene.words["pool"]}}
        devices |= values.get("devices", {})
        keys = values.get("config", {})
        return {
            "architecture": "x86_64",
            "config": dict(keys),
            "devices": dict(devices),
            "expanded_config": dict(keys),
            "expanded_devices": dict(devices),
            "ephemeral": False,
            "profiles": ["podyd-base"],
            "stateful": False,
            "type": "container",
            "created_at": "2024-01-01T00:00:00Z",
        }

    names = [] if snapshot is None else ["s0"]
    whole = {
        "container": {**described(given), "name": "evil", "status": "Stopped"},
        "snapshots": [{**described(snapshot), "name": name} for name in names],
        "pool": {"name": scene.words["pool"], "driver": scene.driver, "config": {}},
        "volume": {"name": "evil", "type": "container", "config": {}, "content_type": "filesystem"},
        "volume_snapshots": [
            {"name": name, "config": {}, "content_type": "filesystem"} for name in names
        ],
    }
    index = {
        "name": "evil",
        "backend": scene.driver,
        "pool": scene.words["pool"],
        "type": "container",
        "optimized": False,
        "snapshots": names,
        "config": whole,
    }
    text = yaml.safe_dump(whole).encode()
    folders = [f"backup/snapshots/{name}" for name in names] + ["backup/container"]
    files: list[tuple[str, bytes | str]] = [("backup/index.yaml", yaml.safe_dump(index).encode())]
    for folder in folders:
        files += [(folder, ""), (f"{folder}/rootfs", ""), (f"{folder}/backup.yaml", text)]
    return packed(files)


# --- The scene ----------------------------------------------------------------------------------


class Certified:
    """An engine over TLS with the certificate of `podyd setup`."""

    def __init__(self, directory: Path, project: str) -> None:
        self.project = project
        self._context = ssl.create_default_context(cafile=str(directory / "server.crt"))
        self._context.check_hostname = False
        self._context.load_cert_chain(directory / "client.crt", directory / "client.key")
        self._address = urlsplit((directory / "endpoint").read_text().strip()).netloc

    def call(
        self,
        method: str,
        path: str,
        body: Json = None,
        project: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """The answer, with the end of the operation where there is one; `project` "" is none."""
        project = self.project if project is None else project
        connection = HTTPSConnection(self._address, context=self._context, timeout=60)
        return _called(connection, method, path, body, project, headers, self.call)


def _called(
    connection: Any,
    method: str,
    path: str,
    body: Json,
    project: str,
    headers: Mapping[str, str] | None,
    again: Callable[..., Mapping[str, Any]],
) -> Mapping[str, Any]:
    mark = "&" if "?" in path else "?"
    target = f"{path}{mark}project={project}" if project else path
    data = body if isinstance(body, bytes | None) else json.dumps(body)
    with contextlib.closing(connection):
        connection.request(method, target, data, dict(headers or {}))
        response = connection.getresponse()
        text = response.read()
    try:
        answer: Mapping[str, Any] = json.loads(text)
    except ValueError:
        kind = "sync" if response.status < 400 else "error"
        return {
            "type": kind,
            "error": f"{response.status} {text!r}",
            "metadata": text.decode("latin-1"),
        }
    if answer["type"] == "async":
        operation = str(answer["operation"]).partition("?")[0]
        return again("GET", f"{operation}/wait?timeout=30", None, project)
    return answer


def error_of(answer: Mapping[str, Any]) -> str:
    """Why an engine has not done it; "" if it has."""
    metadata = answer.get("metadata")
    if answer["type"] == "error":
        return str(answer["error"]) or "refused"
    if isinstance(metadata, dict) and "status_code" in metadata and "err" in metadata:
        assert metadata["status_code"] >= 200, f"still under way: {answer}"
        return str(metadata["err"]) if metadata["status_code"] >= 400 else ""
    return ""


class Scene:
    """A project of podyd's with a pod `mine`, one beside it with a pod `secret`, and a directory of
    the host with a secret."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.host = directory / "host"
        own = f"{node.project}-c{secrets.token_hex(2)}"
        state = node.directory / own
        self.changes = {"state_dir": str(state), "lxd": {"project": own}}
        node.podyd("setup", "--user", node.account, changes=self.changes)
        self.intruder = Certified(state / DIALECT.key, own)
        self.words = {
            "own": own,
            "next": f"{own}-next",
            "host": str(self.host),
            "socket": node.lab_state.socket,
        }

    def admin(
        self, method: str, path: str, body: Json = None, project: str | None = None, **headers: str
    ) -> Mapping[str, Any]:
        """What root gets, who has the socket."""
        connection = lab.UnixConnection(Path(self.words["socket"]), 60)
        project = self.words["own"] if project is None else project
        return _called(connection, method, path, body, project, headers, self.admin)

    def done(self, *args: Any, **kwargs: Any) -> Any:
        """What root gets, which must be no refusal."""
        answer = self.admin(*args, **kwargs)
        assert not error_of(answer), (args, answer)
        return answer["metadata"]

    def with_words(self, value: Any) -> Any:
        """A request with the scene's words."""
        if isinstance(value, str):
            for word, text in self.words.items():
                value = value.replace(f"{{{word}}}", text)
            return value
        if isinstance(value, dict):
            return {key: self.with_words(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.with_words(item) for item in value]
        return value

    @cached_property
    def driver(self) -> str:
        return str(self.done("GET", f"/1.0/storage-pools/{self.words['pool']}", None, "")["driver"])

    @cached_property
    def open(self) -> Mapping[str, bool | None]:
        """Whether each advisory's hole is open here, by doctor's table; None is not known."""
        table = load()
        installed = package_of(DIALECT, table, HOST)
        standing = installed and table.standing(DIALECT.key, installed)
        if not standing:
            return {}
        found: dict[str, bool | None]
        found = {item.id: False for item in table.advisories if item.product == DIALECT.key}
        found |= {item.id: None for item in standing.not_known}
        return found | {item.id: True for item in (*standing.fixable, *standing.unfixed)}

    def make(self) -> None:
        own, beside = self.words["own"], self.words["next"]
        self.host.mkdir()
        (self.host / "hostname").write_text("SECRET-OF-HOST\n")
        (self.host / "link").symlink_to("/etc")
        (self.host / "meta").write_text(METADATA.format("SECRET-OF-HOST"))
        base = self.done("GET", "/1.0/profiles/podyd-base")["devices"]
        self.words |= {"pool": base["root"]["pool"], "bridge": base["eth0"]["parent"]}
        for item in self.done("GET", "/1.0/certificates?recursion=1", None, ""):
            if item["name"] == own:
                self.words["fingerprint"] = item["fingerprint"]
        path = f"/1.0/certificates/{self.words['fingerprint']}"
        kept = ("type", "name", "certificate", "restricted", "projects")
        found = self.done("GET", path, None, "")
        self.certificate = {key: found[key] for key in kept}
        features = ("images", "profiles", "storage.volumes")
        body = {"name": beside, "config": {f"features.{name}": "true" for name in features}}
        self.done("POST", "/1.0/projects", body, "")
        self.words["other_certificate"] = self.trust_another()
        root = {"root": {"type": "disk", "path": "/", "pool": self.words["pool"]}}
        self.done("PUT", "/1.0/profiles/default", {"config": {}, "devices": root}, beside)
        self.done("POST", "/1.0/profiles", {"name": "secret"}, beside)
        self.words["image"] = self.import_as_root("secret", beside)
        alias = {"name": "secret", "target": self.words["image"]}
        self.done("POST", "/1.0/images/aliases", alias, beside)
        source = {"type": "image", "fingerprint": self.words["image"]}
        self.done("POST", "/1.0/instances", {"name": "secret", "source": source}, beside)
        self.done("POST", "/1.0/instances/secret/snapshots", {"name": "s0"}, beside)
        volumes = self.with_words(VOLUMES)
        self.done("POST", volumes, {"name": "secret"}, beside)
        self.done("POST", f"{volumes}/secret/snapshots", {"name": "s0"}, beside)
        self.done("POST", "/1.0/instances", {**_instance(), "name": "mine"})
        self.done("POST", volumes, {"name": "mine"})

    def trust_another(self) -> str:
        """The fingerprint of a certificate that is trusted for the other project alone."""
        made = self_signed(ec.generate_private_key(ec.SECP256R1()), self.words["next"])
        body = {
            "type": "client",
            "name": self.words["next"],
            "certificate": base64.b64encode(made.public_bytes(Encoding.DER)).decode(),
            "restricted": True,
            "projects": [self.words["next"]],
        }
        self.done("POST", "/1.0/certificates", body, "")
        return made.fingerprint(hashes.SHA256()).hex()

    def import_as_root(self, what: str, project: str) -> str:
        """The fingerprint of a new private image of a project's."""
        body = image(f"{what} of {self.words['own']}")
        return str(
            self.done("POST", "/1.0/images", body, project, **OCTETS)["metadata"]["fingerprint"]
        )

    def try_row(self, row: Row) -> str:
        """Why the engine refuses; "" if it lets it through."""
        body = self.with_words(row.body)
        if row.path == CERTIFICATE and row.method == "PUT":
            body = {**self.certificate, **body}
        path, project = self.with_words(row.path), self.with_words(row.project)
        answer = self.intruder.call(row.method, path, body, project)
        error = error_of(answer)
        if not error and row.shows and self.with_words(row.shows) not in json.dumps(answer):
            return "not shown"
        return error

    def undo(self) -> None:
        """What a row has made or changed."""
        path = f"/1.0/certificates/{self.words['fingerprint']}"
        now = self.done("GET", path, None, "")
        if any(now[key] != value for key, value in self.certificate.items()):
            self.done("PUT", path, self.certificate, "")
        for project in (self.words["own"], self.words["next"]):
            for kind in ("instances", "profiles", self.with_words(VOLUMES).removeprefix("/1.0/")):
                self.admin("DELETE", f"/1.0/{kind}/evil", None, project)
        for project in (self.words["own"], "default"):
            self.admin("DELETE", f"/1.0/network-zones/{self.words['own']}.example", None, project)
            self.admin("DELETE", f"/1.0/network-acls/{self.words['own']}", None, project)
        (self.host / "written").unlink(missing_ok=True)

    def close(self) -> None:
        wipe = lab.Wipe(self.node.lxd, time.monotonic() + 60)
        wipe.projects(self.words["own"])
        wipe.certificates(self.words["own"])


@pytest.fixture(scope="module")
def scene(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(node, tmp_path_factory.mktemp("confinement"))
    try:
        scene.make()
        yield scene
    finally:
        scene.close()


@pytest.fixture
def common(scene: Scene) -> Iterator[str]:
    """A private image of the default project's."""
    found = scene.import_as_root("common", "default")
    yield found
    scene.admin("DELETE", f"/1.0/images/{found}", None, "default")


def expected(scene: Scene, advisory: Mapping[str, str], through: Collection[str]) -> bool | None:
    """Whether the engine lets it through; None if nobody says so."""
    if name := advisory.get(DIALECT.key):
        return scene.open.get(name)
    if DIALECT.key not in through:
        return False
    version = scene.done("GET", "/1.0", None, "")["environment"]["server_version"]
    return True if version == KNOWN[DIALECT.key] else None


def not_said(what: object, is_through: bool) -> NoReturn:
    """What nobody says of this version must not look as if it were refused."""
    if is_through:
        pytest.xfail(f"{DIALECT.name} lets it through here: {what}")
    pytest.skip("refused here, of which nobody says that it is")


# --- The tests ----------------------------------------------------------------------------------


def test_podyd_does_not_open_the_unix_socket(node: Node, server: Server, alice: Client) -> None:
    alice.get("/host/images").ok
    links = []
    for path in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # It has been closed since it was listed.
            links.append(path.readlink())
    assert links
    inodes = {str(link)[8:-1] for link in links if str(link).startswith("socket:[")}
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    paths = [line.split()[7:] for line in lines if line.split()[6] in inodes]
    assert not [path for path in paths if path and lab.ENGINE.key in path[0]]
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    assert "\nUid:\t0" not in status
    assert "\nCapEff:\t0000000000000000\n" in status


def test_the_certificate_works(scene: Scene) -> None:
    assert scene.intruder.call("GET", "/1.0")["metadata"]["auth"] == "trusted"
    made = scene.intruder.call("POST", "/1.0/instances", _instance())
    scene.undo()
    assert not error_of(made)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_engine_refuses(scene: Scene, row: Row, request: pytest.FixtureRequest) -> None:
    if DIALECT.key not in row.on:
        pytest.skip(f"{DIALECT.name} has no such thing")
    if row.path.startswith(IMAGE):
        scene.words["common"] = request.getfixturevalue("common")
    wanted = expected(scene, row.advisory, row.through)
    error = scene.try_row(row)
    is_through = not error or (scene.host / "written").exists()
    if is_through:
        scene.undo()
    if wanted is None:
        not_said(row, is_through)
    assert is_through == wanted, error
    assert is_through or error == "not shown" or row.says.search(error), error
    if row.admin is not None:
        scene.done(*scene.with_words(row.admin))
        scene.undo()


# What each image has that is no file of its own; {host} is a directory with a secret.
LINKS: Mapping[
    str, tuple[Callable[[str], tuple[bytes, Mapping[str, str]]], str, Mapping[str, str]]
] = {
    "metadata.yaml": (
        lambda host: (image("evil", ("metadata.yaml", f"{host}/meta")), OCTETS),
        "metadata",
        holes("CVE-2026-63293", "CVE-2026-63343"),
    ),
    "templates": (
        lambda host: (image("evil", ("templates", host)), OCTETS),
        "metadata/templates?path=hostname",
        holes("CVE-2026-48752"),
    ),
    "rootfs": (
        lambda host: split_image("evil", ("rootfs", host)),
        "files?path=/hostname",
        holes("CVE-2026-48749"),
    ),
    # It is written as the pod is made.
    "backup.yaml": (
        lambda host: (image("evil", ("backup.yaml", f"{host}/written")), OCTETS),
        "",
        holes("CVE-2026-63294", "CVE-2026-63125"),
    ),
}


@pytest.mark.parametrize("name", LINKS)
def test_an_image_with_a_link_to_the_host(scene: Scene, name: str) -> None:
    make, question, advisory = LINKS[name]
    wanted = expected(scene, advisory, ())
    body, headers = make(str(scene.host))
    imported = scene.intruder.call("POST", "/1.0/images", body, headers=headers)
    answers = [imported]
    try:
        if not error_of(imported):
            source = {
                "type": "image",
                "fingerprint": imported["metadata"]["metadata"]["fingerprint"],
            }
            made = _instance(source=source)
            answers.append(scene.intruder.call("POST", "/1.0/instances", made))
            answers.append(scene.intruder.call("GET", f"/1.0/instances/evil/{question}"))
        is_through = "SECRET-OF-HOST" in str(answers) or (scene.host / "written").exists()
    finally:
        scene.undo()
        if not error_of(imported):
            fingerprint = imported["metadata"]["metadata"]["fingerprint"]
            scene.intruder.call("DELETE", f"/1.0/images/{fingerprint}")
    if wanted is None:
        not_said(f"an image with a link as {name}", is_through)
    assert is_through == wanted, answers


PRIVILEGED: Json = {"config": {"security.privileged": "true"}}
BACKUPS: Mapping[str, tuple[Json, Json, Mapping[str, str]]] = {
    "security.privileged": (PRIVILEGED, None, holes("CVE-2026-34178")),
    "raw.lxc": ({"config": {"raw.lxc": "lxc.environment=X=1"}}, None, holes("CVE-2026-34178")),
    "a disk /": (
        {"devices": {"evil": {"type": "disk", "source": "/", "path": "/mnt"}}},
        None,
        holes("CVE-2026-34178"),
    ),
    # Which is then restored. Incus' restricted projects take no backup at all.
    "a privileged snapshot": ({}, PRIVILEGED, {LXD: "CVE-2026-48751"}),
}


@pytest.mark.parametrize("what", BACKUPS)
def test_a_backup_with_what_the_project_forbids(scene: Scene, what: str) -> None:
    given, snapshot, advisory = BACKUPS[what]
    wanted = expected(scene, advisory, ())
    body = backup(scene, given, snapshot)
    answers = [scene.intruder.call("POST", "/1.0/instances", body, headers=OCTETS)]
    try:
        if snapshot is not None and not error_of(answers[0]):
            restoring = {"restore": "s0"}
            answers.append(scene.intruder.call("PUT", "/1.0/instances/evil", restoring))
        there = scene.admin("GET", "/1.0/instances/evil")
        item = there["metadata"] or {"config": {}, "devices": {}}
        forbidden = {"security.privileged", "raw.lxc"}.intersection(item["config"])
        is_through = bool(forbidden) or "evil" in item["devices"]
    finally:
        scene.undo()
    if wanted is None:
        not_said(f"a backup with {what}", is_through)
    assert is_through == wanted, answers
    # Root may import it where nothing is forbidden.
    beside = scene.words["next"]
    profiled = {"name": "podyd-base", "config": {}, "devices": {}}
    scene.done("POST", "/1.0/profiles", profiled, beside)
    try:
        scene.done("POST", "/1.0/instances", body, beside, **OCTETS)
    finally:
        scene.undo()
        scene.admin("DELETE", "/1.0/profiles/podyd-base", None, beside)


def test_doctor_says_of_each_hole_what_it_means() -> None:
    """What lets somebody through here is in doctor's table, as reaching the host or projects."""
    reach = {item.id: item.reach for item in load().advisories if item.product == DIALECT.key}
    used = [row.advisory for row in TABLE]
    used += [item[2] for item in (*LINKS.values(), *BACKUPS.values())]
    names = {advisory[DIALECT.key] for advisory in used if DIALECT.key in advisory}
    assert names
    assert {reach[name] for name in names} <= {Reach.HOST, Reach.PROJECTS}
