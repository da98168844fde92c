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
from podyd.engine.types import PciCard, is_set
from podyd.node.host_files import ProcessFiles
from podyd.node.samples import NVIDIA_VENDOR_ID, Sample, sysfs_address

RUNTIME_PROGRAM = "nvidia-container-cli"
# libnvidia-container's mount of the host's library in a pod, in the fifth field of
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
    """Every card of a profile or a pod exists, and is given by its PCI address."""
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
    """The engine finds the program that `nvidia.runtime` needs."""
    if not any(card.vendor == NVIDIA_VENDOR_ID for card in admin.cards()):
        return
    users = [
        f"profile {item.name}" for item in admin.profiles() if is_set(item.config, "nvidia.runtime")
    ]
    if not users:
        return
    process = case.places.files.process(admin.server().pid)
    path = process.search_path()
    for directory in path:
        program = process.root / directory.lstrip("/") / RUNTIME_PROGRAM
        # A link may exist in the engine's own mount namespace only.
        if program.is_symlink() or program.is_file():
            yield ok(f"{ENGINE} finds {directory}/{RUNTIME_PROGRAM}.")
            return
    yield error(
        f"{ENGINE} finds no {RUNTIME_PROGRAM} in {':'.join(path)}, so no pod with"
        f" {', '.join(users)} starts.",
        "apt install libnvidia-container-tools (or nvidia-container-toolkit), then restart"
        f" {ENGINE}",
    )


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
        if not pod.is_running or not is_set(pod.config, "nvidia.runtime"):
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
