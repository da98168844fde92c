"""The ssh host keys of pods, asked of podyd, so that ssh can check them from the first time on."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from podyd.client import kept, private
from podyd.client.failure import Failure, Usage
from podyd.client.server import Server

NO_SSHD = 3
# A pod that has just been made is given 5 seconds to make its keys and to listen.
_SCRIPT = rf"""
PATH=$PATH:/usr/sbin:/sbin
command -v sshd >/dev/null || exit {NO_SSHD}
for _ in $(seq 50); do
  grep -qs ':0016 [0-9A-F:]* 0A ' /proc/net/tcp /proc/net/tcp6 && break
  sleep 0.1
done
cat /etc/ssh/ssh_host_*_key.pub
"""
_KEY = re.compile(r"((?:ssh|ecdsa|sk)-[a-z0-9@.-]{1,60} [A-Za-z0-9+/]{16,8000}={0,2})(?: .*)?")
MAX_KEYS = 16


def alias(server: Server, ins: str) -> str:
    """The name that ssh knows a pod's keys by: no other pod's of any server or user."""
    text = f"{server.base}-{server.user}-{ins}"
    digest = hashlib.sha256(f"{server.base}\0{server.user}\0{ins}".encode()).hexdigest()[:8]
    # ssh compares in lower case.
    plain = re.sub(r"[^a-z0-9.-]+", "-", text.partition("://")[2].lower())
    return f"podyd-{plain}-{digest}"


def path_of(alias: str) -> Path:
    """The known_hosts of one pod. Raises Usage."""
    return kept.directory() / "known_hosts" / alias


def keep(server: Server, ins: str) -> str:
    """Write down the host keys that a pod has now; the alias that they have. Raises Failure."""
    done = server.post("pod/exec", [("ins", ins), ("cmd", _SCRIPT)]).data
    if done["exit_code"] == NO_SSHD:
        raise Failure(
            f"Pod {ins} has no ssh server; install one: pody exec {ins} -- 'apt-get update &&"
            " apt-get install -y openssh-server'."
        )
    keys = [match[1] for line in done["stdout"].splitlines() if (match := _KEY.fullmatch(line))]
    if not keys:
        raise Failure(
            f"Pod {ins} has no ssh host keys; make them: pody exec {ins} -- ssh-keygen -A"
        )
    name = alias(server, ins)
    _write(path_of(name), "".join(f"{name} {key}\n" for key in keys[:MAX_KEYS]))
    return name


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private.write(path, text.encode())
    except OSError as error:
        raise Usage(f"The host keys cannot be stored in {path}: {error.strerror}.") from error
