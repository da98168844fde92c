"""NVML: which process holds which GPU. The only importer of pynvml.

NVML may hang or fail, so one thread of its own samples it; requests read the last sample.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pynvml

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 1.0
# Without a driver it is enough to look now and then whether one has come.
RETRY_SECONDS = 30.0
STALE_SECONDS = 30.0


@dataclass(frozen=True)
class Holder:
    """A process on a card; `memory_used` in bytes, None where the driver does not tell."""

    pid: int
    memory_used: int | None


@dataclass(frozen=True)
class Sample:
    """All cards at one moment; `taken` in seconds of the monotonic clock."""

    taken: float
    driver: str
    cuda: str
    holders: tuple[tuple[Holder, ...], ...]

    @property
    def age(self) -> float:
        """Seconds since the sample was taken."""
        return time.monotonic() - self.taken


class Nvml:
    """Samples NVML for as long as it runs. `absent` while the host has no NVIDIA driver."""

    def __init__(self) -> None:
        self.latest: Sample | None = None
        self.problem: str | None = None
        self.absent = False
        self._first = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that hangs inside NVML is left behind, as a daemon."""
        self._stop.set()
        self._thread.join(timeout=1)

    def wait_for_first(self, timeout: float) -> bool:
        """Wait until there was a first answer, good or bad; False if none within `timeout` s."""
        return self._first.wait(timeout)

    def _run(self) -> None:
        while not self._stop.is_set():
            delay = RETRY_SECONDS
            try:
                pynvml.nvmlInit()
                try:
                    self._sample_until_it_fails()
                finally:
                    pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                delay = self._failed(error)
            self._first.set()
            self._stop.wait(delay)

    def _sample_until_it_fails(self) -> None:
        self.absent = False
        while not self._stop.is_set():
            self.latest = take_sample()
            self.problem = None
            self._first.set()
            self._stop.wait(SAMPLE_SECONDS)

    def _failed(self, error: pynvml.NVMLError) -> float:
        absent = isinstance(
            error, (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)
        )
        problem = str(error)
        if problem != self.problem:
            level = logging.INFO if absent else logging.WARNING
            log.log(level, "no GPU data: %s", problem)
        self.absent, self.problem = absent, problem
        if absent:
            self.latest = None
        return RETRY_SECONDS if absent else SAMPLE_SECONDS


def take_sample() -> Sample:
    """Ask NVML for everything, now. Raises pynvml.NVMLError."""
    cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return Sample(
        taken=time.monotonic(),
        driver=str(pynvml.nvmlSystemGetDriverVersion()),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
        holders=tuple(
            _holders(pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ),
    )


def _holders(card: object) -> tuple[Holder, ...]:
    found: dict[int, Holder] = {}
    asked: tuple[Callable[[object], list[object]], ...] = (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
    )
    for ask in asked:
        try:
            processes = ask(card)
        except pynvml.NVMLError_NotSupported:
            continue
        for process in processes:
            pid = int(process.pid)  # type: ignore[attr-defined]
            memory = process.usedGpuMemory  # type: ignore[attr-defined]
            found[pid] = Holder(pid, None if memory is None else int(memory))
    return tuple(found[pid] for pid in sorted(found))
