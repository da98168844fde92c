"""The process that asks NVML, `podyd nvml`: a sample a second. The only importer of pynvml.

NVML may hang for good inside the driver, and after an update of the driver only a new process gets
the new library. So it is a process of its own, which writes one line of JSON a second;
telemetry.py starts it, reads it and replaces it.
"""

from __future__ import annotations

import ctypes
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import pynvml

from podyd.node.procs import cgroup_of
from podyd.node.samples import Failure, Gpu, ProcessSample, Sample, sysfs_address

SAMPLE_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

T = TypeVar("T")


def run(write: Callable[[str], None], *, once: bool = False) -> int:
    """Write a sample per second until NVML fails, then the failure; returns the exit status 1."""
    # So that a killed podyd leaves no such process, even if NVML hangs.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if _nobody_reads():
        return 1  # podyd was killed before prctl.
    try:
        pynvml.nvmlInit()
        sampler = Sampler()
        due = time.monotonic()
        while True:
            write(sampler.sample().to_line())
            if once:
                return 0
            # By the clock, so that the time that samples take does not add up.
            due = max(due + SAMPLE_SECONDS, time.monotonic())
            time.sleep(due - time.monotonic())
    except pynvml.NVMLError as error:
        absent = isinstance(
            error, (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)
        )
        write(Failure(_in_words(error), absent).to_line())
        return 1


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # POLLERR needs no asking for.
    return bool(poll.poll(0))


# What fails for all cards; any other error is one card's, or one figure's.
_DRIVER_FAILS = (
    pynvml.NVMLError_Uninitialized,
    pynvml.NVMLError_DriverNotLoaded,
    pynvml.NVMLError_LibRmVersionMismatch,
)
_CARD_FAILS = (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired)


def _in_words(error: pynvml.NVMLError) -> str:
    if isinstance(error, pynvml.NVMLError_LibRmVersionMismatch):
        # In nvidia-smi's words, which can be searched for.
        return (
            "driver/library version mismatch: the driver has been updated, and the old one still"
            " runs in the kernel until this host restarts"
        )
    return str(error).rstrip(".")


class Sampler:
    """Takes samples; keeps the identity of each card, so that a lost one can be named, and the time
    up to which the utilisation of its processes was read."""

    def __init__(self) -> None:
        self._known: dict[int, Gpu] = {}
        self._seen: dict[int, int] = {}

    def sample(self) -> Sample:
        """Take a sample now. Raises pynvml.NVMLError."""
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return Sample(
            taken=time.monotonic(),
            driver=str(pynvml.nvmlSystemGetDriverVersion()),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            gpus=tuple(self._gpu(index) for index in range(pynvml.nvmlDeviceGetCount())),
        )

    def _gpu(self, index: int) -> Gpu:
        try:
            card = pynvml.nvmlDeviceGetHandleByIndex(index)
            self._known[index] = Gpu(
                uuid=str(pynvml.nvmlDeviceGetUUID(card)),
                pci=sysfs_address(str(pynvml.nvmlDeviceGetPciInfo(card).busId)),
                name=str(pynvml.nvmlDeviceGetName(card)),
            )
            return self._figures(index, card)
        except _DRIVER_FAILS:
            raise
        except pynvml.NVMLError as error:
            known = self._known.get(index, Gpu("", "", ""))
            return replace(known, problem=_in_words(error))

    def _figures(self, index: int, card: object) -> Gpu:
        memory = _supported(lambda: pynvml.nvmlDeviceGetMemoryInfo(card))
        rates = _supported(lambda: pynvml.nvmlDeviceGetUtilizationRates(card))
        power = _supported(lambda: pynvml.nvmlDeviceGetPowerUsage(card))
        limit = _supported(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(card))
        return replace(
            self._known[index],
            memory_total=None if memory is None else int(memory.total),
            memory_used=None if memory is None else int(memory.used),
            utilisation=None if rates is None else int(rates.gpu),
            temperature=_supported(
                lambda: int(pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU))
            ),
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
            processes=self._processes(index, card),
        )

    def _processes(self, index: int, card: object) -> tuple[ProcessSample, ...]:
        memory: dict[int, int | None] = {}
        for ask in _PROCESS_LISTS:
            for process in _first_supported(ask, card):
                used = process.usedGpuMemory
                memory[int(process.pid)] = None if used is None else int(used)
        used_by = _supported(lambda: self._utilisation(index, card)) if memory else None
        return tuple(
            ProcessSample(
                pid,
                memory[pid],
                None if used_by is None else used_by.get(pid, 0),
                # Read here, at once and in this process, as it may hang.
                cgroup_of(pid),
            )
            for pid in sorted(memory)
        )

    def _utilisation(self, index: int, card: object) -> dict[int, int]:
        """Percent of the card per process since the last sample."""
        since = self._seen.get(index, 0)
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(card, since)
        except pynvml.NVMLError_NotFound:
            return {}  # No process has used it.
        found: dict[int, int] = {}
        for sample in samples:
            # The driver's buffer may hold older ones, and slots that were never written.
            if sample.timeStamp > since:
                used = max(sample.smUtil, sample.memUtil, sample.encUtil, sample.decUtil)
                found[int(sample.pid)] = max(found.get(int(sample.pid), 0), int(used))
                self._seen[index] = max(self._seen.get(index, 0), int(sample.timeStamp))
        return found


# For each kind of process, NVML's functions for it, the newest first: older drivers lack the third
# version, and its structure must not be read with the second (gpuopenanalytics/pynvml#50).
_PROCESS_LISTS = tuple(
    tuple(f"nvmlDeviceGet{kind}RunningProcesses_v{version}" for version in (3, 2))
    for kind in ("Compute", "Graphics", "MPSCompute")
)


def _first_supported(names: Iterable[str], card: object) -> list[Any]:
    for name in names:
        try:
            found: list[Any] = getattr(pynvml, name)(card)
        except pynvml.NVMLError_FunctionNotFound:
            continue
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission):
            return []
        return found
    return []


def _supported(ask: Callable[[], T]) -> T | None:
    """One figure; None if it is not supported, or fails alone as broken sensors do."""
    try:
        return ask()
    except (*_DRIVER_FAILS, *_CARD_FAILS):
        raise
    except pynvml.NVMLError:
        return None
