"""Files and directories that are for others to find, whatever root's umask says."""

from __future__ import annotations

from pathlib import Path


def make_directory(path: Path) -> None:
    """Make a directory that everybody may enter, unless it is there."""
    if not path.is_dir():
        path.mkdir(parents=True)
        path.chmod(0o755)
