"""The host's NVIDIA driver: in the kernel, on disk, in /dev."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from podyd.admin.doctor.case import HostPaths
from podyd.admin.doctor.finding import Remark, check, error, note, ok, warning
from podyd.node.samples import Failure, Sample, parse_line

LIBRARY = "libnvidia-ml.so"
# NVML's initialisation may take seconds for each card without persistence mode.
NVML_SECONDS = 30.0
COMMAND_SECONDS = 10.0
RELOAD = (
    "reboot; or stop all that uses the cards ('fuser -v /dev/nvidia*' tells), then:"
    " rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; modprobe nvidia; nvidia-modprobe -u -c 0"
)


def is_there(places: HostPaths) -> bool:
    """Whether the host has an NVIDIA card or its driver."""
    return bool(places.files.nvidia_cards()) or places.files.has_module("nvidia")


@check
def nvidia_card() -> Iterator[Remark]:
    """Reported if there is none."""
    yield note("This host has no NVIDIA card, so pods have none.")


@check
def nvidia_driver(places: HostPaths) -> Iterator[Remark]:
    """The driver is loaded."""
    version = places.files.nvidia_driver()
    if version is not None:
        yield ok(f"The NVIDIA driver {version} is loaded.")
        return
    cards = f"The host has NVIDIA cards ({', '.join(places.files.nvidia_cards())})"
    if places.files.has_module("nouveau"):
        yield error(
            f"{cards} that nouveau drives, with which there is no CUDA.",
            "apt install nvidia-driver, then reboot",
        )
    else:
        yield error(
            f"{cards}, and the NVIDIA driver is not loaded.",
            "modprobe nvidia; if that fails, 'dkms status' tells whether there is one for kernel"
            f" {os.uname().release}",
        )


@check
def nvidia_versions(places: HostPaths) -> Iterator[Remark]:
    """The driver in the kernel and the libraries on disk are of the same version."""
    driver = places.files.nvidia_driver()
    library = _library(places)
    if library is None:
        yield error(
            f"The NVIDIA driver's library {LIBRARY}.1 is not installed.",
            "apt install libnvidia-ml1 (libnvidia-compute-NNN on Ubuntu)",
        )
        return
    version = library.name.removeprefix(f"{LIBRARY}.")
    if driver is None:
        return
    if version != driver:
        yield error(
            f"The NVIDIA driver in the kernel is {driver}, and its library {version}"
            f" ({library}), as after an update: CUDA fails in new pods ('Driver/library version"
            " mismatch').",
            RELOAD,
        )
    yield ok(f"The NVIDIA driver and its library are both {driver}.")


def _library(places: HostPaths) -> Path | None:
    """The real file of NVML, as the dynamic linker finds it."""
    ldconfig = shutil.which("ldconfig", path=places.path)
    listed = "" if ldconfig is None else _output([ldconfig, "-p"], COMMAND_SECONDS)
    for line in listed.splitlines():
        name, _, path = line.strip().partition(" => ")
        # The library of 32-bit programs may be listed too.
        if name.startswith(f"{LIBRARY}.1 ") and "64" in name:
            return Path(path).resolve()
    return None


@check
def nvidia_nodes(places: HostPaths) -> Iterator[Remark]:
    """The device files that CUDA opens exist; the second one only after its first use."""
    if places.files.nvidia_driver() is None:
        return
    for name, do in (
        ("nvidiactl", "nvidia-modprobe"),
        ("nvidia-uvm", "nvidia-modprobe -u -c 0"),
    ):
        path = places.files.dev / name
        if not path.exists():
            yield warning(
                f"There is no {path}, so CUDA does not work in pods that start now.",
                do,
            )
    yield ok("The NVIDIA driver's device files are there.")


@check
def nvidia_scrubbing(places: HostPaths) -> Iterator[Remark]:
    """The driver clears a card's memory when a process has freed it.

    It does by default (NVIDIA's open kernel modules, nvrm_registry.h: RMDisableScrubOnFree).
    """
    parameters = places.files.nvidia_parameters()
    if parameters is None:
        return
    dwords = f"{parameters.get('RegistryDwords')};{parameters.get('RegistryDwordsPerDevice')}"
    if re.search(r"\bRMDisableScrubOnFree\s*=\s*(0x)?0*[1-9a-f]", dwords, re.IGNORECASE):
        yield warning(
            "The NVIDIA driver is set not to clear the memory of cards (RMDisableScrubOnFree), so"
            " that a pod can read what the one before has left there.",
            "remove RMDisableScrubOnFree from NVreg_RegistryDwords in /etc/modprobe.d, then reboot",
        )
    yield ok("The NVIDIA driver clears the memory of cards when it is freed.")


@check
def nvml_answers(places: HostPaths, seconds: float = NVML_SECONDS) -> Iterator[Remark]:
    """NVML answers, for every card."""
    if places.files.nvidia_driver() is None:
        return
    do = "nvidia-smi; dmesg | grep -e NVRM -e Xid"
    try:
        answer = asked(places, seconds)
    except subprocess.TimeoutExpired:
        yield error(f"NVML did not answer within {seconds:g} s.", f"{do}; reboot if it hangs")
        return
    except (ValueError, KeyError, TypeError):
        yield error("The process that asks NVML has died.", do)
        return
    if isinstance(answer, Failure):
        yield error(f"NVML does not answer: {answer.problem}.", do)
        return
    for index, gpu in enumerate(answer.gpus):
        if gpu.problem is not None:
            yield error(f"Card {index} {gpu.pci} does not answer: {gpu.problem}.", f"{do}; reboot")
    yield ok(f"NVML answers; cards: {', '.join(gpu.pci for gpu in answer.gpus)}.")


def asked(places: HostPaths, seconds: float) -> Sample | Failure:
    """NVML's answer. Raises TimeoutExpired; ValueError, KeyError, TypeError if its process died."""
    return parse_line(_output(places.nvml, seconds))


@check
def nvidia_persistence(places: HostPaths) -> Iterator[Remark]:
    """The driver stays initialised while no process uses a card."""
    program = shutil.which("nvidia-smi", path=places.path)
    if program is None or places.files.nvidia_driver() is None:
        return
    query = [program, "--query-gpu=pci.bus_id,persistence_mode", "--format=csv,noheader"]
    rows = [line.split(", ") for line in _output(query, COMMAND_SECONDS).splitlines()]
    off = [row[0] for row in rows if row[1:] == ["Disabled"]]
    if off:
        yield note(
            f"Persistence mode is off on {', '.join(off)}: the first use of an idle card takes"
            " seconds, and its settings are lost.",
            "systemctl enable --now nvidia-persistenced, or: nvidia-smi -pm 1",
        )
    elif rows and all(row[1:] == ["Enabled"] for row in rows):
        yield ok("Persistence mode is on.")


def _output(command: Sequence[str], timeout: float) -> str:
    """The output of a command, whatever its exit status. Raises TimeoutExpired."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
        # Not root's current directory: Python would search modules there first.
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        # A process that hangs in the driver cannot be killed, and is not awaited.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        raise
    finally:
        assert process.stdout is not None
        process.stdout.close()
