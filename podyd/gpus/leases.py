"""Leases of cards and the queue for them, as stored in the configuration of the instances.

`user.podyd.lease.<UUID>` is `<since>/<until>`, `user.podyd.waiting` an entry of the queue: so they
outlive the process, and an admin reads them with `lxc config show`. A card whose UUID was not known
when the key was written is stored with its PCI address.

`user.podyd.evict.<UUID>` is since when a card is being withdrawn from a pod whose lease has ended,
and whose processes still had it open: until they have ended, no other pod gets it. It is
`<since>/<pod>` while it is withdrawn from a pod that shared it and computes on it, for a lease of
that other pod.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from podyd.base.clock import MAX_HOURS
from podyd.gpus.inventory import Card, key_of, lasting
from podyd.model.gpu import CardChoice
from podyd.model.pod import Pod

log = logging.getLogger(__name__)

LEASE_PREFIX = "user.podyd.lease."
EVICT_PREFIX = "user.podyd.evict."
WAITING = "user.podyd.waiting"


@dataclass(frozen=True)
class Lease:
    """A card, by its key, that a pod has for itself from `since` until `until`."""

    pod: Pod
    key: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Withdrawal:
    """A card, by its key, that is being withdrawn from a pod since its lease has ended, or since
    `lessee`, the name of another pod, has leased it; the pod's processes on it are killed at
    `until`. `value` is the stored text."""

    pod: Pod
    key: str
    value: str
    since: datetime
    until: datetime
    lessee: str = ""


@dataclass(frozen=True)
class QueueEntry:
    """A pod in the queue: since when, for which cards, and for how many hours it will have them.

    Cards that it names are named by their keys. `more` is how many cards it may get beyond those
    that it has or shares: what its owner's quota left when it joined, which is reserved for it.
    """

    pod: Pod
    since: datetime
    choice: CardChoice
    hours: float
    more: int


def lease_key(card_key: str) -> str:
    """The key of an instance that holds its lease of a card."""
    return LEASE_PREFIX + card_key


def evict_key(card_key: str) -> str:
    """The key of an instance from which a card is being withdrawn."""
    return EVICT_PREFIX + card_key


def evict_value(since: datetime, lessee: str = "") -> str:
    """An ISO 8601 time, and for whom the card is withdrawn if that is another pod."""
    return f"{_text(since)}/{lessee}" if lessee else _text(since)


def lease_value(since: datetime, until: datetime) -> str:
    """An ISO 8601 interval."""
    return f"{_text(since)}/{_text(until)}"


def entry_value(entry: QueueEntry) -> str:
    """The value of `WAITING` for an entry of the queue."""
    return json.dumps(
        {
            # An admin's copy of the instance has another name, and does not wait.
            "pod": entry.pod.name,
            "since": _text(entry.since),
            "gpus": entry.choice.stored(),
            "hours": entry.hours,
            "more": entry.more,
        }
    )


def written_leases(pod: Pod) -> dict[str, str]:
    """The stored values of a pod's leases, by the cards' keys as they were written."""
    return _written(pod, LEASE_PREFIX)


def written_evictions(pod: Pod) -> dict[str, str]:
    """Since when each card is being withdrawn from a pod, by the cards' keys as they were
    written."""
    return _written(pod, EVICT_PREFIX)


def _written(pod: Pod, prefix: str) -> dict[str, str]:
    return {
        key.removeprefix(prefix): value
        for key, value in pod.instance.config.items()
        if key.startswith(prefix)
    }


def withdrawals_of(
    pods: Iterable[Pod], cards: Sequence[Card], grace: timedelta
) -> list[Withdrawal]:
    """The withdrawals that are stored, each with `grace` from its beginning."""
    withdrawals = []
    for pod in pods:
        for written, value in written_evictions(pod).items():
            with contextlib.suppress(ValueError):  # One that is malformed is removed.
                text, _, lessee = value.partition("/")
                since = _moment(text)
                key = key_of(written, cards)
                withdrawals.append(Withdrawal(pod, key, value, since, since + grace, lessee))
    return withdrawals


def leases_of(pods: Iterable[Pod], cards: Sequence[Card]) -> dict[str, Lease]:
    """The leases by the card's key; of two for one card, the older counts.

    An admin's copy of an instance makes such a pair.
    """
    by_card: dict[str, Lease] = {}
    for pod in pods:
        for written, value in written_leases(pod).items():
            lease = _lease(pod, key_of(written, cards), value)
            if lease is None:
                key = lease_key(written)
                log.warning("%s: %s is not an interval of times: %r", pod.name, key, value)
            elif lease.key not in by_card or _age(lease) < _age(by_card[lease.key]):
                by_card[lease.key] = lease
    return by_card


def queue_of(pods: Iterable[Pod], cards: Sequence[Card]) -> list[QueueEntry]:
    """The entries of the queue, the first to be served first."""
    entries = []
    for pod in pods:
        text = pod.instance.config.get(WAITING)
        if text is None:
            continue
        try:
            data: dict[str, Any] = json.loads(text)
            since, hours = _moment(data["since"]), float(data["hours"])
            if not 0 < hours <= MAX_HOURS:
                raise ValueError(hours)
            # Older entries have indices.
            choice = lasting(CardChoice.of_stored(data["gpus"]), cards)
            entry = QueueEntry(pod, since, choice, hours, int(data["more"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s: %s is not a queue entry: %r", pod.name, WAITING, text)
            continue
        if data.get("pod") == pod.name:
            entries.append(entry)
    return sorted(entries, key=lambda entry: (entry.since, entry.pod.name))


def _lease(pod: Pod, card_key: str, value: str) -> Lease | None:
    try:
        since, until = (_moment(part) for part in value.split("/"))
    except ValueError:
        return None
    return Lease(pod, card_key, since, until)


def _age(lease: Lease) -> tuple[datetime, datetime]:
    return lease.since, lease.pod.instance.created


def _text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _moment(text: str) -> datetime:
    # Before Python 3.11 fromisoformat does not accept the Z.
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment
