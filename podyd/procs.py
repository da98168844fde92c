"""What the kernel says of a process, and which pod it is in."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

# lxc.payload.<instance> in LXD's default project, lxc.payload.<project>_<instance> in any other;
# project names cannot hold '_'. A nested container has a second one further down.
_PAYLOAD = re.compile(r"/lxc\.payload\.(?:[^/_]*_)?([^/]+)")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A process; None where the kernel does not tell. `pod` is "" for one of the host."""

    uid: int | None
    pod: str
    cmd: str
    uptime: float | None
    memory_used: int | None


def pod_of_cgroup(text: str) -> str:
    """The LXD instance that /proc/PID/cgroup names: the outermost, or ""."""
    match = _PAYLOAD.search(text)
    return match[1] if match else ""


def look_up(pid: int, proc: Path = Path("/proc")) -> Process | None:
    """What there is to know of a process; None if it has ended."""
    base = proc / str(pid)
    try:
        stat = (base / "stat").read_text(errors="replace")
        # The name in parentheses may hold anything, ')' too.
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        uid = base.stat().st_uid
        cmdline = (base / "cmdline").read_bytes().replace(b"\0", b" ").strip()
        return Process(
            uid=uid,
            pod=pod_of_cgroup((base / "cgroup").read_text()),
            cmd=cmdline.decode(errors="replace") or f"[{name}]",
            # proc(5): starttime is field 22, rss (in pages) field 24; state is field 3.
            uptime=max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS),
            memory_used=int(fields[21]) * _PAGE_BYTES,
        )
    except (FileNotFoundError, ProcessLookupError):
        return _HIDDEN if _is_there(pid) else None
    except PermissionError:
        return _HIDDEN


_HIDDEN = Process(None, "", "", None, None)


def _is_there(pid: int) -> bool:
    """Whether a process runs that /proc does not show, as mounted with hidepid=invisible."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False  # It is ours, and has come since.
