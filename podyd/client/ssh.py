"""The system's ssh, led into pods through podyd.

Always through podyd and never by a port of the server: so it works from behind any firewall, needs
no port that could change, and who gets as far as a pod's sshd has logged in at podyd before.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from podyd.client import hostkeys, private
from podyd.client.failure import Failure, NoLogin, Usage
from podyd.client.server import Server

INCLUDE = b"Include pody.d/*.conf"
MARK = b"# The pods that 'pody ssh-config --write' knows; it has to stand before any Host.\n"


def run(server: Server, ins: str, words: Sequence[str], cacert: str | None) -> int:
    """Run ssh to a pod, in our own place where that can be; else its exit status."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise Usage("There is no ssh on this machine; install it (Debian: openssh-client).")
    if not server.asks_nobody:
        raise NoLogin(
            "ssh runs pody, which cannot ask for a password then; type 'pody login' once."
        )
    hostkeys.keep(server, ins)
    options = settings(server, ins, cacert, keeps_keys=False)
    command = [ssh, *(f"-o{key}={value}" for key, value in options.items()), host(ins), *words]
    if os.name != "nt":
        # Python ignores it, and a program begun in its place would too.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execv(ssh, command)  # noqa: S606 - no shell is wanted
    return subprocess.run(command, check=False).returncode


def config(server: Server, names: Sequence[str], cacert: str | None) -> str:
    """A block of ssh_config(5) for each pod."""
    blocks = []
    for ins in names:
        lines = settings(server, ins, cacert, keeps_keys=True).items()
        blocks.append("".join([f"Host {host(ins)}\n", *(f"    {key} {v}\n" for key, v in lines)]))
    return "\n".join(blocks)


def host(ins: str) -> str:
    """What ssh calls a pod."""
    return f"pod-{ins}"


def settings(
    server: Server, ins: str, cacert: str | None, *, keeps_keys: bool
) -> Mapping[str, str]:
    """What ssh needs to know of a pod, as ssh_config(5) has it; `keeps_keys`: itself, each time."""
    alias = hostkeys.alias(server, ins)
    return {
        "ProxyCommand": _proxy(server, ins, cacert, keeps_keys=keeps_keys),
        "HostKeyAlias": alias,
        "UserKnownHostsFile": _argument(str(hostkeys.path_of(alias))),
        # podyd has said which keys they are: there is nothing to ask.
        "StrictHostKeyChecking": "yes",
        "User": "root",
    }


def _proxy(server: Server, ins: str, cacert: str | None, *, keeps_keys: bool) -> str:
    words = [_ourselves(), "forward", ins, "22", "--stdio"]
    words += ["--host-keys"] if keeps_keys else []
    words += ["--server", str(server.base), "--user", server.user]
    words += ["--cacert", str(Path(cacert).absolute())] if cacert else []
    return command_line(words, is_windows=os.name == "nt")


def command_line(words: Sequence[str], *, is_windows: bool) -> str:
    """The words as ssh hands them to a shell: the user's, or Windows' own. Raises Usage."""
    for word in words:
        _refuse_control(word)
    joined = subprocess.list2cmdline(words) if is_windows else shlex.join(words)
    return joined.replace("%", "%%")


def _argument(path: str) -> str:
    """A path as ssh_config(5) takes it. Raises Usage."""
    _refuse_control(path)
    if os.name == "nt":
        path = path.replace("\\", "/")
    if re.search(r'["\\]|\$\{', path):
        raise Usage(f'ssh cannot use {path!r}: it must not have \'"\', "\\" or "${{" there.')
    return '"' + path.replace("%", "%%") + '"'


def _refuse_control(text: str) -> None:
    if not text.isprintable():
        raise Usage(f"ssh cannot use {text!r}: it has a character that is not printable.")


def _ourselves() -> str:
    """Where this pody is. Raises Usage."""
    executable = shutil.which(sys.argv[0]) or shutil.which("pody")
    if executable is None:
        raise Usage("ssh must run pody, which is not on the PATH.")
    return str(Path(executable).absolute())


# --- ~/.ssh ---------------------------------------------------------------------------------------


def write(server: Server, text: str) -> Path:
    """Put the blocks where ssh reads them; what else is in ~/.ssh stays. Raises Failure."""
    directory = _home() / ".ssh"
    try:
        path = directory / "pody.d" / f"{hostkeys.alias(server, '')}.conf"
        directory.mkdir(mode=0o700, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        private.write(path, text.encode())
        _include(directory / "config")
    except OSError as error:
        raise Failure(
            f"{error.filename or '~/.ssh'} cannot be written: {error.strerror}."
        ) from error
    return path


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise Usage("You have no home directory on this machine.") from None


def _include(path: Path) -> None:
    """Have ssh read our blocks, once."""
    path = path.resolve()  # Some keep it elsewhere, and link to it.
    before = path.read_bytes() if path.exists() else b""
    if INCLUDE in before.splitlines():
        return
    mode = path.stat().st_mode & 0o777 if path.exists() else None
    private.write(path, MARK + INCLUDE + b"\n" + (b"\n" + before if before else b""), mode)
