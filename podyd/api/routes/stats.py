"""About what was used."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable

from podyd.accounting.usage import Usage
from podyd.api.binding import Call, Text, serves
from podyd.contract.stats import (
    STAT_CPUTIME,
    STAT_GPU_HOURS,
    STAT_GPUTIME,
    GpuHours,
    MonthOf,
    UsageOf,
)


class StatRoutes:
    def __init__(self, *, usage: Usage) -> None:
        self._usage = usage

    @serves(STAT_CPUTIME)
    async def cpu_time(self, call: Call[UsageOf]) -> dict[str, float]:
        return await self._usage.seconds("cpu", call.request.user, call.request.t)

    @serves(STAT_GPUTIME)
    async def gpu_time(self, call: Call[UsageOf]) -> dict[str, float]:
        return await self._usage.seconds("gpu", call.request.user, call.request.t)

    @serves(STAT_GPU_HOURS)
    async def gpu_hours(self, call: Call[MonthOf]) -> list[GpuHours] | Text:
        hours = await self._usage.month(call.request.month)
        return Text(_csv(hours)) if call.request.format == "csv" else hours


def _csv(hours: Iterable[GpuHours]) -> str:
    """A table with a head, as of RFC 4180."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([field.name for field in dataclasses.fields(GpuHours)])
    rows.writerows(dataclasses.astuple(item) for item in hours)
    return text.getvalue()
