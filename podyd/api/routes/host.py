"""About the host."""

from __future__ import annotations

from podyd.api.binding import Call, Headed, serves
from podyd.contract.host import (
    HOST_GPU_PS,
    HOST_GPUS,
    HOST_SPEC,
    GpuIndices,
    GpuInfo,
    GpuProcess,
    HostSpec,
)
from podyd.contract.operation import Nothing
from podyd.gpus.report import Report


class HostRoutes:
    def __init__(self, *, report: Report) -> None:
        self._report = report

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
