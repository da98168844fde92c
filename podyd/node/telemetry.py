"""The last sample of NVML, from a child process that is restarted if it hangs or fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass

from podyd.base.tasks import came
from podyd.node.samples import Failure, Sample, parse_line

log = logging.getLogger(__name__)

# After so long without a line, NVML hangs; its initialisation alone may take seconds.
SILENT_SECONDS = 15.0
# Without a driver, the interval of checks whether one has been installed.
ABSENT_RETRY_SECONDS = 30.0
RETRY_SECONDS = 2.0
# An older sample does not say what is on a card now.
STALE_SECONDS = 30.0
# When podyd ends, the killed child is waited for so long.
END_SECONDS = 1.0
MAX_LINE_BYTES = 4 * 1024**2

Subscriber = Callable[[Sample], None]


@dataclass(frozen=True)
class Timing:
    """How long to wait, in seconds; other values in tests only."""

    silent: float = SILENT_SECONDS
    absent_retry: float = ABSENT_RETRY_SECONDS
    retry: float = RETRY_SECONDS
    stale: float = STALE_SECONDS


USUAL = Timing()


class Telemetry:
    """Keeps `podyd nvml` running. `absent` while the host has no NVIDIA driver."""

    def __init__(self, timing: Timing = USUAL) -> None:
        self.latest: Sample | None = None
        self.problem: str | None = None
        self.absent = False
        self._timing = timing
        self._first = asyncio.Event()
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with every sample from now on."""
        self._subscribers.append(subscriber)

    @property
    def current(self) -> Sample | None:
        """The last sample, unless it is too old to say who is on a card now."""
        sample = self.latest
        return sample if sample is not None and sample.age <= self._timing.stale else None

    async def first(self, timeout: float) -> None:
        """Wait until there was a first answer, good or bad, `timeout` seconds at most."""
        await came(self._first, timeout)

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            try:
                process = await self._start()
            except OSError as error:
                why = f"the process that asks NVML cannot be started ({error.strerror})"
                self._failed(Failure(why, absent=False))
            else:
                try:
                    await self._read(process)
                finally:
                    await self._end(process)
            timing = self._timing
            await asyncio.sleep(timing.absent_retry if self.absent else timing.retry)

    async def _start(self) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "podyd",
            "nvml",
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
            limit=MAX_LINE_BYTES,
            # Python looks for modules in the working directory first.
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await asyncio.wait_for(process.stdout.readline(), self._timing.silent)
                parsed = parse_line(line)
            except asyncio.TimeoutError:
                self._failed(Failure("NVML hangs", absent=False))
                return
            except (ValueError, KeyError, TypeError):
                self._failed(Failure("the process that asks NVML has died", absent=False))
                return
            if isinstance(parsed, Failure):
                self._failed(parsed)
                return
            self._sampled(parsed)

    async def _end(self, process: Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        over = asyncio.ensure_future(process.wait())
        try:
            # One that is stuck in the kernel is waited for: a second one would hang too.
            await asyncio.shield(over)
        except asyncio.CancelledError:
            await asyncio.wait({over}, timeout=END_SECONDS)
            over.cancel()
            raise

    def _sampled(self, sample: Sample) -> None:
        if self.problem is not None or self.absent:
            log.info("NVML answers again, driver %s", sample.driver)
        self.latest, self.problem, self.absent = sample, None, False
        self._first.set()
        for subscriber in self._subscribers:
            subscriber(sample)

    def _failed(self, failure: Failure) -> None:
        if failure.problem != self.problem:
            level = logging.INFO if failure.absent else logging.WARNING
            log.log(level, "no GPU data: %s", failure.problem)
        self.absent, self.problem = failure.absent, failure.problem
        if failure.absent:
            self.latest = None
        self._first.set()
