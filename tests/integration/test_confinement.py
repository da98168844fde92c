"""What podyd's certificate cannot do: what somebody has who breaks into podyd, on each engine.

A row of the table is one request. The engine refuses it, or it is known to let it through: by a
hole that has an advisory, which `podyd doctor` reports where it is open, or by its design;
docs/security.md says what that means. Whether an advisory's hole is open is asked of doctor's table
(data/advisories.yaml), so this tests that table too.

A refusal counts if it is for the restriction: its words say so, and the row's controls show that
the engine finds nothing else wrong with the request. Nothing here is started, and nothing is
written but into a directory, projects, an image, a pool and networks of the test's own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import shutil
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
from cryptography.x509 import Certificate

from podyd.admin.advisories import Installed, Reach, load, older
from tests.certificates import self_signed
from tests.integration.harness import (
    DIALECT,
    SMALL,
    Client,
    Node,
    installed_engine,
    open_holes,
    wait_until,
)
from tests.integration.small import packed
from tests.lab import lab

Json = Any
LXD, INCUS = "lxd", "incus"
# The versions of which this says what is let through by design, and which list is refused; another
# one may refuse that, and show nothing in this.
KNOWN = {LXD: "5.0.2", INCUS: "6.0.4"}
# What 6.0.4-2+deb13u7 lets through, and this one does not.
CLOSED = "6.0.4-2+deb13u12"
# An engine's words for "not you", of whatever is not in podyd's project.
RIGHTS = (
    "^not authorized$|^Certificate is restricted$"
    '|^User does not have permissions? for project "({next}|default)"$'
)
NOT_SHOWN = "not shown"
OCTETS = {"Content-Type": "application/octet-stream"}


def holes(lxd: str = "", incus: str = "") -> Mapping[str, str]:
    """The advisory by which each engine lets a row through; one alone is the same for both."""
    return {LXD: lxd, INCUS: incus or lxd}


@dataclass(frozen=True)
class Ask:
    """A request by root, or by the intruder, that the engine must take; {words} in it stand for
    what the scene has. `says` is what may be in its way all the same, and is nobody's right."""

    method: str
    path: str
    body: Json = None
    project: str = "{own}"
    by_root: bool = True
    says: str = ""


@dataclass(frozen=True)
class Row:
    """A request of the intruder's; {words} in it stand for what the scene has.

    It is let through if the engine does it and, with `shows`, the answer has that. `says` has the
    engine's words for why not, as a pattern; `controls` show that nothing else is wrong with the
    request: the same one by root, unless the row has others.
    """

    what: str
    method: str
    path: str
    body: Json = None
    project: str = "{own}"
    shows: str = ""
    advisory: Mapping[str, str] = field(default_factory=dict)
    # Engines that let it through by design, and the first of Debian's packages of that version that
    # is known to refuse it.
    through: Collection[str] = ()
    until: str = ""
    on: Collection[str] = (LXD, INCUS)
    # Whether an engine of another version than those may answer, and show nothing of it.
    or_unseen: bool = False
    says: str | Mapping[str, str] = RIGHTS
    controls: Sequence[Ask] | None = None

    def __str__(self) -> str:
        return self.what


def _instance(**changes: Json) -> Json:
    return {"name": "evil", "source": {"type": "none"}, "profiles": ["podyd-base"], **changes}


def profile(**changes: Json) -> Sequence[Ask]:
    """In a project without restrictions, a profile may have it."""
    return (Ask("POST", "/1.0/profiles", {"name": "evil", **changes}, "{next}"),)


def there(path: str, project: str = "{next}", says: str = "") -> Sequence[Ask]:
    """What the request is about is there, where doing the same would change too much."""
    return (Ask("GET", path, None, project, says=says),)


def config(key: str, value: str = "true", good: str = "", **kwargs: Any) -> Row:
    """A pod with this key; a profile may have it elsewhere, and `good` where `value` never is."""
    kwargs = {"says": f'"{re.escape(key)}" .*forbidden', **kwargs}
    control = profile(config={key: good or value})
    body = _instance(config={key: value})
    what = f"{key}={value!r}"
    return replace(Row(what, "POST", "/1.0/instances", body, controls=control), **kwargs)


FORBIDDEN = {
    "disk": "Attaching disks not backed by a pool is forbidden",
    "unix-char": "Unix character devices are forbidden",
    "unix-block": "Unix block devices are forbidden",
    "unix-hotplug": "Unix hotplug devices are forbidden",
    "usb": "USB devices are forbidden",
    "pci": "PCI devices are forbidden",
    "infiniband": "Infiniband devices are forbidden",
    "proxy": "Proxy devices are forbidden",
    "nic": "Network not allowed in project",
}


def device(**given: Any) -> Row:
    """A pod with this device."""
    words = {key: given.pop(key) for key in ("through", "says") if key in given}
    body = _instance(devices={"evil": given})
    what = " ".join(f"{key}={value}" for key, value in given.items())
    says = f'Invalid device "evil" on .*: {FORBIDDEN[given["type"]]}$'
    control = profile(devices={"evil": given})
    row = Row(what, "POST", "/1.0/instances", body, says=says, controls=control)
    return replace(row, **words)


def reading(path: str, **kwargs: Any) -> Row:
    """What belongs to the project beside podyd's."""
    return Row(f"read {path} of another project", "GET", path, None, "{next}", **kwargs)


def unseen(path: str, shows: str = "", **kwargs: Any) -> Row:
    """A list of what belongs there, of which root sees `shows`; else any of it counts.

    Since 6.21 Incus refuses none, and leaves out what a certificate may not see (lxc/incus#2824).
    """
    return reading(path, shows=shows or f"{path}/", or_unseen=True, **kwargs)


def changing(method: str, path: str, body: Json = None, *more: Ask, **kwargs: Any) -> Row:
    """A change in the project beside podyd's; after it, root does `more`."""
    what = f"{method} {path} {json.dumps(body) if body else ''}".strip() + " of another project"
    if more:
        kwargs["controls"] = (Ask(method, path, body, "{next}"), *more)
    return Row(what, method, path, body, "{next}", **kwargs)


