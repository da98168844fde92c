"""Which pods are on which cards, and since when nobody has used one.

Follows the samples of NVML. A process that computes is never taken for idle: what counts is the
card's own figure for the process, not whether anybody is logged in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from podyd.gpus.attribution import GAP_SECONDS, Attributed, Attribution
from podyd.node.samples import Gpu, ProcessSample


@dataclass
class _Use:
    """A process on a card; `used` when it last was seen at work, None where nobody can tell."""

    used: float | None
    pod: str = ""


class Activity:
    """What the samples add up to; `clock` is the monotonic one.

    Pods go by their names as in Whose, and so do instances of other projects and the host.
    """

    def __init__(
        self,
        attribution: Attribution,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
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
            # Nobody saw who worked meanwhile, and a pid may be another process by now.
            self._uses, self._last, self._began = {}, {}, now
        self._sampled = now
        for gpu in attributed.sample.gpus:
            if gpu.problem is not None:
                # Who was on it is on it still, for all that is known.
                for use in self._uses.get(gpu.pci, {}).values():
                    use.used = None
                continue
            before = self._uses.get(gpu.pci, {})
            uses = {}
            for process in gpu.processes:
                # A pid that was there a second ago is the same process.
                use = before.get(process.pid) or _Use(now)
                use.pod = attributed.whose[process.pid].name
                at_work = _is_at_work(gpu, process)
                use.used = None if at_work is None else now if at_work else use.used or now
                uses[process.pid] = use
                if use.used is not None:
                    key = gpu.pci, use.pod
                    self._last[key] = max(self._last.get(key, 0.0), use.used)
            self._uses[gpu.pci] = uses

    def pids(self, pci: str, pod: str) -> list[int]:
        """The processes of a pod (LXD's name of it) on a card."""
        return [pid for pid, use in self._uses.get(pci, {}).items() if use.pod == pod]

    def pids_on(self, pci: str) -> list[int]:
        """All processes on a card."""
        return list(self._uses.get(pci, {}))

    def pods(self, pci: str) -> set[str]:
        """The pods with processes on a card; "" is the host."""
        return {use.pod for use in self._uses.get(pci, {}).values()}

    def _is_blind(self) -> bool:
        return self._sampled is None or self._clock() - self._sampled > GAP_SECONDS

    def process_idle(self, pci: str, pid: int) -> float | None:
        """For so many seconds a process has not used the card; None if nobody can tell."""
        if self._is_blind():
            return None
        use = self._uses.get(pci, {}).get(pid)
        return None if use is None or use.used is None else self._clock() - use.used

    def pod_idle(self, pci: str, pod: str, held_for: float) -> float | None:
        """For so many seconds no process of the pod has used the card, which it has held for
        `held_for` seconds; None if nobody can tell."""
        if self._is_blind():
            return None
        if any(use.pod == pod and use.used is None for use in self._uses.get(pci, {}).values()):
            return None
        now = self._clock()
        # What was before podyd began is not known.
        since = max(self._last.get((pci, pod), 0.0), self._began, now - held_for)
        return now - since

    def forget(self, pods: set[str]) -> None:
        """Keep nothing of pods other than these."""
        for key in [key for key in self._last if key[1] not in pods]:
            del self._last[key]


def _is_at_work(gpu: Gpu, process: ProcessSample) -> bool | None:
    """Whether a process has used the card since the last sample.

    Where the driver does not tell it of processes (MIG, old cards), the whole card's figure stands
    for each of them: one is then rather taken for busy than for idle.
    """
    figure = gpu.utilisation if process.utilisation is None else process.utilisation
    return None if figure is None else figure > 0
