"""About the host."""

from __future__ import annotations

import time
from collections.abc import Callable

from podyd.api.binding import Call, Headed, serves
from podyd.base.clock import now
from podyd.base.errors import PodydError, Unavailable
from podyd.contract.host import (
    HOST_GPU_PS,
    HOST_GPUS,
    HOST_SPEC,
    NOT_FOR_ALL,
    STATUS_TEXT,
    GpuIndices,
    GpuInfo,
    GpuProcess,
    HostSpec,
)
from podyd.contract.operation import Nothing
from podyd.gpus.report import Report
from podyd.gpus.scheduler import Scheduler
from podyd.gpus.status_text import StatusText, status_text


class HostRoutes:
    def __init__(
        self,
        *,
        host: str,
        report: Report,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._report = report
        self._scheduler = scheduler
        self._status = StatusText(self._text, clock)

    @serves(HOST_GPU_PS)
    async def gpu_ps(self, call: Call[GpuIndices]) -> Headed[dict[str, list[GpuProcess]]]:
        rows, age = await self._report.gpu_processes(
            call.request.id, viewer=call.caller.name, sees_all=call.caller.is_admin
        )
        return Headed(rows, {"Age": f"{age:.0f}"})

    @serves(HOST_GPUS)
    async def host_gpus(self, call: Call[Nothing]) -> list[GpuInfo]:
        return await self._report.gpus()

    @serves(HOST_SPEC)
    async def host_spec(self, call: Call[Nothing]) -> HostSpec:
        return await self._report.spec()

    @serves(STATUS_TEXT)
    async def status(self, call: Call[Nothing]) -> str:
        try:
            return await self._status.now()
        except PodydError as error:
            if call.login is None:
                raise Unavailable(NOT_FOR_ALL, code=error.code) from error
            raise

    async def _text(self) -> str:
        cards, queue = await self._report.gpus(), await self._scheduler.queue()
        return status_text(self._host, now(), cards, queue)
