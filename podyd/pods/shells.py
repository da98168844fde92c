"""Shells, and commands that are talked to: who may have how many, and what they run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from podyd.base.errors import BadRequest
from podyd.contract.pods import Ended, Start
from podyd.engine.streams import Executor, Size, Streams, Terminal
from podyd.model.member import Member
from podyd.model.pod import Pod
from podyd.pods.lifecycle import Executed, Pods
from podyd.pods.slots import Slots

MAX_PER_MEMBER = 20
MAX_ALL = 256


class Shells:
    """Gives slots; who has one can have something run."""

    def __init__(self, *, pods: Pods, executor: Executor, executed: Executed) -> None:
        self._pods = pods
        self._executor = executor
        self._executed = executed
        self._slots = Slots(
            own=MAX_PER_MEMBER,
            all=MAX_ALL,
            what="shells and commands of yours are open; end one first",
            code="too_many_shells",
        )

    async def open(self, member: Member, ins: str, size: Size | None) -> OpenShell:
        """A slot in a running pod, with a terminal of that size or with none.

        Raises NotFound, Conflict (the pod does not run) or TooMany.
        """
        pod = await self._pods.find_running(member, ins)
        return OpenShell(self, pod, size, self._slots.take(member))

    async def run(self, pod: Pod, start: Start, size: Size | None, streams: Streams) -> Ended:
        """Run what `start` says, until it has ended."""
        began = time.monotonic()
        end = await self._executor.run(
            pod.name,
            _words(start, is_shell=size is not None),
            streams,
            terminal=None if size is None else Terminal(size, start.term),
            timeout=start.timeout,
        )
        timed_out = end.code is None
        if size is None:
            self._executed(time.monotonic() - began, timed_out=timed_out)
        return Ended(
            exit_code=-1 if end.code is None else end.code,
            timed_out=timed_out,
            oom_killed=end.oom_killed,
            memory_limit=await self._pods.limit_reached(pod, end),
        )


class OpenShell:
    """One member's slot, until it is closed."""

    def __init__(
        self, shells: Shells, pod: Pod, size: Size | None, slot: contextlib.ExitStack
    ) -> None:
        self._shells = shells
        self._pod = pod
        self._size = size
        self._slot = slot

    async def run(self, start: Start, streams: Streams) -> Ended:
        """Run what `start` says, until it has ended."""
        return await self._shells.run(self._pod, start, self._size, streams)

    def close(self) -> None:
        """Give it back; a second time does nothing."""
        self._slot.close()


def _words(start: Start, *, is_shell: bool) -> Sequence[str]:
    if start.cmd is not None:
        return ("/bin/bash", "-lc" if is_shell else "-c", start.cmd)
    if is_shell:
        return ("/bin/bash", "-l")
    raise BadRequest(
        "Parameter 'cmd' is missing: what shall run.",
        code="missing_parameter",
        parameter="cmd",
    )
