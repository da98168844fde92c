"""Which pods have processes on which cards, and for how long they have been idle.

Computed from the samples of NVML. No single figure shows whether a process uses a card: a driver
that measures in percent shows nothing of a millisecond now and then. So there are three signs of
use: NVML's figures, a change of the process's memory on the card, and CPU time, without which no
work gets onto a card. A process is idle for as long as it shows none of them. Logins do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from podyd.config.schema import IdleConfig
from podyd.gpus.attribution import GAP_SECONDS, Attributed, Attribution
from podyd.node.samples import Gpu, ProcessSample

# An idle process needs up to twice `rest` now and then; one that does so again within this time is
# busy.
ALONE_SECONDS = 60.0


@dataclass
class _Use:
    """A process on a card; `used` is the monotonic time at which it was last seen to do anything,
    None if that is not known. `memory` is its memory on the card, in bytes; `exceeded` is when
    it last used more CPU time than `rest`."""

    used: float | None
    pod: str = ""
    memory: int | None = None
    exceeded: float | None = None


class Activity:
    """Usage of each card, accumulated from samples, which come every second.

    A process that has used no more than `rest()` seconds of CPU time since the last one may be
    idle, as podyd.yaml has it, and one that has used up to twice that once in `ALONE_SECONDS`;
    `clock` returns monotonic seconds.

    Pods, instances of other projects and the host are named as in Origin.
    """

    def __init__(
        self,
        attribution: Attribution,
        *,
        rest: Callable[[], float] = lambda: IdleConfig().rest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._began = clock()
        self._sampled: float | None = None
        # Per card (its PCI address): per process on it, and per pod that ever was.
        self._uses: dict[str, dict[int, _Use]] = {}
        self._last: dict[tuple[str, str], float] = {}
        attribution.subscribe(self.sampled)

    def sampled(self, attributed: Attributed) -> None:
        """Take a sample into account."""
        now = self._clock()
        if self._sampled is None or now - self._sampled > GAP_SECONDS:
            # Use in the gap is not known, and a pid may have been reused.
            self._uses, self._last, self._began = {}, {}, now
        self._sampled = now
        for gpu in attributed.sample.gpus:
            if gpu.problem is not None:
                # NVML gives no processes of it; assume that the same ones are still on it.
                for use in self._uses.get(gpu.pci, {}).values():
                    use.used = None
                continue
            before = self._uses.get(gpu.pci, {})
            is_explained = any(_is_seen(process) for process in gpu.processes)
            uses = {}
            for process in gpu.processes:
                # A pid of the sample before, a second ago, is the same process.
                use = before.get(process.pid) or _Use(now)
                use.pod = attributed.origins[process.pid].name
                signs = (
                    _busy_by_nvml(gpu, process, is_explained),
                    _busy_by_memory(process, use.memory),
                    self._busy_by_cpu(process, use, now),
                )
                busy = True if True in signs else None if None in signs else False
                use.used = None if busy is None else now if busy else use.used or now
                use.memory = process.memory_used
                uses[process.pid] = use
                if use.used is not None:
                    key = gpu.pci, use.pod
                    self._last[key] = max(self._last.get(key, 0.0), use.used)
            self._uses[gpu.pci] = uses

    def ended(self, pids: Iterable[int]) -> None:
        """These processes have ended since the last sample."""
        for uses in self._uses.values():
            for pid in pids:
                uses.pop(pid, None)

    def _busy_by_cpu(self, process: ProcessSample, use: _Use, now: float) -> bool | None:
        if process.cpu is None:
            return None
        rest = self._rest()
        if process.cpu <= rest:
            return False
        last, use.exceeded = use.exceeded, now
        return process.cpu > 2 * rest or (last is not None and now - last <= ALONE_SECONDS)

    def pids(self, pci: str, pod: str) -> list[int]:
        """The pids of a pod's processes on a card; `pod` is the engine's name of it."""
        return [pid for pid, use in self._uses.get(pci, {}).items() if use.pod == pod]

    def pids_on(self, pci: str) -> list[int]:
        """The pids of all processes on a card."""
        return list(self._uses.get(pci, {}))

    def pods(self, pci: str) -> set[str]:
        """The pods with processes on a card; "" is the host."""
        return {use.pod for use in self._uses.get(pci, {}).values()}

    def _is_blind(self) -> bool:
        return self._sampled is None or self._clock() - self._sampled > GAP_SECONDS

    def process_idle(self, pci: str, pid: int) -> float | None:
        """Seconds since a process was last seen to do anything; None if that is not known."""
        if self._is_blind():
            return None
        use = self._uses.get(pci, {}).get(pid)
        return None if use is None or use.used is None else self._clock() - use.used

    def pod_idle(self, pci: str, pod: str, held_for: float) -> float | None:
        """Seconds since a process of the pod on the card was last seen to do anything; the pod has
        held it for `held_for` seconds. None if that is not known."""
        if self._is_blind():
            return None
        if any(use.pod == pod and use.used is None for use in self._uses.get(pci, {}).values()):
            return None
        now = self._clock()
        # Use before podyd started is not known.
        since = max(self._last.get((pci, pod), 0.0), self._began, now - held_for)
        return now - since

    def forget(self, pods: set[str]) -> None:
        """Forget all pods but these."""
        for key in [key for key in self._last if key[1] not in pods]:
            del self._last[key]


def _is_seen(process: ProcessSample) -> bool:
    return process.seen or bool(process.utilisation)


# Whether a process has used the card since the last sample, by each sign of use; None if that is
# not known.


def _busy_by_nvml(gpu: Gpu, process: ProcessSample, is_explained: bool) -> bool | None:
    """Use of the card that NVML attributes to no process, or any where it gives no figures by
    process (MIG, old cards), counts for each process on it: an idle process may then count as busy,
    but never a busy one as idle."""
    if _is_seen(process):
        return True
    card = [figure for figure in (gpu.utilisation, gpu.peak) if figure is not None]
    if process.utilisation is None:
        return max(card) > 0 if card else None
    return not is_explained and max(card, default=0) > 0


def _busy_by_memory(process: ProcessSample, before: int | None) -> bool:
    return None not in (before, process.memory_used) and process.memory_used != before