def root_beside(method: str, path: str, body: Json = None, **kwargs: Any) -> Ask:
    """What root does in the project beside podyd's."""
    return Ask(method, path, body, "{next}", **kwargs)


def deleting(path: str) -> Row:
    """What belongs to the project beside podyd's, and stays there for other rows."""
    return changing("DELETE", path, controls=there(path))


def listing(path: str, **kwargs: Any) -> Row:
    """A list of all projects, in which those of others must not be, as they are in root's."""
    kwargs = {"shows": "{next}", "says": f"{RIGHTS}|^{NOT_SHOWN}$", **kwargs}
    return Row(f"other projects in {path}", "GET", path, None, "", **kwargs)


def server(method: str, path: str, body: Json = None, project: str = "", **kwargs: Any) -> Row:
    """What belongs to the whole server."""
    what = f"{method} {path} {json.dumps(body) if body else ''}".strip()
    where = f" in {project}" if project else ""
    return Row(f"{what}{where}", method, path, body, project, **kwargs)


VOLUMES = "/1.0/storage-pools/{pool}/volumes/custom"
CERTIFICATE = "/1.0/certificates/{fingerprint}"
INTERCEPT = (
    "bpf",
    "bpf.devices",
    "mknod",
    "mount",
    "mount.shift",
    "sched_setscheduler",
    "setxattr",
)

VIRTUAL: Json = {
    "name": "evil",
    "type": "virtual-machine",
    "config": {"raw.qemu": "-x"},
    "source": {"type": "none"},
}
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
        config(key, value, controls=(root_beside("POST", "/1.0/instances", body),))
        for key, value in (("volatile.idmap.base", "0"), ("volatile.idmap.next", "[]"))
        for body in (_instance(config={key: value}, profiles=["default"]),)
    ),
    config(
        "nvidia.driver.capabilities",
        "compute\nlxc.environment = PODYD_EVIL=1",
        "compute",
        advisory=holes("CVE-2026-63298", "CVE-2026-81498"),
        says="cannot contain line breaks|line breaks? .*nvidia|nvidia.*line break",
    ),
    config(
        "environment.X",
        "1\nlxc.environment = PODYD_EVIL=1",
        "1",
        advisory=holes("CVE-2026-23953"),
        says="Environment variables cannot contain line breaks$",
    ),
    Row(
        "a virtual machine with raw.qemu",
        "POST",
        "/1.0/instances",
        VIRTUAL,
        says='^Reached maximum number of instances of type "virtual-machine" in project "{own}"$',
        # Many hosts can have none at all.
        controls=(
            root_beside("POST", "/1.0/instances", VIRTUAL, says="not supported on this server"),
        ),
    ),
    # What the kernel asks other rights for, and what a pod does to itself.
    config("security.syscalls.deny_default", "false", through=(LXD, INCUS)),
    config("user.user-data", "#cloud-config\n", through=(LXD, INCUS)),
]

BRIDGED: Json = {"type": "nic", "nictype": "bridged", "parent": "{bridge}"}
# What is the project's own, and so not that of another one.
LACKS_VOLUME = 'Invalid device.*|device "evil": Failed loading custom volume: .*not found$'
LACKS_NETWORK = 'Failed to load network "{bridge}" for project "{own}": Network not found$'
DEVICES = [
    device(type="disk", source="/", path="/mnt"),
    device(type="disk", source="/etc", path="/mnt"),
    device(type="disk", source="/srv/../etc", path="/mnt"),
    # A link to /etc.
    device(type="disk", source="{host}/link", path="/mnt"),
    device(type="disk", source="cephfs:a/b", path="/mnt"),
    device(type="disk", pool="{pool}", source="secret", path="/mnt", says=LACKS_VOLUME),
    device(type="unix-char", source="/dev/mem", path="/dev/mem"),
    device(type="unix-char", major="1", minor="1", path="/dev/mem"),
    device(type="unix-block", source="/dev/sda", path="/dev/sda", required="false"),
    device(type="unix-hotplug", vendorid="0000", productid="0000"),
    device(type="usb", vendorid="0000"),
    device(type="pci", address="0000:41:00.0"),
    device(type="infiniband", nictype="physical", parent="ib0"),
    device(type="proxy", bind="instance", listen="tcp:127.0.0.1:8000", connect="unix:{socket}"),
    device(type="proxy", bind="host", listen="tcp:127.0.0.1:8999", connect="tcp:127.0.0.1:80"),
    device(type="proxy", nat="true", listen="tcp:127.0.0.1:8999", connect="tcp:10.0.0.1:80"),
    *(
        device(type="nic", nictype=kind, parent="eth0")
        for kind in ("physical", "bridged", "macvlan", "ipvlan", "sriov", "routed")
    ),
    # Incus' certificates may read the bridge, which is one that the project may use.
    device(type="nic", network="{bridge}", through=(INCUS,), says=LACKS_NETWORK),
    # Without a parent, the project does not compare one.
    device(type="nic", nictype="routed", through=(LXD, INCUS)),
    device(type="nic", nictype="p2p", **{"ipv4.routes": "192.0.2.0/24"}, through=(LXD, INCUS)),
    device(**BRIDGED, **{"ipv4.routes": "192.0.2.0/24"}, through=(LXD, INCUS)),
]

FORBIDDEN_KEYS = {
    "security.privileged": "true",
    "raw.lxc": "lxc.environment=X=1",
    "raw.idmap": "both 0 0",
}
# What is forbidden, by its name, and a change that has it.
CHANGES: Mapping[str, Json] = {
    **{key: {"config": {key: value}} for key, value in FORBIDDEN_KEYS.items()},
    "evil": {"devices": {"evil": {"type": "disk", "source": "/", "path": "/mnt"}}},
}


def existing(path: str, name: str, body: Json) -> Row:
    """A change of what podyd has made, of which the intruder may change other things."""
    says = f'^Failed checking if .* update allowed: .*"{re.escape(name)}".* (is|are) forbidden$'
    harmless = Ask("PATCH", path, {"config": {"user.x": "1"}}, by_root=False)
    what = f"PATCH {path} with {name}"
    return Row(what, "PATCH", path, body, says=says, controls=(*profile(**body), harmless))


