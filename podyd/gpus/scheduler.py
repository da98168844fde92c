"""The GPU scheduler: cards that are shared, leased for a time, or waited for in the queue.

What a pod should have is stored in the configuration of its instance; from that and from the leases
of all pods follow the devices of each. One lock guards every decision. The loop in `run` reconciles
the instances: after each decision, when a lease ends, and when podyd or the engine starts again.

Before a pod's devices are changed, the kernel is told which cards each pod may open (access.py): so
a card is refused before it is unplugged, and permitted before it is plugged. Whoever is on a card
that they may not have is ended by the watch (watch.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from podyd.base.clock import iso, now
from podyd.base.engine_words import ENGINE
from podyd.base.errors import (
    BadRequest,
    Busy,
    Conflict,
    Forbidden,
    Gone,
    NeedsStop,
    PodydError,
    Unavailable,
    engine_could_not,
)
from podyd.base.quantities import UNLIMITED
from podyd.base.tasks import came, seen
from podyd.config.current import Settings
from podyd.contract.gpus import LeasedCard, Waiting
from podyd.engine.interface import Instances, Profiles
from podyd.engine.types import Devices, Profile
from podyd.gpus.access import Access
from podyd.gpus.activity import Activity
from podyd.gpus.decisions import (
    COVERS,
    NO_CARDS,
    WISH,
    Keys,
    Making,
    View,
    covers_of,
    holder,
    in_order,
    wish_of,
)
from podyd.gpus.inventory import (
    Card,
    Inventory,
    by_index,
    cards_in,
    key_of,
    lasting,
    natural,
    with_cards,
)
from podyd.gpus.leases import (
    WAITING,
    Lease,
    QueueEntry,
    Withdrawal,
    entry_value,
    evict_key,
    evict_value,
    lease_key,
    lease_value,
    leases_of,
    queue_of,
    withdrawals_of,
    written_evictions,
)
from podyd.gpus.rights import rights_of
from podyd.model.gpu import CardChoice
from podyd.model.member import Member
from podyd.model.notice import Tell
from podyd.model.pod import Pod, pods_of
from podyd.node.interface import FIRST_SAMPLE_SECONDS, Samples
from podyd.node.samples import Sample

log = logging.getLogger(__name__)

# Between two reconciliations: with pods in the queue, and with none.
BUSY_SECONDS = 2.0
QUIET_SECONDS = 60.0
A_MOMENT = timedelta(microseconds=1)
# The engine moves cards in a fraction of a second, unless it hangs.
LOCK_SECONDS = 20.0
# So many instances are written concurrently, under the lock.
WRITERS = 8
# So long an instance is waited for, under the lock, that the engine is busy with as it starts or
# stops.
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Plan:
    """The configuration and devices that give a new instance its cards."""

    config: Mapping[str, str]
    devices: Devices


@dataclass(frozen=True)
class Picture:
    """What the engine has been asked already, for one decision."""

    cards: tuple[Card, ...]
    profiles: Mapping[str, Profile]


class Scheduler:
    """Decides which pod has which cards, and reconciles the instances with that."""

    def __init__(
        self,
        *,
        instances: Instances,
        profiles: Profiles,
        inventory: Inventory,
        samples: Samples,
        activity: Activity,
        access: Access,
        notify: Tell,
        settings: Settings,
    ) -> None:
        self._instances = instances
        self._profiles = profiles
        self._inventory = inventory
        self._samples = samples
        self._activity = activity
        self._access = access
        self._notify = notify
        self._settings = settings
        self._lock = asyncio.Lock()
        self._poke = asyncio.Event()
        # The pods that are being made, by the names of their instances.
        self._making: dict[str, Making] = {}
        self._problems: dict[str, str] = {}
        # The withdrawals that are over, by pod and what its instance has of them.
        self._withdrawn: set[tuple[str, str, str]] = set()

    async def view(self) -> View:
        """A snapshot, without the lock."""
        await self._samples.first(FIRST_SAMPLE_SECONDS)
        return await self._look()

    async def picture(self) -> Picture:
        """What the engine says now, for a decision that comes soon."""
        # Before that, a card may have another index, and no UUID.
        await self._samples.first(FIRST_SAMPLE_SECONDS)
        return await self._ask()

    async def _ask(self) -> Picture:
        return Picture(await self._inventory.cards(), await self._profiles.all())

    async def _look(self, picture: Picture | None = None) -> View:
        # Copied before the engine's list is read, so that a new pod is in at least one of the two.
        making = dict(self._making)
        asked = picture or await self._ask()
        cards = asked.cards
        instances = await self._instances.all()
        pods = tuple(pods_of(instances))
        leases = leases_of(pods, cards)
        names = {pod.name for pod in pods}
        sample, absent = self._samples.current, self._samples.absent
        return View(
            cards=cards,
            pods=pods,
            profiles=asked.profiles,
            leases=leases,
            queue=tuple(queue_of(pods, cards)),
            making=making,
            users={card: frozenset(self._activity.pods(card.pci)) for card in cards}
            if sample or absent
            else None,
            troubled=_troubled(cards, sample) if sample else {},
            problem=f"NVML does not answer ({self._samples.problem or 'it hangs'})",
            withdrawals=self._withdrawals(pods, cards, leases),
            strangers=tuple(item for item in instances if item.name not in names),
            ends_sharers=self._settings.current.lease.ends_sharers,
        )

    def _withdrawals(
        self, pods: Sequence[Pod], cards: Sequence[Card], leases: Mapping[str, Lease]
    ) -> tuple[Withdrawal, ...]:
        """Those that are under way: of a pod that may still be on the card."""
        ends = self._settings.current.lease
        stored = withdrawals_of(pods, cards, timedelta(seconds=ends.grace))
        self._withdrawn &= {_stored(item) for item in stored}
        known = {card.key for card in cards}
        are_all_known = all(card.uuid for card in cards)
        lessees = {key: lease.pod.name for key, lease in leases.items()}
        return tuple(
            item
            for item in stored
            if ends.end == "end"
            and item.pod.status != "stopped"
            and item.lessee == lessees.get(item.key, "")
            and _stored(item) not in self._withdrawn
            and (item.key in known or not are_all_known)
        )

    async def withdrawn(self, pod_name: str, card: Card) -> None:
        """Nobody of a pod has a card open any more that is being taken from it."""
        view = await self._look()
        for item in view.withdrawn.get(card, ()):
            if item.pod.name == pod_name:
                self._withdrawn.add(_stored(item))
                log.info("%s has nothing on GPU %d any more", pod_name, card.index)
        self._poke.set()

    @contextlib.asynccontextmanager
    async def _alone(self, picture: Picture | None = None) -> AsyncIterator[View]:
        """A snapshot under the lock. Raises Unavailable after `LOCK_SECONDS`."""
        if picture is None:  # Else it has been waited for.
            await self._samples.first(FIRST_SAMPLE_SECONDS)
        try:
            await asyncio.wait_for(self._lock.acquire(), LOCK_SECONDS)
        except asyncio.TimeoutError:
            raise Unavailable(
                f"GPUs are being moved between pods, and {ENGINE} takes long.",
                advice="Try again shortly.",
                code="gpus_busy",
            ) from None
        try:
            yield await self._look(picture)
        finally:
            self._lock.release()
            self._poke.set()

    async def leases(self, pod: Pod) -> list[LeasedCard]:
        """A pod's leases, by the card's index."""
        view = await self.view()
        return [
            LeasedCard(card.index, card.uuid, iso(lease.since), iso(lease.until))
            for card in view.cards
            if (lease := view.lease_of(pod, card)) is not None
        ]

    async def awaited(self, pod: Pod) -> list[Card]:
        """The cards that a pod has leased and gets once what others have on them is ended."""
        view = await self.view()
        return in_order(view.leased(pod) - view.due(pod))

    async def queue(self) -> list[Waiting]:
        """The entries of the queue, in order."""
        return waiting(await self.view())

    # --- A new pod -------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def new(
        self,
        member: Member,
        name: str,
        profiles: Sequence[Profile],
        choice: CardChoice | None,
        picture: Picture,
    ) -> AsyncIterator[Plan]:
        """Reserve the cards of a pod that is being made as the instance `name`.

        Without a `choice`: what its profiles give, or as many of that as the quota leaves, the
        least used first. Raises BadRequest, Conflict, Forbidden.
        """
        async with self._alone(picture) as view:
            plan, due, counted = self._plan(view, member, profiles, choice)
            self._making[name] = Making(member.name, due, counted)
            await self._permit(view)
        try:
            yield plan
        finally:
            del self._making[name]
            self._poke.set()

    def _plan(
        self,
        view: View,
        member: Member,
        profiles: Sequence[Profile],
        choice: CardChoice | None,
    ) -> tuple[Plan, frozenset[Card], int]:
        """The plan, its cards, and how many count towards the quota."""
        given = cards_in(natural(profiles, {}, ()), view.cards)
        config: dict[str, str] = {}
        # Cards of its profiles that others have leased, it gets once they are free.
        due, counted = given - view.taken("") - view.frozen, len(given)
        room = _room(view, member)
        if choice is not None:
            due, counted = view.choose(choice), view.size(choice)
            _check_quota(view, member, counted)
            config[WISH] = wish_of(choice, due)
        elif room is not None and room < len(given):
            fit = [card for card in view.least_used() if card in due]
            due = frozenset(fit[: max(0, room)])
            counted = len(due)
            config[WISH] = wish_of(CardChoice(count=counted), due)
        devices, covers = with_cards(profiles, {}, (), None if due == given else in_order(due))
        if covers:
            config[COVERS] = ",".join(sorted(covers))
        return Plan(config, devices), due, counted

    # --- Sharing ---------------------------------------------------------------------------------

    async def change(self, member: Member, pod: Pod, choice: CardChoice, *, force: bool) -> None:
        """Give a pod other cards, also while it runs.

        Raises BadRequest, Forbidden (quota), Conflict (leased to somebody, or in use by the pod),
        Unavailable (the UUIDs of cards are not known).
        """
        async with self._alone() as view:
            pod = _as_now(view, pod)
            wished, leased = view.choose(choice, pod), view.leased(pod)
            view.check_known(pod)
            if leased - wished:
                raise Conflict(
                    f"GPU {in_order(leased - wished)[0].index} is leased to this pod.",
                    advice="/gpu/release gives it back.",
                    code="gpu_leased",
                )
            _check_quota(view, member, view.size(choice) + _waited_for(view, pod), pod)
            self._check_unused(view, pod, view.due(pod) - wished, force=force)
            await self._write(view, pod, wished, {WISH: wish_of(choice, wished)})

    # --- Leases ----------------------------------------------------------------------------------

    async def lease(
        self, member: Member, pod: Pod, choice: CardChoice, hours: float, *, wait: bool
    ) -> int:
        """Lease cards to a pod for `hours` from now; with `wait`, join the queue if they are taken.

        Returns its place in the queue, or 0 if it has them. Leases that the pod has already
        become longer, never shorter. Raises BadRequest, Forbidden (quota, limits of podyd.yaml),
        Conflict (says who holds the cards), Unavailable (their users or UUIDs are not known).
        """
        async with self._alone() as view:
            pod, choice = _as_now(view, pod), lasting(choice, view.cards)
            more = self._check_limits(view, member, pod, choice, hours)
            # If the clock was set back, a new entry must not overtake those in the queue.
            since = max([now(), *(other.since + A_MOMENT for other in view.queue)])
            entry = QueueEntry(pod, since, choice, hours, more)
            try:
                await self._grant(view, entry, view.grantable(entry))
            except Conflict:
                if not wait:
                    raise
                return await self._enter(view, entry)
            return 0

    async def release(
        self, pod: Pod, choice: CardChoice | None, *, force: bool
    ) -> tuple[list[Card], bool]:
        """Give leased cards back; returns them, and whether the pod has left the queue.

        Without a choice all of them and the queue entry, with `none` the entry alone. Raises
        BadRequest, Conflict (in use by the pod), Unavailable (the UUIDs of cards are not known).
        """
        async with self._alone() as view:
            pod = _as_now(view, pod)
            cards = view.leased(pod)
            leaves = choice is None or choice.count == 0
            if choice is None or choice.count != 0:
                view.check_leases(pod)
            if choice is not None and choice.count is not None:
                cards = frozenset(in_order(cards)[: choice.count])
            elif choice is not None and not choice.everything:
                cards &= frozenset(view.card(name) for name in choice.named)
            # Cards that the pod also shares stay with it; a process that computed on one would keep
            # those who wait for it waiting.
            lost = cards - view.wished(pod)
            is_ended = self._settings.current.lease.end == "end" and view.users is not None
            self._check_unused(view, pod, cards if is_ended else lost, force=force)
            keys: Keys = dict.fromkeys(view.lease_keys(pod, (card.key for card in cards)))
            withdrawn = await self._open(view, pod, cards if force else lost)
            keys |= _evictions(withdrawn)
            if leaves:
                keys[WAITING] = None
            await self._write(view, pod, view.due(pod) - lost - withdrawn, keys)
            if withdrawn:  # Whoever asks next what is being ended is told.
                await self._permit(await self._look())
            return in_order(cards), leaves and WAITING in pod.instance.config

    async def end(self, lease: Lease, *, still: Callable[[], bool]) -> bool:
        """End a lease early, if it is unchanged and `still` returns True; returns whether it has
        ended."""
        async with self._alone() as view:
            expected = lease.pod.name, lease.until
            current = view.leases.get(lease.key)
            is_same = current is not None and (current.pod.name, current.until) == expected
            return is_same and still() and not await self._expire(view, [lease])

    def _check_limits(
        self, view: View, member: Member, pod: Pod, choice: CardChoice, hours: float
    ) -> int:
        """Check the limits of leases; returns the `more` of the queue entry. Raises BadRequest,
        Forbidden."""
        limits = self._settings.current.lease
        if view.size(choice) == 0:
            raise BadRequest(
                "Parameter 'gpus' must be one GPU or more.",
                advice="To give leased GPUs back, use /gpu/release.",
                code="malformed_parameter",
                parameter="gpus",
            )
        if limits.max_hours != UNLIMITED and hours > limits.max_hours:
            raise Forbidden(
                f"Parameter 'hours' may be {limits.max_hours:g} at most.",
                code="lease_too_long",
                limit=limits.max_hours,
            )
        names = {item.name for item in view.pods if item.is_of(member)} - {pod.name}
        used = sum(lease.pod.name in names for lease in view.leases.values())
        used += sum(view.asked(entry.choice) for entry in view.queue if entry.pod.name in names)
        leased = view.leased(pod)
        if choice.count is None and not choice.everything:
            wanted = len(leased | {view.card(name) for name in choice.named})
        else:
            wanted = max(view.size(choice), len(leased))
        if limits.max_gpus != UNLIMITED and used + wanted > limits.max_gpus:
            raise Forbidden(
                f"You may lease {limits.max_gpus} GPUs at a time, and your other pods have or"
                f" wait for {used}.",
                advice="/gpu/release gives them back.",
                code="quota_exceeded",
                limit=limits.max_gpus,
                used=used,
            )
        kept = len(view.own(pod)) + _waited_for(view, pod, but=(choice, hours))
        room = _room(view, member, pod)
        more = view.more_of(pod, choice, None if room is None else max(0, room - kept))
        _check_quota(view, member, max(kept + more, wanted), pod)
        return more

    async def _grant(self, view: View, entry: QueueEntry, cards: frozenset[Card]) -> View:
        """Lease cards to the pod of an entry; returns how it is then."""
        since, until = now(), now() + timedelta(hours=entry.hours)
        leases = {}
        for card in cards:
            old = view.leases.get(card.key)
            leases[card.key] = Lease(
                entry.pod,
                card.key,
                since if old is None else old.since,
                until if old is None else max(old.until, until),
            )
        kept = (item for item in view.withdrawals if item.lessee or item.key not in leases)
        begun = self._withdraw(view, entry.pod, cards)
        after = replace(view, leases={**view.leases, **leases}, withdrawals=(*kept, *begun))
        # Detached from all others before they are attached: a leased card is never at two pods.
        others = [other for other in view.pods if other.name != entry.pod.name]
        ending = {item.pod.name for item in begun}
        await _all_of(
            partial(self._take, after, other, lost or cards)
            for other in others
            if (lost := (view.present(other) & cards) - after.due(other)) or other.name in ending
        )
        keys: Keys = dict.fromkeys(view.lease_keys(entry.pod, leases))
        for key, lease in leases.items():
            keys[lease_key(key)] = lease_value(lease.since, lease.until)
        # What is still on a card that was being taken from it may stay there.
        keys |= {
            evict_key(written): None
            for written in written_evictions(entry.pod)
            if key_of(written, view.cards) in leases
        }
        if any(_is_same(entry, other) for other in view.queue):
            keys[WAITING] = None
        await self._write(after, entry.pod, after.due(entry.pod), keys)
        log.info("leased GPU %s to %s until %s", _numbers(cards), entry.pod.name, iso(until))
        return after

    def _withdraw(self, view: View, lessee: Pod, cards: frozenset[Card]) -> tuple[Withdrawal, ...]:
        """What begins when a pod leases cards: they are taken from those who compute on them."""
        since, grace = now(), timedelta(seconds=self._settings.current.lease.grace)
        value = evict_value(since, lessee.name)
        return tuple(
            Withdrawal(pod, card.key, value, since, since + grace, lessee.name)
            for card in in_order(cards - view.leased(lessee) - frozenset(view.withdrawn))
            for pod in view.computing(card, lessee.name)
            if pod.status != "stopped"
        )

    async def _enter(self, view: View, entry: QueueEntry) -> int:
        """Join the queue; who asks again for the same keeps their place, which is returned."""
        for number, other in enumerate(view.queue, 1):
            if _is_same(entry, other):
                return number
            if other.pod.name == entry.pod.name:
                raise Conflict(
                    f"Pod {entry.pod.ins!r} waits for other GPUs already.",
                    advice="/gpu/release with gpus=none leaves the queue.",
                    code="already_waiting",
                )
        await self._write(view, entry.pod, view.due(entry.pod), {WAITING: entry_value(entry)})
        log.info("%s waits for GPUs: %s", entry.pod.name, by_index(entry.choice, view.cards))
        return len(view.queue) + 1

    # --- Checks ----------------------------------------------------------------------------------

    def _check_unused(self, view: View, pod: Pod, cards: Iterable[Card], *, force: bool) -> None:
        for card in () if force else in_order(cards):
            if view.users is None or card in view.troubled:
                raise Unavailable(
                    "It is not known now whether the pod uses the GPU:"
                    f" {view.troubled.get(card, view.problem)}.",
                    advice="With force=1 it is taken away anyway.",
                    code="nvml_failed",
                )
            pids = self._activity.pids(card.pci, pod.name)
            if pids:
                raise Conflict(
                    f"GPU {card.index} is in use by {len(pids)} processes of the pod.",
                    advice="End them, or say force=1.",
                    code="gpu_in_use",
                    gpu=card.index,
                    pids=sorted(pids),
                )

    async def _open(self, view: View, pod: Pod, cards: frozenset[Card]) -> frozenset[Card]:
        """Of these cards, those that processes of the pod have open and that must be withdrawn."""
        if not cards or pod.status == "stopped" or self._settings.current.lease.end != "end":
            return NO_CARDS
        asking = asyncio.ensure_future(self._access.holders())
        await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
        if not asking.done():
            asking.add_done_callback(seen)
            return cards  # Which the watch finds out.
        users, holders = view.users or {}, asking.result() or ()
        held = NO_CARDS.union(*(item.cards for item in holders if item.pod == pod.name))
        return frozenset(card for card in cards if card in held or pod.name in users.get(card, ()))

    # --- Reconciliation --------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the queue and end leases, until cancelled."""
        while True:
            self._poke.clear()
            problems: dict[str, str] = {}
            delay = BUSY_SECONDS
            try:
                delay = await self._reconcile(problems)
            except PodydError as error:
                problems[""] = str(error)
            for name, problem in problems.items():
                if problem != self._problems.get(name):
                    log.warning("%s: GPUs cannot be shared out now: %s", name or ENGINE, problem)
            self._problems = problems
            if problems:
                # A failed attempt has set the event too.
                await asyncio.sleep(BUSY_SECONDS)
            else:
                await came(self._poke, delay)

    def poke(self) -> None:
        """Reconcile now: something has changed."""
        self._poke.set()

    async def _reconcile(self, problems: dict[str, str]) -> float:
        """Reconcile leases, queue and devices; returns the seconds until the next time.

        A failure for one pod goes to `problems`, and does not stop the work for the others.
        """
        await self._samples.first(FIRST_SAMPLE_SECONDS)
        tried: set[tuple[str, str]] = set()
        while True:
            # Between two steps other decisions are taken, so each begins with a new snapshot.
            async with self._lock:
                view, moment = await self._look(), now()
                await self._permit(view)
                if view.frozen:
                    problems["some cards"] = str(view.undecided())
                if not await self._step(view, moment, tried, problems):
                    self._activity.forget({pod.name for pod in view.pods})
                    return _until_next(view, moment)

    async def _step(
        self, view: View, moment: datetime, tried: set[tuple[str, str]], problems: dict[str, str]
    ) -> bool:
        """Do the first step that is needed and was not `tried` yet; returns whether there was one.

        Leases end first, then cards are detached, then the queue is served, then cards are
        attached.
        """
        ended = [
            lease
            for lease in view.leases.values()
            if lease.until <= moment and ("end", lease.key) not in tried
        ]
        if ended:
            tried |= {("end", lease.key) for lease in ended}
            problems |= await self._expire(view, ended)
            self._tell_ends(view, ended, problems)
            return True
        behind = [
            pod for pod in view.pods if ("write", pod.name) not in tried and _is_behind(view, pod)
        ]
        losing = [pod for pod in behind if view.present(pod) - view.due(pod)]
        if losing:
            await self._catch_all_up(view, losing, tried, problems)
            return True
        for entry in view.queue:
            # An entry that cannot be served yet blocks those behind it for the same cards.
            with contextlib.suppress(Conflict, Unavailable):
                cards = view.grantable(entry)
                if ("grant", entry.pod.name) not in tried:
                    tried.add(("grant", entry.pod.name))
                    with _noted(entry.pod, problems):
                        after = await self._grant(view, entry, cards)
                        self._tell_turn(after, entry.pod, cards)
                    return True
        if behind:
            await self._catch_all_up(view, behind, tried, problems)
        return bool(behind)

    async def _catch_all_up(
        self, view: View, pods: Sequence[Pod], tried: set[tuple[str, str]], problems: dict[str, str]
    ) -> None:
        some = pods[:WRITERS]
        tried |= {("write", pod.name) for pod in some}
        await _all_of(partial(self._catch_up, view, pod, problems) for pod in some)

    async def _catch_up(self, view: View, pod: Pod, problems: dict[str, str]) -> None:
        """Write an instance that is not up to date, unless a card that it has leased is still at
        another pod."""
        with _noted(pod, problems):
            for card in in_order((view.due(pod) - view.present(pod)) & view.leased(pod)):
                for other in view.pods:
                    if other.name != pod.name and card in view.present(other) - view.pinned(other):
                        raise _cannot_take([card], other, "it is not yet taken away there")
            await self._bring_up(view, pod)

    async def _expire(self, view: View, ended: Sequence[Lease]) -> dict[str, str]:
        """End leases; returns the errors, by pod."""
        problems: dict[str, str] = {}
        for pod in {lease.pod.name: lease.pod for lease in ended}.values():
            gone = {lease.key for lease in ended if lease.pod.name == pod.name}
            leases = {key: lease for key, lease in view.leases.items() if key not in gone}
            after = replace(view, leases=leases)
            cards = frozenset(card for card in view.cards if card.key in gone)
            withdrawn = await self._open(view, pod, cards)
            keys = view.lease_keys(pod, gone)
            ends: Keys = {**dict.fromkeys(keys), **_evictions(withdrawn)}
            with _noted(pod, problems):
                await self._write(view, pod, after.due(pod) - withdrawn, ends)
                log.info("%s has given back %d leased GPUs", pod.name, len(keys))
                # What is not written is still this pod's, so nobody else is given it.
                view = after
        return problems

    def _tell_ends(self, view: View, ended: Sequence[Lease], problems: Mapping[str, str]) -> None:
        pods = {lease.pod.name: lease.pod for lease in ended}
        for pod in pods.values():
            keys = {lease.key for lease in ended if lease.pod.name == pod.name}
            cards = [card for card in view.cards if card.key in keys]
            if cards and pod.name not in problems:
                text = f"The lease of GPU {_numbers(cards)} has ended: its time is up."
                self._notify(pod.account, text, pod=pod.name)

    def _tell_turn(self, view: View, pod: Pod, cards: frozenset[Card]) -> None:
        text = f"It was this pod's turn: it has leased GPU {_numbers(cards)}."
        later = cards - view.due(pod)
        if later:
            text += (
                f" It gets GPU {_numbers(later)} once what others have on it is ended, within"
                f" {self._settings.current.lease.grace:g} s."
            )
        self._notify(pod.account, text, pod=pod.name)

    async def _take(self, view: View, pod: Pod, cards: frozenset[Card]) -> None:
        """Detach cards from a pod that are another's in this view.

        Raises Conflict, with the pod that has them, if the engine is busy with it for long, or
        takes no cards from a pod that runs.
        """
        try:
            await self._bring_up(view, pod)
        except Busy as error:
            doing = f"{ENGINE} is at work on that pod ({error.operation or error.reason!r})"
            raise _cannot_take(in_order(cards), pod, doing) from error
        except NeedsStop as error:
            doing = f"{ENGINE} takes it from that pod only while it is stopped"
            raise _cannot_take(in_order(cards), pod, doing) from error

    async def _bring_up(self, view: View, pod: Pod) -> None:
        """Bring the devices and keys of an instance up to date."""
        with contextlib.suppress(Gone):  # It has no cards any more.
            await self._write(view, pod, view.due(pod), view.key_updates(pod))

    async def _permit(self, view: View, due: Mapping[str, frozenset[Card]] | None = None) -> None:
        making = {name: item.cards for name, item in self._making.items()}
        await self._access.permit(rights_of(view, making, due or {}))

    async def _write(self, view: View, pod: Pod, due: frozenset[Card], keys: Keys) -> None:
        await self._permit(view, {pod.name: due})
        _, covers = _devices(view, pod, due, pod.instance.own_devices)
        with engine_could_not("change the pod"):
            await self._instances.edit(
                pod.name,
                config={**keys, COVERS: ",".join(sorted(covers)) or None},
                devices=lambda own: _devices(view, pod, due, own)[0],
                patience=PATIENCE_SECONDS,
            )


