"""GPUs in pods and profiles: that the cards exist, and that the driver is the current one."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from podyd.admin.doctor import nvidia
from podyd.admin.doctor.case import Case, HostPaths
from podyd.admin.doctor.finding import Remark, check, error, ok, warning
from podyd.base.engine_words import ENGINE
from podyd.engine.admin import Admin
from podyd.engine.gpu_devices import (
    CDI_PROGRAM,
    EVERY_CARD,
    HOW_TO_HAVE,
    RUNTIME,
    RUNTIME_PROGRAM,
    card_of_device,
    is_by_cdi,
)
from podyd.engine.profile_files import shipped
from podyd.engine.types import PciCard, Profile, is_set
from podyd.node.host_files import ProcessFiles
from podyd.node.samples import NVIDIA_VENDOR_ID, Sample, sysfs_address

# The mount of the host's library in a pod, in the fifth field of
# /proc/PID/mountinfo.
_MOUNTED_LIBRARY = re.compile(r"/libnvidia-ml\.so\.(\d+\.\d+(?:\.\d+)*)$")


@dataclass(frozen=True)
class Holder:
    """A profile or a pod: lxc's subcommand for it, its name and its own devices."""

    kind: str
    command: str
    name: str
    devices: Mapping[str, Mapping[str, str]]


@check
def gpu_devices(admin: Admin, case: Case) -> Iterator[Remark]:
    """Every card of a profile or a pod exists, and is given as the engine wants it."""
    cards = admin.cards()
    holders = [
        Holder("Profile", "profile", item.name, item.devices) for item in admin.profiles()
    ] + [Holder("Pod", "config", item.name, item.devices) for item in admin.instances()]
    for holder in holders:
        for name, device in holder.devices.items():
            if device.get("type") == "gpu":
                yield from about_device(holder, name, device, cards, case)
    yield ok("Every card that a profile or a pod names is there.")


def about_device(
    holder: Holder, name: str, device: Mapping[str, str], cards: Sequence[PciCard], case: Case
) -> Iterator[Remark]:
    """Problems with a `gpu` device."""
    addresses = ", ".join(card.pci for card in cards) or "none"
    where = f"{holder.command} device set {holder.name} {name}"
    if is_by_cdi(device):
        yield from _about_id(holder, name, device, cards, case.in_project(f"{where} id=CARD"))
        return
    is_whole = device.get("gputype", "physical") == "physical" and "vendorid" not in device
    if is_whole and any(card.by_cdi for card in cards):
        is_ours = holder.kind == "Profile" and holder.name in shipped()
        yield error(
            f"{holder.kind} {holder.name} gives cards in device {name} without the driver's"
            f" libraries, which this {ENGINE} brings by CDI ids alone: CUDA fails in its pods.",
            case.podyd(f"profiles reset {holder.name}")
            if is_ours
            else case.in_project(f"{where} pci= id={EVERY_CARD}"),
        )
        return
    if device.get("id"):
        yield warning(
            f"{holder.kind} {holder.name} chooses a card by id={device['id']} in device {name}:"
            " that is the number of /dev/dri/card*, not the one that nvidia-smi shows."
            f" {ENGINE} has"
            f" {addresses}.",
            case.in_project(f"{where} id= pci=ADDRESS"),
        )
    wanted = device.get("pci")
    if wanted and sysfs_address(wanted) not in {card.pci for card in cards}:
        yield error(
            f"{holder.kind} {holder.name} names card {wanted} in device {name}, and {ENGINE} has"
            f" {addresses}: a pod with it does not start.",
            case.in_project(f"{where} pci=ADDRESS"),
        )


def _about_id(
    holder: Holder, name: str, device: Mapping[str, str], cards: Sequence[PciCard], do: str
) -> Iterator[Remark]:
    """Whether the card of a CDI id exists; without all UUIDs nobody knows."""
    wanted = card_of_device(device)
    uuids = [card.uuid for card in cards if card.vendor == NVIDIA_VENDOR_ID]
    names = {*uuids, *map(str, range(len(uuids)))}
    if wanted and "" not in names and wanted not in names:
        yield error(
            f"{holder.kind} {holder.name} names card {wanted} in device {name}, and {ENGINE} has"
            f" {', '.join(uuids) or 'none'}: a pod with it does not start.",
            do,
        )


