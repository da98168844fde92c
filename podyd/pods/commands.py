"""Commands and shells in pods: their number and time limits, and their results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Protocol

from podyd.base.errors import BadRequest, Forbidden, PodydError
from podyd.base.longtext import HeldAnswer
from podyd.config.current import Settings
from podyd.contract.pods import Ended, ExecResult, Start
from podyd.engine.collected import Collected
from podyd.engine.interface import Instances
from podyd.engine.streams import Executor, Exit, Streams, Terminal, TerminalSize, bash
from podyd.engine.types import named
from podyd.model.member import Member
from podyd.model.pod import Pod
from podyd.pods.owned import Owned
from podyd.pods.quota import memory_limit
from podyd.pods.slots import Slots

MAX_EXECS_PER_MEMBER = 32
MAX_EXECS = 256
MAX_SESSIONS_PER_MEMBER = 20
MAX_SESSIONS = 256


class Executed(Protocol):
    """Called after each command."""

    def __call__(self, seconds: float, *, timed_out: bool) -> None: ...


class Commands:
    """Runs commands: to their end, or interactively over a WebSocket."""

    def __init__(
        self,
        *,
        owned: Owned,
        instances: Instances,
        executor: Executor,
        executed: Executed,
        settings: Settings,
    ) -> None:
        self._owned = owned
        self._instances = instances
        self._executor = executor
        self._executed = executed
        self._settings = settings
        self._execs = Slots(
            per_member=MAX_EXECS_PER_MEMBER,
            total=MAX_EXECS,
            what="of your commands are running",
            advice="Wait until one has ended.",
            code="too_many_execs",
        )
        self._sessions = Slots(
            per_member=MAX_SESSIONS_PER_MEMBER,
            total=MAX_SESSIONS,
            what="shells and commands of yours are open",
            advice="End one first.",
            code="too_many_shells",
        )

    # --- Until they end --------------------------------------------------------------------------

    async def exec(
        self, member: Member, ins: str, command: str, timeout: float | None
    ) -> HeldAnswer[ExecResult]:
        """Run a command in a running pod; `timeout` in seconds, within podyd.yaml's maximum.

        It takes one of the member's slots until the answer is closed, as its output is in memory.
        """
        config = self._settings.current.pods
        timeout = config.exec_timeout if timeout is None else timeout
        if timeout > config.exec_timeout_max:
            raise Forbidden(
                f"Parameter 'timeout' may be {config.exec_timeout_max:g} seconds at most.",
                code="timeout_too_long",
                limit=config.exec_timeout_max,
            )
        return await self.run(member, ins, command, timeout=timeout, limit=config.exec_output_max)

    async def run(
        self, member: Member, ins: str, command: str, *, timeout: float, limit: int
    ) -> HeldAnswer[ExecResult]:
        """As `exec`, with any `timeout` in seconds and `limit` in bytes for each of stdout and
        stderr."""
        pod = await self._owned.find_running(member, ins)
        with self._execs.take(member) as slot:
            began = time.monotonic()
            output = Collected(limit)
            end = await self._executor.run(pod.name, bash(command), output, timeout=timeout)
            seconds = time.monotonic() - began
            timed_out = end.code is None
            self._executed(seconds, timed_out=timed_out)
            result = ExecResult(
                exit_code=-1 if end.code is None else end.code,
                log=output.log,
                stdout=output.stdout,
                stderr=output.stderr,
                timed_out=timed_out,
                truncated=output.truncated,
                seconds=round(seconds, 3),
                oom_killed=end.oom_killed,
                memory_limit=await self._limit_reached(pod, end),
            )
            return HeldAnswer(result, slot.pop_all().close)

    # --- Sessions --------------------------------------------------------------------------------

    async def open(self, member: Member, ins: str, size: TerminalSize | None) -> CommandSession:
        """Open a session in a running pod, with a terminal of that size or without.

        Raises NotFound, Conflict (the pod does not run) or TooMany.
        """
        pod = await self._owned.find_running(member, ins)
        return CommandSession(self, pod, size, self._sessions.take(member))

    async def run_session(
        self, pod: Pod, start: Start, size: TerminalSize | None, streams: Streams
    ) -> Ended:
        """Run what `start` says, until it has ended."""
        words = _words(start, is_shell=size is not None)
        terminal = None if size is None else Terminal(size, start.term)
        began = time.monotonic()
        end = await self._executor.run(
            pod.name, words, streams, timeout=start.timeout, terminal=terminal
        )
        timed_out = end.code is None
        if size is None:
            self._executed(time.monotonic() - began, timed_out=timed_out)
        return Ended(
            exit_code=-1 if end.code is None else end.code,
            timed_out=timed_out,
            oom_killed=end.oom_killed,
            memory_limit=await self._limit_reached(pod, end),
        )

    async def _limit_reached(self, pod: Pod, end: Exit) -> int | None:
        """The pod's memory limit now, in bytes or -1, for a command that was killed for memory."""
        if not end.oom_killed:
            return None
        with contextlib.suppress(PodydError):  # The engine may not answer by now.
            if instance := named(await self._instances.all(), pod.name):
                return memory_limit(instance.expanded_config)
        return None


class CommandSession:
    """An interactive shell or command: it has a slot of its member's until it is closed."""

    def __init__(
        self, commands: Commands, pod: Pod, size: TerminalSize | None, slot: contextlib.ExitStack
    ) -> None:
        self._commands = commands
        self._pod = pod
        self._size = size
        self._slot = slot

    async def run(self, start: Start, streams: Streams) -> Ended:
        """Run what `start` says, until it has ended."""
        return await self._commands.run_session(self._pod, start, self._size, streams)

    def close(self) -> None:
        """Release the slot; a second time does nothing."""
        self._slot.close()


def _words(start: Start, *, is_shell: bool) -> Sequence[str]:
    if start.cmd is not None:
        return ("/bin/bash", "-lc", start.cmd) if is_shell else bash(start.cmd)
    if is_shell:
        return ("/bin/bash", "-l")
    raise BadRequest(
        "Parameter 'cmd' is missing: a command to run.",
        code="missing_parameter",
        parameter="cmd",
    )
