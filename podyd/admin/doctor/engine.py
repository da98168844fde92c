"""The engine: that it runs, has what pods need, and restricts podyd to its project."""

from __future__ import annotations

import asyncio
import fnmatch
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from podyd.admin.doctor.case import Case
from podyd.admin.doctor.finding import AS_ROOT, Remark, check, error, note, ok, warning
from podyd.admin.setup import fingerprint, free_network, openings
from podyd.base.engine_words import ENGINE
from podyd.base.errors import EngineRefused, SetupError, Unavailable
from podyd.config.schema import Config
from podyd.engine import profile_files
from podyd.engine.admin import Admin, Bridge, project_config
from podyd.engine.dialect import place_of
from podyd.engine.rest import Credentials, RestClient
from podyd.engine.server import RestServer
from podyd.model.pod import OWNER, is_half_made

# Each of these gives a pod access to the host, and is blocked by default.
OPENING_KEYS = (
    "restricted.containers.lowlevel",
    "restricted.containers.privilege",
    "restricted.devices.proxy",
    "restricted.devices.unix-block",
    "restricted.devices.unix-char",
)


# How long the engine may take to copy a disk, and then to make an image of it.
MAKING = timedelta(hours=1)


@check
def engine_answers(case: Case, timeout: float) -> Iterator[Remark]:
    """The engine runs."""
    try:
        place = place_of(case.dialect)
    except SetupError as problem:
        yield error(str(problem), "")
        return
    socket = place.socket
    if not os.access(socket, os.W_OK):
        yield note(
            f"This account may not ask {ENGINE} at {socket}: its project, profiles, certificates,"
            " images and pods are not looked at.",
            AS_ROOT,
        )
        return
    try:
        version = Admin(case.dialect, "default", timeout, place).server().version
    except SetupError as problem:
        restart = f"systemctl restart {place.unit}; journalctl -u {place.unit}"
        yield error(str(problem), restart)
        return
    yield ok(f"{ENGINE} {version} answers at {socket}.")


@check
def engine_pool(admin: Admin, case: Case) -> Iterator[Remark]:
    """There is a storage pool."""
    pools = admin.pools()
    if not pools:
        yield error(f"{ENGINE} has no storage pool, so pods have no disk.", case.podyd("setup"))
    for pool in pools:
        if pool.status != "Created":
            yield error(
                f"Storage pool {pool.name} cannot be used: {ENGINE} calls it {pool.status}.",
                f"{ENGINE.command} storage show {pool.name}",
            )
    yield ok(f"Storage pools: {', '.join(pool.name for pool in pools)}.")


@check
def engine_bridge(admin: Admin, case: Case) -> Iterator[Remark]:
    """There is a bridge."""
    bridges = admin.bridges()
    if bridges:
        yield ok(f"Bridges: {', '.join(bridge.name for bridge in bridges)}.")
    else:
        yield error(f"{ENGINE} manages no bridge, so pods have no network.", case.podyd("setup"))


@check
def pod_addresses(admin: Admin, case: Case) -> Iterator[Remark]:
    """The bridges that profiles give to pods give IPv4 addresses to these."""
    used = {
        device.get("parent") or device.get("network")
        for profile in admin.profiles()
        if profile.name in _named(case.config)
        for device in profile.devices.values()
        if device.get("type") == "nic"
    }
    # One that the engine does not manage is the admin's own, and so is what gives out addresses
    # there.
    yield from about_addresses([bridge for bridge in admin.bridges() if bridge.name in used])


def about_addresses(bridges: Sequence[Bridge]) -> Iterator[Remark]:
    """The same for these bridges."""
    for bridge in bridges:
        if not bridge.address:
            network = free_network()
            address = f"{next(network.hosts())}/{network.prefixlen}"
            yield error(
                f"Bridge {bridge.name} has no IPv4 address, so pods have none either: no port is"
                " forwarded to them, and they have no network.",
                f"{ENGINE.command} network set {bridge.name} ipv4.address={address}"
                " ipv4.nat=true, and restart"
                " the pods",
            )
        elif not bridge.has_dhcp:
            yield error(
                f"Bridge {bridge.name} gives pods no IPv4 addresses (ipv4.dhcp=false): no port"
                " is forwarded to them, and they have no network.",
                f"{ENGINE.command} network unset {bridge.name} ipv4.dhcp, and restart the pods",
            )
    yield ok("Pods get IPv4 addresses.")


