"""A fresh server: a bootstrapped Debian, booted with its own systemd by systemd-nspawn.

It is a machine as far as a service can tell: systemd as PID 1, unified cgroups, a network of its
own with a way out through this host, loop devices for the engine's pool. Everything that it writes
lies over the bootstrapped tree and goes with it.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import netns

from podyd.engine.dialect import INCUS, LXD, Dialect
from podyd.node import netlink
from tests import slips
from tests.integration.harness import ROOT, Client, run, wait_until
from tests.lab import lab
from tests.lab.nvml import FakeDriver

BUILD = ROOT / "build" / "packaging"
# What `apt install podyd` takes there.
ENGINES = {"bookworm": LXD, "trixie": INCUS}
RELEASES = tuple(ENGINES)
# What a server has before anybody thinks of podyd.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "libpam-systemd",
    "dbus",
    "udev",
    "iproute2",
    "procps",
    "passwd",
    "adduser",
    "ca-certificates",
    "curl",
    "bash-completion",
    "man-db",
    "nftables",
)
# A mirror's copy of sid may be older than the week for which its own index is valid.
BOOTSTRAPPED_WITH = {"sid": ['--aptopt=Acquire::Check-Valid-Until "false"']}
BOOT_SECONDS = 60.0
COMMAND_SECONDS = 300.0
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of systemd-nspawn.
ENVIRONMENT = {"PATH": SYSTEM_PATH, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}
UNIFIED = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
LOOP_MAJOR, LOOPS = 7, 32


def base(release: str) -> Path:
    """The tarball of a bootstrapped Debian, kept between runs for a week."""
    tarball = BUILD / f"{release}.tar.gz"
    week = 7 * 24 * 3600
    if tarball.exists() and time.time() - tarball.stat().st_mtime < week:
        return tarball
    BUILD.mkdir(parents=True, exist_ok=True)
    new = tarball.with_name(f"new-{tarball.name}")
    run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        # Man pages are what a package is looked at for, too.
        f"--include={','.join(PACKAGES)}",
        *BOOTSTRAPPED_WITH.get(release, ()),
        release,
        str(new),
    )
    new.rename(tarball)
    return tarball


@dataclass(frozen=True)
class FarClient(Client):
    """Calls podyd on the loopback address of another network namespace."""

    namespace: str = ""

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        connection = super().connection(timeout)
        with entered(self.namespace):
            connection.connect()
        return connection


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """This thread's new sockets belong to the namespace."""
    netns.pushns(namespace)
    try:
        yield
    finally:
        netns.popns()