def waiting(view: View) -> list[Waiting]:
    """The entries of the queue, in order."""
    return [
        Waiting(
            number,
            entry.pod.name,
            entry.pod.owner,
            str(by_index(entry.choice, view.cards)),
            entry.hours,
            iso(entry.since),
            entry.more,
        )
        for number, entry in enumerate(view.queue, 1)
    ]


def _devices(
    view: View, pod: Pod, due: frozenset[Card], own: Devices
) -> tuple[dict[str, Mapping[str, str]], frozenset[str]]:
    """The instance's own devices that give it these cards, and the profiles' devices they mask."""
    profiles, covers = view.profiles_of(pod.instance), covers_of(pod.instance)
    as_is = due == cards_in(natural(profiles, own, covers), view.cards)
    return with_cards(profiles, own, covers, None if as_is else in_order(due))


def _is_behind(view: View, pod: Pod) -> bool:
    """Whether an instance has other devices or keys than it should."""
    own = pod.instance.own_devices
    return bool(view.key_updates(pod)) or _devices(view, pod, view.due(pod), own)[0] != own


def _numbers(cards: Iterable[Card]) -> str:
    return ", ".join(str(card.index) for card in in_order(cards))


def _stored(item: Withdrawal) -> tuple[str, str, str]:
    return item.pod.name, item.key, item.value


