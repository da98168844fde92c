"""The kernel's files in /proc, /sys and /dev, for setup and the doctor. Reading them may block, so
the service does not use this."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podyd.node.samples import NVIDIA_VENDOR_ID


@dataclass(frozen=True)
class MountEntry:
    """A line of /proc/PID/mountinfo; options are those of the mount and of the filesystem."""

    path: Path
    kind: str
    source: str
    options: frozenset[str]


@dataclass(frozen=True)
class UnitMemory:
    """Memory of a systemd unit's cgroup in bytes: its limit (None: no limit), what it uses, and
    that by kind, as in memory.stat."""

    limit: int | None
    used: int
    counted: Mapping[str, int]


@dataclass(frozen=True)
class ProcessFiles:
    """One process; `directory` is its own in /proc."""

    directory: Path

    @property
    def root(self) -> Path:
        """The filesystem as the process sees it."""
        return self.directory / "root"

    def program(self) -> str:
        """The path of its program, with " (deleted)" if that is no longer there. Raises OSError."""
        return str((self.directory / "exe").readlink())

    def search_path(self) -> list[str]:
        """The PATH of its environment. Raises OSError."""
        for entry in (self.directory / "environ").read_bytes().split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == b"PATH":
                return [part for part in os.fsdecode(value).split(":") if part]
        return []

    def ids(self, kind: str) -> list[tuple[int, int]]:
        """The ids that exist, of kind `uid` or `gid`: the first of each range, and how many.

        Raises OSError.
        """
        text = (self.directory / f"{kind}_map").read_text()
        lines = [line.split() for line in text.splitlines()]
        return [(int(inside), int(count)) for inside, _, count in lines]

    def cgroups(self) -> dict[str, str]:
        """Its cgroups, by the controllers of each hierarchy; "" is cgroup2. Raises OSError."""
        lines = (self.directory / "cgroup").read_text(errors="replace").splitlines()
        return {
            controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)
        }

    def mounts(self) -> list[MountEntry]:
        """The mounts in its mount namespace. Raises OSError."""
        mounts = []
        for line in (self.directory / "mountinfo").read_text(errors="replace").splitlines():
            about, _, filesystem = line.partition(" - ")
            # The source may be empty.
            fields, (kind, source, options) = about.split(), filesystem.split(" ", 2)
            both = frozenset(f"{fields[5]},{options}".split(","))
            mounts.append(MountEntry(Path(fields[4]), kind, source, both))
        return mounts


@dataclass(frozen=True)
class HostFiles:
    """The roots of these files; other ones in tests only."""

    proc: Path = Path("/proc")
    sysfs: Path = Path("/sys")
    dev: Path = Path("/dev")

    def process(self, pid: int) -> ProcessFiles:
        return ProcessFiles(self.proc / str(pid))

    # --- The kernel ------------------------------------------------------------------------------

    def sysctl(self, name: str) -> int:
        """A kernel parameter, see sysctl(8). Raises FileNotFoundError if this kernel lacks it."""
        return int(self._sysctl(name).read_text())

    def set_sysctl(self, name: str, value: int) -> None:
        """Raises OSError where this process may not."""
        self._sysctl(name).write_text(f"{value}\n")

    def _sysctl(self, name: str) -> Path:
        return self.proc / "sys" / name.replace(".", "/")

    def proc_options(self) -> dict[str, str]:
        """The options with which /proc is mounted."""
        mount_options: dict[str, str] = {}
        for line in (self.proc / "self/mounts").read_text().splitlines():
            _, where, kind, options = line.split()[:4]
            if (where, kind) == ("/proc", "proc"):
                mount_options = {
                    name: value
                    for name, _, value in (item.partition("=") for item in options.split(","))
                }
        return mount_options

    @property
    def cgroups(self) -> Path:
        """Where cgroups are mounted."""
        return self.sysfs / "fs/cgroup"

    def cgroup2(self) -> Path | None:
        """Where cgroup2 is mounted; None if it is not."""
        for path in (self.cgroups, self.cgroups / "unified"):
            if (path / "cgroup.controllers").exists():
                return path
        return None

    def unit_memory(self, unit: str) -> UnitMemory | None:
        """None if it does not run, or not under systemd with cgroup2."""
        cgroup = self.cgroups / "system.slice" / unit
        try:
            limit = (cgroup / "memory.max").read_text().strip()
            used = int((cgroup / "memory.current").read_text())
            pairs = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            counted = {name: int(value) for name, value in pairs}
        except FileNotFoundError:
            return None
        return UnitMemory(None if limit == "max" else int(limit), used, counted)

    def btrfs_has_lost_count(self, device: str) -> bool:
        """Whether the quota groups of the btrfs on a device are marked as inconsistent."""
        name = (self.dev / device.removeprefix("/dev/")).resolve().name
        for path in (self.sysfs / "fs/btrfs").glob(f"*/devices/{name}"):
            flag = path.parent.parent / "qgroups/inconsistent"
            if flag.exists() and flag.read_text().strip() == "1":
                return True
        return False

    # --- NVIDIA ----------------------------------------------------------------------------------

    def has_module(self, name: str) -> bool:
        """Whether the kernel has this module."""
        return (self.sysfs / "module" / name).exists()

    def nvidia_cards(self) -> list[str]:
        """The PCI addresses of the NVIDIA cards that are not passed to virtual machines."""
        addresses = []
        for path in sorted((self.sysfs / "bus/pci/devices").glob("*")):
            with contextlib.suppress(OSError):  # A card may vanish, or be no more than a name.
                is_display = (path / "class").read_text().startswith("0x03")
                is_nvidia = (path / "vendor").read_text().strip() == f"0x{NVIDIA_VENDOR_ID}"
                driver = path / "driver"
                is_passed = driver.is_symlink() and driver.readlink().name == "vfio-pci"
                if is_display and is_nvidia and not is_passed:
                    addresses.append(path.name)
        return addresses

    def nvidia_driver(self) -> str | None:
        """The version of the NVIDIA driver in the kernel; None if none is loaded."""
        with contextlib.suppress(FileNotFoundError):
            return (self.sysfs / "module/nvidia/version").read_text().strip()
        with contextlib.suppress(FileNotFoundError):
            text = (self.proc / "driver/nvidia/version").read_text()
            match = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)*)\s", text)
            return match[1] if match else None
        return None

    def nvidia_parameters(self) -> dict[str, str] | None:
        """The parameters of the NVIDIA driver in the kernel; None if none is loaded."""
        with contextlib.suppress(FileNotFoundError):
            text = (self.proc / "driver/nvidia/params").read_text()
            pairs = (line.partition(":") for line in text.splitlines())
            return {name: value.strip().strip('"') for name, _, value in pairs}
        return None


THIS_HOST = HostFiles()
