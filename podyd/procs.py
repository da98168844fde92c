"""What the kernel says of a process, and which pod it is in."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

# lxc.payload.<instance> in LXD's default project, lxc.payload.<project>_<instance> in any other;
# project names cannot hold '_'. A nested container has a second one further down.
_PAYLOAD = re.compile(r"/lxc\.payload\.(?:([^/_\s]*)_)?([^/\s]+)")
# The project, and the name that is an instance's unless liblxc had to number it (see payloads.py).
Payload = tuple[str, str]
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
# A command line may have megabytes, and belongs to whoever runs it.
MAX_CMD_BYTES = 4096


@dataclass(frozen=True)
class Process:
    """A process; None where the kernel does not tell. `payload` is None for one of the host."""

    uid: int | None
    payload: Payload | None
    cmd: str
    uptime: float | None
    memory_used: int | None


def payload_of(pid: int, proc: Path = Path("/proc")) -> Payload | None:
    """The cgroup of LXC's that a process is in; None for one of the host, or that ended."""
    try:
        return payload_in(_cgroup(proc / str(pid)))
    except OSError:
        return None


def payload_in(text: str) -> Payload | None:
    """The cgroup of LXC's, the outermost, that /proc/PID/cgroup names."""
    match = _PAYLOAD.search(text)
    return (match[1] or "default", match[2]) if match else None


def _cgroup(base: Path) -> str:
    # A pod's root gives its own cgroups whatever names they like, such as what is no UTF-8.
    return (base / "cgroup").read_text(errors="replace")


def look_up(pid: int, proc: Path = Path("/proc")) -> Process | None:
    """What there is to know of a process; None if it has ended."""
    base = proc / str(pid)
    try:
        stat = (base / "stat").read_text(errors="replace")
        # The name in parentheses may hold anything, ')' too.
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        uid = base.stat().st_uid
        with (base / "cmdline").open("rb") as file:
            words = file.read(MAX_CMD_BYTES).replace(b"\0", b" ").strip()
        # A kernel's thread has none, nor has a zombie; as ps shows them.
        cmd = words.decode(errors="replace") or f"[{name}]{' <defunct>' * (fields[0] == 'Z')}"
        return Process(
            uid=uid,
            payload=payload_in(_cgroup(base)),
            cmd=cmd,
            # proc(5): starttime is field 22, rss (in pages) field 24; state is field 3.
            uptime=max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS),
            memory_used=int(fields[21]) * _PAGE_BYTES,
        )
    except (FileNotFoundError, ProcessLookupError):
        return _HIDDEN if _is_there(pid) else None
    except PermissionError:
        return _HIDDEN


_HIDDEN = Process(None, None, "", None, None)


def _is_there(pid: int) -> bool:
    """Whether a process runs that /proc does not show, as mounted with hidepid=invisible."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False  # It is ours, and has come since.
