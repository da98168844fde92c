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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pynvml

from podyd.node.cpu_times import CpuTimes
from podyd.node.procs import cgroup_of
from podyd.node.samples import Failure, Gpu, ProcessSample, Sample, sysfs_address

SAMPLE_SECONDS = 1.0
# A wall clock that goes another way than the monotonic one by more has been set.
JUMP_SECONDS = 1.0
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
    """Takes samples; keeps the identity of each card, so that a lost one can be named, and up to
    what time the driver's buffers were read."""

    def __init__(self) -> None:
        self._known: dict[int, Gpu] = {}
        self._cpu_times = CpuTimes()
        # By the driver's clock, which is the wall's: the last sample of a card's processes, of
        # each process by its pid, and of the card itself.
        self._seen: dict[int, int] = {}
        self._seen_of: dict[int, dict[int, int]] = {}
        self._seen_card: dict[int, int] = {}
        self._offset = _clock_offset()

    def sample(self) -> Sample:
        """Take a sample now. Raises pynvml.NVMLError."""
        if abs(_clock_offset() - self._offset) > JUMP_SECONDS:
            # After a clock was set back, nothing would be newer for as long.
            self._offset = _clock_offset()
            self._seen, self._seen_of, self._seen_card = {}, {}, {}
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return Sample(
            taken=time.monotonic(),
            driver=str(pynvml.nvmlSystemGetDriverVersion()),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            gpus=self._with_cpu_times(
                [self._gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
            ),
        )

    def _with_cpu_times(self, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
        used = self._cpu_times.look({process.pid for gpu in gpus for process in gpu.processes})
        return tuple(
            replace(
                gpu,
                processes=tuple(
                    replace(process, cpu=used[process.pid]) for process in gpu.processes
                ),
            )
            for gpu in gpus
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
            peak=_supported(lambda: self._peak(index, card)),
            processes=self._processes(index, card),
        )

    def _peak(self, index: int, card: object) -> int:
        """The highest utilisation of the card since the last sample."""
        since = self._seen_card.get(index, 0)
        try:
            _, samples = pynvml.nvmlDeviceGetSamples(
                card, pynvml.NVML_GPU_UTILIZATION_SAMPLES, since
            )
        except pynvml.NVMLError_NotFound:
            samples = []
        later = [sample for sample in samples if sample.timeStamp > since]
        self._seen_card[index] = max((int(sample.timeStamp) for sample in later), default=since)
        return max((int(sample.sampleValue.uiVal) for sample in later), default=0)

    def _processes(self, index: int, card: object) -> tuple[ProcessSample, ...]:
        memory: dict[int, int | None] = {}
        for ask in _PROCESS_LISTS:
            for process in _first_supported(ask, card):
                used = process.usedGpuMemory
                memory[int(process.pid)] = None if used is None else int(used)
        used_by = _supported(lambda: self._utilisation(index, card)) if memory else None
        seen = _supported(lambda: self._seen_again(index, card)) if memory else None
        return tuple(
            ProcessSample(
                pid,
                memory[pid],
                None if used_by is None else used_by.get(pid, 0),
                # Read here, at once and in this process, as it may hang.
                cgroup_of(pid),
                seen=seen is not None and pid in seen,
            )
            for pid in sorted(memory)
        )

    def _utilisation(self, index: int, card: object) -> dict[int, int]:
        """Percent of the card per process since the last sample."""
        since = self._seen.get(index, 0)
        by_pid: dict[int, int] = {}
        for sample in _process_samples(card, since):
            # The driver's buffer may hold older ones, and slots that were never written.
            if sample.timeStamp > since:
                by_pid[int(sample.pid)] = max(by_pid.get(int(sample.pid), 0), _percent(sample))
                self._seen[index] = max(self._seen.get(index, 0), int(sample.timeStamp))
        return by_pid

    def _seen_again(self, index: int, card: object) -> set[int]:
        """The processes that have used the card, and of which there is a new sample.

        What the driver gives for the time since the last sample is a mean: on an H200 (580.159) it
        was 0 % for a millisecond each second, of which the whole buffer had 1 %.
        """
        before, last = self._seen_of.get(index, {}), dict[int, int]()
        for sample in _process_samples(card, 0):
            # The buffer has slots that were never written, of the time 0.
            if _percent(sample) > 0 and sample.timeStamp > 0:
                pid = int(sample.pid)
                last[pid] = max(last.get(pid, 0), int(sample.timeStamp))
        self._seen_of[index] = last
        return {pid for pid, at in last.items() if at != before.get(pid)}


def _clock_offset() -> float:
    return time.time() - time.monotonic()


def _process_samples(card: object, since: int) -> list[Any]:
    """What processes have used, by the driver's buffer; empty if none has since that time."""
    try:
        try:
            samples: list[Any] = pynvml.nvmlDeviceGetProcessUtilization(card, since)
        except pynvml.NVMLError_NotSupported:
            # Blackwell has the newer call alone (HAMi-core#218), and older drivers lack that.
            samples = pynvml.nvmlDeviceGetProcessesUtilizationInfo(card, since)
    except pynvml.NVMLError_NotFound:
        return []
    return samples


def _percent(sample: Any) -> int:
    return max(int(sample.smUtil), int(sample.memUtil), int(sample.encUtil), int(sample.decUtil))


# For each kind of process, NVML's functions for it, the newest first: older drivers lack the third
# version, and its structure must not be read with the second (gpuopenanalytics/pynvml#50).
_PROCESS_LISTS = tuple(
    tuple(f"nvmlDeviceGet{kind}RunningProcesses_v{version}" for version in (3, 2))
    for kind in ("Compute", "Graphics", "MPSCompute")
)


def _first_supported(names: Iterable[str], card: object) -> list[Any]:
    for name in names:
        try:
            processes: list[Any] = getattr(pynvml, name)(card)
        except pynvml.NVMLError_FunctionNotFound:
            continue
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission):
            return []
        return processes
    return []


def _supported(ask: Callable[[], T]) -> T | None:
    """One figure; None if it is not supported, or fails alone as broken sensors do."""
    try:
        return ask()
    except (*_DRIVER_FAILS, *_CARD_FAILS):
        raise
    except pynvml.NVMLError:
        return None
