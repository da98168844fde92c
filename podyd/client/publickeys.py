"""A member's own public ssh key, and how it gets into a pod."""

from __future__ import annotations

import base64
import binascii
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from podyd.client.failure import Failure, Usage
from podyd.client.server import Server

# What ssh offers by itself, the best first.
DEFAULT_NAMES = ("id_ed25519", "id_ed25519_sk", "id_ecdsa", "id_ecdsa_sk", "id_rsa")
MAX_BYTES = 64 * 1024
_KEY = re.compile(
    r"((?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)"
    r"|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)) ([A-Za-z0-9+/]+={0,2})(?: (.*))?"
)
# $1: the key without its comment, $2: with it.
_SCRIPT = """
set -e
umask 077
cd /root
mkdir -p .ssh
touch .ssh/authorized_keys
chmod 700 .ssh
chmod 600 .ssh/authorized_keys
if grep -v '^ *#' .ssh/authorized_keys | grep -qF -e "$1"; then exit; fi
[ -z "$(tail -c 1 .ssh/authorized_keys)" ] || echo >>.ssh/authorized_keys
printf '%s\\n' "$2" >>.ssh/authorized_keys
"""


@dataclass(frozen=True)
class PublicKey:
    """One key; `source` says where it is from."""

    kind: str
    data: str
    comment: str
    source: str

    @property
    def bare(self) -> str:
        """The key without its comment."""
        return f"{self.kind} {self.data}"

    def __str__(self) -> str:
        return f"{self.bare} {self.comment}".rstrip()


def copy(server: Server, ins: str, key: PublicKey) -> None:
    """Add the key to root's authorized_keys in a pod, if it is not there yet."""
    words = shlex.join(["sh", "-c", _SCRIPT, "pody", key.bare, str(key)])
    done = server.post("pod/exec", [("ins", ins), ("cmd", words)]).data
    if done["exit_code"] != 0:
        reason = str(done["log"]).strip() or f"exit status {done['exit_code']}"
        raise Failure(f"The key could not be put into pod {ins}: {reason}")


def choose(file: str | None) -> PublicKey:
    """The key in a file; else the first that ssh offers by itself, or the agent's. Raises Usage."""
    if file is not None:
        return _of_file(Path(file))
    home = _home()
    for name in DEFAULT_NAMES:
        path = home / ".ssh" / f"{name}.pub"
        if path.exists():
            return _of_file(path)
    for line in _agent():
        if key := _parse(line, "the ssh agent"):
            return key
    raise Usage("You have no ssh key; make one with 'ssh-keygen -t ed25519', and repeat this.")


def _of_file(path: Path) -> PublicKey:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode(errors="replace")
    except OSError as error:
        raise Usage(f"{path} cannot be read: {error.strerror}.") from error
    if "PRIVATE KEY" in text:
        raise Usage(
            f"{path} is a private key, which must stay on your machine; its public key is"
            f" {path}.pub."
        )
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    key = _parse(lines[0], str(path)) if len(lines) == 1 else None
    if key is None:
        raise Usage(
            f"{path} is not a public ssh key, which is one line such as 'ssh-ed25519 AAAA… name';"
            " ssh-keygen makes one."
        )
    return key


def _parse(line: str, source: str) -> PublicKey | None:
    match = _KEY.fullmatch(line.strip())
    if match is None:
        return None
    try:
        # It says its kind once more, behind the length of that.
        inside = base64.b64decode(match[2], validate=True)
    except binascii.Error:
        return None
    kind = match[1].encode()
    if not inside.startswith(len(kind).to_bytes(4, "big") + kind):
        return None
    comment = "".join(char for char in match[3] or "" if char.isprintable())
    return PublicKey(match[1], match[2], comment, source)


def _agent() -> Iterable[str]:
    if os.name != "nt" and not os.environ.get("SSH_AUTH_SOCK"):
        return []
    try:
        done = subprocess.run(
            ["ssh-add", "-L"],  # noqa: S607 - as one types it
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise Usage("You have no home directory on this machine; name the key's file.") from None
