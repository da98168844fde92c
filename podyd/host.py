"""The host: its versions, and who is on its GPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from podyd import __version__, procs
from podyd.errors import BadRequest, Unavailable
from podyd.lxd.client import LxdClient
from podyd.nvidia import Gpu, Sample
from podyd.spec import GpuProcess, HostSpec
from podyd.telemetry import Telemetry
from podyd.usernames import UserNames

FIRST_SAMPLE_SECONDS = 2.0


class Host:
    """Answers from the last sample of NVML, from /proc and from LXD."""

    def __init__(self, client: LxdClient, telemetry: Telemetry, names: UserNames) -> None:
        self._client = client
        self._names = names
        self._telemetry = telemetry

    async def spec(self) -> HostSpec:
        """Versions; null for what is not there."""
        await self._telemetry.first(FIRST_SAMPLE_SECONDS)
        sample = self._telemetry.latest
        return HostSpec(
            podyd=__version__,
            lxd=(await self._client.get("/1.0"))["environment"].get("server_version"),
            kernel=os.uname().release,
            nvidia_driver=sample.driver if sample else None,
            cuda=sample.cuda if sample else None,
        )

    async def gpu_processes(
        self, wanted: Sequence[int] | None, *, viewer: str, sees_all: bool
    ) -> tuple[dict[str, list[GpuProcess]], float]:
        """Per card, the processes on it, and the age of that in seconds.

        No cards at all where there is no NVIDIA driver. What other people run on the host itself
        is shown to who `sees_all`; the others see whose it is.
        """
        sample = await self.sample()
        count = len(sample.gpus) if sample else 0
        _check_indices(wanted, count)
        if sample is None:
            return {}, 0.0
        rows = {
            str(index): await self._rows(sample.gpus[index], viewer, sees_all)
            for index in (range(count) if wanted is None else wanted)
        }
        return rows, sample.age

    async def sample(self) -> Sample | None:
        """The last sample; None where there is no NVIDIA driver. Raises Unavailable, with the
        cause, if NVML has not answered for too long."""
        await self._telemetry.first(FIRST_SAMPLE_SECONDS)
        sample = self._telemetry.current
        if sample is None and not self._telemetry.absent:
            raise Unavailable(
                f"NVML does not answer: {self._telemetry.problem or 'it hangs'}.",
                code="nvml_failed",
            )
        return sample

    async def _rows(self, gpu: Gpu, viewer: str, sees_all: bool) -> list[GpuProcess]:
        rows = []
        for holder in gpu.holders:
            process = procs.look_up(holder.pid)
            if process is None:
                continue  # It has ended since the sample was taken.
            cmd = process.cmd
            if not process.pod and process.uid is not None and not sees_all:
                user = await self._names.of(process.uid)
                cmd = cmd if user == viewer else user
            rows.append(
                GpuProcess(
                    pid=holder.pid,
                    pod=process.pod,
                    cmd=cmd,
                    uptime=process.uptime,
                    memory_used=process.memory_used,
                    gpu_memory_used=holder.memory_used,
                )
            )
        return rows


def _check_indices(wanted: Sequence[int] | None, count: int) -> None:
    for index in wanted or ():
        if index >= count:
            there = f"there are {count}, from 0 to {count - 1}" if count else "there is none"
            raise BadRequest(
                f"Parameter 'id' names GPU {index}, but {there}.",
                code="no_such_gpu",
                count=count,
            )
