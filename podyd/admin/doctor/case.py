"""The input of the checks."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from podyd.config.schema import DEFAULT_PATH, Config
from podyd.engine.dialect import Dialect, chosen
from podyd.engine.profile_files import ADMIN_DIRECTORY
from podyd.node.host_files import THIS_HOST, HostFiles


@dataclass(frozen=True)
class HostPaths:
    """Paths on this host; others in tests only.

    `path` is the search path of programs, `nvml` the command that queries NVML once, `docs` the
    packages' documentation.
    """

    pam: Path = Path("/etc/pam.d")
    files: HostFiles = THIS_HOST
    admin_profiles: Path = ADMIN_DIRECTORY
    docs: Path = Path("/usr/share/doc")
    snaps: Path = Path("/snap")
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    nvml: tuple[str, ...] = (sys.executable, "-m", "podyd", "nvml", "--once")


HOST = HostPaths()


@dataclass(frozen=True)
class Case:
    """One podyd: its configuration, that file's path, and the host's paths."""

    config: Config
    path: Path = DEFAULT_PATH
    places: HostPaths = HOST

    @property
    def project(self) -> str:
        return self.config.lxd.project

    def podyd(self, words: str) -> str:
        """The command `podyd WORDS` for this podyd."""
        if self.path == DEFAULT_PATH:
            return f"podyd {words}"
        return f"podyd {words} --config {shlex.quote(str(self.path))}"

    @cached_property
    def dialect(self) -> Dialect:
        """The engine that this podyd uses."""
        return chosen(self.config.engine, Path(self.config.state_dir))

    def in_project(self, words: str) -> str:
        """The engine's command `lxc WORDS`, or `incus WORDS`, for this podyd's project."""
        return f"{self.dialect.command} {words} --project {self.project}"
