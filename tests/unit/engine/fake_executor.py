"""A fake Executor: commands run on this machine, or are coroutines of a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from podyd.base.errors import Gone, NotRunning
from podyd.base.tasks import beside, together
from podyd.engine.collected import Collected
from podyd.engine.streams import (
    STDERR,
    STDOUT,
    Afterwards,
    Ending,
    Exit,
    Signal,
    Streams,
    Terminal,
)

Program = Callable[[Sequence[str], Streams], Awaitable[int]]


async def on_this_machine(words: Sequence[str], streams: Streams) -> int:
    """Run a command in a session of its own, which is killed at its end; returns its exit code."""
    child = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return await beside(_served(child, streams), _feed(child, streams), _obey(child, streams))
    finally:
        _kill(child, signal.SIGKILL)
        await child.wait()
        assert child.stdin is not None
        child.stdin.close()
        with contextlib.suppress(ConnectionError):
            await child.stdin.wait_closed()


async def _served(child: asyncio.subprocess.Process, streams: Streams) -> int:
    async def give(stream: int, pipe: asyncio.StreamReader | None) -> None:
        assert pipe is not None
        while data := await pipe.read(65536):
            await streams.output(stream, data)

    async def end() -> None:
        await _has_ended(child.pid)
        # Its background processes have its streams open.
        _kill(child, signal.SIGKILL)

    await together(give(STDOUT, child.stdout), give(STDERR, child.stderr), end())
    code = await child.wait()
    return code if code >= 0 else 128 - code


async def _has_ended(pid: int) -> None:
    """Wait for the process only: asyncio may also wait until its streams are closed."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def _feed(child: asyncio.subprocess.Process, streams: Streams) -> None:
    assert child.stdin is not None
    with contextlib.suppress(ConnectionError):
        while (data := await streams.input()) is not None:
            child.stdin.write(data)
            await child.stdin.drain()
        child.stdin.close()


async def _obey(child: asyncio.subprocess.Process, streams: Streams) -> None:
    while True:
        wish = await streams.wish()
        if isinstance(wish, Signal):
            _kill(child, signal.Signals[f"SIG{wish.name}"])


def _kill(child: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


class FakeExecutor:
    """Has instances by name with their status; commands run only in those that are "running".

    It has no terminals: a command with a terminal has pipes instead.
    """

    def __init__(self, instances: Mapping[str, str], program: Program = on_this_machine) -> None:
        self.instances = dict(instances)
        self.endings: list[Ending] = []
        self._program = program
        self._tasks: set[asyncio.Task[Any]] = set()

    async def settle(self) -> None:
        """Wait until no command is under way, nor being ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def run(
        self,
        instance: str,
        words: Sequence[str],
        streams: Streams,
        *,
        timeout: float | None,
        terminal: Terminal | None = None,
        then: Afterwards | None = None,
    ) -> Exit:
        if instance not in self.instances:
            raise Gone("Instance not found")
        if self.instances[instance] != "running":
            raise NotRunning("Instance is not running", status=self.instances[instance])
        work = self._spawn(self._program(words, streams))
        try:
            done, _ = await asyncio.wait({work}, timeout=timeout)
            return Exit(work.result() if done else None, oom_killed=False)
        except asyncio.CancelledError:
            if then is not None:
                self._spawn(_after(work, then))
            raise
        finally:
            work.cancel()

    def end(self, ending: Ending) -> None:
        self.endings.append(ending)
        self._spawn(self._program(ending.words, Collected(0)))

    def _spawn(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        async def whole() -> Any:
            return await work

        task = asyncio.ensure_future(whole())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _after(work: asyncio.Task[Any], then: Afterwards) -> None:
    await asyncio.wait({work})
    await then()
