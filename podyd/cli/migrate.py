"""`podyd migrate`: moves all pods from LXD to Incus on this host."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from podyd.admin.migration.command import Migration
from podyd.base.errors import SetupError
from podyd.config.schema import Config


def run(options: argparse.Namespace, config: Config) -> int:
    """Returns 1 if a pod could not be started again, or the admin did not agree, else 0."""
    if os.geteuid() != 0:
        raise SetupError("Moving pods needs root.", advice="Type 'sudo podyd migrate'.")
    migration = Migration.here(config, options.user, lambda text: print(text, flush=True))
    if options.dry_run:
        return 1 if migration.show().refusals else 0
    act = migration.finish if options.finish else migration.back if options.back else migration.run
    with interruptible():
        return 0 if act(lambda question: bool(options.yes) or _agrees(question)) else 1


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have an end by signals be one as by Ctrl-C, so that the project is restricted again; one that
    is ignored, as with nohup, stays so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    heeded = [number for number, handler in before.items() if handler != signal.SIG_IGN]

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for item in heeded:
            signal.signal(item, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heeded:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def _agrees(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
