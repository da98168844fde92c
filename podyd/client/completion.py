"""The completions that a shell offers for a command line."""

from __future__ import annotations

import argparse
import contextlib
import os


def complete(command_line: argparse.ArgumentParser) -> None:
    """Answer the shell, if it is the shell that asks; argcomplete ends the process then."""
    if "_ARGCOMPLETE" in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(command_line)