@check
def gpu_identities(admin: Admin, case: Case) -> Iterator[Remark]:
    """The cards' UUIDs are known: leases and choices identify cards by them."""
    yield from about_identities(admin.cards(), case.places)


def about_identities(cards: Sequence[PciCard], places: HostPaths) -> Iterator[Remark]:
    """Whether each card's UUID is known, from the engine or NVML."""
    unknown = {card.pci for card in cards if card.vendor == NVIDIA_VENDOR_ID and not card.uuid}
    if unknown:
        unknown -= _reported_by_nvml(places)
    if not unknown:
        return
    yield warning(
        f"Neither {ENGINE} nor NVML reports the UUID of {', '.join(sorted(unknown))}. podyd"
        " uses those"
        " that it has stored; if it has none, and a pod has leased, chosen or waits for a card that"
        " is not known, they stay with the pods that have them.",
        "nvidia-smi -L; apt install libnvidia-container-tools (or nvidia-container-toolkit), then"
        f" restart {ENGINE}; after an update of the driver, reboot",
    )


def _reported_by_nvml(places: HostPaths) -> set[str]:
    with contextlib.suppress(subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError):
        sample = nvidia.asked(places, nvidia.NVML_SECONDS)
        if isinstance(sample, Sample):
            return {gpu.pci for gpu in sample.gpus if gpu.uuid}
    return set()


@check
def nvidia_runtime(admin: Admin, case: Case) -> Iterator[Remark]:
    """The engine finds the program with which it brings the driver's libraries."""
    if not any(card.vendor == NVIDIA_VENDOR_ID for card in admin.cards()):
        return
    process = case.places.files.process(admin.server().pid)
    yield from about_programs(admin.profiles(), process)


def about_programs(profiles: Sequence[Profile], process: ProcessFiles) -> Iterator[Remark]:
    """Whether an engine's process finds what it runs for these profiles."""
    runtime = [item.name for item in profiles if is_set(item.config, RUNTIME)]
    cdi = [item.name for item in profiles if any(map(is_by_cdi, item.devices.values()))]
    for program, users in ((RUNTIME_PROGRAM, runtime), (CDI_PROGRAM, cdi)):
        if not users:
            continue
        path = process.search_path()
        directory = next((item for item in path if _has(process, item, program)), None)
        if directory is not None:
            yield ok(f"{ENGINE} finds {directory}/{program}.")
        else:
            yield error(
                f"{ENGINE} finds no {program} in {':'.join(path)}, so no pod with"
                f" {', '.join(f'profile {name}' for name in users)} starts.",
                f"{HOW_TO_HAVE[program]}, then restart {ENGINE}",
            )


def _has(process: ProcessFiles, directory: str, name: str) -> bool:
    program = process.root / directory.lstrip("/") / name
    # A link may exist in the engine's own mount namespace only.
    return program.is_symlink() or program.is_file()


@check
def pods_driver(admin: Admin, case: Case) -> Iterator[Remark]:
    """No running pod has the libraries of a driver that is no longer in the kernel.

    A pod keeps those of its start. They are read from the mounts of its init, which are exact,
    unlike a comparison of times.
    """
    driver = case.places.files.nvidia_driver()
    if driver is None:
        return
    for pod in admin.instances():
        if not pod.is_running or not pod.has_driver:
            continue
        versions = mounted_versions(case.places.files.process(admin.init_pid(pod.name)))
        if versions and driver not in versions:
            yield warning(
                f"Pod {pod.name} has the NVIDIA libraries {', '.join(sorted(versions))}, and the"
                f" driver in the kernel is {driver}: CUDA fails in it.",
                case.in_project(f"restart {pod.name}"),
            )
    yield ok(f"Every running pod has the libraries of driver {driver}.")


def mounted_versions(process: ProcessFiles) -> set[str]:
    """The driver's versions in the mounts of a process."""
    try:
        mounts = process.mounts()
    except (FileNotFoundError, ProcessLookupError):
        return set()  # It has ended meanwhile.
    matches = (_MOUNTED_LIBRARY.search(str(item.path)) for item in mounts)
    return {match[1] for match in matches if match}