@check
def engine_project(admin: Admin, case: Case) -> Iterator[Remark]:
    """The project exists and is as restricted as setup makes it."""
    config = admin.project_config()
    if config is None:
        yield error(f"{ENGINE} has no project {case.project}.", case.podyd("setup"))
        return
    if config.get("restricted") != "true":
        yield error(
            f"Project {case.project} is not restricted: who breaks into podyd is root on this"
            " host.",
            case.podyd("setup"),
        )
    shipped = project_config(case.dialect)
    opened = openings(case.config)
    opened |= admin.openings_in_use(opened.paths)
    for key, wanted in (shipped | opened.config()).items():
        value = config.get(key, "")
        if value != wanted and key != "restricted":
            yield warning(
                f"Project {case.project} has {key}={value or 'none'}, and not"
                f" {wanted or 'none'}, as setup makes it.",
                case.podyd("setup"),
            )
    if not config.get("restricted.networks.access"):
        yield warning(
            f"Project {case.project} does not say which networks pods may have"
            " (restricted.networks.access): who breaks into podyd can take the host's own.",
            case.podyd("setup"),
        )
    for key in OPENING_KEYS:
        if config.get(key) == "allow" and key not in shipped:
            yield warning(
                f"Project {case.project} has {key}=allow, with which who breaks into podyd can"
                " reach the host.",
                f"{ENGINE.command} project unset {case.project} {key}",
            )
    yield ok(f"Project {case.project} is restricted.")


@check
def engine_profiles(admin: Admin, case: Case) -> Iterator[Remark]:
    """The profiles that podyd.yaml names are in the project."""
    existing = {profile.name for profile in admin.profiles()}
    wanted = _named(case.config)
    for name in wanted:
        if name not in existing:
            yield error(
                f"{case.path.name} gives pods the profile {name}, which project {case.project}"
                " does not have.",
                _how_to_have(name, case),
            )
    yield ok(f"Profiles: {', '.join(wanted)}.")


def _named(config: Config) -> list[str]:
    pods = config.pods
    lists = [pods.profiles, *pods.group_profiles.values(), *pods.user_profiles.values()]
    return list(dict.fromkeys(name for names in lists for name in names))


def _how_to_have(name: str, case: Case) -> str:
    if name in profile_files.shipped():
        return case.podyd("setup")
    if (case.places.admin_profiles / f"{name}.yaml").exists():
        return case.podyd(f"profiles apply {name}")
    return case.in_project(f"profile create {name}")


@check
def engine_images(admin: Admin, case: Case) -> Iterator[Remark]:
    """There is an image that members may use."""
    aliases = admin.image_aliases(without=OWNER)
    patterns = case.config.images.offer
    offered = [
        alias
        for alias in aliases
        if any(fnmatch.fnmatchcase(alias, pattern) for pattern in patterns)
    ]
    if offered:
        yield ok(f"Images: {', '.join(offered)}.")
    elif aliases:
        yield warning(
            f"No image is offered: 'images.offer' ({', '.join(patterns)}) fits none of"
            f" {', '.join(aliases)}.",
            f"edit {case.path}, then: systemctl reload podyd",
        )
    else:
        yield warning(
            f"{ENGINE} has no image that has a name, so no pod can be made.",
            f"{case.podyd('image build')}, or {case.dialect.copy_image(case.project)}",
        )


@check
def engine_address(admin: Admin, case: Case) -> Iterator[Remark]:
    """The engine listens where podyd can reach it."""
    address = admin.server().address
    if address:
        yield ok(f"{ENGINE} listens at {address}.")
    elif case.config.lxd.endpoint == "auto":
        yield error(
            f"{ENGINE} does not listen (core.https_address is empty), so podyd cannot reach it.",
            case.podyd("setup"),
        )


def _credentials(case: Case) -> Credentials:
    return Credentials.below(case.config.state_dir, case.dialect)


