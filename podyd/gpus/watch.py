"""The watch: processes of pods on cards that their pods may not have are reported, and ended.

No process is signalled that was seen only once: it takes two looks, `CONFIRM_SECONDS` apart and
later than the change that took the card, that show the same pid and start time. Then it gets
SIGTERM, and `lease.grace` seconds after the first look SIGKILL; if it still runs after that, its
pod is stopped by force.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from podyd.base.clock import iso, now
from podyd.base.errors import PodydError
from podyd.base.tasks import Tasks, came
from podyd.config.current import Settings
from podyd.config.schema import LeaseConfig
from podyd.contract.gpus import Ending
from podyd.contract.host import Intruder
from podyd.gpus.access import Access
from podyd.gpus.attribution import Attributed, Attribution
from podyd.gpus.decisions import in_order
from podyd.gpus.ending import Ender
from podyd.gpus.inventory import Card
from podyd.gpus.presence import Look, OnCard, Presences
from podyd.gpus.rights import Rights
from podyd.gpus.terminals import Terminals
from podyd.model.notice import Tell
from podyd.model.pod import Pod

log = logging.getLogger(__name__)

CONFIRM_SECONDS = 1.0
# Until a pod is stopped after SIGKILL; also for processes of a pod that replace one another.
LAST_SECONDS = 5.0
# A card is free if two looks so far apart show no process of the pod on it.
FREE_SECONDS = 0.25
# Between two looks: while a card is about to be free, while processes are being ended, while cards
# are leased.
SOON_SECONDS, ENDING_SECONDS, LEASED_SECONDS = 0.1, 0.5, 2.0
# Without any data on who has a card open, a withdrawal ends so long after `lease.grace`.
BLIND_SECONDS = 10.0
# Between two notices about one pod and one card.
NOTIFY_AGAIN_SECONDS = 60.0
# A pod that has been off a card for so long has the whole grace there again.
FORGET_SECONDS = 600.0
# So many pids are named in a line of the log and in a notice.
SHOWN = 10

Key = tuple[str, int, int | None]


@dataclass
class _Intruder:
    """A process on cards that its pod may not have, each with when it was first seen there on the
    monotonic clock. `warned` and `killed` are when that was done."""

    since: datetime
    first: dict[Card, float] = field(default_factory=dict)
    on_cards: list[OnCard] = field(default_factory=list)
    warned: float | None = None
    killed: float | None = None

    def update(self, seen: Iterable[OnCard], refused_since: Callable[[str, Card], float]) -> None:
        """Take note of the cards on which it is seen now."""
        self.on_cards = list(seen)
        before, self.first = self.first, {}
        for item in self.on_cards:
            first = before.get(item.card, item.at)
            changed = refused_since(item.pod, item.card)
            if item.at >= changed:  # Else the look was before the change.
                self.first[item.card] = first if first >= changed else item.at

    def confirmed(self) -> list[OnCard]:
        """Those of its cards on which it was seen twice."""
        return [
            item
            for item in self.on_cards
            if item.card in self.first and item.at - self.first[item.card] >= CONFIRM_SECONDS
        ]


@dataclass
class _Stay:
    """How long a pod's processes, one or many, have been on a card that it may not have, up to
    `last` on the monotonic clock; `begun` is when the first was seen, `start` that of the pod."""

    start: datetime | None
    begun: float
    last: float
    seconds: float = 0.0
    is_on: bool = True


class Watch:
    """Looks for processes of pods on cards, and ends those whose pods may not have the card.

    `withdrawn` is called when no process of a pod has a card open any more that is being withdrawn
    from it.
    """

    def __init__(
        self,
        *,
        access: Access,
        attribution: Attribution,
        presences: Presences,
        ender: Ender,
        terminals: Terminals,
        notify: Tell,
        withdrawn: Callable[[str, Card], Awaitable[None]],
        tasks: Tasks,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access = access
        self._presences = presences
        self._ender = ender
        self._terminals = terminals
        self._notify = notify
        self._withdrawn = withdrawn
        self._tasks = tasks
        self._settings = settings
        self._clock = clock
        self._poke = asyncio.Event()
        self._last = Look((), None)
        self._intruders: dict[Key, _Intruder] = {}
        # By pod and card: its time on a card that it may not have.
        self._stays: dict[tuple[str, Card], _Stay] = {}
        # Since when no process of a pod is seen on a card that is being withdrawn from it.
        self._free: dict[tuple[str, Card], float] = {}
        self._notified: dict[tuple[str, Card], float] = {}
        self._stopping: dict[str, float] = {}
        # How many intruders were seen, and how many of them were ended.
        self.seen, self.ended = 0, 0
        access.subscribe(self._poke.set)
        attribution.subscribe(self._sampled)

    # --- What others ask -------------------------------------------------------------------------

    def pods_on(self, card: Card) -> set[str]:
        """The pods with a process on a card at the last look."""
        return {item.pod for item in self._last.on_cards if item.card == card}

    def intruders(self, card: Card) -> list[Intruder]:
        """The processes on a card that their pods may not have."""
        rights = self._access.rights
        rows = []
        for (name, pid, _), intruder in self._intruders.items():
            if card in intruder.first and rights is not None and name in rights.pods:
                owner = rights.pods[name].owner
                rows.append(Intruder(pid, name, owner, iso(intruder.since), self._state(intruder)))
        return sorted(rows, key=lambda row: (row.pod, row.pid))

    def _state(self, intruder: _Intruder) -> str:
        if intruder.warned is None:
            return "seen"
        if self._settings.current.lease.end == "leave":
            return "left"
        return "warned" if intruder.killed is None else "killed"

    async def ending(self, pod: Pod) -> list[Ending]:
        """What is to be ended now: of this pod, and of others on cards that it has leased."""
        rights, ends = self._access.rights, self._settings.current.lease
        if rights is None or ends.end != "end":
            return []
        pids: defaultdict[tuple[int, str], set[int]] = defaultdict(set)
        for item in (await self._presences.look(rights)).on_cards:
            is_about = pod.name == item.pod or rights.leased.get(item.card) == pod.name
            if is_about and rights.forbids(item.pod, item.card, computes=item.computes):
                pids[item.card.index, item.pod].add(item.pid)
        return [
            Ending(index, name, ends.grace, len(of_pod))
            for (index, name), of_pod in sorted(pids.items())
        ]

    # --- Looking ---------------------------------------------------------------------------------

    def _sampled(self, attributed: Attributed) -> None:
        """Look at once if NVML shows a process on a card that its pod may not have."""
        rights = self._access.rights
        if rights is None:
            return
        cards = {card.pci: card for card in rights.cards}
        for gpu in attributed.sample.gpus:
            for process in gpu.processes:
                origin = attributed.origins[process.pid]
                if (
                    origin.is_pod
                    and gpu.pci in cards
                    and rights.forbids(origin.instance, cards[gpu.pci], computes=True)
                ):
                    self._poke.set()
                    return
        if rights.withdrawn or self._intruders:
            self._poke.set()

    async def run(self) -> None:
        """Watch, until cancelled."""
        while True:
            self._poke.clear()
            delay = await self.look()
            await came(self._poke, delay)

    async def look(self) -> float | None:
        """Look once; returns the seconds until the next time, None if something must happen
        first."""
        rights, ends = self._access.rights, self._settings.current.lease
        if rights is None:
            return None
        # Where no card is leased, a process that only has one open disturbs nobody.
        asks_helper = bool(rights.leased or rights.withdrawn or self._intruders)
        self._last = look = await self._presences.look(rights, asks_helper=asks_helper)
        rights = self._access.rights or rights  # They may have changed meanwhile.
        self._update(look, rights)
        for name in {key[0] for key in self._intruders}:
            await self._deal_with(rights.pods[name], rights, ends)
        await self._find_free(look, rights, ends)
        return self._until_next(rights, ends)

    def _update(self, look: Look, rights: Rights) -> None:
        """Take note of the processes that are on cards that their pods may not have."""
        forbidden: defaultdict[Key, list[OnCard]] = defaultdict(list)
        for item in look.on_cards:
            if rights.forbids(item.pod, item.card, computes=item.computes):
                forbidden[item.pod, item.pid, item.started].append(item)
        present = {(item.pod, item.pid, item.started) for item in look.on_cards}
        for key in self._intruders.keys() - forbidden.keys():
            gone = self._intruders.pop(key)
            if gone.warned is not None and look.taken is not None and key not in present:
                self.ended += 1
        for key, on_cards in forbidden.items():
            intruder = self._intruders.setdefault(key, _Intruder(now()))
            intruder.update(on_cards, self._access.refused_since)
        self._count((item for on_cards in forbidden.values() for item in on_cards), rights)
        self._notified = {key: at for key, at in self._notified.items() if key[0] in rights.pods}
        self._stopping = {
            name: since
            for name, since in self._stopping.items()
            if any(key[0] == name for key in forbidden)
        }

    def _count(self, on_cards: Iterable[OnCard], rights: Rights) -> None:
        """Add up how long pods are on cards that they may not have: a pod that closes a card for a
        moment, or hides it, has no new grace when it opens it again."""
        seen: dict[tuple[str, Card], float] = {}
        for item in on_cards:
            key = item.pod, item.card
            seen[key] = max(item.at, seen.get(key, item.at))
        for key, at in seen.items():
            stay, start = self._stays.get(key), rights.pods[key[0]].instance.started
            is_same = stay is not None and stay.start == start
            if stay is None or not is_same or stay.begun < self._access.refused_since(*key):
                stay = self._stays[key] = _Stay(start, at, at)
            elif stay.is_on:
                # By the times of the samples: the same sample once more adds nothing.
                stay.seconds += max(0.0, at - stay.last)
            stay.last, stay.is_on = max(at, stay.last), True
        for key in self._stays.keys() - seen.keys():
            self._stays[key].is_on = False
            if self._clock() - self._stays[key].last > FORGET_SECONDS:
                del self._stays[key]

    async def _find_free(self, look: Look, rights: Rights, ends: LeaseConfig) -> None:
        """Find the withdrawn cards that no process of their former holders has open any more."""
        on = {(item.pod, item.card) for item in look.on_cards}
        before, self._free = self._free, {}
        for key, since in rights.withdrawn.items():
            is_over = False
            if look.taken is None:
                age = (now() - since).total_seconds()
                is_over = age > ends.grace + BLIND_SECONDS
            elif key not in on and look.taken >= self._access.refused_since(*key):
                self._free[key] = before.get(key, look.taken)
                is_over = look.taken - self._free[key] >= FREE_SECONDS
            if is_over:
                with contextlib.suppress(PodydError):  # The engine does not answer now.
                    await self._withdrawn(*key)

    def _until_next(self, rights: Rights, ends: LeaseConfig) -> float | None:
        at = self._clock()
        killed = [item.killed for item in self._intruders.values() if item.killed is not None]
        if self._free or any(at - moment < LAST_SECONDS for moment in killed):
            return SOON_SECONDS
        if self._intruders or rights.withdrawn:
            times = [self._next_of(item, rights, ends) - at for item in self._intruders.values()]
            return max(0.02, min([ENDING_SECONDS, *times]))
        return LEASED_SECONDS if rights.leased else None

    def _next_of(self, intruder: _Intruder, rights: Rights, ends: LeaseConfig) -> float:
        if intruder.warned is None:
            return min(intruder.first.values(), default=self._clock()) + CONFIRM_SECONDS
        if intruder.killed is not None or ends.end != "end":
            return self._clock() + ENDING_SECONDS
        return self._end_of(intruder, rights, ends)

    # --- Ending ----------------------------------------------------------------------------------

    async def _deal_with(self, pod: Pod, rights: Rights, ends: LeaseConfig) -> None:
        """Do what is due about the intruders of a pod."""
        at = self._clock()
        intruders = [item for key, item in self._intruders.items() if key[0] == pod.name]
        new = [item for item in intruders if item.warned is None and item.confirmed()]
        if new:
            self.seen += len(new)
            for intruder in new:
                intruder.warned = at
            self._report(pod, new, rights, ends)
        if ends.end != "end":
            return
        inits = await self._ender.inits(on_card for item in intruders for on_card in item.on_cards)
        due = [
            item
            for item in intruders
            if item.warned is not None and at >= self._end_of(item, rights, ends)
        ]
        kills = [item for item in due if item.killed is None]
        for intruder in kills:
            intruder.killed = at
        self._signal(pod, [item for item in new if item not in kills], inits, kill=False)
        self._signal(pod, kills, inits, kill=True)
        must_stop = any(
            _pid(item) in inits or at - (item.killed or at) >= LAST_SECONDS for item in due
        )
        if must_stop or self._is_relay(pod, ends):
            self._stop(pod)

    def _is_relay(self, pod: Pod, ends: LeaseConfig) -> bool:
        """Whether processes of a pod replace one another on a card for longer than one can stay."""
        longest = CONFIRM_SECONDS + ends.grace + 2 * LAST_SECONDS
        return any(
            name == pod.name and stay.is_on and stay.seconds > longest
            for (name, _), stay in self._stays.items()
        )

    def _end_of(self, intruder: _Intruder, rights: Rights, ends: LeaseConfig) -> float:
        """When it is killed: `lease.grace` after the card was withdrawn or, if it was not, after it
        was first seen, less the time that others of its pod have used of that; at the earliest a
        second after SIGTERM."""
        at = self._clock()
        begun = [*intruder.first.values()]
        for item in intruder.on_cards:
            stay = self._stays.get((item.pod, item.card))
            if stay is not None:
                begun.append(at - stay.seconds)
            since = rights.withdrawn.get((item.pod, item.card))
            if since is not None:
                begun.append(at - (now() - since).total_seconds())
        warned = at if intruder.warned is None else intruder.warned
        return max(min(begun, default=at) + ends.grace, warned + min(ends.grace, 1.0))

    def _signal(
        self, pod: Pod, intruders: Iterable[_Intruder], inits: set[int], *, kill: bool
    ) -> None:
        on_cards = [
            item
            for intruder in intruders
            for item in intruder.on_cards
            if item.pid not in inits and item.started is not None
        ]
        if on_cards:
            how = "SIGKILL" if kill else "SIGTERM"
            log.info("%s: %s to %s", pod.name, how, _pids(item.pid for item in on_cards))
            work = self._ender.end(pod, on_cards, kill=kill)
            self._tasks.spawn(self._and_look(work), "ending processes on GPUs")

    async def _and_look(self, work: Awaitable[None]) -> None:
        await work
        self._poke.set()

    def _stop(self, pod: Pod) -> None:
        at = self._clock()
        if at - self._stopping.get(pod.name, at - LAST_SECONDS) < LAST_SECONDS:
            return
        self._stopping[pod.name] = at
        text = "The pod is stopped by force: its processes on a GPU cannot be ended otherwise."
        self._notify(pod.account, text, pod=pod.name)
        self._tasks.spawn(self._and_look(self._ender.stop(pod)), "stopping a pod by force")

    # --- Notices ---------------------------------------------------------------------------------

    def _report(
        self, pod: Pod, intruders: Iterable[_Intruder], rights: Rights, ends: LeaseConfig
    ) -> None:
        """Log it, and send notices to the owner, the lessee and the admins."""
        by_card: defaultdict[Card, set[int]] = defaultdict(set)
        for intruder in intruders:
            for item in intruder.confirmed():
                by_card[item.card].add(item.pid)
        lines = []
        for card in in_order(by_card):
            pids, at = by_card[card], self._clock()
            lessee = rights.pods.get(rights.leased.get(card, ""))
            is_withdrawn = (pod.name, card) in rights.withdrawn
            has_ended = is_withdrawn and lessee is None
            log.warning(
                "%s: %s on GPU %d, %s",
                pod.name,
                _pids(pids),
                card.index,
                "of which its lease has ended" if has_ended else "which it may not have",
            )
            if (
                at - self._notified.get((pod.name, card), at - NOTIFY_AGAIN_SECONDS)
                < NOTIFY_AGAIN_SECONDS
            ):
                continue
            self._notified[pod.name, card] = at
            why = f"GPU {card.index} is not this pod's"
            if is_withdrawn:
                why = f"The lease of GPU {card.index} has ended"
                if lessee is not None:
                    why = f"GPU {card.index} is leased to {lessee.name} of {lessee.owner}"
            then = f"; they are ended in {ends.grace:g} s" if ends.end == "end" else ""
            lines.append(f"{why}; still on it: {_pids(pids)}{then}.")
            if not is_withdrawn:
                self._notify_others(pod, card, pids, then, lessee)
        if lines:
            text = " ".join(lines)
            self._notify(pod.account, text, pod=pod.name)
            self._tasks.spawn(
                self._terminals.tell(pod, text), "writing to terminals about processes on GPUs"
            )

    def _notify_others(
        self, pod: Pod, card: Card, pids: Iterable[int], then: str, lessee: Pod | None
    ) -> None:
        of = f", leased to {lessee.name} of {lessee.owner}," if lessee else ""
        text = (
            f"{pod.name} of {pod.owner} is on GPU {card.index}{of} which it may not have:"
            f" {_pids(pids)}{then}."
        )
        if lessee is not None and lessee.owner != pod.owner:
            self._notify(lessee.account, text, pod=lessee.name)
        self._notify(None, text, pod=pod.name)


def _pid(intruder: _Intruder) -> int:
    return intruder.on_cards[0].pid


def _pids(pids: Iterable[int]) -> str:
    distinct = sorted(set(pids))
    more = f" and {len(distinct) - SHOWN} more" if len(distinct) > SHOWN else ""
    return f"pid {', '.join(map(str, distinct[:SHOWN]))}{more}"