@dataclass
class Machine:
    """One fresh server. Begins with `start`, or `unpack`, and ends with `close`."""

    release: str
    # What its pods are made by.
    engine: Dialect
    name: str = field(default_factory=lambda: f"podydt{secrets.token_hex(3)}")

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="podyd-test-", dir="/var/tmp"))
        self.root = self.directory / "root"
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.init = 0
        self._held = contextlib.ExitStack()

    # --- Life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Unpack it and boot it; returns when its systemd has started all."""
        self.unpack()
        socket = str(self.engine.places[0].socket)
        self._held.enter_context(slips.listening(lambda: self._seen(socket)))
        self.boot()

    def unpack(self) -> None:
        """Its files and its network."""
        self.root.mkdir()
        run("tar", "-xf", str(base(self.release)), "-C", str(self.root), "--exclude=./dev/*")
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/machine-id", "")
        # As in any container: the devices in /sys are this host's.
        self.path("/etc/systemd/system/systemd-udevd.service").symlink_to("/dev/null")
        self._connect()

    def boot(self) -> None:
        """Start its systemd, as after `shut_down`."""
        log = (self.directory / "console").open("ab")
        with log:
            self._process = subprocess.Popen(
                self.contained("--boot"),
                # As every server of today; this host's own may be older.
                env=ENVIRONMENT | UNIFIED,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._has_init, f"the init of {self.name}", BOOT_SECONDS)
        # Before the engine starts and wants one for its pool.
        for number in range(LOOPS):
            self.make_device(f"/dev/loop{number}", stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))
        wait_until(self._has_booted, f"{self.name} to boot: {self.console()}", BOOT_SECONDS)

    def contained(self, *words: str) -> list[str]:
        """The command that runs it, with these words of systemd-nspawn's, in ENVIRONMENT."""
        return [
            # Not nspawn's own --private-network: its /sys would show the host's devices.
            *("nsenter", f"--net=/run/netns/{self.name}"),
            *("systemd-nspawn", "--register=no", "--keep-unit", "--quiet"),
            *(f"--directory={self.root}", f"--machine={self.name}"),
            *("--capability=all", "--system-call-filter=@keyring bpf @mount"),
            *("--bind=/dev/fuse", "--bind=/dev/loop-control"),
            *words,
        ]

    def _has_init(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.console()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        # For a moment there is another one, which makes the namespaces.
        self.init = next((int(pid) for pid in children.split() if _is_init(int(pid))), 0)
        return self.init != 0

    def _has_booted(self) -> bool:
        state = self.attempt("systemctl", "is-system-running").stdout.strip()
        return state in ("running", "degraded")

    def console(self) -> str:
        """What its systemd said on the console."""
        return (self.directory / "console").read_text(errors="replace")[-4000:]

    def shut_down(self) -> None:
        """As by `poweroff`."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(BOOT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def close(self) -> None:
        """Take all of it away."""
        self._held.close()
        self.shut_down()
        for command in (
            ["ip", "netns", "delete", self.name],
            ["nft", "delete", "table", "ip", self.name],
        ):
            run(*command, check=False)
        shutil.rmtree(self.directory)

    # --- Network ---------------------------------------------------------------------------------

    def _connect(self) -> None:
        """A cable to this host, which lets it out to Debian's mirror."""
        network = netlink.free_network(netlink.used_networks())
        here, there = list(network.hosts())[:2]
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.name, "type", "veth", "peer", "host0", "netns", self.name)
        run("ip", "address", "add", f"{here}/{network.prefixlen}", "dev", self.name)
        run("ip", "link", "set", self.name, "up")
        self._let_out(network)
        for words in (
            "link set lo up",
            f"address add {there}/{network.prefixlen} dev host0",
            "link set host0 up",
            f"route add default via {here}",
        ):
            run("ip", "-netns", self.name, *words.split())
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")

    def _let_out(self, network: ipaddress.IPv4Network) -> None:
        rules = f"""
            table ip {self.name} {{
                chain out {{
                    type nat hook postrouting priority srcnat;
                    ip saddr {network} oifname != "{self.name}" masquerade
                }}
            }}"""
        run("nft", "-f", "-", stdin=rules)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def client(self, user: str = "", password: str = "", port: int = 8799) -> FarClient:
        return FarClient(port, user, password, namespace=self.name)

    # --- Commands and files ----------------------------------------------------------------------

    def attempt(
        self, *command: str, stdin: str = "", timeout: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root in it."""
        return subprocess.run(
            [
                *("nsenter", f"--target={self.init}", "--all", "--wdns=/", "--"),
                *("env", "-i", f"PATH={SYSTEM_PATH}", "HOME=/root", "LC_ALL=C.UTF-8"),
                *("TERM=dumb", "DEBIAN_FRONTEND=noninteractive"),
                *(f"{name}={value}" for name, value in self.environment.items()),
                *command,
            ],
            input=stdin,
            text=True,
            errors="replace",
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *command: str, stdin: str = "", timeout: float = COMMAND_SECONDS) -> str:
        """The same, which must succeed; what it wrote to stdout."""
        done = self.attempt(*command, stdin=stdin, timeout=timeout)
        if done.returncode:
            why = f"{shlex.join(command)}: {done.stdout}{done.stderr}"
            # systemctl itself says no more than where to look.
            if command[0] == "systemctl":
                why += self.attempt("journalctl", "--no-pager", "--lines=100").stdout
            raise AssertionError(why)
        return done.stdout

    def sh(self, script: str, **options: float) -> str:
        """A line of shell, which must succeed."""
        return self.run("bash", "-o", "pipefail", "-ec", script, **options)  # type: ignore[arg-type]

    def ask(self, *words: str) -> str:
        """The engine's command: `lxc WORDS`, or `incus WORDS`."""
        return self.run(self.engine.command, *words)

    def apt(self, *words: str) -> str:
        """`apt-get` without questions."""
        return self.run("apt-get", "-q", "-y", *words, timeout=600)

    def has(self, package: str) -> bool:
        """Whether a package of Debian's is installed."""
        wanted = ("dpkg-query", "--show", "--showformat=${db:Status-Status}", package)
        return self.attempt(*wanted).stdout == "installed"

    def path(self, inside: str) -> Path:
        """Where this host sees one of its files."""
        return self.root / inside.lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def read(self, inside: str) -> str:
        return self.path(inside).read_text()

    def push(self, *paths: Path, to: str = "/root") -> None:
        """Copy files of this host into it."""
        for path in paths:
            shutil.copy(path, self.path(to))

    def make_device(self, inside: str, kind: int, number: int) -> None:
        """A node in its /dev, which is not this host's."""
        path = self._seen(inside)
        path.parent.mkdir(exist_ok=True)
        os.mknod(path, 0o666 | kind, number)
        path.chmod(0o666)

    def _seen(self, inside: str) -> Path:
        """What it sees there itself, while it runs; mounts have it hide what `path` shows."""
        return Path(f"/proc/{self.init}/root{inside}")

    # --- What there is ---------------------------------------------------------------------------

    def is_active(self, unit: str) -> bool:
        return self.attempt("systemctl", "is-active", unit).stdout.strip() == "active"

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={key}", unit).strip()

    def journal(self, *words: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", *words)

    def user(self, name: str, password: str, *options: str) -> None:
        """A Linux account with a password."""
        self.run("useradd", "-m", "-s", "/bin/bash", *options, name)
        self.run("chpasswd", stdin=f"{name}:{password}\n")


def _is_init(pid: int) -> bool:
    """Whether a process is PID 1 of a namespace, and its systemd already."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(re.search(r"^NSpid:\t\d+\t1$", status, re.M)) and "\tsystemd\n" in status
    return False


# --- Cards ----------------------------------------------------------------------------------------

DRIVER_DIRECTORY = "/opt/nvidia"
# Says as the real one with -L which cards there are, by the devices that there are.
NVIDIA_SMI = """#!/bin/sh
for device in /dev/nvidia[0-9]*; do
    [ ! -c "$device" ] || echo "GPU ${device#/dev/nvidia}: simulated"
done
"""


def give_cards(machine: Machine) -> FakeDriver:
    """Simulated NVIDIA cards with a driver, as the engine and NVML find real ones (see tests/lab).

    Pods get a stand-in for nvidia-smi, as they get the driver's own.
    """
    cards = lab.DEFAULT_CARDS
    lab.simulate_cards(machine.init, cards)
    for path, number in lab.device_nodes(cards).items():
        machine.make_device(path, stat.S_IFCHR, number)
    # As the lab has them: the cards are beside the program.
    program = lab.ENGINE.bin_dir / lab.STAND_IN.name
    machine.write(str(program), lab.STAND_IN.read_text(), 0o755)
    machine.path(f"/usr/bin/{program.name}").symlink_to(program)
    description = lab.cards_description(cards) | {"nvidia_smi": NVIDIA_SMI}
    machine.write(str(lab.ENGINE.cards_file), json.dumps(description))
    driver = FakeDriver(machine.path(DRIVER_DIRECTORY))
    machine.write(
        "/etc/systemd/system/podyd.service.d/driver.conf",
        "[Service]\n"
        f"Environment=LD_LIBRARY_PATH={DRIVER_DIRECTORY}\n"
        f"Environment=PODYD_LAB_NVML={DRIVER_DIRECTORY}/{driver.file.name}\n",
    )
    machine.run("systemctl", "daemon-reload")
    return driver
