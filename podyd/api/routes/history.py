"""About what was used over time."""

from __future__ import annotations

from podyd.accounting.history import History
from podyd.api.binding import Call, serves
from podyd.contract.history import (
    GPU_HISTORY,
    POD_HISTORY,
    GpuHistory,
    GpuHistoryOf,
    PodHistory,
    PodHistoryOf,
)
from podyd.pods.owned import Owned


class HistoryRoutes:
    def __init__(self, *, owned: Owned, history: History) -> None:
        self._owned = owned
        self._history = history

    @serves(GPU_HISTORY)
    async def gpu_history(self, call: Call[GpuHistoryOf]) -> GpuHistory:
        return await self._history.gpus(call.request.span)

    @serves(POD_HISTORY)
    async def pod_history(self, call: Call[PodHistoryOf]) -> PodHistory:
        pod = await self._owned.find(call.caller, call.request.ins)
        return await self._history.pod(pod.instance.uuid, call.request.span)
