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
from collections.abc import Iterable, Mapping
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


def packed(files: Iterable[tuple[str, bytes | str]]) -> bytes:
    """A tar file with these files (bytes), links (text) and directories (no text), all of them
    programs."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if isinstance(content, bytes):
                info.size = len(content)
            elif content:
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.type = tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return output.getvalue()


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
        metadata, rootfs = here / "metadata.tar", here / "rootfs.tar"
        metadata.write_bytes(packed([("metadata.yaml", METADATA.encode())]))
        rootfs.write_bytes(packed(root.items()))
        words = [
            lab.ENGINE.command,
            "-q",
            "image",
            "import",
            str(metadata),
            str(rootfs),
            f"--alias={alias}",
            f"--project={project}",
        ]
        subprocess.run(
            words, env={**environment, "HOME": name}, check=True, stdin=subprocess.DEVNULL
        )
