"""The kernel's limits that all pods share, and the values that podyd needs.

The values and their reasons are in data/sysctl.conf, which the package has in /usr/lib/sysctl.d.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from podyd.node.host_files import THIS_HOST, HostFiles

FILE = Path(__file__).parents[1] / "data/sysctl.conf"
# Twice the measured use of an idle pod (Debian 12, systemd 252); for watches, the kernel's default
# on the smallest machine.
PER_POD = {
    "fs.inotify.max_user_instances": 20,
    "fs.inotify.max_user_watches": 8192,
    "kernel.keys.maxkeys": 40,
    "kernel.keys.maxbytes": 800,
}


@dataclass(frozen=True)
class Limit:
    """A limit: its name for sysctl(8), its current value, and the value that podyd sets."""

    name: str
    now: int
    wanted: int

    @property
    def pods(self) -> int:
        """The number of pods for which it is sufficient."""
        return self.now // PER_POD[self.name]


def wanted() -> dict[str, int]:
    """The values of data/sysctl.conf."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): int(value) for name, value in pairs}


def limits(files: HostFiles = THIS_HOST) -> Iterator[Limit]:
    """The limits that this kernel has, with their current values. Raises OSError, ValueError."""
    for name, value in wanted().items():
        with contextlib.suppress(FileNotFoundError):
            yield Limit(name, files.sysctl(name), value)


def raise_limits(say: Callable[[str], None], files: HostFiles = THIS_HOST) -> None:
    """Raise the limits that are too low, as far as this process may; none is lowered.

    It may not in its unit nor in most containers; the doctor reports limits that are still too low.
    """
    for limit in limits(files):
        if limit.now < limit.wanted:
            with contextlib.suppress(OSError):
                files.set_sysctl(limit.name, limit.wanted)
                say(f"raised {limit.name} from {limit.now} to {limit.wanted}")
