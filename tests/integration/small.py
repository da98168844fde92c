"""An image that has busybox and nothing else, as Alpine's.

A pod of it runs in a moment and is packed in another, where one of Debian boots and fills a core
for seconds. It is for what does not depend on what is in a pod.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.lab import lab

# cgroup2 is there, as with OpenRC; LXD mounts it where the host has nothing else.
INIT = """#!/bin/sh
mount -t cgroup2 none /sys/fs/cgroup
trap exit PWR
while :; do sleep 3600 & wait; done
"""
METADATA = f"""architecture: {os.uname().machine}
creation_date: 1700000000
properties:
  description: busybox, for podyd's tests
"""
FOLDERS = ("proc", "sys", "dev", "run", "tmp", "root", "etc", "var", "sbin", "usr/sbin", "usr/bin")


def _packed(path: Path, files: Mapping[str, bytes | str]) -> str:
    """A tar file with these files (bytes) and links (text), all of them programs."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if isinstance(content, bytes):
                info.size = len(content)
            elif content:
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.type = tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return str(path)


def make(alias: str, project: str, environment: Mapping[str, str]) -> None:
    """Import it into a project; `environment` is that of the engine's command."""
    listed = subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True)
    programs = [name for name in listed.stdout.split() if name not in ("busybox", "init")]
    root: dict[str, bytes | str] = {
        "bin": "",
        **dict.fromkeys(FOLDERS, ""),
        "bin/busybox": Path("/bin/busybox").read_bytes(),
        **{f"bin/{name}": "busybox" for name in programs},
        "sbin/init": INIT.encode(),
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": b"root:x:0:\n",
    }
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        metadata = _packed(here / "metadata.tar", {"metadata.yaml": METADATA.encode()})
        files = metadata, _packed(here / "rootfs.tar", root)
        words = [
            lab.ENGINE.command,
            "-q",
            "image",
            "import",
            *files,
            f"--alias={alias}",
            f"--project={project}",
        ]
        subprocess.run(
            words, env={**environment, "HOME": name}, check=True, stdin=subprocess.DEVNULL
        )
