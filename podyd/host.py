"""The host: its versions, and who is on its GPUs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from podyd import __version__, procs
from podyd.errors import BadRequest, Unavailable
from podyd.lxd.client import LxdClient
from podyd.nvidia import STALE_SECONDS, Nvml, Sample
from podyd.spec import GpuProcess, HostSpec

FIRST_SAMPLE_SECONDS = 2.0


class Host:
    """Answers from the last sample of NVML, from /proc and from LXD."""

    def __init__(self, client: LxdClient, nvml: Nvml) -> None:
        self._client = client
        self._nvml = nvml

    async def spec(self) -> HostSpec:
        """Versions; null for what is not there."""
        await self._first_sample()
        sample = self._nvml.latest
        return HostSpec(
            podyd=__version__,
            lxd=(await self._client.get("/1.0"))["environment"].get("server_version"),
            kernel=os.uname().release,
            nvidia_driver=sample.driver if sample else None,
            cuda=sample.cuda if sample else None,
        )

    async def gpu_processes(
        self, wanted: Sequence[int] | None, *, show_host_commands: bool
    ) -> dict[str, list[GpuProcess]]:
        """Per card, the processes on it; no cards at all where there is no NVIDIA driver."""
        await self._first_sample()
        sample = self._nvml.latest
        if sample is None or (sample.age > STALE_SECONDS and self._nvml.problem):
            if self._nvml.absent:
                _check_indices(wanted, 0)
                return {}
            raise Unavailable(
                f"NVML does not answer: {self._nvml.problem or 'it hangs'}.", code="nvml_failed"
            )
        count = len(sample.holders)
        _check_indices(wanted, count)
        return {
            str(index): _rows(sample, index, show_host_commands)
            for index in (range(count) if wanted is None else wanted)
        }

    async def _first_sample(self) -> None:
        if self._nvml.latest is None and not self._nvml.absent and self._nvml.problem is None:
            await asyncio.get_running_loop().run_in_executor(
                None, self._nvml.wait_for_first, FIRST_SAMPLE_SECONDS
            )


def _check_indices(wanted: Sequence[int] | None, count: int) -> None:
    for index in wanted or ():
        if index >= count:
            there = f"there are {count}, from 0 to {count - 1}" if count else "there is none"
            raise BadRequest(
                f"Parameter 'id' names GPU {index}, but {there}.",
                code="no_such_gpu",
                count=count,
            )


def _rows(sample: Sample, index: int, show_host_commands: bool) -> list[GpuProcess]:
    rows = []
    for holder in sample.holders[index]:
        process = procs.look_up(holder.pid)
        if process is None:
            continue  # It has ended since the sample was taken.
        shown = process.pod or show_host_commands
        rows.append(
            GpuProcess(
                pid=holder.pid,
                pod=process.pod,
                cmd=process.cmd if shown else "",
                uptime=process.uptime,
                memory_used=process.memory_used,
                gpu_memory_used=holder.memory_used,
            )
        )
    return rows
