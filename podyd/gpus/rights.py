"""Which cards the processes of each pod may open, as follows from a `View`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from podyd.gpus.decisions import Cards, View
from podyd.gpus.inventory import Card, cards_in
from podyd.model.pod import Pod


@dataclass(frozen=True)
class Rights:
    """`rows` are the cards that each instance of the project may open, by its name, and `pods`
    those that are pods.

    `leased` has the pod that has leased a card, `withdrawn` since when a card is being withdrawn
    from a pod. Which pods may have a `frozen` card is not known.
    """

    cards: tuple[Card, ...]
    pods: Mapping[str, Pod] = field(compare=False)
    rows: Mapping[str, Cards]
    leased: Mapping[Card, str]
    withdrawn: Mapping[tuple[str, Card], datetime]
    frozen: Cards

    def forbids(self, pod: str, card: Card, *, computes: bool) -> bool:
        """Whether a process of a pod must not be on a card.

        CUDA opens all cards that it sees. So a process that only has a card open disturbs nobody,
        unless another pod has leased the card, or it is being withdrawn from this one.
        """
        if pod not in self.pods or card in self.rows[pod] or card in self.frozen:
            return False
        return computes or self.leased.get(card, pod) != pod or (pod, card) in self.withdrawn


def rights_of(view: View, making: Mapping[str, Cards], due: Mapping[str, Cards]) -> Rights:
    """The rights in a view; `making` are the cards of pods that are being made, and `due` those of
    pods that are about to get others than in the view."""
    rows = {
        item.name: cards_in(item.devices, view.cards) - view.taken(item.name)
        for item in view.strangers
    }
    rows |= making
    for pod in view.pods:
        pinned = view.pinned(pod) - view.taken(pod.name)
        rows[pod.name] = due.get(pod.name, view.due(pod)) | pinned
    return Rights(
        cards=view.cards,
        pods={pod.name: pod for pod in view.pods},
        rows=rows,
        leased={
            card: view.leases[card.key].pod.name for card in view.cards if card.key in view.leases
        },
        withdrawn={
            (item.pod.name, card): item.since
            for card, items in view.withdrawn.items()
            for item in items
        },
        frozen=view.frozen,
    )
