"""podyd.yaml: its keys and their defaults; loader.py reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from podyd.base.quantities import UNLIMITED, parse_count, parse_size
from podyd.config.values import (
    Mount,
    Network,
    above_0,
    one_of,
    parse_days,
    parse_duration,
    parse_endpoint,
    parse_grace,
    parse_hours,
    parse_idle_hours,
    parse_interval,
    parse_listen,
    parse_mounts,
    parse_networks,
    parse_output_size,
    parse_pam_service,
    parse_port_range,
    parse_ports,
    parse_positive,
)

DEFAULT_PATH = Path("/etc/podyd/podyd.yaml")


def _key(
    default: Any, check: Callable[[Any], Any] | None = None, help: str = "", example: str = ""
) -> Any:
    """A key of the file with its default; `check` converts the value in the file.

    `help` is for the manual, with the unit; a required key has an `example` instead of a default.
    """
    metadata = {"check": check, "help": help, "example": example}
    if isinstance(default, list):
        return field(default_factory=lambda: tuple(default), metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TlsConfig:
    cert: str = _key(
        dataclasses.MISSING,
        help="The certificate and the intermediate ones, in PEM. podyd checks this file and"
        " the key every 5 s, and uses a new pair from the next connection on, without reload or"
        " restart.",
        example="/etc/podyd/tls/fullchain.pem",
    )
    key: str = _key(
        dataclasses.MISSING,
        help="Its private key, in PEM; the group podyd must be able to read it.",
        example="/etc/podyd/tls/privkey.pem",
    )


@dataclass(frozen=True)
class EngineConfig:
    endpoint: str = _key(
        "auto",
        parse_endpoint,
        help="The engine's address; auto is what 'podyd setup' has stored.",
    )
    project: str = _key("podyd", help="The engine's project with all pods, restricted by podyd.")


@dataclass(frozen=True)
class AuthConfig:
    """Who may log in, and how many failures are too many in `failure_window` seconds."""

    pam_service: str = _key(
        "podyd",
        parse_pam_service,
        help="The PAM service, a file in /etc/pam.d, that checks logins.",
    )
    socket: str = _key("/run/podyd/auth.sock", help="The Unix socket of 'podyd auth'.")
    member_groups: tuple[str, ...] = _key(
        [],
        help="Groups whose members may log in; if empty, every account with a uid of 1000 or more.",
    )
    admin_groups: tuple[str, ...] = _key(
        ["podyd-admin", "sudo"], help="Groups whose members see and manage everybody's pods."
    )
    failures_per_user: int = _key(
        6,
        parse_positive,
        help="How many wrong passwords of one user in failure_window are allowed before attempts"
        " are delayed or refused (429). A third of them is reserved for addresses from which the"
        " user has not failed yet; addresses from which they have logged in before have as many"
        " more.",
    )
    failures_per_address: int = _key(
        60,
        parse_positive,
        help="Wrong passwords of all users in failure_window from one address or, on this host,"
        " from one account. A /64 of IPv6 is one address.",
    )
    failure_window: float = _key(
        60.0, parse_duration, help="For how many seconds a wrong password counts."
    )
    token_days_max: int = _key(
        365,
        parse_days,
        help="The longest life of a token, in days; a token replaces the password in programs.",
    )


@dataclass(frozen=True)
class PodsConfig:
    """Profiles in the order in which the engine applies them; the most specific list counts
    alone."""

    profiles: tuple[str, ...] = _key(
        ["podyd-base", "podyd-gpu"],
        help="The engine's profiles of a new pod, in the order in which it applies them.",
    )
    group_profiles: dict[str, tuple[str, ...]] = _key(
        {}, help="The profiles of new pods of a group's members, in place of pods.profiles."
    )
    user_profiles: dict[str, tuple[str, ...]] = _key(
        {}, help="The profiles of new pods of a user, in place of all others."
    )
    exec_timeout: float = _key(
        10.0,
        parse_duration,
        help="The timeout of a command in a pod in seconds, if the call has none.",
    )
    exec_timeout_max: float = _key(
        3600.0, parse_duration, help="The longest timeout in seconds that a call can have."
    )
    exec_output_max: int = _key(
        1024**2,
        parse_output_size,
        help="How many bytes of a command's stdout, and of its stderr, are kept at most, up to"
        " 16MiB; podyd can need 512 times as much memory.",
    )
    mounts: tuple[Mount, ...] = _key(
        [],
        parse_mounts,
        help="Directories of members on the host, and their paths in pods, such as"
        ' ["/data/$user:/workspace"]; with :ro at the end they are read-only. $user is the'
        " account's name. Run 'podyd setup' after a change; it applies to a pod when podyd"
        " next starts it.",
    )


@dataclass(frozen=True)
class LeaseConfig:
    """How long, in hours, and how many cards a member may lease exclusively; -1 is no limit. `end`
    and `grace` are for processes on cards that their pods may not have, `sharers` for those that
    compute on a card that another pod wants to lease."""

    max_hours: float = _key(168.0, parse_hours, help="The longest lease, in hours.")
    max_gpus: int = _key(UNLIMITED, parse_count, help="How many GPUs one user may lease at a time.")
    end: str = _key(
        "end",
        one_of("end", "leave"),
        help="What becomes of a pod's processes on a GPU that the pod may not have, such as after"
        " its lease: end ends them, leave only reports them.",
    )
    grace: float = _key(
        30.0,
        parse_grace,
        help="Seconds until they are killed; SIGTERM is sent a second after they are first seen.",
    )
    sharers: str = _key(
        "end",
        one_of("end", "wait"),
        help="Whether a lease ends what other pods, which share the GPU, compute on it, with the"
        " same grace, or waits for it. With 'end: leave' it waits.",
    )

    @property
    def ends_sharers(self) -> bool:
        """Whether a lease ends what other pods compute on its cards."""
        return self.end == "end" and self.sharers == "end"


@dataclass(frozen=True)
class IdleConfig:
    """The policy for a leased GPU that the pod's processes have not used for `after` seconds.

    `report` shows it; `warn` also warns the owner, by a notice and in the pod's terminals;
    `release` also ends the lease, `grace` seconds after the warning. A process that needs more CPU
    time than `rest` in a second is taken to use the card.
    """

    after: float = _key(
        1800.0, parse_duration, help="Seconds without use until the policy applies."
    )
    grace: float = _key(
        600.0, parse_duration, help="Seconds from the warning to the release of the GPU."
    )
    # Measured: an idle Jupyter kernel needs 0.0001 s (0.0009 at most), a small server some 0.003
    # for a request, and a program that waits for a kernel of a millisecond that millisecond.
    rest: float = _key(
        0.001, parse_duration, help="Seconds of CPU time that an idle process may need in a second."
    )
    policy: str = _key(
        "report",
        one_of("report", "warn", "release"),
        help="report only shows it, warn also warns the owner (a notice) and the pod's terminals,"
        " release also ends the lease.",
    )


@dataclass(frozen=True)
class MetricsConfig:
    """Who may read /metrics without a login: addresses and networks of direct connections."""

    allow: tuple[Network, ...] = _key(
        [],
        parse_networks,
        help="Addresses and networks that may read /metrics without a login. They apply only to"
        " direct requests without X-Forwarded-For; through a proxy, Prometheus needs an admin's"
        " login.",
    )


@dataclass(frozen=True)
class WebConfig:
    """The page at `/`; `web: false` turns it off."""

    status_allow: tuple[Network, ...] = _key(
        [],
        parse_networks,
        help="Addresses and networks that see the GPUs, who has them and the queue without a login,"
        " such as a display on the wall. They apply only to direct requests without"
        " X-Forwarded-For; through a proxy, a login is needed.",
    )
    idle_hours: float = _key(
        12.0,
        parse_idle_hours,
        help="After how many hours without a request of its user a login on the page ends, up to"
        " 720.",
    )


@dataclass(frozen=True)
class ImagesConfig:
    offer: tuple[str, ...] = _key(
        ["*"], help="Aliases of the engine's images that members can use, as shell patterns."
    )


@dataclass(frozen=True)
class PortsConfig:
    range: tuple[int, int] = _key(
        (20000, 21000),
        parse_port_range,
        help="The ports of the host that podyd forwards to pods, first-last. A pod keeps its ports"
        " if this is changed later.",
    )
    expose: tuple[int, ...] = _key(
        [22], parse_ports, help="The ports of a new pod to which a port of the host is forwarded."
    )
    socket: str = _key("/run/podyd-ports/ports.sock", help="The Unix socket of 'podyd ports'.")


@dataclass(frozen=True)
class Quota:
    """Limits of one user; -1 is no limit, sizes are in bytes.

    `memory_limit`, `cpu_limit`, `disk_limit`, `max_snapshots` and `max_ports` apply to each pod.
    """

    max_pods: int = _key(5, parse_count, help="How many pods a user may have.")
    gpu_count: int = _key(UNLIMITED, parse_count, help="GPUs in all pods of one user.")
    memory_limit: int = _key(UNLIMITED, above_0(parse_size), help="Memory of each pod, in bytes.")
    cpu_limit: int = _key(UNLIMITED, above_0(parse_count), help="CPUs of each pod.")
    disk_limit: int = _key(UNLIMITED, parse_size, help="The disk of each pod, in bytes.")
    disk_total: int = _key(
        UNLIMITED,
        parse_size,
        help="The sum of the disk limits of all pods of one user, in bytes. A new pod has the limit"
        " of its profiles, else an equal share (disk_total / max_pods), but at most what is left.",
    )
    max_snapshots: int = _key(10, parse_count, help="Snapshots of each pod.")
    max_ports: int = _key(10, parse_count, help="Ports of the host that are forwarded to each pod.")
    max_images: int = _key(5, parse_count, help="Images that one user has made with /pod/commit.")
    image_size: int = _key(
        UNLIMITED, parse_size, help="The size of all images of one user together, in bytes."
    )


@dataclass(frozen=True)
class QuotaPart:
    """The limits in a group's or a user's entry; None does not change a limit."""

    max_pods: int | None = _key(None, parse_count)
    gpu_count: int | None = _key(None, parse_count)
    memory_limit: int | None = _key(None, above_0(parse_size))
    cpu_limit: int | None = _key(None, above_0(parse_count))
    disk_limit: int | None = _key(None, parse_size)
    disk_total: int | None = _key(None, parse_size)
    max_snapshots: int | None = _key(None, parse_count)
    max_ports: int | None = _key(None, parse_count)
    max_images: int | None = _key(None, parse_count)
    image_size: int | None = _key(None, parse_size)


@dataclass(frozen=True)
class QuotasConfig:
    default: Quota = _key(Quota, help="The quota of every user.")
    groups: dict[str, QuotaPart] = _key(
        {},
        help="Other limits for a group's members, such as {students: {max_pods: 2, gpu_count: 1}};"
        " of several groups, the highest limit applies.",
    )
    users: dict[str, QuotaPart] = _key(
        {}, help="Other limits for a user, which override those of the groups."
    )


@dataclass(frozen=True)
class UsageConfig:
    """All pods' CPU time is read from the engine every `interval` seconds."""

    interval: float = _key(
        60.0, parse_interval, help="Seconds between two readings of the CPU time of all pods."
    )