EXISTING = [
    *(existing("/1.0/instances/mine", name, body) for name, body in CHANGES.items()),
    *(existing("/1.0/profiles/podyd-base", name, body) for name, body in CHANGES.items()),
    existing("/1.0/profiles/podyd-base", "raw.qemu", {"config": {"raw.qemu": "-x"}}),
]

NOT_RUNNING = "(not|isn't) running$|PID of executing child process$"
OTHERS = [
    unseen("/1.0/instances"),
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
    unseen("/1.0/profiles"),
    reading("/1.0/profiles/secret"),
    # Incus takes the certificate for none at all there.
    unseen(
        "/1.0/images",
        "{image}",
        says={LXD: f"^{NOT_SHOWN}$", INCUS: "^Unauthenticated image queries are only possible"},
    ),
    reading("/1.0/images/{image}", says='^Image "{image}" not found$'),
    reading("/1.0/images/{image}/export", says='^Image "{image}" not found$'),
    reading("/1.0/images/aliases/secret", says="^Image alias not found$"),
    unseen(VOLUMES),
    reading(f"{VOLUMES}/secret"),
    reading(f"{VOLUMES}/secret/snapshots/s0"),
    # Those that the host has besides are no project's.
    unseen("/1.0/networks", "/1.0/networks/{bridge}"),
    unseen("/1.0/network-acls"),
    # An engine that refuses them has none of a project in which nothing runs.
    unseen("/1.0/metrics", "{next}", controls=there("/1.0/metrics")),
    reading("/1.0/projects/{next}"),
    reading("/1.0/projects/{next}/state"),
    *(
        replace(
            unseen(f"/1.0/{kind}"), what=f"read {kind} of the default project", project="default"
        )
        for kind in ("instances", "profiles")
    ),
    # Any certificate of Incus', as it must those of which a project makes use (driver_tls.go).
    Row(
        "read a profile of the default project",
        "GET",
        "/1.0/profiles/default",
        None,
        "default",
        through=(INCUS,),
        until=CLOSED,
    ),
    Row(
        "change a profile of the default project",
        "PATCH",
        "/1.0/profiles/default",
        {"config": {"user.x": "1"}},
        "default",
        controls=there("/1.0/profiles/default", "default"),
    ),
    changing("POST", "/1.0/instances", {"name": "evil", "source": {"type": "none"}}),
    # None that starts or stops it: root's would keep it busy for a while.
    changing(
        "PUT",
        "/1.0/instances/secret/state",
        {"action": "freeze"},
        controls=(
            root_beside(
                "PUT", "/1.0/instances/secret/state", {"action": "freeze"}, says=NOT_RUNNING
            ),
        ),
    ),
    changing(
        "POST",
        "/1.0/instances/secret/exec",
        {"command": ["true"]},
        controls=(
            root_beside(
                "POST",
                "/1.0/instances/secret/exec",
                {"command": ["true"]},
                says=NOT_RUNNING,
            ),
        ),
    ),
    # Incus looks half a minute for what does not run.
    changing(
        "POST",
        "/1.0/instances/secret/console",
        {"type": "console"},
        controls=there("/1.0/instances/secret/state"),
    ),
    changing("PATCH", "/1.0/instances/secret", {"config": {"user.x": "1"}}),
    deleting("/1.0/instances/secret"),
    # What is done to it after root's waits a quarter of a minute.
    changing(
        "POST",
        "/1.0/instances/secret",
        {"name": "evil"},
        controls=there("/1.0/instances/secret"),
    ),
    changing(
        "POST",
        "/1.0/instances/secret",
        {"name": "secret", "migration": True, "project": "{own}"},
        Ask(
            "POST",
            "/1.0/instances/secret",
            {"name": "secret", "migration": True, "project": "{next}"},
        ),
    ),
    changing(
        "POST",
        "/1.0/instances/secret/snapshots",
        {"name": "evil"},
        root_beside("DELETE", "/1.0/instances/secret/snapshots/evil"),
    ),
    changing(
        "POST",
        "/1.0/instances/secret/backups",
        {"name": "evil"},
        root_beside("DELETE", "/1.0/instances/secret/backups/evil"),
    ),
    changing("POST", "/1.0/profiles", {"name": "evil"}),
    changing("PATCH", "/1.0/profiles/secret", {"config": {"user.x": "1"}}),
    deleting("/1.0/profiles/secret"),
    changing(
        "PATCH",
        "/1.0/images/{image}",
        {"public": True},
        root_beside("PATCH", "/1.0/images/{image}", {"public": False}),
    ),
    deleting("/1.0/images/{image}"),
    # Root's would wait until somebody takes the image by it.
    changing("POST", "/1.0/images/{image}/secret", controls=there("/1.0/images/{image}")),
    changing("POST", "/1.0/images/aliases", {"name": "evil", "target": "{image}"}),
    changing("POST", VOLUMES, {"name": "evil"}),
    changing("PATCH", f"{VOLUMES}/secret", {"config": {"user.x": "1"}}),
    changing(
        "POST",
        f"{VOLUMES}/secret",
        {"name": "evil", "pool": "{pool}"},
        root_beside("POST", f"{VOLUMES}/evil", {"name": "secret", "pool": "{pool}"}),
    ),
    changing(
        "POST",
        f"{VOLUMES}/secret/snapshots",
        {"name": "evil"},
        root_beside("DELETE", f"{VOLUMES}/secret/snapshots/evil"),
    ),
    deleting(f"{VOLUMES}/secret"),
    listing("/1.0/instances?all-projects=true&recursion=1"),
    # LXD 5.0 knows no such list.
    listing(
        "/1.0/profiles?all-projects=true&recursion=1",
        through=(INCUS,),
        until=CLOSED,
        on=(INCUS,),
    ),
    listing("/1.0/projects?recursion=1"),
    listing("/1.0/networks?all-projects=true&recursion=1"),
    listing("/1.0/storage-pools/{pool}/volumes?all-projects=true&recursion=1"),
    listing("/1.0/storage-pools/{pool}"),
    listing("/1.0/certificates?recursion=1", through=(LXD, INCUS), shows="{other_certificate}"),
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
    # An image is looked for in the instance's project alone, for root too.
    Row(
        f"an instance of another project's image, by {by}",
        "POST",
        "/1.0/instances",
        _instance(source={"type": "image", "project": "{next}", by: value}),
        says="^Image not provided for instance creation$|^Image alias not found$",
        controls=(
            root_beside(
                "POST", "/1.0/instances", {"name": "evil", "source": {"type": "image", by: value}}
            ),
        ),
    )
    for by, value in (("fingerprint", "{image}"), ("alias", "secret"))
]

NO_OTHER_TYPE = "^The certificate type cannot be changed$"
ITS_CHANGES: Sequence[Json] = (
    {"restricted": False},
    {"projects": []},
    {"projects": ["{own}", "{next}"]},
    {"restricted": False, "projects": []},
)
ANOTHER: Json = {"type": "client", "name": "{own}-evil", "certificate": "{new_certificate}"}
ADDED = (
    Ask("POST", "/1.0/certificates", ANOTHER, ""),
    Ask("DELETE", "/1.0/certificates/{new_fingerprint}", None, ""),
)


def certificate_changes(
    says: str, *bodies: Json, control: Callable[[str, Json], Ask] | None = None
) -> Iterator[Row]:
    """Of its own one."""
    for method in ("PUT", "PATCH"):
        for body in bodies:
            what = f"{method} its certificate with {json.dumps(body)}"
            controls = None if control is None else (control(method, body),)
            yield Row(what, method, CERTIFICATE, body, project="", says=says, controls=controls)


CERTIFICATES = [
    *certificate_changes("^Only the certificate can be changed$", *ITS_CHANGES),
    # Which nobody can.
    *certificate_changes(
        NO_OTHER_TYPE,
        {"type": "server"},
        {"type": "metrics"},
        control=lambda method, body: Ask(method, CERTIFICATE, body, "", says=NO_OTHER_TYPE),
    ),
    server("POST", "/1.0/certificates", ANOTHER, controls=ADDED),
    # Root's would wait until somebody uses it.
    server(
        "POST",
        "/1.0/certificates",
        {"type": "client", "token": True, "name": "evil"},
        controls=ADDED,
    ),
    Row(
        "DELETE another's certificate",
        "DELETE",
        "/1.0/certificates/{other_certificate}",
        project="",
        controls=there("/1.0/certificates/{other_certificate}", ""),
    ),
]

POOL, NETWORK = "/1.0/storage-pools/{pool}", "/1.0/networks/{bridge}"
PROJECT = "/1.0/projects/{own}"
NOT_ITS_NETWORK = f"^Network not allowed in project$|{RIGHTS}"
MACVLAN: Json = {"name": "{link}", "type": "macvlan", "config": {"parent": "{bridge}"}}


def network(kind: str, config: Json, *controls: Ask) -> Row:
    """A new network, which would be the default project's in Incus."""
    body = {"name": "{link}", "type": kind, "config": config}
    says = NOT_ITS_NETWORK
    return server("POST", "/1.0/networks", body, "{own}", says=says, controls=controls)


# In LXD podyd's project has networks of its own, none of which is the bridge.
NO_BRIDGE = {LXD: "^Failed loading network: Network not found$|^not authorized$", INCUS: RIGHTS}
SERVER = [
    server("PATCH", "/1.0", {"config": {"user.x": "1"}}, controls=there("/1.0", "")),
    server(
        "PUT",
        "/1.0/cluster",
        {"server_name": "x", "enabled": False},
        controls=there("/1.0/cluster", ""),
    ),
    server(
        "POST",
        "/1.0/cluster/members",
        {"server_name": "x"},
        controls=(
            Ask("POST", "/1.0/cluster/members", {"server_name": "x"}, "", says="not clustered$"),
        ),
    ),
    server("GET", "/1.0/warnings"),
    server("GET", "/internal/ready"),
    server("POST", "/internal/sql", {"database": "global", "query": "SELECT 1"}),
    server("PUT", PROJECT, {"config": {"restricted": "false"}}),
    server("PATCH", PROJECT, {"config": {"restricted.devices.disk": "allow"}}),
    server(
        "POST",
        PROJECT,
        {"name": "{own}-evil"},
        controls=(
            Ask("POST", PROJECT, {"name": "{own}-evil"}, "", says="^Only empty projects can be"),
        ),
    ),
    server("POST", "/1.0/projects", {"name": "{own}-evil", "config": {}}),
    server(
        "DELETE",
        "/1.0/projects/{next}",
        controls=(Ask("DELETE", "/1.0/projects/{next}", None, "", says="^Only empty projects"),),
    ),
    server("POST", "/1.0/storage-pools", {"name": "{own}-evil", "driver": "dir", "config": {}}),
    server("PATCH", POOL, {"config": {"user.x": "1"}}, controls=there(POOL, "")),
    server("DELETE", POOL, controls=there(POOL, "")),
    # The unpacked form of an image, of whichever project: it is made again at the next create.
    server("DELETE", f"{POOL}/volumes/image/{{image}}", project="{own}", through=(LXD, INCUS)),
    # Root's would be an interface of the host's, and need a card of its own, or OVN.
    network("bridge", {}, *there("/1.0/networks", "default")),
    network("physical", {}, *there("/1.0/networks", "default")),
    network("ovn", {}, *there("/1.0/networks", "default")),
    network("macvlan", MACVLAN["config"], Ask("POST", "/1.0/networks", MACVLAN, "default")),
    *(
        server(
            "PATCH",
            NETWORK,
            {"config": {key: value}},
            project="{own}",
            says=NO_BRIDGE,
            controls=there(NETWORK, "default"),
        )
        for key, value in (
            ("user.x", "1"),
            # dnsmasq runs its `dhcp-script` as root.
            ("raw.dnsmasq", "#"),
            ("bridge.external_interfaces", "eth0"),
        )
    ),
    server("DELETE", NETWORK, project="{own}", says=NO_BRIDGE, controls=there(NETWORK, "default")),
    server(
        "POST",
        f"{NETWORK}/forwards",
        {"listen_address": "192.0.2.1"},
        project="{own}",
        says=NO_BRIDGE,
        controls=there(f"{NETWORK}/forwards", "default"),
    ),
    server(
        "GET",
        NETWORK,
        project="{own}",
        says="^Network not found$",
        through=(INCUS,),
        controls=there(NETWORK, "default"),
    ),
    # Which would be the default project's, had podyd's none of its own.
    server(
        "POST",
        "/1.0/network-zones",
        {"name": "{own}.example"},
        project="{own}",
        says="^Project isn't allowed to use this DNS zone$",
        controls=(Ask("POST", "/1.0/network-zones", {"name": "{own}.example"}, "default"),),
    ),
    # In the default project, where it may not change it: no network has it.
    server(
        "POST",
        "/1.0/network-acls",
        {"name": "{own}"},
        project="{own}",
        through=(INCUS,),
        until=CLOSED,
        on=(INCUS,),
    ),
    server(
        "POST",
        "/1.0/networks",
        MACVLAN,
        project="default",
    ),
    server(
        "PATCH",
        NETWORK,
        {"config": {"user.x": "1"}},
        project="default",
        controls=there(NETWORK, "default"),
    ),
]

