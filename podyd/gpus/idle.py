"""Idle leases: the owner is warned, then the lease ends, if podyd.yaml says so."""

from __future__ import annotations

import asyncio
import logging

from podyd.base.clock import now
from podyd.base.errors import PodydError
from podyd.config.current import Settings
from podyd.config.schema import IdleConfig
from podyd.gpus.activity import Activity
from podyd.gpus.inventory import Card
from podyd.gpus.leases import Lease
from podyd.gpus.scheduler import Scheduler
from podyd.gpus.terminals import Terminals
from podyd.model.notice import Tell

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0


def held_for(lease: Lease) -> float:
    """Seconds since the lease began."""
    return (now() - lease.since).total_seconds()


class IdleLeases:
    """Applies podyd.yaml's `idle` to every lease."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        activity: Activity,
        terminals: Terminals,
        notify: Tell,
        settings: Settings,
    ) -> None:
        self._scheduler = scheduler
        self._activity = activity
        self._terminals = terminals
        self._notify = notify
        self._settings = settings
        self._problem = ""
        # The leases of which a warning was given, by pod and card, and for how many seconds the
        # card had been idle then.
        self._warned: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Check all leases at intervals, until cancelled."""
        while True:
            policy = self._settings.current.idle
            if policy.policy != "report":
                problem = ""
                try:
                    await self._look(policy)
                except PodydError as error:
                    problem = str(error)
                if problem and problem != self._problem:
                    log.warning("leases are not checked for idle GPUs at present: %s", problem)
                self._problem = problem
            await asyncio.sleep(min(LOOK_SECONDS, policy.after / 4, policy.grace / 4))

    async def _look(self, policy: IdleConfig) -> None:
        view = await self._scheduler.view()
        warned = {}
        cards = {card.key: card for card in view.cards}
        for lease in view.leases.values():
            card = cards.get(lease.key)
            if card is None:
                continue  # The card has been removed from the host.
            idle = self._idle(card, lease)
            if idle is None or idle < policy.after:
                continue  # It is in use, or that is not known.
            key = lease.pod.name, lease.key
            idle_then = self._warned.get(key)
            if idle_then is None:
                await self._warn(card, lease, policy, idle)
                idle_then = idle
            is_due = policy.policy == "release" and idle >= idle_then + policy.grace
            if not (is_due and await self._release(card, lease, policy)):
                warned[key] = idle_then
        self._warned = warned

    def _idle(self, card: Card, lease: Lease) -> float | None:
        return self._activity.pod_idle(card.pci, lease.pod.name, held_for(lease))

    async def _warn(self, card: Card, lease: Lease, policy: IdleConfig, idle: float) -> None:
        text = f"GPU {card.index} has been idle for {idle:.0f} s"
        if policy.policy == "release":
            text += f"; its lease ends in {policy.grace:.0f} s unless it is used"
        log.info("%s: %s", lease.pod.name, text)
        await self._tell(lease, f"{text}.")

    async def _release(self, card: Card, lease: Lease, policy: IdleConfig) -> bool:
        """End the lease, unless the card is used after all; whether it has ended."""

        def is_still_idle() -> bool:
            idle = self._idle(card, lease)
            return idle is not None and idle >= policy.after

        if not await self._scheduler.end(lease, still=is_still_idle):
            return False
        log.info("%s: GPU %d is given back, as it was idle", lease.pod.name, card.index)
        await self._tell(lease, f"The lease of GPU {card.index} has ended: it was idle.")
        return True

    async def _tell(self, lease: Lease, text: str) -> None:
        """A notice to the owner, and a line on every terminal of the pod."""
        self._notify(lease.pod.account, text, pod=lease.pod.name)
        await self._terminals.tell(lease.pod, text)
