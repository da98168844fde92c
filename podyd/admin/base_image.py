"""Base images: a small Debian or Ubuntu that boots in a pod, with network and ssh.

Building needs root, mmdebstrap, mksquashfs and a mirror, and no image server.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from podyd.base.engine_words import ENGINE
from podyd.base.errors import SetupError
from podyd.engine.command import ImageCommand, aliases_in, fingerprint_in

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "udev",
    "systemd-resolved",
    "libnss-resolve",
    "libpam-systemd",
    "dbus",
    "iproute2",
    "procps",
    "ca-certificates",
    "openssh-server",
    "tmux",
    "netbase",
    "python3",
)
# The key that signs Ubuntu's archive since 2018, as Ubuntu's package ubuntu-keyring has it; Debian
# 12 has no package of it. Fingerprint: F6EC B376 2474 EDA9 D21B 7022 8719 20D1 991B C93C.
UBUNTU_KEY = Path(__file__).parents[1] / "data" / "ubuntu-archive-keyring.asc"


@dataclass(frozen=True)
class Release:
    """A release for base images, and how it differs from others."""

    suite: str
    alias: str
    distribution: str = "Debian"
    components: str = "main"
    keyring: Path | None = None
    without: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.distribution} {self.suite}"

    @property
    def packages(self) -> list[str]:
        return [name for name in PACKAGES if name not in self.without]


def _ubuntu(suite: str, alias: str, *without: str) -> Release:
    return Release(suite, alias, "Ubuntu", "main,universe", UBUNTU_KEY, frozenset(without))


RELEASES = (
    Release("bookworm", "debian12"),
    Release("trixie", "debian13"),
    # In jammy it is a part of systemd.
    _ubuntu("jammy", "ubuntu2204", "systemd-resolved"),
    _ubuntu("noble", "ubuntu2404"),
    _ubuntu("resolute", "ubuntu2604"),
)
DEFAULT = RELEASES[0]


def release(suite: str) -> Release:
    """The release of this name; an unknown one is taken as a new release of Debian."""
    known = {item.suite: item for item in RELEASES}
    return known.get(suite) or Release(suite, suite)


TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "chroot": "coreutils",
}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"
# Where mmdebstrap reads whose release a suite is: without it, it takes Ubuntu's for Debian's.
SUITES = Path("/usr/share/distro-info/ubuntu.csv")
SUITES_PACKAGE = "distro-info-data"
UNITS = ("systemd-networkd.service", "systemd-resolved.service", "ssh-host-keys.service")
BOOTSTRAP_TIMEOUT = 1800.0
STEP_TIMEOUT = 300.0

# The MAC address as DHCP identity: the engine's dnsmasq ties a pod's reserved address to it.
NETWORK = """\
[Match]
Name=eth0

[Network]
DHCP=yes
LLMNR=no

[DHCPv4]
ClientIdentifier=mac
UseDomains=yes
"""

# Before ssh.service's own ExecStartPre (`sshd -t`), which fails without a key.
HOST_KEYS = """\
[Unit]
Description=Make this machine's own ssh host keys
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key
Before=ssh.service ssh.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
RequiredBy=ssh.service
"""

FILES = {
    "etc/systemd/network/10-eth0.network": NETWORK,
    "etc/systemd/system/ssh-host-keys.service": HOST_KEYS,
    "etc/default/locale": "LANG=C.UTF-8\n",
    # Empty and not absent: systemd then creates an id without treating this as a first boot.
    "etc/machine-id": "",
}
LINKS = {
    "etc/locale.conf": "default/locale",
    "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
}
REMOVE = (
    "etc/ssh/ssh_host_*",
    "var/lib/dbus/machine-id",
    "etc/hostname",
    "var/cache/apt/*.bin",
    "var/lib/apt/lists/*_*",
    "var/log/*.log",
    "var/log/apt/*",
)

TEMPLATES = {
    "hostname.tpl": "{{ container.name }}\n",
    "hosts.tpl": """\
