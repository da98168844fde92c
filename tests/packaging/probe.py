"""What a process in the place of `podyd serve` can do. Runs as its unit does, and says so in JSON.

Standard library only: it runs on a fresh server.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

DEPTH = 4
SKIPPED = ("/proc", "/sys/fs/cgroup")


def attempt(action: Callable[[], object]) -> str | None:
    """None if it worked, else the kind of error."""
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return None


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def writable(top: str) -> Iterator[str]:
    """The directories down to DEPTH in which a file can be made."""
    for directory, names, _files in os.walk(top):
        if directory.count("/") >= DEPTH or directory in SKIPPED:
            names.clear()
        path = Path(directory) / ".podyd-probe"
        with contextlib.suppress(OSError):
            path.touch()
            path.unlink()
            yield directory


def ask(**request: str) -> object:
    """What the login helper answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("/run/podyd/auth.sock")
        connection.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(connection.makefile("rb").readline())


def main(user: str, password: str) -> None:
    print(
        json.dumps(
            {
                "uid": os.getuid(),
                "groups": sorted(os.getgroups()),
                "capabilities": [
                    line.split()[1]
                    for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith("Cap")
                ],
                "lxd": attempt(lambda: connect("/var/lib/lxd/unix.socket")),
                "incus": attempt(lambda: connect("/var/lib/incus/unix.socket")),
                "shadow": attempt(lambda: Path("/etc/shadow").read_bytes()),
                "become_root": attempt(lambda: os.setuid(0)),
                "writable": sorted(writable("/")),
                "login": ask(op="login", user=user, password=password),
                "wrong_old": ask(op="passwd", user=user, old="no-such-old", new="Stolen-pass-1"),
                "no_old": ask(op="passwd", user=user, old="", new="Stolen-pass-1"),
                "of_root": ask(op="passwd", user="root", old="", new="Stolen-pass-1"),
                "of_system": ask(op="passwd", user="podyd", old="", new="Stolen-pass-1"),
            }
        )
    )


main(*sys.argv[1:])
