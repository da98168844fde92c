"""About who has which GPU."""

from __future__ import annotations

from collections.abc import Iterable

from podyd.api.binding import Call, serves
from podyd.contract.gpus import (
    GPU_LEASE,
    GPU_LINE,
    GPU_QUEUE,
    GPU_RELEASE,
    POD_GPUS,
    ChangedGpus,
    ChangeGpus,
    Ending,
    LeaseCards,
    LeaseResult,
    ReleaseCards,
    Waiting,
)
from podyd.contract.operation import Nothing
from podyd.gpus.scheduler import Scheduler
from podyd.gpus.watch import Watch
from podyd.pods.info import Info
from podyd.pods.owned import Owned


class GpuRoutes:
    def __init__(self, *, owned: Owned, info: Info, scheduler: Scheduler, watch: Watch) -> None:
        self._owned = owned
        self._info = info
        self._scheduler = scheduler
        self._watch = watch

    @serves(POD_GPUS)
    async def pod_gpus(self, call: Call[ChangeGpus]) -> ChangedGpus:
        request = call.request
        pod = await self._owned.find(call.caller, request.ins)
        await self._scheduler.change(call.caller, pod, request.gpus, force=request.force)
        info = await self._info.of(call.caller, request.ins)
        return ChangedGpus(**vars(info), ending=await self._watch.ending(pod))

    @serves(GPU_LEASE)
    async def gpu_lease(self, call: Call[LeaseCards]) -> LeaseResult:
        return await self._lease(call, wait=False)

    @serves(GPU_QUEUE)
    async def gpu_queue(self, call: Call[LeaseCards]) -> LeaseResult:
        return await self._lease(call, wait=True)

    async def _lease(self, call: Call[LeaseCards], *, wait: bool) -> LeaseResult:
        request = call.request
        pod = await self._owned.find(call.caller, request.ins)
        place = await self._scheduler.lease(
            call.caller, pod, request.gpus, request.hours, wait=wait
        )
        ending = await self._watch.ending(pod)
        message = (
            f"Pod {request.ins} is number {place} in the queue; it gets the GPUs at its turn."
            if place
            else f"Pod {request.ins} has leased its GPUs for {request.hours:g} hours."
        )
        message += _ending_text(ending)
        awaited = await self._scheduler.awaited(pod) if ending else []
        if awaited:
            numbers = ", ".join(str(card.index) for card in awaited)
            message += f" The pod gets GPU {numbers} as soon as that is done."
        return LeaseResult(message, place, await self._scheduler.leases(pod), ending)

    @serves(GPU_LINE)
    async def gpu_line(self, call: Call[Nothing]) -> list[Waiting]:
        return await self._scheduler.queue()

    @serves(GPU_RELEASE)
    async def gpu_release(self, call: Call[ReleaseCards]) -> LeaseResult:
        request = call.request
        pod = await self._owned.find(call.caller, request.ins)
        cards, has_left = await self._scheduler.release(pod, request.gpus, force=request.force)
        numbers = ", ".join(str(card.index) for card in cards)
        done = [f"The lease of GPU {numbers} has ended."] if cards else []
        done += [f"Pod {request.ins} has left the queue."] if has_left else []
        message = " ".join(done) or "The pod had no lease to end, and was not in the queue."
        ending = await self._watch.ending(pod)
        message += _ending_text(ending)
        return LeaseResult(message, 0, await self._scheduler.leases(pod), ending)


def _ending_text(ending: Iterable[Ending]) -> str:
    return "".join(
        f" Processes of {item.pod} on GPU {item.gpu} that are ended within {item.grace:g} s:"
        f" {item.processes}."
        for item in ending
    )