@dataclass(frozen=True)
class Config:
    """The whole file; an empty file is valid."""

    listen: str = _key(
        "127.0.0.1:8799",
        parse_listen,
        help="The address and port to listen on; other than loopback only with tls or insecure.",
    )
    tls: TlsConfig | None = _key(None, help="HTTPS instead of HTTP.")
    proxies: tuple[Network, ...] = _key(
        [],
        parse_networks,
        help="Addresses of proxies whose X-Forwarded-For has the client's address. Every account on"
        " such a host can pretend to be the proxy; on podyd's host, its failed logins then count"
        " against that account.",
    )
    insecure: bool = _key(False, help="Allow passwords to be sent over the network unencrypted.")
    state_dir: str = _key(
        "/var/lib/podyd",
        help="The directory of podyd's database and of its certificate.",
    )
    engine: str = _key(
        "auto",
        one_of("auto", "lxd", "incus"),
        help="What makes the pods; auto is the one that 'podyd setup' chose: where LXD and Incus"
        " both run, the one with podyd's pods, else Incus.",
    )
    lxd: EngineConfig = _key(EngineConfig, help="The connection to the engine, LXD or Incus.")
    auth: AuthConfig = _key(AuthConfig, help="Who may log in.")
    pods: PodsConfig = _key(PodsConfig, help="Profiles of pods, and limits of commands in them.")
    lease: LeaseConfig = _key(LeaseConfig, help="Leases of GPUs, for one pod alone.")
    idle: IdleConfig = _key(IdleConfig, help="A leased GPU that its pod does not use.")
    metrics: MetricsConfig = _key(MetricsConfig, help="Access to /metrics, for Prometheus.")
    web: WebConfig | None = _key(
        WebConfig, help="The page for browsers at /; 'web: false' turns it off."
    )
    images: ImagesConfig = _key(ImagesConfig, help="The images that members can use.")
    ports: PortsConfig = _key(PortsConfig, help="Ports of the host that are forwarded to pods.")
    quota: QuotasConfig = _key(
        QuotasConfig,
        help="Quotas: the user's limit, else the highest of their groups, else the default.",
    )
    usage: UsageConfig = _key(UsageConfig, help="The measurement of CPU time.")

    @property
    def data_dir(self) -> Path:
        """The only directory that the service may write to."""
        return Path(self.state_dir) / "data"

    @property
    def setup_error(self) -> Path:
        """The file in which a failed `podyd setup` writes its reason for `podyd serve`."""
        return Path(self.auth.socket).with_name("setup.error")

    @property
    def findings(self) -> Path:
        """The file in which `podyd doctor --keep` writes what it finds for `podyd serve`."""
        return Path(self.auth.socket).with_name("findings.json")

    @property
    def cards_socket(self) -> Path:
        """The unix socket of `podyd cards`, beside that of `podyd auth`."""
        return Path(self.auth.socket).with_name("cards.sock")

    @property
    def packing_socket(self) -> Path:
        """The socket of 'podyd packing'."""
        return Path(self.auth.socket).with_name("packing.sock")

    @property
    def helper_environment(self) -> Path:
        """The file in which `podyd setup` writes the environment of 'podyd auth'."""
        return Path(self.auth.socket).with_name("auth.env")

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"{'https' if self.tls else 'http'}://{self.listen}"

    @property
    def address(self) -> tuple[str, int]:
        """The address and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)