def _missing(paths: Sequence[Path]) -> list[Path]:
    """The paths that do not exist. Raises PermissionError if that cannot be checked."""
    missing = []
    for path in paths:
        try:
            path.stat()
        except FileNotFoundError:
            missing.append(path)
    return missing


@check
def certificate_files(case: Case) -> Iterator[Remark]:
    """podyd's certificate and key exist, and no other account may read the key or change them."""
    credentials = _credentials(case)
    paths = (credentials.certificate, credentials.key, credentials.server_certificate)
    missing = _missing(paths)
    if missing:
        yield error(
            f"podyd cannot reach {ENGINE} without {', '.join(map(str, missing))}.",
            case.podyd("setup"),
        )
    for path in paths:
        if path in missing:
            continue
        mode = path.stat().st_mode
        if path == credentials.key and mode & 0o007:
            yield error(f"Every account may read podyd's key {path}.", f"chmod 640 {path}")
        elif mode & 0o022:
            yield error(f"Others than root may change {path}.", f"chmod 640 {path}")
    yield ok(f"podyd's certificate is in {credentials.directory}.")


@check
def half_made_pods(admin: Admin, case: Case) -> Iterator[Remark]:
    """There are no half-made pods, which would use names and disks that no member sees."""
    for instance in admin.as_podyd_reads_them():
        age = datetime.now(timezone.utc) - instance.created
        if is_half_made(instance) and age > MAKING:
            yield warning(
                f"{instance.name} was left half-made {age / timedelta(hours=1):.0f} hours ago: it"
                " holds its name and its disk, and no member sees it; podyd's log says why"
                f" {ENGINE} does not delete it.",
                case.in_project(f"delete --force {instance.name}"),
            )
    yield ok("Nothing half-made is left.")


@check
def certificate_trust(admin: Admin, case: Case) -> Iterator[Remark]:
    """The engine trusts podyd's certificate, and restricts it to podyd's project."""
    path = _credentials(case).certificate
    if _missing([path]):
        return
    trust = admin.trust(fingerprint(path.read_text(encoding="ascii")))
    if trust is None:
        yield error(f"{ENGINE} does not trust podyd's certificate {path}.", case.podyd("setup"))
    elif not trust.restricted:
        yield error(
            f"{ENGINE} lets podyd's certificate do everything: who breaks into podyd is root on"
            " this host.",
            case.podyd("setup"),
        )
    elif trust.projects != (case.project,):
        yield error(
            f"{ENGINE} lets podyd's certificate into {_projects(trust.projects)}, and it belongs in"
            f" {case.project} alone.",
            case.podyd("setup"),
        )
    else:
        yield ok(f"{ENGINE} confines podyd's certificate to project {case.project}.")


def _projects(names: tuple[str, ...]) -> str:
    return f"project {', '.join(names)}" if names else "no project"


@check
def certificate_works(case: Case) -> Iterator[Remark]:
    """The service's connection to the engine works from end to end."""
    credentials = _credentials(case)
    endpoint = case.config.lxd.endpoint
    if _missing([credentials.certificate, credentials.key, credentials.server_certificate]):
        return
    if endpoint == "auto":
        if _missing([credentials.endpoint]):
            yield error(
                f"{ENGINE}'s address is not in {credentials.endpoint}, so podyd cannot reach it.",
                case.podyd("setup"),
            )
            return
        endpoint = credentials.endpoint.read_text(encoding="ascii").strip()
    try:
        is_trusted = asyncio.run(_is_trusted(endpoint, case.project, credentials))
    except (Unavailable, EngineRefused) as problem:
        yield error(f"podyd does not reach {ENGINE} at {endpoint}: {problem}", case.podyd("setup"))
        return
    if is_trusted:
        yield ok(f"podyd reaches {ENGINE} at {endpoint}.")
    else:
        yield error(f"{ENGINE} at {endpoint} does not let podyd in.", case.podyd("setup"))


async def _is_trusted(endpoint: str, project: str, credentials: Credentials) -> bool:
    client = RestClient(endpoint, project, credentials)
    try:
        return await RestServer(client).trusts_podyd()
    finally:
        client.close()
