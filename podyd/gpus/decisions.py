"""Decisions on cards: which ones a pod may have, shared or for itself, and who goes first.

Nothing here changes anything: a `View` is a snapshot, and decisions are functions of it.

Where a lease, a choice or a queue entry names a UUID that no known card has, and the UUID of some
card is not known, that card may be the one: it is `frozen`, and stays with the pods that have it
now. If the UUIDs of all cards are known, the named card has been removed from the host, and blocks
nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from podyd.base.clock import iso
from podyd.base.engine_words import ENGINE
from podyd.base.errors import BadRequest, Conflict, Unavailable
from podyd.engine.types import Instance, Profile, profiles_of
from podyd.gpus.inventory import Card, cards_in, is_uuid, key_of, natural, of_the_admin
from podyd.gpus.leases import (
    WAITING,
    Lease,
    QueueEntry,
    Withdrawal,
    entry_value,
    evict_key,
    lease_key,
    lease_value,
    written_evictions,
    written_leases,
)
from podyd.model.gpu import CardChoice
from podyd.model.pod import Owner, Pod

# What a pod's owner asked for: `all`, `none`, or UUIDs; absent: what its profiles give.
WISH = "user.podyd.gpus"
# The devices of its profiles that podyd has covered on an instance.
COVERS = "user.podyd.covers"

Cards = frozenset[Card]
Keys = dict[str, str | None]
NO_CARDS: Cards = frozenset()


def covers_of(instance: Instance) -> frozenset[str]:
    """The devices of its profiles that podyd has covered on an instance."""
    return frozenset(filter(None, instance.config.get(COVERS, "").split(",")))


def in_order(cards: Iterable[Card]) -> list[Card]:
    """Cards by index."""
    return sorted(cards, key=lambda card: card.index)


def wish_of(choice: CardChoice, cards: Iterable[Card]) -> str:
    """The value of `WISH` for a choice that was resolved to these cards."""
    if choice.everything:
        return "all"
    return ",".join(card.key for card in in_order(cards)) or "none"


def chosen(pod: Pod) -> list[str]:
    """The cards that a pod's owner asked for by name, by their keys as they were written."""
    wish = pod.instance.config.get(WISH, "none")
    return [] if wish in ("all", "none") else wish.split(",")


@dataclass(frozen=True)
class Making:
    """A pod that is being made, before the engine shows it as one: its cards, and how many
    count."""

    owner: str
    cards: Cards
    counted: int