127.0.0.1\tlocalhost
127.0.1.1\t{{ container.name }}
::1\tlocalhost ip6-localhost ip6-loopback
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
""",
}


class BuildError(SetupError):
    """The image could not be built; the text says why and what to do."""


def build(
    alias: str,
    release: Release = DEFAULT,
    *,
    images: ImageCommand,
    progress: Callable[[str], None] = print,
    mirror: str | None = None,
) -> str:
    """Build a base image and import it into the engine as `alias`, by `images`.

    `mirror` is the URL of a mirror of the distribution's (default: mmdebstrap's own choice). Takes
    from twenty seconds to some minutes, mostly download, and about 1 GiB below /var/tmp meanwhile.
    Returns the image's fingerprint. Raises BuildError.
    """
    environment = _environment(images)
    _check(alias, release, images)
    if mirror is None:
        _check_archive(release)
    with tempfile.TemporaryDirectory(prefix="podyd-image-", dir="/var/tmp") as name:
        work = Path(name)
        root, meta, squashfs = work / "rootfs", work / "meta.tar", work / "rootfs.squashfs"
        progress(f"Installing {release} into a directory (mmdebstrap)")
        _bootstrap(root, release, mirror, environment)
        progress("Configuring it")
        _configure(root, environment)
        progress("Packing it (mksquashfs)")
        _pack(root, squashfs, environment)
        _write_metadata(meta, release)
        progress(f"Importing it into {ENGINE} as {alias}")
        _run("Importing the image", images.make(meta, squashfs, alias), environment)
        what = f"Asking {ENGINE} for the new image"
        return fingerprint_in(_run(what, images.show_alias(alias), environment))


def _environment(images: ImageCommand) -> dict[str, str]:
    """This process' environment, for a proxy's settings, with a fixed PATH and locale."""
    return {**os.environ, "PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", **images.environment}


def _check(alias: str, release: Release, images: ImageCommand) -> None:
    """Check what would fail late, before anything is downloaded. Raises BuildError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", alias):
        raise BuildError(f"{alias!r} is not an image alias: use letters, digits, '-', '_' and '.'.")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", release.suite):
        suites = ", ".join(item.suite for item in RELEASES)
        raise BuildError(f"{release.suite!r} is not a suite: use one such as {suites}.")
    if os.geteuid() != 0:
        raise BuildError("Building an image needs root.")
    command = images.dialect.command
    tools = {**TOOLS, command: images.dialect.command_package}
    missing = [tool for tool in tools if shutil.which(tool, path=SYSTEM_PATH) is None]
    if missing:
        packages = " ".join(tools[tool] for tool in missing)
        raise BuildError(f"Missing {', '.join(missing)}: run apt-get install {packages}")
    if alias in aliases(images):
        raise BuildError(
            f"{ENGINE} has an image {alias!r} already: delete it or use another alias."
        )


def _check_archive(release: Release) -> None:
    """Check that mmdebstrap knows where a release is found. Raises BuildError."""
    if release.distribution == "Ubuntu" and not SUITES.exists():
        raise BuildError(
            f"Where {release} is found, is not known here: run apt-get install {SUITES_PACKAGE}, or"
            " name a mirror by --mirror."
        )


def aliases(images: ImageCommand) -> set[str]:
    """The aliases of the images that pods can be made of. Raises BuildError."""
    answer = _run(f"Asking {ENGINE} for its images", images.aliases(), _environment(images))
    return aliases_in(answer)


def _bootstrap(
    root: Path, release: Release, mirror: str | None, environment: Mapping[str, str]
) -> None:
    argv = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--components={release.components}",
        f"--include={','.join(release.packages)}",
        *([f"--keyring={release.keyring}"] if release.keyring is not None else []),
        release.suite,
        str(root),
        *([mirror] if mirror is not None else []),
    ]
    _run(f"Installing {release}", argv, environment, BOOTSTRAP_TIMEOUT)


def _configure(root: Path, environment: Mapping[str, str]) -> None:
    for pattern in REMOVE:
        for path in root.glob(pattern):
            path.unlink()
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
    for name, target in LINKS.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    argv = ["chroot", str(root), "systemctl", "--quiet", "enable", *UNITS]
    _run("Enabling its services", argv, environment)


def _pack(root: Path, squashfs: Path, environment: Mapping[str, str]) -> None:
    level = ["-comp", "zstd", "-Xcompression-level", "3"]
    argv = ["mksquashfs", str(root), str(squashfs), *level, "-noappend", "-no-progress"]
    _run("Packing the image", argv, environment)


def _metadata(release: Release, machine: str, created: int) -> dict[str, object]:
    def template(name: str) -> dict[str, object]:
        return {"when": ["create", "copy", "rename"], "template": name}

    return {
        "architecture": machine,
        "creation_date": created,
        "properties": {
            "os": release.distribution.lower(),
            "release": release.suite,
            "architecture": machine,
            "description": f"{release} ({machine}), made by podyd",
        },
        "templates": {
            "/etc/hostname": template("hostname.tpl"),
            "/etc/hosts": template("hosts.tpl"),
        },
    }


def _write_metadata(path: Path, release: Release) -> None:
    metadata = _metadata(release, os.uname().machine, int(time.time()))
    members = {"metadata.yaml": json.dumps(metadata, indent=2)}  # JSON is YAML.
    members |= {f"templates/{name}": text for name, text in TEMPLATES.items()}
    with tarfile.open(path, "w") as archive:
        for name, text in members.items():
            content = text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _run(
    what: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
    timeout: float = STEP_TIMEOUT,
) -> str:
    """Run a command and return its output; BuildError has the end of its error messages."""
    try:
        done = subprocess.run(
            list(argv),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{what} did not end within {timeout:.0f} s ({argv[0]}).") from error
    except OSError as error:
        raise BuildError(f"{what} failed: {argv[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise BuildError(f"{what} failed ({argv[0]}): {_complaint(done.stderr or done.stdout)}")
    return done.stdout


def _complaint(output: str) -> str:
    """The lines with the cause: the first errors of apt or lxc, else the last lines."""
    lines = output.strip().splitlines()
    errors = [line for line in lines if line.startswith(("E:", "Error:"))]
    return " | ".join(errors[:2] or lines[-3:])
