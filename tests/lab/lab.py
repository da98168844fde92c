#!/usr/bin/python3
"""A real LXD or Incus with simulated NVIDIA GPUs for podyd's tests, on a machine that need not have
any of them.

    lab.py up [--gpus N]     start the engine (or find the one that runs) and leave it answering;
                             --cards FILE: with these cards, as the stand-in reads them
    lab.py down              take away everything the lab made
    lab.py status [--json]   say what runs; exit status 0 when the engine answers

`--engine lxd|incus` says which one, else $PODYD_TEST_ENGINE, else it is LXD. Each has a lab of its
own, and both can be up at the same time.

An engine that somebody else runs is used as it is and never changed, and has no simulated cards.
Where none answers, nor does systemd start one (its unit may be masked), the lab runs one of its own
on /var/lib/lxd or /var/lib/incus, together with lxcfs, in a mount namespace of theirs. Nothing
keeps that namespace but its processes: when they die, the mounts (FUSE, storage pools, simulated
/sys) go with them. `up` does not initialise the engine: the pool, the bridge and the project are
the product's to make.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    # Where no package of podyd's is installed yet: what the engines differ in needs Python alone.
    sys.path.insert(0, str(ROOT))

from podyd.engine.dialect import INCUS, LXD, Dialect  # noqa: E402 - it is found from here on


@dataclasses.dataclass(frozen=True)
class Engine:
    """All that the labs of two engines differ in."""

    key: str
    title: str
    # The daemon's program, where else than on the usual path it may lie, and the admin's command.
    daemon: str
    command: str
    # Of those who may use the socket.
    group: str
    # Environment variable → the daemon's directory.
    variable: str
    directory: Path
    lab_dir: Path
    # Program → Debian's package.
    packages: dict[str, str]
    # A unit's file → the units to start; the first one that is there is the engine's.
    units: dict[str, tuple[str, ...]]
    libexec: str = "/usr/sbin"
    other_sockets: tuple[Path, ...] = ()

    @property
    def socket(self) -> Path:
        return self.directory / "unix.socket"

    @property
    def marker(self) -> Path:
        """Stands in the directory and says that all of it is the lab's to wipe."""
        return self.directory / "podyd-lab"

    @property
    def state_file(self) -> Path:
        return self.lab_dir / "lab.json"

    @property
    def cards_file(self) -> Path:
        """Beside the stand-in, which may be shown elsewhere than where it lies."""
        return self.bin_dir / "cards.json"

    @property
    def bin_dir(self) -> Path:
        return self.lab_dir / "bin"


def engine_of(
    dialect: Dialect,
    *,
    lab_dir: str,
    package: str,
    units: dict[str, tuple[str, ...]],
    libexec: str = Engine.libexec,
) -> Engine:
    """The lab's, of which podyd itself says where the two differ; `package` has the daemon."""
    place, *others = dialect.places
    daemon = Path(dialect.program).name
    return Engine(
        key=dialect.key,
        title=dialect.name,
        daemon=daemon,
        command=dialect.command,
        group=dialect.group,
        variable=dialect.directory_variable,
        directory=place.directory,
        lab_dir=Path(lab_dir),
        packages={daemon: package, dialect.command: dialect.command_package},
        units=units,
        libexec=libexec,
        other_sockets=tuple(item.socket for item in others),
    )


ENGINES = {
    LXD.key: engine_of(
        LXD,
        lab_dir="/var/lib/podyd-lab",
        package="lxd",
        units={
            "/lib/systemd/system/lxd.service": ("lxd.socket", "lxd.service"),
            "/etc/systemd/system/snap.lxd.daemon.service": (
                "snap.lxd.daemon.unix.socket",
                "snap.lxd.daemon.service",
            ),
        },
    ),
    INCUS.key: engine_of(
        INCUS,
        lab_dir="/var/lib/podyd-lab-incus",
        package="incus-base",
        units={"/lib/systemd/system/incus.service": ("incus.socket", "incus.service")},
        libexec=str(Path(INCUS.program).parent),
    ),
}
CHOICE = "PODYD_TEST_ENGINE"
# Of this process; `use` changes it.
ENGINE = ENGINES[os.environ.get(CHOICE) or "lxd"]

LXCFS_DIR = Path("/var/lib/lxcfs")
LXCFS_RUN = "/run/lxcfs"
PCI_DEVICES = Path("/sys/bus/pci/devices")
CGROUPS = Path("/sys/fs/cgroup")
NSSWITCH = Path("/etc/nsswitch.conf")
# The first place of each PATH, where Debian has nothing.
LOCAL_PROGRAMS = Path("/usr/local/sbin")
STAND_IN = Path(__file__).resolve().parent / "nvidia-container-cli"