@dataclass(frozen=True)
class View:
    """A snapshot of all that decisions depend on.

    `making` is by the name of the instance. `users` are the names of the pods with processes on a
    card; None if they are not known, for the reason in `problem`. A card in `troubled` does not
    answer, for the reason there, and its users are not known. `withdrawals` are those under way.
    `strangers` are the project's instances that are no pods. Where it `ends_sharers`, a lease ends
    what other pods compute on its cards; else it waits for them.
    """

    cards: tuple[Card, ...]
    pods: tuple[Pod, ...]
    profiles: Mapping[str, Profile]
    leases: Mapping[str, Lease]
    queue: tuple[QueueEntry, ...]
    making: Mapping[str, Making]
    users: Mapping[Card, frozenset[str]] | None
    troubled: Mapping[Card, str]
    problem: str = ""
    withdrawals: tuple[Withdrawal, ...] = ()
    strangers: tuple[Instance, ...] = ()
    ends_sharers: bool = False

    # --- Which card is which ---------------------------------------------------------------------

    @cached_property
    def unknown(self) -> Mapping[str, frozenset[str]]:
        """By the name of a pod, the UUIDs that it has leased, chosen or waits for and that no known
        card has; empty if the UUIDs of all cards are known."""
        known = {card.uuid for card in self.cards}
        if "" not in known:
            return {}
        named = [(lease.pod, [lease.key]) for lease in self.leases.values()]
        named += [(entry.pod, list(entry.choice.named)) for entry in self.queue]
        named += [(pod, [key_of(key, self.cards) for key in chosen(pod)]) for pod in self.pods]
        by_pod: dict[str, frozenset[str]] = {}
        for pod, keys in named:
            strange = frozenset(key for key in keys if is_uuid(key)) - known
            if strange:
                by_pod[pod.name] = by_pod.get(pod.name, frozenset()) | strange
        return by_pod

    @cached_property
    def frozen(self) -> Cards:
        """The cards whose UUID is not known and may be one of `unknown`."""
        return frozenset(card for card in self.cards if not card.uuid) if self.unknown else NO_CARDS

    def undecided(self) -> Unavailable:
        """The error for decisions that involve frozen cards."""
        cards = ", ".join(f"GPU {card.index} ({card.pci})" for card in in_order(self.frozen))
        pod = min(self.unknown)
        return Unavailable(
            f"Neither {ENGINE} nor NVML reports the UUID of {cards}, and it may be that of"
            f" {min(self.unknown[pod])}, which {pod} has leased, chosen or waits for; until it is"
            " known, such a GPU stays where it is.",
            advice="Tell your admin, who sees with 'podyd doctor' what is wrong.",
            code="gpus_unknown",
        )

    def check_known(self, pod: Pod) -> None:
        """Raises Unavailable if a pod has or names cards whose UUIDs are not known."""
        if pod.name in self.unknown or self.due(pod) & self.frozen:
            raise self.undecided()

    def check_leases(self, pod: Pod) -> None:
        """Raises Unavailable if a pod has leased cards whose UUIDs are not known."""
        leased = {lease.key for lease in self.leases.values() if lease.pod.name == pod.name}
        if leased & self.unknown.get(pod.name, frozenset()):
            raise self.undecided()

    def key_updates(self, pod: Pod) -> Keys:
        """The changes that bring a pod's keys up to date: each card by its current key, no lease of
        a card that another pod has leased, and those withdrawals that are under way."""
        keys: Keys = {}
        for written in written_leases(pod):
            key = key_of(written, self.cards)
            lease = self.leases.get(key)
            if lease is None or (lease.pod.name == pod.name and key == written):
                continue
            keys[lease_key(written)] = None
            if lease.pod.name == pod.name:
                keys[lease_key(key)] = lease_value(lease.since, lease.until)
        wish = ",".join(key_of(key, self.cards) for key in chosen(pod))
        if wish and wish != pod.instance.config[WISH]:
            keys[WISH] = wish
        for entry in self.queue:
            if entry.pod.name == pod.name and entry_value(entry) != pod.instance.config[WAITING]:
                keys[WAITING] = entry_value(entry)
        under_way = {item.key: item for item in self.withdrawals if item.pod.name == pod.name}
        keys |= {
            evict_key(written): None
            for written in written_evictions(pod)
            if written not in under_way
        }
        for key, item in under_way.items():
            if pod.instance.config.get(evict_key(key)) != item.value:
                keys[evict_key(key)] = item.value
        return keys

    # --- What pods have --------------------------------------------------------------------------

    def profiles_of(self, instance: Instance) -> list[Profile]:
        """An instance's profiles, in the order in which the engine applies them."""
        return profiles_of(instance.profiles, self.profiles)

    def given(self, instance: Instance) -> Cards:
        """The cards that an instance has by its profiles and by the admin."""
        profiles = self.profiles_of(instance)
        return cards_in(natural(profiles, instance.own_devices, covers_of(instance)), self.cards)

    def pinned(self, pod: Pod) -> Cards:
        """The cards that an admin has given to this very instance; podyd leaves them there."""
        own = pod.instance.own_devices
        return cards_in(of_the_admin(own, covers_of(pod.instance)), self.cards)

    def wished(self, pod: Pod) -> Cards:
        """The cards that a pod shares, where no other pod has leased them."""
        wish = pod.instance.config.get(WISH)
        if wish is None:
            return self.given(pod.instance)
        if wish == "all":
            return frozenset(self.cards)
        return frozenset(
            card for card in self.cards if any(card.is_written(key) for key in chosen(pod))
        )

    def lease_of(self, pod: Pod, card: Card) -> Lease | None:
        """A pod's lease of a card; None if it has none."""
        lease = self.leases.get(card.key)
        return lease if lease is not None and lease.pod.name == pod.name else None

    def leased(self, pod: Pod) -> Cards:
        """The cards that a pod has for itself."""
        return frozenset(card for card in self.cards if self.lease_of(pod, card) is not None)

    def lease_keys(self, pod: Pod, keys: Iterable[str]) -> list[str]:
        """The configuration keys of a pod's instance with its leases of these cards."""
        wanted = frozenset(keys)
        return [
            lease_key(written)
            for written in written_leases(pod)
            if key_of(written, self.cards) in wanted
        ]

    def leased_by_others(self, pod_name: str) -> Cards:
        """The cards that pods other than this one have for themselves."""
        return frozenset(
            card
            for card in self.cards
            if card.key in self.leases and self.leases[card.key].pod.name != pod_name
        )

    @cached_property
    def withdrawn(self) -> Mapping[Card, tuple[Withdrawal, ...]]:
        """The cards that are being withdrawn from pods."""
        by_card: dict[Card, tuple[Withdrawal, ...]] = {}
        for card in self.cards:
            items = tuple(item for item in self.withdrawals if item.key == card.key)
            if items:
                by_card[card] = items
        return by_card

    def taken(self, pod_name: str) -> Cards:
        """The cards that this pod cannot share: other pods have leased them, or they are being
        withdrawn from a pod, after which the queue is served first."""
        return self.leased_by_others(pod_name) | frozenset(self.withdrawn)

    def due(self, pod: Pod) -> Cards:
        """The cards that a pod should have now. What it has leased and is still being taken from
        others is among them only if the pod shares it, or has it."""
        leased, wished = self.leased(pod), self.wished(pod)
        leased -= frozenset(self.withdrawn) - wished - self.present(pod)
        wanted = (wished - self.taken(pod.name)) | leased
        if not self.frozen:
            return wanted
        return (wanted - self.frozen) | (self.present(pod) & self.frozen)

    def present(self, pod: Pod) -> Cards:
        """The cards that a pod's devices pass to it now, whether it should have them or not."""
        return cards_in(pod.instance.devices, self.cards)

    def own(self, pod: Pod) -> Cards:
        """The cards of a pod that count towards its owner's quota."""
        return self.wished(pod) | self.leased(pod)

    def counted(self, owner: Owner, *, but: str = "") -> int:
        """How many cards count towards an owner's quota, without those of pod `but`: had, reserved
        by a queue entry, or for a pod that is being made."""
        pods = {pod.name: pod for pod in self.pods if pod.is_of(owner) and pod.name != but}
        waiting = [entry.more for entry in self.queue if entry.pod.name in pods]
        making = [
            item.counted
            for name, item in self.making.items()
            if item.owner == owner.name and name not in pods and name != but
        ]
        strange = [len(self.unknown.get(name, ())) for name in pods]
        had = [len(self.own(pod)) for pod in pods.values()]
        return sum(had) + sum(strange) + sum(waiting) + sum(making)

    # --- What a choice comes to ------------------------------------------------------------------

    def card(self, name: str) -> Card:
        """The card of an index, a UUID or a PCI address. Raises BadRequest."""
        for card in self.cards:
            if card.is_named(name):
                return card
        count = len(self.cards)
        existing = f"there are {count}, from 0 to {count - 1}" if count else "there is none"
        raise BadRequest(
            f"Parameter 'gpus' names GPU {name}, but {existing}.",
            code="no_such_gpu",
            count=len(self.cards),
        )

    def size(self, choice: CardChoice) -> int:
        """How many cards a choice asks for. Raises BadRequest if there are not so many."""
        if choice.everything:
            return len(self.cards)
        if choice.count is None:
            return len({self.card(name) for name in choice.named})
        if choice.count > len(self.cards):
            raise BadRequest(
                f"Parameter 'gpus' asks for {choice.count} GPUs, but this host has"
                f" {len(self.cards)}.",
                code="no_such_gpu",
                count=len(self.cards),
            )
        return choice.count

    def asked(self, choice: CardChoice) -> int:
        """How many cards a choice asks for, even if the host has fewer."""
        if choice.everything:
            return len(self.cards)
        return len(choice.named) if choice.count is None else choice.count

    def least_used(self) -> list[Card]:
        """The cards, sorted by the number of pods that use them, then by those that have them."""
        shared = Counter(card for pod in self.pods for card in self.due(pod))
        shared.update(card for item in self.making.values() for card in item.cards)
        users = self.users or {}
        return sorted(
            self.cards,
            key=lambda card: (len(users.get(card, ())), shared[card], card.index),
        )

    def choose(self, choice: CardChoice, pod: Pod | None = None) -> Cards:
        """The cards of a choice, to be shared by a pod, or by one that is being made.

        Of a count, preferably those that the pod has leased, uses or has already. Raises
        BadRequest, Conflict, Unavailable (the UUIDs of cards are not known).
        """
        self.size(choice)
        pod_name = pod.name if pod else ""
        taken = self.taken(pod_name)
        if choice.everything:
            if self.frozen:
                raise self.undecided()
            return frozenset(self.cards) - taken
        if choice.count is None:
            named = frozenset(self.card(name) for name in choice.named)
            if named & taken:
                raise self._held(named & taken, pod_name)
            if named & self.frozen:
                raise self.undecided()
            return named
        free = [card for card in self.least_used() if card not in taken | self.frozen]
        if choice.count > len(free):
            raise self.undecided() if self.frozen else self._held(taken, pod_name)
        if pod is not None:
            leased, due, users = self.leased(pod), self.due(pod), self.users or {}
            free.sort(
                key=lambda card: (
                    card not in leased,
                    pod_name not in users.get(card, ()),
                    card not in due,
                )
            )
        return frozenset(free[: choice.count])

    # --- For oneself -----------------------------------------------------------------------------

    def more_of(self, pod: Pod, choice: CardChoice, room: int | None) -> int:
        """How many cards a lease may add to those that a pod has or shares, where its owner's quota
        leaves `room` for so many (None: no limit)."""
        own = self.own(pod)
        if choice.count is None:
            return len(self._possible(choice) - own)
        wanted = max(0, choice.count - len(self.leased(pod)))
        return wanted if room is None else min(wanted, room)

    def grantable(self, entry: QueueEntry) -> Cards:
        """The cards that a pod can lease now, without overtaking entries before it.

        Raises Conflict, with who holds the cards; Unavailable if their users or their UUIDs are not
        known.
        """
        pod, choice = entry.pod, entry.choice
        if pod.name in self.unknown:
            raise self.undecided()
        possible = self._possible(choice)
        before = [
            other
            for other in self.queue
            if other.since < entry.since
            and other.pod.name != pod.name
            and self._is_servable(other.choice)
            and self._possible(other.choice) & possible
        ]
        promised = NO_CARDS.union(*(self._possible(other.choice) for other in before))
        mine = self.leased(pod) - promised
        if choice.count is not None and len(mine) >= choice.count:
            return frozenset(in_order(mine)[: choice.count])
        out_of_reach = self.leased_by_others(pod.name) | promised | self._planned
        out_of_reach |= frozenset(self.troubled) | self.frozen
        within_reach = possible - mine - out_of_reach
        free = frozenset(card for card in within_reach if not self._others_on(card, pod.name))
        used = frozenset(card for card in within_reach - free if self._can_take(card, pod.name))
        held = frozenset(self.cards) - mine - free - used
        if choice.count is None:
            if possible & self.frozen:
                raise self.undecided()
            if possible & held or not self._is_servable(choice):
                raise self._held(possible & held, pod.name, before, to_lease=True)
            return possible
        counted, more = self.own(pod), entry.more
        usable = in_order(mine)
        for cards in (free, used):
            usable += [card for card in self.least_used() if card in cards & counted]
            others = [card for card in self.least_used() if card in cards - counted][:more]
            usable += others
            more -= len(others)
        if len(usable) < choice.count:
            if self.frozen:
                raise self.undecided()
            raise self._held(held, pod.name, before, to_lease=True)
        return frozenset(usable[: choice.count])

    @property
    def _planned(self) -> Cards:
        """The cards of pods that are being made."""
        return NO_CARDS.union(*(item.cards for item in self.making.values()))

    def _possible(self, choice: CardChoice) -> Cards:
        """The cards that can serve a lease; a named one may have been removed from the host."""
        if not choice.named:
            return frozenset(self.cards)
        return frozenset(
            card for card in self.cards if any(card.is_named(name) for name in choice.named)
        )

    def _is_servable(self, choice: CardChoice) -> bool:
        """Whether the host has enough cards for a lease; an entry for more blocks nobody."""
        return 0 < len(self._possible(choice)) >= self.asked(choice)

    def computing(self, card: Card, pod_name: str) -> list[Pod]:
        """The pods other than this one that use a card now. Raises Unavailable."""
        if self.users is None:
            raise Unavailable(
                f"It is not known now who uses the GPUs: {self.problem}.", code="nvml_failed"
            )
        names = self.users.get(card, frozenset())
        return [pod for pod in self.pods if pod.name in names and pod.name != pod_name]

    def _others_on(self, card: Card, pod_name: str) -> list[Pod]:
        """The other pods that use a card now, or that keep it."""
        computing = self.computing(card, pod_name)
        keepers = [pod for pod in self._keepers(card, pod_name) if pod not in computing]
        return computing + keepers

    def _keepers(self, card: Card, pod_name: str) -> list[Pod]:
        """The other pods from which a card is being taken, or to which the admin has given it."""
        names = {item.pod.name for item in self.withdrawn.get(card, ())}
        return [
            pod
            for pod in self.pods
            if pod.name != pod_name and (pod.name in names or card in self.pinned(pod))
        ]

    def _can_take(self, card: Card, pod_name: str) -> bool:
        """Whether a lease takes a card from those who use it."""
        return self.ends_sharers and not self._keepers(card, pod_name)

    def _held(
        self,
        cards: Cards,
        pod_name: str,
        before: Iterable[QueueEntry] = (),
        *,
        to_lease: bool = False,
    ) -> Conflict:
        """The error that says who holds these cards, since when and until when."""
        holders: list[dict[str, Any]] = []
        sentences = []
        for card in in_order(cards):
            lease = self.leases.get(card.key)
            if lease is not None and lease.pod.name != pod_name:
                since, until = iso(lease.since), iso(lease.until)
                holders.append(holder(card, lease.pod, since, until))
                sentences.append(
                    f"GPU {card.index} is leased to {lease.pod.name} of {lease.pod.owner} since"
                    f" {since} until {until}"
                )
            elif card in self.withdrawn:
                for item in self.withdrawn[card]:
                    since, until = iso(item.since), iso(item.until)
                    holders.append(holder(card, item.pod, since, until))
                    sentences.append(
                        f"GPU {card.index} is being taken from {item.pod.name} of"
                        f" {item.pod.owner} until {until}"
                    )
            elif card in self.troubled:
                sentences.append(f"GPU {card.index} does not answer: {self.troubled[card]}")
            elif card in self._planned:
                sentences.append(f"GPU {card.index} goes to a pod that is just being made")
            elif to_lease:
                for pod in self._others_on(card, pod_name):
                    holders.append(holder(card, pod))
                    sentences.append(f"GPU {card.index} is in use by {pod.name} of {pod.owner}")
        waiting = len(list(before))
        if waiting:
            sentences.append(f"{waiting} in the queue before you, see /gpu/line")
        advice = "/gpu/queue waits for a turn." if to_lease else ""
        detail = "; ".join(sentences) or "The GPUs that you share are in use by others"
        return Conflict(f"{detail}.", advice=advice, code="gpu_held", holders=holders)


def holder(
    card: Card, pod: Pod, since: str | None = None, until: str | None = None
) -> dict[str, Any]:
    """A pod that has a card, as in the body of an error."""
    return {
        "gpu": card.index,
        "pod": pod.name,
        "owner": pod.owner,
        "since": since,
        "until": until,
    }
