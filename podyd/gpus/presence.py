"""The processes of pods that are on cards, allowed or not: those that NVML shows, and those that
have a card open."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from podyd.gpus.access import Access
from podyd.gpus.activity import Activity
from podyd.gpus.attribution import Attribution
from podyd.gpus.inventory import Card
from podyd.gpus.rights import Rights
from podyd.node.card_access import Holder
from podyd.node.interface import Processes, Samples


@dataclass(frozen=True)
class OnCard:
    """A process of a pod on a card, as of the time `at` on the monotonic clock.

    With `started`, in clock ticks, `pid` identifies it; None if that is not known. It `computes` if
    NVML shows it. `holder` is what the helper lists, None if it does not list this process.
    """

    pod: str
    card: Card
    pid: int
    started: int | None
    at: float
    computes: bool
    holder: Holder | None = None


@dataclass(frozen=True)
class Look:
    """The processes on the cards. `taken` is when, None if neither the helper nor NVML answers."""

    on_cards: tuple[OnCard, ...]
    taken: float | None


class Presences:
    """Lists the processes on the cards; `clock` returns monotonic seconds, as in samples."""

    def __init__(
        self,
        *,
        access: Access,
        attribution: Attribution,
        activity: Activity,
        samples: Samples,
        processes: Processes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access = access
        self._attribution = attribution
        self._activity = activity
        self._samples = samples
        self._processes = processes
        self._clock = clock

    async def look(self, rights: Rights, *, asks_helper: bool = True) -> Look:
        """All processes of pods on cards; without the helper, only those that compute."""
        taken = self._clock()
        held = await self._access.holders() if asks_helper else None
        by_pid = {item.holder.pid: item for item in held or ()}
        on_cards = {
            (item.holder.pid, card): OnCard(
                item.pod, card, item.holder.pid, item.holder.started, taken, False, item.holder
            )
            for item in by_pid.values()
            for card in item.cards
        }
        for item in await self._computing(rights):
            known = by_pid.get(item.pid)
            if known is None:
                on_cards[item.pid, item.card] = item
            else:
                started, holder = known.holder.started, known.holder
                on_cards[item.pid, item.card] = OnCard(
                    known.pod, item.card, item.pid, started, taken, True, holder
                )
        return Look(tuple(on_cards.values()), taken if held is not None else self._sampled(taken))

    def _sampled(self, now: float) -> float | None:
        """When NVML was asked last."""
        sample = self._samples.current
        return now if self._samples.absent else sample.taken if sample else None

    async def _computing(self, rights: Rights) -> list[OnCard]:
        attributed = self._attribution.current
        if attributed is None:
            return []
        sample, cards = attributed.sample, {card.pci: card for card in rights.cards}
        on_cards = [
            (origin.instance, cards[gpu.pci], process.pid)
            for gpu in sample.gpus
            if gpu.pci in cards
            for process in gpu.processes
            if (origin := attributed.origins[process.pid]).is_pod
        ]
        pids = {pid for _, _, pid in on_cards}
        alive = await self._processes.processes(pids) if pids else {}
        age = self._clock() - sample.taken
        alive = {
            pid: process
            for pid, process in alive.items()
            # A younger process has reused the pid.
            if process.uptime is None or process.uptime >= age
        }
        self._activity.ended(pids - alive.keys())
        return [
            OnCard(pod, card, pid, alive[pid].started, sample.taken, True)
            for pod, card, pid in on_cards
            if pid in alive
        ]