# Commands in place of a compression, which would write into the test's own directory. One that does
# not read all of its input would keep the engine from making images until it is restarted.
PACKED: Json = {"source": {"type": "container", "name": "mine"}}
COMPRESSION = [
    Row(
        f"an image compressed by {command}",
        "POST",
        "/1.0/images",
        {**PACKED, "compression_algorithm": f"{command} {{host}}/written"},
        advisory=holes("CVE-2026-28384"),
        says=f'^(Invalid c|C)ompression algorithm ("{command.split()[0]}"|argument .* isn.t allow)',
        controls=(
            Ask("POST", "/1.0/images", {**PACKED, "compression_algorithm": "gzip"}, by_root=False),
        ),
    )
    for command in ("tee", "/usr/bin/tee", "env tee")
] + [
    Row(
        f"a backup of {what}",
        "POST",
        f"{path}/mine/backups",
        {"name": "evil", "compression_algorithm": "tee {host}/written"},
        # The project forbids backups, so that CVE-2026-48755 needs an image.
        says="""^Project "{own}" doesn't allow for backup creation$""",
        controls=(
            root_beside("POST", f"{path}/secret/backups", {"name": "evil"}),
            root_beside("DELETE", f"{path}/secret/backups/evil"),
        ),
    )
    for what, path in (("a pod", "/1.0/instances"), ("a volume", VOLUMES))
]

IMAGE = "/1.0/images/{common}"
NO_IMAGE = '^Image ("{common}" )?not found$'
IMAGES = [
    # LXD's projects of restricted certificates share the images of the default one: podyd's too.
    *(
        Row(
            f"{what} an image of the default project",
            method,
            path,
            body,
            through=(LXD,),
            says=NO_IMAGE,
            controls=there(IMAGE, "default"),
        )
        for what, method, path, body in (
            ("export", "GET", f"{IMAGE}/export", None),
            ("change", "PATCH", IMAGE, {"public": False}),
            ("delete", "DELETE", IMAGE, None),
        )
    ),
    # Incus lets whoever has a certificate read the default project's.
    Row(
        "export it by its project",
        "GET",
        f"{IMAGE}/export",
        None,
        "default",
        through=(INCUS,),
        until=CLOSED,
        says=NO_IMAGE,
    ),
    Row("change it by its project", "PATCH", IMAGE, {"public": False}, "default"),
    Row(
        "delete it by its project",
        "DELETE",
        IMAGE,
        None,
        "default",
        controls=there(IMAGE, "default"),
    ),
]

SNAPSHOTS = "/1.0/instances/mine/snapshots"
WITH_SLASH = "is reserved for snapshots$|Cannot contain slashes$"
NAMES = [
    Row(
        f"{what} named {name!r}",
        "POST",
        path,
        {"name": name, **rest},
        says=says,
        controls=(Ask("POST", path, {"name": "evil", **rest}, by_root=False), *more),
    )
    for what, path, names, rest, more in (
        (
            "a pod",
            "/1.0/instances",
            {
                "..": "Name can only contain alphanumeric and hyphen characters$",
                "../x": WITH_SLASH,
                "a/b": WITH_SLASH,
                "x\ny": "Name can only contain alphanumeric and hyphen characters$",
            },
            {"source": {"type": "none"}, "profiles": ["podyd-base"]},
            (),
        ),
        (
            "a profile",
            "/1.0/profiles",
            {
                "..": "^Invalid profile name",
                "a/b": "^Profile names may not contain slashes$|^Invalid profile name",
            },
            {},
            (),
        ),
        (
            "a volume",
            VOLUMES,
            dict.fromkeys(
                ("../evil", "a/b"),
                "^Storage volume names may not contain slashes$|^Invalid storage volume name",
            ),
            {},
            (),
        ),
        # None with "..": LXD 5.0.2 refuses it, and deletes the directory of its logs for that, with
        # which no command can be run in any pod that runs.
        (
            "a snapshot",
            SNAPSHOTS,
            {"a/b": "^Invalid (instance )?snapshot name.*: (Cannot contain|Name contains)"},
            {},
            (Ask("DELETE", f"{SNAPSHOTS}/evil", by_root=False),),
        ),
    )
    for name, says in names.items()
]