PYTHON = "/usr/bin/python3"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGE_OF = {
    "lxcfs": "lxcfs",
    "newuidmap": "uidmap",
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
    "mkfs.btrfs": "btrfs-progs",
    "unsquashfs": "squashfs-tools",
    "rsync": "rsync",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
# In an engine that is not the lab's, only what carries these names is the tests' to remove.
TEST_PREFIX = "podyd-test"
IMAGE_PREFIX = "podyd-lab"
# Of the cgroups of a cluster's members.
CLUSTER_PREFIX = "podyd-cluster"

START_TIMEOUT = 90.0
STOP_TIMEOUT = 20.0
WIPE_TIMEOUT = 120.0
CALL_TIMEOUT = 30.0
POLL = 0.02

Json = dict[str, Any]


class LabError(Exception):
    """One sentence for the person who ran the lab."""


class NotFoundError(LabError):
    """The engine has no such object."""


def use(key: str) -> None:
    """Let all that follows be about this engine's lab."""
    global ENGINE
    ENGINE = ENGINES[key]


# --- cards ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Card:
    """A simulated card; the defaults are an A100 80GB PCIe (vendor 10de, device 20b5)."""

    minor: int
    uuid: str
    pci: str
    model: str = "NVIDIA A100 80GB PCIe"
    brand: str = "Nvidia"
    architecture: str = "8.0"
    device_id: str = "0x20b5"
    # The virtual terminal that is its device; -1: the one of its minor.
    terminal: int = -1

    @property
    def device(self) -> int:
        """The number of its device, see device_nodes."""
        return os.makedev(4, FIRST_TERMINAL + self.minor if self.terminal < 0 else self.terminal)


# 1 to 6 are the host's own logins, 7 and 8 its screen; VT_GETSTATE knows 1 to 15.
FIRST_TERMINAL = 10

# The tests have the first two.
CARDS = (
    Card(0, "GPU-5f1c2a3e-7b84-4d6a-9c0f-1e2d3c4b5a60", "0000:41:00.0"),
    Card(1, "GPU-a9d8c7b6-1234-4f5e-8a9b-0c1d2e3f4a5b", "0000:61:00.0"),
    Card(2, "GPU-0b6e1c52-90af-4c11-8d27-5a0f7e91c3d2", "0000:81:00.0"),
    Card(3, "GPU-1c7f2d63-a1b0-4d22-9e38-6b108fa2d4e3", "0000:a1:00.0"),
    Card(4, "GPU-2d803e74-b2c1-4e33-af49-7c2190b3e5f4", "0000:c1:00.0"),
    Card(5, "GPU-3e914f85-c3d2-4f44-b05a-8d32a1c4f605", "0000:d1:00.0"),
    Card(6, "GPU-4fa25096-d4e3-4055-816b-9e43b2d50716", "0000:e1:00.0"),
    Card(7, "GPU-50b361a7-e5f4-4166-927c-af54c3e61827", "0000:f1:00.0"),
)
DEFAULT_CARDS = CARDS[:2]


def cards_description(cards: Sequence[Card]) -> Json:
    """What the nvidia-container-cli stand-in reads."""
    return {
        "nvrm_version": "535.183.01",
        "cuda_version": "12.2",
        "cards": [dataclasses.asdict(card) for card in cards],
    }


def read_cards(path: Path) -> Sequence[Card]:
    """The cards of such a description."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["cards"]
        return tuple(Card(**row) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(f"{path} does not describe cards: {error}") from error


def device_nodes(cards: Sequence[Card]) -> dict[str, int]:
    """Path → device number, as the NVIDIA driver makes them; uvm's major is dynamic, 510 here.

    The cards themselves are virtual terminals of the kernel's, as nobody can open 195:MINOR without
    the driver. Whether any process has one of them open, and be it as a descriptor on its way
    through a socket, the kernel says to VT_GETSTATE (ioctl_console(2)). As LXD itself says that the
    number of /dev/nvidia0 is 195:0, what can be opened in a pod is /dev/dri/card0.
    """
    return {
        **{f"/dev/nvidia{card.minor}": card.device for card in cards},
        **{f"/dev/dri/card{card.minor}": card.device for card in cards},
        "/dev/nvidiactl": os.makedev(195, 255),
        "/dev/nvidia-uvm": os.makedev(510, 0),
    }


def pci_files(card: Card) -> dict[str, str]:
    """The files of a card's directory in sysfs that an engine reads."""
    return {
        "class": "0x030200\n",
        "vendor": "0x10de\n",
        "device": f"{card.device_id}\n",
        "numa_node": "0\n",
        "uevent": f"DRIVER=nvidia\nPCI_CLASS=30200\nPCI_SLOT_NAME={card.pci}\n",
        f"drm/card{card.minor}/dev": f"{os.major(card.device)}:{os.minor(card.device)}\n",
    }


# --- the state file ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class State:
    """What the lab uses and what it made; `gpus` are so many cards; https_address_set is for the
    tests to set."""

    socket: str
    ours: bool
    gpus: int
    made: tuple[str, ...] = ()
    https_address_set: bool = False


def read_state(path: Path | None = None) -> State | None:
    """The state as last written; None where there is none or where it cannot be understood."""
    path = path or ENGINE.state_file
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return State(
            socket=str(data["socket"]),
            ours=data["ours"] is True,
            gpus=int(data["gpus"]),
            made=tuple(str(item) for item in data.get("made", ())),
            https_address_set=data.get("https_address_set") is True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_state(state: State, path: Path | None = None) -> None:
    path = path or ENGINE.state_file
    write_atomically(path, json.dumps(dataclasses.asdict(state), indent=2) + "\n")


def other_labs() -> dict[Path, State]:
    """The labs of the other engines, by the files of their states."""
    files = [engine.state_file for engine in ENGINES.values() if engine != ENGINE]
    found = {file: read_state(file) for file in files}
    return {file: state for file, state in found.items() if state is not None and state.ours}


def is_alone() -> bool:
    """Whether no other engine is here: neither a lab's nor somebody's own, which may have pods and
    podyd."""
    others = [engine for engine in ENGINES.values() if engine != ENGINE]
    return not any(
        read_state(engine.state_file) is not None
        or any(listener_pid(path) for path in (engine.socket, *engine.other_sockets))
        for engine in others
    )


def left_to_remove(made: Sequence[str]) -> Sequence[str]:
    """What is this lab's alone; where there is another one, that removes it all in the end."""
    for file, state in other_labs().items():
        theirs = {*state.made, *made} - {str(ENGINE.lab_dir)}
        write_state(dataclasses.replace(state, made=tuple(sorted(theirs))), file)
        return ()
    return made


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.new")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


# --- The engine's API -------------------------------------------------------------------------


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclasses.dataclass(frozen=True)
class Api:
    """An engine's REST API over its unix socket, with operations waited for."""

    path: Path

    def get(self, url: str, timeout: float = CALL_TIMEOUT) -> Any:
        return self._call("GET", url, None, timeout)["metadata"]

    def list(self, url: str) -> list[Json]:
        items: list[Json] = self.get(url) or []
        return items

    def begin(self, method: str, url: str, body: Json | None = None) -> Any:
        """What is answered at once; an operation goes on."""
        return self._call(method, url, body, CALL_TIMEOUT)["metadata"]

    def change(self, method: str, url: str, body: Json | None = None) -> None:
        answer = self._call(method, url, body, CALL_TIMEOUT)
        if answer.get("type") == "async":
            self._wait(answer["operation"])

    def _wait(self, operation: str) -> None:
        # That of another member of a cluster has a query.
        path, _, query = operation.partition("?")
        url = f"{path}/wait?timeout={int(CALL_TIMEOUT)}&{query}"
        result = self.get(url, CALL_TIMEOUT + 5)
        if result["status_code"] != 200:
            raise LabError(
                f"{ENGINE.title} did not finish {result['description']!r}: {result['err']}"
            )

    def _call(self, method: str, url: str, body: Json | None, timeout: float) -> Json:
        connection = UnixConnection(self.path, timeout)
        try:
            connection.request(method, url, None if body is None else json.dumps(body))
            answer: Json = json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            where = f"{ENGINE.title} on {self.path}"
            raise LabError(f"{where} does not answer {method} {url}: {error}") from error
        finally:
            connection.close()
        if answer.get("type") == "error":
            kind = NotFoundError if answer.get("error_code") == 404 else LabError
            raise kind(f"{ENGINE.title} refused {method} {url}: {answer.get('error')}")
        return answer


def answers(path: Path, timeout: float = CALL_TIMEOUT) -> bool:
    try:
        Api(path).get("/1.0", timeout)
    except LabError:
        return False
    return True


def standard_sockets() -> list[Path]:
    configured = os.environ.get(ENGINE.variable)
    paths = [Path(configured) / "unix.socket"] if configured else []
    return list(dict.fromkeys([*paths, ENGINE.socket, *ENGINE.other_sockets]))


def listener_pid(path: Path) -> int | None:
    """Who listens on a unix socket: the kernel's word (SO_PEERCRED), not a file's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CALL_TIMEOUT)
        try:
            connection.connect(str(path))
        except OSError:
            return None
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[0])


# --- processes --------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def run(argv: Sequence[str], timeout: float = CALL_TIMEOUT) -> None:
    """Run a command to its end; its failure is an error that quotes what it said."""
    output(argv, timeout)


def output(
    argv: Sequence[str], timeout: float = CALL_TIMEOUT, env: dict[str, str] | None = None
) -> str:
    """What such a command says."""
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd="/",
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)} did not end within {timeout:.0f} s") from error
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def is_alive(pid: int) -> bool:
    """False for a zombie too: where PID 1 is no init, they stay for long."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def zero_separated(pid: int, name: str) -> list[str]:
    """A process's `cmdline` or `environ`; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def executable(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    except OSError:
        return ""


def daemon_pid(name: str) -> int | None:
    """The pid of the lab's own engine or `lxcfs` if it lives and still is that program."""
    try:
        pid = int((ENGINE.lab_dir / f"{name}.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if is_alive(pid) and executable(pid) == name else None


def spawn(name: str, argv: Sequence[str], env: dict[str, str]) -> int:
    """Start a daemon of the lab in a session of its own; every argv prefix used execs in place."""
    with (ENGINE.lab_dir / f"{name}.out").open("ab") as log:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=env,
            start_new_session=True,
        )
    write_atomically(ENGINE.lab_dir / f"{name}.pid", f"{process.pid}\n")
    process.returncode = 0  # It outlives the lab: no warning about a child left running.
    return process.pid


def end(pids: Sequence[int], first: signal.Signals, timeout: float) -> None:
    """Signal processes and wait; SIGKILL for those that stay."""
    for sign in dict.fromkeys((first, signal.SIGKILL)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        if wait_for(lambda: not any(is_alive(pid) for pid in pids), timeout):
            return
    raise LabError(f"Processes {', '.join(map(str, pids))} do not end, not even by SIGKILL.")


def stop_daemon(name: str) -> None:
    # SIGTERM ends the daemon and leaves its instances running.
    pid = daemon_pid(name)
    if pid is not None:
        end([pid], signal.SIGTERM, STOP_TIMEOUT)
    (ENGINE.lab_dir / f"{name}.pid").unlink(missing_ok=True)


def all_pids() -> Iterator[int]:
    """But for those of a cluster's members, where directories and pods are called as here."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return (pid for pid in pids if not in_cluster(pid))


# --- what a killed engine leaves --------------------------------------------------------------


def instance_names() -> set[str]:
    """The instances of the lab's engine as liblxc names them: NAME or PROJECT_NAME."""
    try:
        return set(os.listdir(ENGINE.directory / "containers"))
    except OSError:
        return set()


def lxc_instance(component: str) -> str | None:
    """The instance a cgroup component is of; liblxc appends -N when the plain name is taken."""
    match = re.fullmatch(r"lxc\.(?:payload|monitor)\.(.+?)", component)
    return match[1] if match else None


def is_cgroup_of(component: str, names: set[str]) -> bool:
    instance = lxc_instance(component)
    return instance is not None and (instance in names or re.sub(r"-\d+$", "", instance) in names)


def cgroup_components(pid: int) -> set[str]:
    """All names in the paths of a process's cgroups; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return set()
    return {part for line in text.splitlines() for part in line.split(":", 2)[2].split("/")}


def in_instance(pid: int, names: set[str]) -> bool:
    return any(is_cgroup_of(part, names) for part in cgroup_components(pid))


def in_cluster(pid: int) -> bool:
    """Whether a process is of a member of tests/lab/cluster.py."""
    return any(part.startswith(CLUSTER_PREFIX) for part in cgroup_components(pid))


def is_servant(pid: int) -> bool:
    """Whether a process is a dnsmasq or a forked proxy or file server of the lab's engine."""
    name, words = executable(pid), zero_separated(pid, "cmdline")
    if name == "dnsmasq":
        return any(f"{ENGINE.directory}/" in word for word in words)
    forked = name == ENGINE.daemon and len(words) > 1 and words[1].startswith("fork")
    mine = f"{ENGINE.variable}={ENGINE.directory}"
    return forked and mine in zero_separated(pid, "environ")


def kill_leftovers() -> None:
    """Pods, DHCP servers and proxies that outlived both daemons; pods lost /proc with lxcfs."""
    names = instance_names()
    pids = [
        pid for pid in all_pids() if is_alive(pid) and (is_servant(pid) or in_instance(pid, names))
    ]
    if pids:
        end(pids, signal.SIGKILL, STOP_TIMEOUT)


def is_populated(top: Path) -> bool:
    for directory, _, _ in os.walk(top):
        with contextlib.suppress(OSError):
            if Path(directory, "cgroup.procs").read_text():
                return True
    return False


def remove_stale_cgroups() -> None:
    """Cgroups of dead pods; left there, liblxc would call the next one lxc.payload.NAME-1.

    A pod's own empty cgroups stay while it runs: only trees without any process go. Beside another
    engine, whose pods may be starting, only those of pods that this one has.
    """
    names = None if is_alone() else instance_names()
    for top in [*CGROUPS.glob("lxc.*"), *CGROUPS.glob("*/lxc.*")]:
        is_ours = names is None or is_cgroup_of(top.name, names)
        if not is_ours or not top.is_dir() or is_populated(top):
            continue
        remove_cgroup(top)


def remove_cgroup(top: Path) -> None:
    """Remove a cgroup with all below it, but for what has processes."""
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def unescape_mount(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def mounts(pid: int | str = "self") -> list[tuple[str, str]]:
    """(mount point, file system) in the order they were mounted."""
    paths = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        paths.append((unescape_mount(left.split()[4]), right.split()[0]))
    return paths


def has_cgroups(mounted: Sequence[tuple[str, str]]) -> bool:
    return any(kind in ("cgroup", "cgroup2") for _, kind in mounted)


def mount_cgroups() -> None:
    """No pod starts without; where systemd is not PID 1, Debian itself mounts none."""
    if not has_cgroups(mounts()):
        run(["mount", "-t", "cgroup2", "cgroup2", str(CGROUPS)])


def is_dead_mount(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError:
        return True
    return False


def unmount_stale() -> None:
    """Mounts of the engine's and a dead lxcfs, in the namespace the lab was called from."""
    for point, _ in reversed(mounts()):
        dead_lxcfs = point == str(LXCFS_DIR) and is_dead_mount(LXCFS_DIR)
        if dead_lxcfs or point.startswith(f"{ENGINE.directory}/"):
            run(["umount", "--lazy", point])


def remove_networks() -> None:
    """The bridges and firewall rules of an engine that could not remove them itself."""
    with contextlib.suppress(OSError):
        for name in os.listdir(ENGINE.directory / "networks"):
            if Path("/sys/class/net", name, "bridge").exists():
                run(["ip", "link", "delete", name])
    with contextlib.suppress(LabError):
        run(["nft", "delete", "table", "inet", ENGINE.key])


# --- up ---------------------------------------------------------------------------------------


def check_binaries() -> None:
    package_of = ENGINE.packages | PACKAGE_OF
    missing = [name for name in package_of if shutil.which(name, path=daemon_path()) is None]
    if missing:
        packages = " ".join(dict.fromkeys(package_of[name] for name in missing))
        raise LabError(
            f"Missing {', '.join(missing)}: run "
            f"apt-get install --yes --no-install-recommends {packages}"
        )


def check_data_dir() -> None:
    if (ENGINE.directory / "database").exists() and not ENGINE.marker.exists():
        raise LabError(
            f"{ENGINE.directory} holds the data of an {ENGINE.title} that is not the lab's: start "
            "that one and the lab will use it, or remove the data."
        )


def inside(pid: int) -> list[str]:
    """The prefix that runs a command in the mount namespace of a process."""
    return ["nsenter", f"--target={pid}", "--mount", "--"]


def daemon_path() -> str:
    return f"{ENGINE.libexec}:{SYSTEM_PATH}"


def daemon_program() -> str | None:
    """Where the engine's program is; None where it is not installed."""
    return shutil.which(ENGINE.daemon, path=daemon_path())


def daemon_environment() -> dict[str, str]:
    # With this variable set, it keeps its logs and its cache there too: one directory to wipe.
    own = {ENGINE.variable: str(ENGINE.directory)}
    return {"PATH": daemon_path(), "HOME": "/root", "LANG": "C.UTF-8", **own}


def log_tail(name: str) -> str:
    for suffix in ("log", "out"):
        with contextlib.suppress(OSError):
            lines = (ENGINE.lab_dir / f"{name}.{suffix}").read_text(errors="replace").splitlines()
            if lines:
                return f"its log ends: {' | '.join(lines[-3:])}"
    return "its log is empty"


def start_lxcfs(holder: int | None) -> int:
    """Start lxcfs in `holder`'s mount namespace, or in a new one that it then holds."""
    if holder is None:
        prefix = ["unshare", "--mount", "--propagation=slave", "--"]
    else:
        prefix = inside(holder)
        if (str(LXCFS_DIR), "fuse.lxcfs") in mounts(holder):
            run([*prefix, "umount", "--lazy", str(LXCFS_DIR)])
    LXCFS_DIR.mkdir(exist_ok=True)
    argv = [*prefix, "lxcfs", "-f", "-p", str(ENGINE.lab_dir / "lxcfs.lock"), str(LXCFS_DIR)]
    pid = spawn("lxcfs", argv, {"PATH": SYSTEM_PATH})

    def settled() -> bool:
        mounted = executable(pid) == "lxcfs" and (str(LXCFS_DIR), "fuse.lxcfs") in mounts(pid)
        return mounted or not is_alive(pid)

    if not wait_for(settled, START_TIMEOUT) or not is_alive(pid):
        raise LabError(f"lxcfs did not start: {log_tail('lxcfs')}.")
    return pid


def simulated(holder: int) -> set[str]:
    """The PCI addresses of the cards that the processes of a mount namespace see."""
    if (str(PCI_DEVICES), "tmpfs") not in mounts(holder):
        return set()
    # What is real is a link there.
    seen = os.scandir(f"/proc/{holder}/root{PCI_DEVICES}")
    return {entry.name for entry in seen if not entry.is_symlink()}


def simulate_cards(holder: int, cards: Sequence[Card]) -> None:
    """Add cards to /sys/bus/pci/devices, for the processes of one mount namespace."""
    fresh = ENGINE.lab_dir / "sysfs"
    Path(f"/proc/{holder}/root{fresh}").mkdir(parents=True, exist_ok=True)
    # Before the tmpfs: the kernel lets a user namespace mount sysfs only where the mount
    # namespace has one that nothing covers ("mount too revealing").
    run([*inside(holder), "mount", "-t", "sysfs", "-o", "nosuid,nodev,noexec", "sysfs", str(fresh)])
    real = {name: os.readlink(PCI_DEVICES / name) for name in os.listdir(PCI_DEVICES)}
    run([*inside(holder), "mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(PCI_DEVICES)])
    seen = Path(f"/proc/{holder}/root{PCI_DEVICES}")
    for name, target in real.items():
        (seen / name).symlink_to(target)
    for card in cards:
        directory = seen / card.pci
        directory.mkdir()
        for name, text in pci_files(card).items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)
        # LXD follows the link and takes the last word; sysfs has no room for /sys/bus/…/nvidia.
        (directory / "nvidia").mkdir()
        (directory / "driver").symlink_to("nvidia")


def unsimulate_cards(holder: int) -> None:
    run([*inside(holder), "umount", "--lazy", str(PCI_DEVICES)])
    run([*inside(holder), "umount", "--lazy", str(ENGINE.lab_dir / "sysfs")])


def leave_out_nss_systemd(holder: int) -> None:
    """Take systemd out of nsswitch.conf, for the processes of one mount namespace.

    While it starts an instance, LXD closes a descriptor twice (canonical/lxd#15955), which may
    meanwhile be another thread's. nss-systemd, which LXD asks for the group of each file that it
    packs, aborts the whole process then. On a server systemd starts LXD again; here nobody does.
    """
    if str(NSSWITCH) in dict(mounts(holder)) or not NSSWITCH.exists():
        return
    ours = ENGINE.lab_dir / "nsswitch.conf"
    write_atomically(ours, re.sub(r"\bsystemd\b", "", NSSWITCH.read_text(encoding="utf-8")))
    ours.chmod(0o644)
    run([*inside(holder), "mount", "--bind", str(ours), str(NSSWITCH)])


def show_programs(holder: int) -> None:
    """Let the lab's programs be found, by the processes of one mount namespace.

    By whatever PATH: LXC's hooks do not have the one of Incus.
    """
    ENGINE.bin_dir.mkdir(mode=0o755, exist_ok=True)
    if str(LOCAL_PROGRAMS) not in dict(mounts(holder)):
        run([*inside(holder), "mount", "--bind", str(ENGINE.bin_dir), str(LOCAL_PROGRAMS)])


def make_device_nodes(cards: Sequence[Card]) -> list[str]:
    """Make the nodes that are absent; returns those."""
    made = []
    for path, number in device_nodes(cards).items():
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.mknod(path, 0o666 | stat.S_IFCHR, number)
            os.chmod(path, 0o666)
            made.append(path)
    return made


def is_card_node(path: str) -> bool:
    return path.startswith(("/dev/nvidia", "/dev/dri/card"))


def remove_device_nodes(made: Sequence[str]) -> None:
    for path in made:
        if is_card_node(path):
            Path(path).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.rmdir("/dev/dri")


def write_stand_in(cards: Sequence[Card]) -> None:
    """The stand-in reads the cards of the lab in whose directory it lies; without any it goes."""
    # A copy: LXC's hook runs it as an unprivileged user, who may not see the source tree.
    target = ENGINE.bin_dir / STAND_IN.name
    if not cards:
        target.unlink(missing_ok=True)
        return
    write_atomically(target, STAND_IN.read_text(encoding="utf-8"))
    target.chmod(0o755)
    write_atomically(ENGINE.cards_file, json.dumps(cards_description(cards), indent=2) + "\n")


def start_daemon(holder: int) -> None:
    name = ENGINE.daemon
    program = daemon_program() or name
    log = ENGINE.lab_dir / f"{name}.log"
    argv = [*inside(holder), program, "--group", ENGINE.group, f"--logfile={log}"]
    environment = daemon_environment()
    pid = spawn(name, argv, environment)
    waiting = subprocess.Popen(
        [program, "waitready", f"--timeout={int(START_TIMEOUT)}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        wait_for(lambda: waiting.poll() is not None or not is_alive(pid), START_TIMEOUT + 5)
    finally:
        waiting.kill()
        waiting.wait()
    if waiting.returncode != 0 or not answers(ENGINE.socket):
        stop_daemon(name)
        raise LabError(f"{ENGINE.title} did not become ready: {log_tail(name)}.")


def begin_own(cards: Sequence[Card]) -> State:
    """Claim what will be made before making it, so that `down` knows after a crash too."""
    check_binaries()
    check_data_dir()
    ENGINE.lab_dir.mkdir(mode=0o755, exist_ok=True)
    ENGINE.directory.mkdir(mode=0o711, exist_ok=True)
    ENGINE.marker.touch()
    old = read_state()
    known = set(old.made if old is not None and old.ours else ())
    absent = {path for path in device_nodes(cards) if cards and not os.path.lexists(path)}
    if not os.path.exists(LXCFS_RUN):
        absent.add(LXCFS_RUN)
    if not has_cgroups(mounts()):
        absent.add(str(CGROUPS))
    made = known | absent | {str(ENGINE.lab_dir)}
    keep = old is not None and old.ours and old.https_address_set
    state = State(str(ENGINE.socket), True, len(cards), tuple(sorted(made)), keep)
    write_state(state)
    return state


def prepare_namespace() -> int:
    """The pid of the lab's lxcfs, started anew after clearing a killed lab's remains if need be."""
    lxcfs, engine = daemon_pid("lxcfs"), daemon_pid(ENGINE.daemon)
    if lxcfs is None and engine is None:
        kill_leftovers()
        unmount_stale()
    return start_lxcfs(engine) if lxcfs is None else lxcfs


def up_own(cards: Sequence[Card]) -> State:
    state = begin_own(cards)
    mount_cgroups()
    holder = prepare_namespace()
    leave_out_nss_systemd(holder)
    show_programs(holder)
    stop_daemon(ENGINE.daemon)
    remove_stale_cgroups()
    wanted = device_nodes(cards) if cards else {}
    unwanted = [path for path in state.made if is_card_node(path) and path not in wanted]
    remove_device_nodes(left_to_remove(unwanted))
    write_stand_in(cards)
    if cards:
        make_device_nodes(cards)
    if simulated(holder) != {card.pci for card in cards}:
        if simulated(holder):
            unsimulate_cards(holder)
        if cards:
            simulate_cards(holder, cards)
    start_daemon(holder)
    api = Api(ENGINE.socket)
    # Where tests make images, gzip would take most of the time.
    config = {"images.compression_algorithm": "zstd"}
    # Asked first: a change takes a cluster long while one of its members is away.
    if cards and not config.items() <= api.get("/1.0")["config"].items():
        api.change("PATCH", "/1.0", {"config": config})
    return state


def is_up_own(gpus: int) -> bool:
    """Whether the lab's engine runs as wanted, with its lxcfs; cheap, for every test run asks."""
    state = read_state()
    pid = daemon_pid(ENGINE.daemon)
    return (
        state is not None
        and state.ours
        and state.gpus == gpus
        and pid is not None
        and daemon_pid("lxcfs") is not None
        and listener_pid(ENGINE.socket) == pid
        and answers(ENGINE.socket)
    )


def find_foreign() -> Path | None:
    """The socket of an engine that answers and that the lab did not start."""
    own = daemon_pid(ENGINE.daemon)
    for path in standard_sockets():
        pid = listener_pid(path)
        if pid is not None and pid != own and answers(path):
            return path
    return None


def systemd_units() -> list[str]:
    """The units of an installed engine, where systemd is PID 1 and may start them."""
    if not Path("/run/systemd/system").is_dir():
        return []
    for file, units in ENGINE.units.items():
        mask = Path("/etc/systemd/system", os.path.basename(file))
        if os.path.exists(file) and mask.resolve() != Path("/dev/null"):
            return [*units]
    return []


def use_foreign(path: Path) -> State:
    old = read_state()
    keep = old is not None and old.socket == str(path) and old.https_address_set
    state = State(str(path), False, 0, (str(ENGINE.lab_dir),), keep)
    if state != old:
        write_state(state)
    return state


def up(cards: Sequence[Card]) -> State:
    if is_up_own(len(cards)):
        state = read_state()
        assert state is not None
        return state
    foreign = find_foreign()
    if foreign is not None:
        return use_foreign(foreign)
    units = systemd_units()
    if not units:
        return up_own(cards)
    run(["systemctl", "start", *units], START_TIMEOUT)
    foreign = find_foreign()
    if foreign is None:
        begun = " and ".join(units)
        raise LabError(f"systemctl started {begun}, but {ENGINE.title} does not answer.")
    return use_foreign(foreign)


# --- down -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Wipe:
    """Removes objects from an engine, within a time; what fails is told and the rest goes on."""

    api: Api
    deadline: float

    def attempt(self, method: str, url: str, body: Json | None = None) -> None:
        if time.monotonic() > self.deadline:
            raise LabError(f"{ENGINE.title} could not be cleared in {WIPE_TIMEOUT:.0f} s.")
        try:
            self.api.change(method, url, body)
        except NotFoundError:
            pass
        except LabError as error:
            print(f"lab: {error}", file=sys.stderr)

    def instance(self, project: str, name: str) -> None:
        url = f"/1.0/instances/{quote(name)}"
        where = f"?project={quote(project)}"
        # Stopping fails when it does not run, or when the engine only takes it for running.
        with contextlib.suppress(LabError):
            stop = {"action": "stop", "force": True, "timeout": 10}
            self.api.change("PUT", f"{url}/state{where}", stop)
        self.attempt("DELETE", url + where)

    def instances(self, project: str) -> None:
        rows = self.api.list(f"/1.0/instances?recursion=1&project={quote(project)}")
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(functools.partial(self.instance, project), [i["name"] for i in rows]))

    def images(self, project: str) -> None:
        where = f"?project={quote(project)}"
        for image in self.api.list(f"/1.0/images{where}&recursion=1"):
            self.attempt("DELETE", f"/1.0/images/{image['fingerprint']}{where}")

    def volumes(self, project: str) -> None:
        where = f"?project={quote(project)}"
        for pool in self.api.list("/1.0/storage-pools?recursion=1"):
            base = f"/1.0/storage-pools/{quote(pool['name'])}/volumes/custom"
            for volume in self.api.list(f"{base}{where}&recursion=1"):
                if volume.get("project", project) == project:
                    self.attempt("DELETE", f"{base}/{quote(volume['name'])}{where}")

    def profiles(self, project: str) -> None:
        where = f"?project={quote(project)}"
        for profile in self.api.list(f"/1.0/profiles{where}&recursion=1"):
            url = f"/1.0/profiles/{quote(profile['name'])}{where}"
            if profile["name"] == "default":
                self.attempt("PUT", url, {"config": {}, "devices": {}, "description": ""})
            else:
                self.attempt("DELETE", url)

    def project(self, project: Json) -> None:
        """What is in a project and, but for `default`, the project; never what it only sees."""
        name, config = project["name"], project["config"]

        def owns(feature: str) -> bool:
            return name == "default" or bool(config.get(f"features.{feature}") == "true")

        self.instances(name)
        if owns("images"):
            self.images(name)
        if owns("storage.volumes"):
            self.volumes(name)
        if owns("profiles"):
            self.profiles(name)
        if name != "default":
            self.attempt("DELETE", f"/1.0/projects/{quote(name)}")

    def projects(self, prefix: str) -> None:
        rows = self.api.list("/1.0/projects?recursion=1")
        for project in sorted(rows, key=lambda item: item["name"] == "default"):
            if project["name"].startswith(prefix):
                self.project(project)

    def certificates(self, prefix: str) -> None:
        for certificate in self.api.list("/1.0/certificates?recursion=1"):
            if certificate["name"].startswith(prefix):
                self.attempt("DELETE", f"/1.0/certificates/{certificate['fingerprint']}")

    def aliased_images(self, prefix: str) -> None:
        """Aliases with a prefix, and the images that no other alias names."""
        for image in self.api.list("/1.0/images?recursion=1"):
            aliases = [alias["name"] for alias in image.get("aliases") or []]
            ours = [alias for alias in aliases if alias.startswith(prefix)]
            for alias in ours:
                self.attempt("DELETE", f"/1.0/images/aliases/{quote(alias, safe='')}")
            if ours and len(ours) == len(aliases):
                self.attempt("DELETE", f"/1.0/images/{image['fingerprint']}")

    def networks_and_pools(self) -> None:
        for network in self.api.list("/1.0/networks?recursion=1"):
            if network["managed"]:
                self.attempt("DELETE", f"/1.0/networks/{quote(network['name'])}")
        for pool in self.api.list("/1.0/storage-pools?recursion=1"):
            self.attempt("DELETE", f"/1.0/storage-pools/{quote(pool['name'])}")


def empty_directory(directory: Path) -> None:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def remove_lab_files() -> None:
    if ENGINE.lab_dir.exists():
        shutil.rmtree(ENGINE.lab_dir)


def remove_installation(root: Path = Path("/")) -> None:
    """What `make run` has installed; data, settings and what somebody else has written stay."""
    programs = root / "usr/local/lib/podyd"
    for link in (root / "usr/local/bin").glob("pod*"):
        if link.is_symlink() and link.readlink().is_relative_to("/usr/local/lib/podyd"):
            link.unlink()
    if programs.exists():
        shutil.rmtree(programs)
    service = root / "etc/pam.d/podyd"
    is_packages = (root / "var/lib/dpkg/info/podyd.list").exists()
    if is_packages or not service.exists():
        return
    if service.read_bytes() == (ROOT / "podyd/data/pam.d-podyd").read_bytes():
        service.unlink()
    else:
        print(f"lab: {service} stays: it is not as podyd wrote it", file=sys.stderr)


def wipe_own() -> None:
    wipe = Wipe(Api(ENGINE.socket), time.monotonic() + WIPE_TIMEOUT)
    wipe.projects("")
    wipe.networks_and_pools()
    wipe.certificates("")


def down_own(made: Sequence[str]) -> None:
    if daemon_pid(ENGINE.daemon) is not None:
        try:
            wipe_own()
        except LabError as error:
            # It need not help: what follows removes processes, links and data without it.
            print(f"lab: {error}", file=sys.stderr)
    stop_daemon(ENGINE.daemon)
    kill_leftovers()
    stop_daemon("lxcfs")
    unmount_stale()
    remove_networks()
    remove_stale_cgroups()
    made = left_to_remove(made)
    remove_device_nodes(made)
    if str(CGROUPS) in made:
        # Somebody else may use it by now.
        with contextlib.suppress(LabError):
            run(["umount", str(CGROUPS)])
    if LXCFS_RUN in made:
        shutil.rmtree(LXCFS_RUN, ignore_errors=True)
    if ENGINE.marker.exists():
        empty_directory(ENGINE.directory)
    if is_alone():
        remove_installation()
    remove_lab_files()


def down_foreign(state: State) -> None:
    if not answers(Path(state.socket)):
        where = f"{ENGINE.title} on {state.socket}"
        raise LabError(f"{where} does not answer: start it for the lab to tidy it.")
    wipe = Wipe(Api(Path(state.socket)), time.monotonic() + WIPE_TIMEOUT)
    wipe.projects(TEST_PREFIX)
    wipe.certificates(TEST_PREFIX)
    wipe.aliased_images(IMAGE_PREFIX)
    if state.https_address_set:
        wipe.attempt("PATCH", "/1.0", {"config": {"core.https_address": ""}})
    remove_lab_files()


def down() -> None:
    state = read_state()
    if state is not None and not state.ours:
        down_foreign(state)
    elif state is not None or ENGINE.marker.exists():
        down_own(state.made if state is not None else ())
    else:
        remove_lab_files()


# --- the command ------------------------------------------------------------------------------


def describe() -> Json:
    state = read_state()
    if state is None:
        return {"up": False}
    path = Path(state.socket)
    running = listener_pid(path) is not None and answers(path)
    daemons = {"pid": daemon_pid(ENGINE.daemon), "lxcfs_pid": daemon_pid("lxcfs")}
    return {"up": running, **dataclasses.asdict(state), **daemons}


def describe_in_words(status: Json) -> str:
    if not status["up"]:
        return "down"
    title = ENGINE.title
    whose = f"the lab's own {title}" if status["ours"] else f"an {title} that is not the lab's"
    return f"up: {whose} on {status['socket']}, {status['gpus'] or 'no'} simulated GPUs"


def show_status(as_json: bool) -> int:
    status = describe()
    print(json.dumps(status) if as_json else describe_in_words(status))
    return 0 if status["up"] else 1


@contextlib.contextmanager
def one_at_a_time(directory: Path) -> Iterator[None]:
    """A lock on the directory the labs live in: it leaves no file behind."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A real engine with simulated GPUs for the tests.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("up", help="start the engine, or find the one that runs")
    most = len(CARDS)
    verb.add_argument(
        "--gpus",
        type=int,
        choices=range(most + 1),
        default=len(DEFAULT_CARDS),
        metavar="N",
        help=f"simulated cards, 0 to {most}",
    )
    verb.add_argument("--cards", type=Path, metavar="FILE", help="other simulated cards than these")
    verbs.add_parser("down", help="take away everything the lab made")
    verb = verbs.add_parser("status", help="say what runs")
    verb.add_argument("--json", action="store_true", help="as JSON")
    for verb in verbs.choices.values():
        verb.add_argument("--engine", choices=ENGINES, default=ENGINE.key)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    use(arguments.engine)
    try:
        if os.geteuid() != 0:
            raise LabError("The lab needs root.")
        if arguments.verb == "status":
            return show_status(arguments.json)
        with one_at_a_time(ENGINE.lab_dir.parent):
            if arguments.verb == "up":
                up(read_cards(arguments.cards) if arguments.cards else CARDS[: arguments.gpus])
            else:
                down()
    except (LabError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    if arguments.verb == "up":
        print(describe_in_words(describe()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
