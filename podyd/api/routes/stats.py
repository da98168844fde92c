"""About what was used."""

from __future__ import annotations

from podyd.accounting.usage import Usage
from podyd.api.binding import Call, serves
from podyd.contract.stats import STAT_CPUTIME, STAT_GPUTIME, UsageOf


class StatRoutes:
    def __init__(self, *, usage: Usage) -> None:
        self._usage = usage

    @serves(STAT_CPUTIME)
    async def cpu_time(self, call: Call[UsageOf]) -> dict[str, float]:
        return await self._usage.seconds("cpu", call.request.user, call.request.t)

    @serves(STAT_GPUTIME)
    async def gpu_time(self, call: Call[UsageOf]) -> dict[str, float]:
        return await self._usage.seconds("gpu", call.request.user, call.request.t)
