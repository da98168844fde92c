"""For admins: all members, and what they may do about others' leases."""

from __future__ import annotations

from podyd.accounting import findings
from podyd.accounting.actions import Actions
from podyd.accounting.quota_use import QuotaUses
from podyd.api.binding import Call, serves
from podyd.base.clock import iso_of
from podyd.config.current import Settings
from podyd.contract.admin import (
    ADMIN_DOCTOR,
    ADMIN_LOG,
    ADMIN_PEOPLE,
    ADMIN_RELEASE,
    ActionInfo,
    EndLeases,
    Findings,
    ListActions,
    Person,
)
from podyd.contract.gpus import LeaseResult
from podyd.contract.operation import Nothing
from podyd.contract.users import QuotaInfo
from podyd.gpus.scheduler import Scheduler
from podyd.gpus.watch import Watch
from podyd.model.notice import Tell
from podyd.pods.owned import Owned
from podyd.store.actions import Which


class AdminRoutes:
    def __init__(
        self,
        *,
        uses: QuotaUses,
        actions: Actions,
        owned: Owned,
        scheduler: Scheduler,
        watch: Watch,
        notify: Tell,
        settings: Settings,
    ) -> None:
        self._uses = uses
        self._actions = actions
        self._owned = owned
        self._scheduler = scheduler
        self._watch = watch
        self._notify = notify
        self._settings = settings

    @serves(ADMIN_PEOPLE)
    async def people(self, call: Call[Nothing]) -> list[Person]:
        return [
            Person(member.name, int(member.is_admin), QuotaInfo(**vars(member.quota)), used)
            for member, used in await self._uses.all()
        ]

    @serves(ADMIN_RELEASE)
    async def release(self, call: Call[EndLeases]) -> LeaseResult:
        request, admin = call.request, call.caller.name
        pod = await self._owned.named(request.pod)
        cards, has_left = await self._scheduler.release(pod, request.gpus, force=True)
        done = []
        if cards:
            numbers = ", ".join(str(card.index) for card in cards)
            done.append(f"{admin} has ended the lease of GPU {numbers}.")
        if has_left:
            done.append(f"{admin} has taken the pod out of the queue for GPUs.")
        if done:
            self._notify(pod.account, f"{' '.join(done)} Reason: {request.reason}", pod=pod.name)
        message = " ".join(done) or "The pod had no such lease, and was not in the queue."
        return LeaseResult(
            message, 0, await self._scheduler.leases(pod), await self._watch.ending(pod)
        )

    @serves(ADMIN_LOG)
    async def log(self, call: Call[ListActions]) -> list[ActionInfo]:
        request = call.request
        which = Which(request.since or 0.0, request.user, request.pod, request.call)
        actions = await self._actions.of(which, most=request.limit)
        return [
            ActionInfo(
                time=iso_of(action.time),
                user=action.user,
                operation=action.operation,
                pod=action.pod,
                status=action.status,
                code=action.code,
            )
            for action in actions
        ]

    @serves(ADMIN_DOCTOR)
    async def doctor(self, call: Call[Nothing]) -> Findings:
        return await findings.read(self._settings.current.findings)
