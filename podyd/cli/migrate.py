"""`podyd migrate`: moves all pods from LXD to Incus on this host."""

from __future__ import annotations

import argparse
import os

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
    return 0 if act(lambda question: bool(options.yes) or _agrees(question)) else 1


def _agrees(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