def _evictions(cards: Iterable[Card]) -> Keys:
    """The keys that withdraw these cards from a pod, from now on."""
    return {evict_key(card.key): evict_value(now()) for card in cards}


async def _all_of(work: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Await all, `WRITERS` at a time; when all have ended, raises the first of their errors."""
    turns = asyncio.Semaphore(WRITERS)

    async def one(item: Callable[[], Awaitable[None]]) -> None:
        async with turns:
            await item()

    ended = await asyncio.gather(*map(one, work), return_exceptions=True)
    for error in ended:
        if error is not None:
            raise error


def _cannot_take(cards: Sequence[Card], pod: Pod, why: str) -> Conflict:
    numbers = ", ".join(str(card.index) for card in cards)
    return Conflict(
        f"GPU {numbers} cannot be taken from {pod.name} of {pod.owner} now: {why}.",
        advice="Try again shortly; /gpu/queue waits for a turn.",
        code="gpu_held",
        holders=[holder(card, pod) for card in cards],
    )


@contextlib.contextmanager
def _noted(pod: Pod, problems: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except PodydError as error:
        problems[pod.name] = str(error)


def _troubled(cards: Iterable[Card], sample: Sample) -> dict[Card, str]:
    """The cards that do not answer, and why."""
    shown = {gpu.pci: gpu.problem for gpu in sample.gpus}
    problems = {card: shown.get(card.pci, "NVML does not show it") for card in cards}
    return {card: problem for card, problem in problems.items() if problem is not None}


def _room(view: View, member: Member, pod: Pod | None = None) -> int | None:
    """How many cards a pod may have within its owner's quota; None if it has no limit."""
    limit = member.quota.gpu_count
    but = pod.name if pod else ""
    return None if limit == UNLIMITED else limit - view.counted(member, but=but)


def _check_quota(view: View, member: Member, wanted: int, pod: Pod | None = None) -> None:
    room = _room(view, member, pod)
    if room is not None and wanted > room:
        used = member.quota.gpu_count - room
        raise Forbidden(
            f"Your quota is {member.quota.gpu_count} GPUs over all your pods; the others have or"
            f" wait for {used}, and {wanted} for this one are too many.",
            code="quota_exceeded",
            parameter="gpus",
            limit=member.quota.gpu_count,
            used=used,
        )


def _waited_for(view: View, pod: Pod, but: tuple[CardChoice, float] | None = None) -> int:
    """How many cards a pod's queue entry reserves of its owner's quota, unless it is for `but`."""
    return sum(
        entry.more
        for entry in view.queue
        if entry.pod.name == pod.name and (entry.choice, entry.hours) != but
    )


def _is_same(entry: QueueEntry, other: QueueEntry) -> bool:
    """Whether two entries are of one pod and for the same."""
    return (entry.pod.name, entry.choice, entry.hours) == (
        other.pod.name,
        other.choice,
        other.hours,
    )


def _until_next(view: View, moment: datetime) -> float:
    ends = [(lease.until - moment) / timedelta(seconds=1) for lease in view.leases.values()]
    return max(0.05, min([BUSY_SECONDS if view.queue else QUIET_SECONDS, *ends]))


def _as_now(view: View, pod: Pod) -> Pod:
    """The pod as it is under the lock. Raises Conflict if it has been deleted meanwhile."""
    for other in view.pods:
        if other.name == pod.name and other.owner == pod.owner:
            return other
    raise Conflict(f"Pod {pod.ins!r} has just been deleted.", code="pod_gone")