TEMPLATE = "/1.0/instances/mine/metadata/templates?path="
TEMPLATES = [
    Row(
        f"{method} a template {path}",
        method,
        f"{TEMPLATE}{path}",
        says="^Invalid template filename$",
        controls=(
            Ask("POST", f"{TEMPLATE}x.tpl", "x", by_root=False),
            Ask("GET", f"{TEMPLATE}x.tpl", by_root=False),
            Ask("DELETE", f"{TEMPLATE}x.tpl", by_root=False),
        ),
    )
    for method in ("GET", "DELETE")
    for path in ("../../x", "../../../../../../etc/hostname")
] + [
    Row(
        f"read {path} of its own pod",
        "GET",
        f"/1.0/instances/mine/{path}",
        # A newer Incus sends the client on to what such a path is without the dots.
        says=f'og file name "?{re.escape(name)}"? not valid$|^30[1278] ',
        controls=(Ask("GET", "/1.0/instances/mine/logs", by_root=False),),
    )
    for path, name in (("logs/..%2F..%2Fx", "../../x"), ("logs/..", ".."))
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
    answer: Json = None
    with contextlib.suppress(ValueError):
        answer = json.loads(text)
    # A file's contents, or a page that is no answer of the API's.
    if not isinstance(answer, dict):
        kind = "sync" if response.status < 300 else "error"
        error = f"{response.status} {text!r}"
        return {"type": kind, "error": error, "metadata": text.decode("latin-1")}
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


def certificate_words(what: str, made: Certificate) -> Mapping[str, str]:
    """A certificate as the engine is given it, and its fingerprint."""
    given = base64.b64encode(made.public_bytes(Encoding.DER)).decode()
    fingerprint = made.fingerprint(hashes.SHA256()).hex()
    return {f"{what}_certificate": given, f"{what}_fingerprint": fingerprint}


class Scene:
    """A project of podyd's with a pod `mine`, one beside it with a pod `secret`, and a directory of
    the host with a secret."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.host = directory / "host"
        own = f"{node.project}-c{secrets.token_hex(2)}"
        state = node.directory / own
        # The names of what the default project has.
        self.in_default = f"{own}-default"
        self.changes = {"state_dir": str(state), "lxd": {"project": own}}
        node.podyd("setup", "--user", node.account, changes=self.changes)
        self.intruder = Certified(state / DIALECT.key, own)
        self.words = {
            "own": own,
            "next": f"{own}-next",
            "host": str(self.host),
            "socket": node.lab_state.socket,
            "link": f"pt{secrets.token_hex(4)}",
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
            return self.filled(value)
        if isinstance(value, dict):
            return {key: self.with_words(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.with_words(item) for item in value]
        return value

    def filled(self, text: str, write: Callable[[str], str] = str) -> str:
        """A text with the scene's words, each as `write` writes it."""
        for word, value in self.words.items():
            text = text.replace(f"{{{word}}}", write(value))
        return text

    @cached_property
    def driver(self) -> str:
        return str(self.done("GET", f"/1.0/storage-pools/{self.words['pool']}", None, "")["driver"])

    @cached_property
    def is_known(self) -> bool:
        """Whether the table says what this version of the engine does."""
        version = self.done("GET", "/1.0", None, "")["environment"]["server_version"]
        return bool(version == KNOWN[DIALECT.key])

    @cached_property
    def installed(self) -> Installed | None:
        return installed_engine()

    @cached_property
    def open(self) -> Mapping[str, bool | None]:
        return open_holes()

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
        kept = ("type", "name", "certificate", "restricted", "projects")
        found = self.done("GET", self.filled(CERTIFICATE), None, "")
        config = self.done("GET", self.filled(PROJECT), None, "")["config"]
        self.kept = {
            self.filled(CERTIFICATE): {key: found[key] for key in kept},
            self.filled(PROJECT): {"config": config},
        }
        new = self_signed(ec.generate_private_key(ec.SECP256R1()), f"{own}-evil")
        self.words |= certificate_words("new", new)
        features = ("images", "profiles", "storage.volumes")
        body = {"name": beside, "config": {f"features.{name}": "true" for name in features}}
        self.done("POST", "/1.0/projects", body, "")
        self.words["other_certificate"] = self.trust_another()
        bridged = {"type": "nic", "nictype": "bridged", "parent": self.words["bridge"]}
        root = {"root": {"type": "disk", "path": "/", "pool": self.words["pool"]}}
        self.done("PUT", "/1.0/profiles/default", {"config": {}, "devices": root}, beside)
        named = {"name": "secret", "devices": {"eth0": bridged}}
        self.done("POST", "/1.0/profiles", named, beside)
        self.words["image"] = self.import_as_root("secret", beside)
        alias = {"name": "secret", "target": self.words["image"]}
        self.done("POST", "/1.0/images/aliases", alias, beside)
        source = {"type": "image", "fingerprint": self.words["image"]}
        self.done("POST", "/1.0/instances", {"name": "secret", "source": source}, beside)
        self.done("POST", "/1.0/instances/secret/snapshots", {"name": "s0"}, beside)
        volumes = self.with_words(VOLUMES)
        self.done("POST", volumes, {"name": "secret"}, beside)
        self.done("POST", f"{volumes}/secret/snapshots", {"name": "s0"}, beside)
        self.done("POST", "/1.0/network-acls", {"name": self.in_default}, "default")
        stored = {"name": self.in_default, "source": {"type": "none"}, "devices": root}
        self.done("POST", "/1.0/instances", stored, "default")
        copied = {"type": "copy", "project": beside, "source": "secret", "instance_only": True}
        self.done("POST", "/1.0/instances", {**_instance(source=copied), "name": "mine"})
        self.done("POST", volumes, {"name": "mine"})

    def trust_another(self) -> str:
        """The fingerprint of a certificate that is trusted for the other project alone."""
        made = self_signed(ec.generate_private_key(ec.SECP256R1()), self.words["next"])
        words = certificate_words("its", made)
        body = {
            "type": "client",
            "name": self.words["next"],
            "certificate": words["its_certificate"],
            "restricted": True,
            "projects": [self.words["next"]],
        }
        self.done("POST", "/1.0/certificates", body, "")
        return words["its_fingerprint"]

    def import_as_root(self, what: str, project: str) -> str:
        """The fingerprint of a new private image of a project's."""
        body = image(f"{what} of {self.words['own']}")
        return str(
            self.done("POST", "/1.0/images", body, project, **OCTETS)["metadata"]["fingerprint"]
        )

    def whole(self, method: str, path: str, body: Json) -> Json:
        """The body of a request, with all that the engine would else take away."""
        kept = self.kept.get(self.filled(path))
        if kept is None or method not in ("PUT", "PATCH"):
            return self.with_words(body)
        if "config" in kept:
            return {"config": {**kept["config"], **body["config"]}}
        return {**(kept if method == "PUT" else {}), **self.with_words(body)}

    def ask(self, ask: Ask) -> Mapping[str, Any]:
        """What the engine answers."""
        body = self.whole(ask.method, ask.path, ask.body)
        call = self.admin if ask.by_root else self.intruder.call
        return call(ask.method, self.filled(ask.path), body, self.filled(ask.project))

    def try_row(self, row: Row) -> str:
        """Why the engine refuses; "" if it lets it through."""
        asked = Ask(row.method, row.path, row.body, row.project, by_root=False)
        answer = self.ask(asked)
        # A command may have run, and then failed.
        has_written = (self.host / "written").exists()
        error = "" if has_written else error_of(answer)
        if not error:
            self.undo(asked, answer)
            if row.shows and self.filled(row.shows) not in json.dumps(answer):
                return NOT_SHOWN
        return error

    def check(self, row: Row, error: str) -> None:
        """That it was refused for what it asked, and that nothing else is wrong with it."""
        says = row.says if isinstance(row.says, str) else row.says[DIALECT.key]
        if row.or_unseen and not self.is_known:
            says = f"{says}|^{NOT_SHOWN}$"
        assert re.search(self.filled(says, re.escape), error), (says, error)
        controls = row.controls
        if controls is None:
            controls = (Ask(row.method, row.path, row.body, row.project),)
        answers: list[tuple[Ask, Mapping[str, Any]]] = []
        try:
            for control in controls:
                answer = self.ask(control)
                answers.append((control, answer))
                hindrance = error_of(answer)
                known = control.says and re.search(control.says, hindrance)
                assert not hindrance or known, (control, hindrance)
                if row.shows and (row.controls is None or error == NOT_SHOWN):
                    assert self.filled(row.shows) in json.dumps(answer)
        finally:
            for control, answer in reversed(answers):
                self.undo(control, answer)

    def undo(self, asked: Ask, answer: Mapping[str, Any]) -> None:
        """What a request has made or changed."""
        (self.host / "written").unlink(missing_ok=True)
        if error_of(answer):
            return
        path, body = self.filled(asked.path), self.with_words(asked.body)
        if path in self.kept and asked.method in ("PUT", "PATCH"):
            self.done("PUT", path, self.kept[path], "")
        if asked.method != "POST":
            return
        if path == "/1.0/images":
            fingerprint = answer["metadata"]["metadata"]["fingerprint"]
            self.admin("DELETE", f"{path}/{fingerprint}")
        elif isinstance(body, dict) and re.fullmatch(r"\w[\w.-]*", body.get("name", "")):
            self.admin("DELETE", f"{path}/{body['name']}", None, self.filled(asked.project))

    def remove_evil(self) -> None:
        """The intruder's pod."""
        self.admin("DELETE", "/1.0/instances/evil")
        (self.host / "written").unlink(missing_ok=True)

    def close(self) -> None:
        for kind in ("instances", "network-acls"):
            self.admin("DELETE", f"/1.0/{kind}/{self.in_default}", None, "default")
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


def expected(
    scene: Scene, advisory: Mapping[str, str], through: Collection[str] = (), until: str = ""
) -> bool | None:
    """Whether the engine lets it through; None if nobody says so."""
    if name := advisory.get(DIALECT.key):
        return scene.open.get(name)
    if DIALECT.key not in through:
        return False
    if not scene.is_known:
        return None
    return not (until and scene.installed and not older(scene.installed.version, until))


def not_said(what: object, is_through: bool) -> NoReturn:
    """What nobody says of this version must not look as if it were refused."""
    if is_through:
        pytest.xfail(f"{DIALECT.name} lets it through here: {what}")
    pytest.skip("refused here, of which nobody says that it is")


# --- The tests ----------------------------------------------------------------------------------


def test_podyd_does_not_open_the_unix_socket(node: Node) -> None:
    """From its start on: what podyd and its children connect to, also where they may not."""
    log = node.directory / f"connects-{secrets.token_hex(3)}"
    log.touch()
    shutil.chown(log, node.account)
    # With -D, podyd is the process that was started, and strace is one beside it.
    watch = ("strace", "-D", "-f", "--seccomp-bpf", "-q", "-e", "trace=connect", "-o", str(log))
    server = node.serve(prefix=watch)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    member = server.client(node.accounts.user())
    member.post("/pod/create", ins="seen", image=SMALL).ok
    member.exec("seen", "true")
    member.post("/pod/delete", ins="seen").ok
    assert server.stop() == 0
    end = re.compile(rf"^{server.process.pid} +\+\+\+ exited", re.MULTILINE)
    wait_until(lambda: bool(end.search(log.read_text())), "the end of strace's log")
    seen = log.read_text()
    # What it does connect to is there: the helper, and the engine by TLS.
    assert f'sun_path="{node.base["auth"]["socket"]}"' in seen
    port = urlsplit((node.credentials / "endpoint").read_text().strip()).port
    assert f"sin_port=htons({port})" in seen
    assert Path(node.lab_state.socket).name not in seen
    assert "\nUid:\t0" not in status
    assert "\nCapEff:\t0000000000000000\n" in status


def test_the_certificate_works(scene: Scene) -> None:
    assert scene.intruder.call("GET", "/1.0")["metadata"]["auth"] == "trusted"
    made = scene.intruder.call("POST", "/1.0/instances", _instance())
    scene.remove_evil()
    assert not error_of(made)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_engine_refuses(scene: Scene, row: Row, request: pytest.FixtureRequest) -> None:
    if DIALECT.key not in row.on:
        pytest.skip(f"{DIALECT.name} has no such thing")
    if row.path.startswith(IMAGE):
        scene.words["common"] = request.getfixturevalue("common")
    wanted = expected(scene, row.advisory, row.through, row.until)
    error = scene.try_row(row)
    if wanted is None:
        not_said(row, not error)
    assert (not error) == wanted, error
    if error:
        scene.check(row, error)


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


def made_of(scene: Scene, body: bytes, headers: Mapping[str, str], question: str) -> Sequence[Json]:
    """What the engine says to an image of the intruder's, a pod of it, and a look into that."""
    imported = scene.intruder.call("POST", "/1.0/images", body, headers=headers)
    if error_of(imported):
        return [imported]
    fingerprint = imported["metadata"]["metadata"]["fingerprint"]
    try:
        made = _instance(source={"type": "image", "fingerprint": fingerprint})
        return [
            imported,
            scene.intruder.call("POST", "/1.0/instances", made),
            scene.intruder.call("GET", f"/1.0/instances/evil/{question}"),
        ]
    finally:
        scene.admin("DELETE", "/1.0/instances/evil")
        scene.intruder.call("DELETE", f"/1.0/images/{fingerprint}")


@pytest.mark.parametrize("name", LINKS)
def test_an_image_with_a_link_to_the_host(scene: Scene, name: str) -> None:
    make, question, advisory = LINKS[name]
    wanted = expected(scene, advisory)
    answers = made_of(scene, *make(str(scene.host)), question)
    is_through = "SECRET-OF-HOST" in str(answers) or (scene.host / "written").exists()
    (scene.host / "written").unlink(missing_ok=True)
    if wanted is None:
        not_said(f"an image with a link as {name}", is_through)
    assert is_through == wanted, answers
    # Without the link, the engine takes such an image.
    plain = split_image("plain") if name == "rootfs" else (image("plain"), OCTETS)
    assert not any(map(error_of, made_of(scene, *plain, "state")))


PRIVILEGED: Json = {"config": {"security.privileged": "true"}}
BACKUPS: Mapping[str, tuple[Json, Json, Mapping[str, str]]] = {
    "security.privileged": (PRIVILEGED, None, holes("CVE-2026-34178")),
    "raw.lxc": ({"config": {"raw.lxc": "lxc.environment=X=1"}}, None, holes("CVE-2026-34178")),
    "a disk /": (
        {"devices": {"evil": {"type": "disk", "source": "/", "path": "/mnt"}}},
        None,
        holes("CVE-2026-34178"),
    ),
    # Which is then restored.
    "a privileged snapshot": ({}, PRIVILEGED, {LXD: "CVE-2026-48751"}),
}


@pytest.mark.parametrize("what", BACKUPS)
def test_a_backup_with_what_the_project_forbids(scene: Scene, what: str) -> None:
    given, snapshot, advisory = BACKUPS[what]
    wanted = expected(scene, advisory)
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
        scene.remove_evil()
    if wanted is None:
        not_said(f"a backup with {what}", is_through)
    assert is_through == wanted, answers
    if not is_through:
        # Incus' restricted projects take no backup at all, for keys that each has.
        assert re.search("(is|are) forbidden$", error_of(answers[-1])), answers
    # Root may import it where nothing is forbidden.
    beside = scene.words["next"]
    profiled = {"name": "podyd-base", "config": {}, "devices": {}}
    scene.done("POST", "/1.0/profiles", profiled, beside)
    try:
        scene.done("POST", "/1.0/instances", body, beside, **OCTETS)
    finally:
        scene.admin("DELETE", "/1.0/instances/evil", None, beside)
        scene.admin("DELETE", "/1.0/profiles/podyd-base", None, beside)


def test_doctor_says_of_each_hole_what_it_means() -> None:
    """What lets somebody through here is in doctor's table, as reaching the host or projects."""
    reach = {item.id: item.reach for item in load().advisories if item.product == DIALECT.key}
    used = [row.advisory for row in TABLE]
    used += [item[2] for item in (*LINKS.values(), *BACKUPS.values())]
    names = {advisory[DIALECT.key] for advisory in used if DIALECT.key in advisory}
    assert names
    assert {reach[name] for name in names} <= {Reach.HOST, Reach.PROJECTS}


LINE = "x\nlxc.environment = PODYD_EVIL=1"
NOT_TAKEN, NOT_KNOWN, NO_IMAGE_SO, NO_POD_SO = (
    (400, "malformed_parameter"),
    (400, "unknown_parameter"),
    (404, "no_such_image"),
    (404, "no_such_pod"),
)
# What a member may send in the hope that it reaches the engine, and podyd's own refusal. Of every
# parameter, tests/unit/contract/test_handed_on.py says what it takes.
HANDED: Sequence[tuple[str, Mapping[str, str], tuple[int, str]]] = [
    *(
        ("/pod/create", {"ins": "evil", "image": name}, NO_IMAGE_SO)
        for name in ("secret", "{image}", "{next}/secret", "secret?project={next}", LINE)
    ),
    *(
        ("/pod/create", {"ins": "evil", "image": SMALL, name: value}, NOT_KNOWN)
        for name, value in (
            ("nvidia.driver.capabilities", LINE),
            ("config", LINE),
            ("devices", "{}"),
            ("profiles", "default"),
            ("source", "secret"),
            ("project", "{next}"),
            ("type", "virtual-machine"),
        )
    ),
    ("/pod/create", {"ins": "evil", "image": SMALL, "gpus": LINE}, NOT_TAKEN),
    ("/pod/copy", {"ins": "secret", "to": "evil"}, NO_POD_SO),
    ("/pod/copy", {"ins": "{next}_secret", "to": "evil"}, NO_POD_SO),
    ("/pod/copy", {"ins": "{next}/secret", "to": "evil"}, NOT_TAKEN),
    ("/pod/copy", {"ins": "mine", "to": "evil", "snapshot": "../s0"}, NOT_TAKEN),
    ("/pod/copy", {"ins": "mine", "to": "evil", "project": "{next}"}, NOT_KNOWN),
    ("/pod/commit", {"ins": "mine", "compression_algorithm": "zstd -o x"}, NOT_KNOWN),
    ("/pod/commit", {"ins": "mine", "tag": LINE}, NOT_TAKEN),
    ("/pod/limits", {"ins": "mine", "memory": f"1GiB\n{LINE}"}, NOT_TAKEN),
    ("/image/delete", {"image": "secret"}, NO_IMAGE_SO),
    ("/image/delete", {"image": "{image}"}, NO_IMAGE_SO),
]


def test_podyd_hands_on_nothing_of_it(scene: Scene, alice: Client) -> None:
    """What the engine lets through by an advisory, podyd does not take from a member."""
    there = alice.get("/pod/list").ok
    for path, params, refusal in HANDED:
        alice.post(path, **scene.with_words(dict(params))).refused(*refusal)
    assert alice.get("/pod/list").ok == there
