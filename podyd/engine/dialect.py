"""Where engines differ: LXD and Incus, which grew from it, and speak its API.

The only place: what podyd does, it does by one of these. What a *server* can, which depends on its
version, it says itself (`api_extensions`), and podyd asks it.
Sources: Debian's packages lxd 5.0.2 and incus 6.0.4 and 7.0.2; https://linuxcontainers.org/incus/.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from podyd.base.engine_words import ENGINE
from podyd.base.errors import SetupError

# Seconds; only a queue that is full makes one wait.
CONNECT_TIMEOUT = 5


@dataclass(frozen=True)
class Place:
    """Where one engine's package keeps its data, and the unit of systemd's that runs it."""

    directory: Path
    unit: str

    @property
    def socket(self) -> Path:
        """The engine's unix socket."""
        return self.directory / "unix.socket"

    def is_used(self) -> bool:
        """Whether there is a socket; False also where this process may not look."""
        try:
            return stat.S_ISSOCK(self.socket.stat().st_mode)
        except OSError:
            return False

    def is_left_behind(self) -> bool:
        """Whether nobody listens at the socket: its engine has ended."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CONNECT_TIMEOUT)
            try:
                connection.connect(str(self.socket))
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
        return False


@dataclass(frozen=True)
class Dialect:
    """One engine's ways.

    `key` is its word in podyd.yaml, and what the server itself says that it is; `name` is for
    people.
    """

    key: str
    name: str
    # What admins type, and Debian's package of it.
    command: str
    command_package: str
    places: tuple[Place, ...]
    # The daemon, where Debian's package has it.
    program: str
    # The environment's variable with the directory of another place.
    directory_variable: str
    # Members of this group may do everything.
    group: str
    # How to have it, and how to start it.
    install: str
    start: str
    # Begins the HTTP headers of the file API.
    header: str
    # Begins the names of temporary files; see packing.py.
    temporary: str
    # What setup calls the bridge that it makes.
    bridge: str
    # Whether podyd's project has images of its own. Without, a restricted certificate reads and
    # changes the default project's; Incus lets it only read these
    # (internal/server/auth/driver_tls.go).
    has_own_images: bool
    # Whether podyd's project has networks of its own. Without, a restricted certificate changes the
    # default project's; Incus lets it read these that the project may use, and from 7.0.2 on has a
    # project's own ones only with OVN.
    has_own_networks: bool
    # Whether podyd's project has to have DNS zones of its own so that a restricted certificate
    # makes none in the default project; LXD allows a restricted project none.
    has_own_zones: bool
    # Whether a pod gets all ranges of root's in /etc/subuid that are big enough, or only the first.
    gives_all_ranges: bool
    # The most characters of an image's name, as Incus has since 6.16; None: there is no limit.
    longest_alias: int | None

    def header_of(self, key: str) -> str:
        """The name of a header of the file API, such as that of a file's mode."""
        return f"{self.header}{key}"

    def copy_image(self, project: str) -> str:
        """What an admin types to have an image of another server in podyd's project."""
        own = f" --target-project {project}" if self.has_own_images else ""
        return f"{self.command} image copy SERVER:IMAGE local: --alias NAME{own}"

    def candidates(self) -> tuple[Place, ...]:
        """Where it may run; what the environment says counts alone."""
        directory = os.environ.get(self.directory_variable)
        return (Place(Path(directory), self.places[0].unit),) if directory else self.places

    def running(self) -> Place | None:
        """Where it runs; None if it does not. That it answers is not certain."""
        return next((place for place in self.candidates() if place.is_used()), None)

    def speak(self) -> None:
        """Have all sentences of this process name this engine."""
        running = self.running() or self.places[0]
        ENGINE.say(self.name, command=self.command, service=running.unit, group=self.group)


LXD = Dialect(
    key="lxd",
    name="LXD",
    command="lxc",
    command_package="lxd-client",
    places=(
        Place(Path("/var/lib/lxd"), "lxd"),
        Place(Path("/var/snap/lxd/common/lxd"), "snap.lxd.daemon"),
    ),
    program="/usr/bin/lxd",
    directory_variable="LXD_DIR",
    group="lxd",
    install="'apt install lxd' on Debian, 'snap install lxd' on Ubuntu",
    start="'systemctl start lxd', 'snap start lxd'",
    header="X-LXD-",
    temporary="lxd_",
    bridge="lxdbr0",
    has_own_images=False,
    has_own_networks=True,
    has_own_zones=False,
    gives_all_ranges=False,
    longest_alias=None,
)
INCUS = Dialect(
    key="incus",
    name="Incus",
    command="incus",
    command_package="incus-client",
    places=(Place(Path("/var/lib/incus"), "incus"),),
    program="/usr/libexec/incus/incusd",
    directory_variable="INCUS_DIR",
    group="incus-admin",
    install="'apt install incus-base'",
    start="'systemctl start incus'",
    header="X-Incus-",
    temporary="incus_",
    bridge="incusbr0",
    has_own_images=True,
    has_own_networks=False,
    has_own_zones=True,
    gives_all_ranges=True,
    longest_alias=64,
)
DIALECTS = (LXD, INCUS)
# The file below `state_dir` in which setup keeps the word of the engine that it has chosen.
CHOICE = "engine"
# podyd's own, in a directory below `state_dir` for each engine.
CERTIFICATE = "client.crt"


AUTO = "auto"
KEYS = (AUTO, *(dialect.key for dialect in DIALECTS))


def named(key: str) -> Dialect:
    """The dialect of `engine:` in podyd.yaml. Raises KeyError."""
    return {dialect.key: dialect for dialect in DIALECTS}[key]


def running() -> list[Dialect]:
    """The engines that run on this host."""
    return [dialect for dialect in DIALECTS if dialect.running() is not None]


def listening() -> list[Dialect]:
    """Those that run and have left no socket of a dead one alone."""
    places = {dialect: dialect.running() for dialect in DIALECTS}
    return [dialect for dialect, place in places.items() if place and not place.is_left_behind()]


def place_of(dialect: Dialect) -> Place:
    """Where an engine runs. Raises SetupError if it does not."""
    if (place := dialect.running()) is not None:
        return place
    raise SetupError(
        f"{dialect.name} is not running here.",
        advice=f"Install it ({dialect.install}) or start it ({dialect.start}).",
    )


def chosen(key: str, state_dir: Path) -> Dialect:
    """The engine of `engine:` in podyd.yaml; where that is `auto`, the one that setup has chosen,
    and before setup one that runs here. Raises SetupError."""
    if key != AUTO:
        return named(key)
    return kept(state_dir) or next(iter(running()), LXD)


def kept(state_dir: Path) -> Dialect | None:
    """The engine that setup has chosen; None before, and where this process may not look.

    Raises SetupError where what it has kept says neither: another engine does not have the pods.
    """
    path = state_dir / CHOICE
    try:
        return named(path.read_bytes().decode("ascii").strip())
    except PermissionError:
        return None
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(
            f"{path} does not say which engine has the pods.",
            advice="Write 'engine: lxd' or 'engine: incus' into podyd.yaml, whichever has them, and"
            " run 'podyd setup'.",
        ) from error
    with contextlib.suppress(OSError):
        # Before podyd knew of Incus, it kept no choice.
        (state_dir / LXD.key / CERTIFICATE).stat()
        return LXD
    return None
