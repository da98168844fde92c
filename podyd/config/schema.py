"""podyd.yaml: what may stand in it, and its defaults.

The dataclasses below are the declaration; `load` checks a file against them, so that an unknown
key or a wrong type is refused in one sentence with file, key and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from podyd.base.errors import ConfigError

DEFAULT_PATH = Path("/etc/podyd/podyd.yaml")
UNLIMITED = -1
# A century: times beyond the year 9999 cannot be written.
MAX_DAYS = 36_525
MAX_OUTPUT_BYTES = 16 * 1024**2

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNITS: dict[str, int] = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTPE", 1)},
}


_WORDS: dict[Any, str] = {str: "text", int: "a whole number", bool: "true or false"}


def parse_size(value: Any) -> int:
    """Bytes of `64GiB`, `500MB` or a plain number; -1 is no limit. Raises ValueError."""
    match = re.fullmatch(r"(\d+) ?([A-Za-z]*)", str(value), re.ASCII)
    if isinstance(value, bool) or (match is None and value != UNLIMITED):
        raise ValueError("a size such as 64GiB, or -1 for no limit")
    if match is None:
        return UNLIMITED
    if match[2] not in _UNITS:
        raise ValueError(f"a size in one of {', '.join(filter(None, _UNITS))}")
    return int(match[1]) * _UNITS[match[2]]


def _output_size(value: Any) -> int:
    accepted = f"a size such as 1MiB, from 1kB to {MAX_OUTPUT_BYTES // 1024**2}MiB"
    try:
        size = parse_size(value)
    except ValueError:
        raise ValueError(accepted) from None
    if not 1000 <= size <= MAX_OUTPUT_BYTES:
        raise ValueError(accepted)
    return size


def parse_count(value: Any) -> int:
    """A whole number from 0 up; -1 is no limit. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < UNLIMITED:
        raise ValueError("a whole number, or -1 for no limit")
    return value


def _above_0(parse: Callable[[Any], int]) -> Callable[[Any], int]:
    """For what LXD cannot give a pod none of."""

    def check(value: Any) -> int:
        found = parse(value)
        if not found:
            raise ValueError("more than 0, or -1 for no limit")
        return found

    return check


def parse_listen(value: Any) -> str:
    """`address:port`, also `[::1]:8799`. Raises ValueError."""
    expected = "address:port, such as 127.0.0.1:8799 or [::1]:8799"
    match = re.fullmatch(r"\[?([^\[\]]+?)\]?:(\d{1,5})", str(value), re.ASCII)
    if match is None or int(match[2]) > 65535:
        raise ValueError(expected)
    try:
        ipaddress.ip_address(match[1])
    except ValueError:
        raise ValueError(expected) from None
    return str(value)


def parse_endpoint(value: Any) -> str:
    """`auto`, or LXD's `https://host:port`. Raises ValueError."""
    if value != "auto" and not re.fullmatch(r"https://[^/\s]+:\d{1,5}", str(value), re.ASCII):
        raise ValueError("auto, or an address such as https://127.0.0.1:8443")
    return str(value)


def parse_networks(value: Any) -> tuple[Network, ...]:
    """The networks of a list such as [127.0.0.1, 192.0.2.0/24]. Raises ValueError."""
    expected = "a list of addresses or networks, such as [127.0.0.1, 192.0.2.0/24]"
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(expected)
    try:
        return tuple(ipaddress.ip_network(item) for item in value)
    except ValueError:
        raise ValueError(expected) from None


def parse_port_range(value: Any) -> tuple[int, int]:
    """The first and last port of `20000-21000`. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", str(value), re.ASCII)
    if match is None or not 1024 <= int(match[1]) <= int(match[2]) <= 65535:
        raise ValueError("a range of ports from 1024 on, such as 20000-21000")
    return int(match[1]), int(match[2])


def parse_ports(value: Any) -> tuple[int, ...]:
    """The ports of a list such as [22, 8888], each one once. Raises ValueError."""
    expected = "a list of ports, each one once, such as [22, 8888]"
    if not isinstance(value, list) or len(set(map(str, value))) != len(value):
        raise ValueError(expected)
    if not all(type(port) is int and 0 < port < 65536 for port in value):
        raise ValueError(expected)
    return tuple(value)


@dataclass(frozen=True)
class Mount:
    """Each member's own directory of the host, below `prefix`, and where `pod`s have it."""

    prefix: str
    pod: str
    readonly: bool

    def __str__(self) -> str:
        return f"{self.prefix}/$user:{self.pod}{':ro' if self.readonly else ''}"


# The service does not see the first three; the rest is the kernel's.
_NOT_BELOW = ("/home", "/root", "/run/user", "/dev", "/proc", "/sys")


def parse_mounts(value: Any) -> tuple[Mount, ...]:
    """The mounts of a list such as ["/data/$user:/workspace", "/ref/$user:/ref:ro"].

    `$user` is all of the last name, so that members can change no part of the path. Raises
    ValueError.
    """
    expected = (
        'a list such as ["/data/$user:/workspace"], each with $user as the last name on the host,'
        f" no part of it below {', '.join(_NOT_BELOW)}, and ':ro' at the end if only to be read"
    )
    if not isinstance(value, list):
        raise ValueError(expected)
    found = []
    for item in value:
        match = re.fullmatch(r"((?:/[\w.-]+)+)/\$user:((?:/[\w.-]+)+)(:ro)?", str(item), re.ASCII)
        if match is None:
            raise ValueError(expected)
        for path in match[1], match[2]:
            parts = path.split("/")[1:]
            if {".", ".."} & {*parts} or f"{path}/".startswith(
                tuple(f"{at}/" for at in _NOT_BELOW)
            ):
                raise ValueError(expected)
        found.append(Mount(match[1], match[2], bool(match[3])))
    if len({mount.pod for mount in found}) < len(found):
        raise ValueError(f"{expected}; each place in a pod once")
    return tuple(found)


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number above 0")
    return value


def _days(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DAYS:
        raise ValueError(f"a whole number of days from 1 to {MAX_DAYS}")
    return value


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError("a number of seconds above 0")
    return float(value)


def _interval(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 3600:
        raise ValueError("a number of seconds from 1 to 3600")
    return float(value)


def _hours(value: Any) -> float:
    if value == UNLIMITED and not isinstance(value, bool):
        return float(UNLIMITED)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError("a number of hours above 0, or -1 for no limit")
    return float(value)


def _pam_service(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value):
        raise ValueError("the name of a file in /etc/pam.d")
    return value


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return str(value)

    return check


def _key(
    default: Any, check: Callable[[Any], Any] | None = None, help: str = "", example: str = ""
) -> Any:
    """A key of the file with its default; `check` turns what stands there into the value.

    `help` is for the manual, with the unit; a key that must be there has an `example` instead of a
    default.
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
        help="The certificate and those that link it to its authority, in PEM. podyd looks at"
        " this file and the key every 5 s, and uses a new pair from the next connection on, without"
        " reload or restart.",
        example="/etc/podyd/tls/fullchain.pem",
    )
    key: str = _key(
        dataclasses.MISSING,
        help="Its private key, in PEM; the group podyd must be able to read it.",
        example="/etc/podyd/tls/privkey.pem",
    )


@dataclass(frozen=True)
class LxdConfig:
    endpoint: str = _key(
        "auto", parse_endpoint, help="LXD's address; auto is the one that 'podyd setup' noted."
    )
    project: str = _key("podyd", help="The LXD project with all pods, restricted by podyd.")


@dataclass(frozen=True)
class AuthConfig:
    """Who may log in, and how many failures are too many in `failure_window` seconds."""

    pam_service: str = _key(
        "podyd", _pam_service, help="The file in /etc/pam.d that says how to log in."
    )
    socket: str = _key("/run/podyd/auth.sock", help="Where 'podyd auth' listens.")
    member_groups: tuple[str, ...] = _key(
        [], help="Groups whose members may log in; none: every account with a uid of 1000 or more."
    )
    admin_groups: tuple[str, ...] = _key(
        ["podyd-admin", "sudo"], help="Groups whose members see and manage everybody's pods."
    )
    failures_per_user: int = _key(
        6,
        _positive,
        help="Wrong passwords of one user in failure_window, after which a try waits for its turn"
        " or is refused (429): a third of them only where the user has not failed yet, and as many"
        " more where they have logged in before.",
    )
    failures_per_address: int = _key(
        60,
        _positive,
        help="Wrong passwords of all users in failure_window from one address or, on this host,"
        " from one account. A /64 of IPv6 is one address.",
    )
    failure_window: float = _key(60.0, _duration, help="Seconds that wrong passwords count for.")
    token_days_max: int = _key(
        365, _days, help="The most days that a token, which stands for a password, works for."
    )


@dataclass(frozen=True)
class PodsConfig:
    """Profiles in the order in which LXD applies them; the most specific list counts alone."""

    profiles: tuple[str, ...] = _key(
        ["podyd-base", "podyd-gpu"],
        help="LXD profiles of a new pod, in the order in which LXD applies them.",
    )
    group_profiles: dict[str, tuple[str, ...]] = _key(
        {}, help="Groups with the profiles that their members' pods have instead."
    )
    user_profiles: dict[str, tuple[str, ...]] = _key(
        {}, help="Users with the profiles that their pods have instead of all others."
    )
    exec_timeout: float = _key(
        10.0, _duration, help="Seconds for a command in a pod, when the call names none."
    )
    exec_timeout_max: float = _key(3600.0, _duration, help="The most seconds a call can ask for.")
    exec_output_max: int = _key(
        1024**2,
        _output_size,
        help="The most bytes kept of a command's stdout, and of its stderr, up to 16MiB; podyd can"
        " need 512 times as much memory.",
    )
    mounts: tuple[Mount, ...] = _key(
        [],
        parse_mounts,
        help="Members' own directories on the host, and where their pods have them, such as"
        ' ["/data/$user:/workspace"]; with :ro only to be read. $user is the account\'s name. Run'
        " 'podyd setup' after a change; a pod has it from its next start by podyd on.",
    )


@dataclass(frozen=True)
class LeaseConfig:
    """How long, in hours, and how many cards a member may have for themselves; -1 is no limit."""

    max_hours: float = _key(168.0, _hours, help="The most hours of one lease.")
    max_gpus: int = _key(UNLIMITED, parse_count, help="The most GPUs that one user leases at once.")


@dataclass(frozen=True)
class IdleConfig:
    """What becomes of a leased card that the pod's processes have not used for `after` seconds.

    `report` shows it; `warn` also tells the pod's terminals; `release` also ends the lease, `grace`
    seconds after that.
    """

    after: float = _key(1800.0, _duration, help="Seconds without use until the policy applies.")
    grace: float = _key(600.0, _duration, help="Seconds from there to the release of the GPU.")
    policy: str = _key(
        "report",
        _one_of("report", "warn", "release"),
        help="report shows it, warn also tells the pod's terminals, release also ends the lease.",
    )


@dataclass(frozen=True)
class MetricsConfig:
    """Who may read /metrics without a login: addresses and networks that ask podyd itself."""

    allow: tuple[Network, ...] = _key(
        [],
        parse_networks,
        help="Who reads /metrics without a login. It counts only for requests that come directly,"
        " without X-Forwarded-For; through a proxy, Prometheus needs an admin's login.",
    )


@dataclass(frozen=True)
class ImagesConfig:
    offer: tuple[str, ...] = _key(
        ["*"], help="Aliases of the LXD images that pods can be made of, as shell patterns."
    )


@dataclass(frozen=True)
class PortsConfig:
    range: tuple[int, int] = _key(
        (20000, 21000),
        parse_port_range,
        help="The host's ports that lead into pods. One that a pod has stays its own, whatever"
        " stands here later.",
    )
    expose: tuple[int, ...] = _key(
        [22], parse_ports, help="The ports of a new pod that can be reached."
    )
    socket: str = _key("/run/podyd-ports/ports.sock", help="Where 'podyd ports' listens.")


@dataclass(frozen=True)
class Quota:
    """Limits of one user; -1 is none, sizes are bytes.

    `memory_limit`, `cpu_limit`, `disk_limit`, `max_snapshots` and `max_ports` hold for each pod.
    """

    max_pods: int = _key(5, parse_count, help="Pods of one user.")
    gpu_count: int = _key(UNLIMITED, parse_count, help="GPUs in all pods of one user.")
    memory_limit: int = _key(UNLIMITED, _above_0(parse_size), help="Memory of each pod.")
    cpu_limit: int = _key(UNLIMITED, _above_0(parse_count), help="CPUs of each pod.")
    disk_limit: int = _key(UNLIMITED, parse_size, help="What the disk of each pod may have.")
    disk_total: int = _key(
        UNLIMITED,
        parse_size,
        help="What the disks of all pods of one user may have together, by their limits. A new pod"
        " has what its profiles say, else an equal share (disk_total / max_pods), and at most what"
        " is left.",
    )
    max_snapshots: int = _key(10, parse_count, help="Snapshots of each pod.")
    max_ports: int = _key(10, parse_count, help="Ports of the host that lead into each pod.")
    max_images: int = _key(5, parse_count, help="Images that one user has committed.")
    image_size: int = _key(UNLIMITED, parse_size, help="Bytes of all images of one user.")


@dataclass(frozen=True)
class QuotaPart:
    """What a group's or a user's entry changes; None leaves it as it is."""

    max_pods: int | None = _key(None, parse_count)
    gpu_count: int | None = _key(None, parse_count)
    memory_limit: int | None = _key(None, _above_0(parse_size))
    cpu_limit: int | None = _key(None, _above_0(parse_count))
    disk_limit: int | None = _key(None, parse_size)
    disk_total: int | None = _key(None, parse_size)
    max_snapshots: int | None = _key(None, parse_count)
    max_ports: int | None = _key(None, parse_count)
    max_images: int | None = _key(None, parse_count)
    image_size: int | None = _key(None, parse_size)


@dataclass(frozen=True)
class QuotasConfig:
    default: Quota = _key(Quota, help="The quota of everybody.")
    groups: dict[str, QuotaPart] = _key(
        {},
        help="What is different for a group, such as {students: {max_pods: 2, gpu_count: 1}}; who"
        " is in several has the best of each.",
    )
    users: dict[str, QuotaPart] = _key(
        {}, help="What is different for a user, whatever the groups say."
    )


@dataclass(frozen=True)
class UsageConfig:
    """LXD is asked for all pods' CPU time every `interval` seconds."""

    interval: float = _key(
        60.0, _interval, help="Seconds between two looks at the CPU time of all pods."
    )


@dataclass(frozen=True)
class Config:
    """The whole file; an empty one is valid."""

    listen: str = _key(
        "127.0.0.1:8799",
        parse_listen,
        help="Where to listen; beyond loopback only with tls, or with insecure.",
    )
    tls: TlsConfig | None = _key(None, help="HTTPS instead of HTTP.")
    proxies: tuple[Network, ...] = _key(
        [],
        parse_networks,
        help="Proxies whose X-Forwarded-For says who asks. Every account on such a host can pretend"
        " to be the proxy; on podyd's own host, failed logins count against that account then.",
    )
    insecure: bool = _key(False, help="Let passwords cross the network in the clear.")
    state_dir: str = _key(
        "/var/lib/podyd", help="The certificate for LXD, the usage history, tokens."
    )
    lxd: LxdConfig = _key(LxdConfig, help="How LXD is reached.")
    auth: AuthConfig = _key(AuthConfig, help="Who may log in.")
    pods: PodsConfig = _key(PodsConfig, help="What pods are made of, and commands in them.")
    lease: LeaseConfig = _key(LeaseConfig, help="GPUs that one pod has for itself for a time.")
    idle: IdleConfig = _key(IdleConfig, help="A leased GPU that its pod does not use.")
    metrics: MetricsConfig = _key(MetricsConfig, help="What Prometheus reads.")
    images: ImagesConfig = _key(ImagesConfig, help="What pods can be made of.")
    ports: PortsConfig = _key(PortsConfig, help="Ports of the host that lead into pods.")
    quota: QuotasConfig = _key(
        QuotasConfig, help="What a user may have; the user's own, else the best group's."
    )
    usage: UsageConfig = _key(UsageConfig, help="What is noted of the use of CPUs.")

    @property
    def data_dir(self) -> Path:
        """The one directory that the service may write to."""
        return Path(self.state_dir) / "data"

    @property
    def setup_error(self) -> Path:
        """Where a failed `podyd setup` leaves its reason for `podyd serve` to say."""
        return Path(self.auth.socket).with_name("setup.error")

    @property
    def helper_environment(self) -> Path:
        """Where `podyd setup` writes what 'podyd auth' is begun with."""
        return Path(self.auth.socket).with_name("auth.env")

    @property
    def url(self) -> str:
        """What clients call."""
        return f"{'https' if self.tls else 'http'}://{self.listen}"

    @property
    def address(self) -> tuple[str, int]:
        """Where to listen: address and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True)
class Key:
    """A key as the manual shows it; `path` is such as auth.admin_groups.

    `value` is what stands in an example: the default, unless there is none. A section has neither.
    """

    path: str
    help: str
    expected: str = ""
    value: str | None = None
    has_default: bool = False


def keys(kind: type = Config, below: str = "") -> Iterator[Key]:
    """All keys of the file in their order, each section before what stands in it."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        path, check = _join(below, item.name), item.metadata.get("check")
        told = item.metadata.get("help", "")
        inner = next(filter(dataclasses.is_dataclass, _alternatives(hints[item.name])), None)
        if isinstance(inner, type):
            yield Key(path, told)
            yield from keys(inner, path)
            continue
        expected = _expected(hints[item.name], check)
        if _required(item):
            yield Key(path, told, expected, item.metadata["example"])
            continue
        factory = item.default_factory
        value = item.default if factory is dataclasses.MISSING else factory()
        yield Key(path, told, expected, _written(value, check), has_default=True)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _expected(hint: Any, check: Callable[[Any], Any] | None) -> str:
    """What the error says that it had expected."""
    if check is not None:
        try:
            check(object())
        except ValueError as error:
            return str(error)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return "a list"
    if origin is dict and dataclasses.is_dataclass(arguments[1]):
        names = (item.name for item in dataclasses.fields(arguments[1]))
        return f"a mapping of names, each with some of {', '.join(names)}"
    if origin is dict:
        return "a mapping of names, each with a list"
    return _WORDS[hint]


def _written(value: Any, check: Callable[[Any], Any] | None) -> str:
    """A value as it stands in the file."""
    if check is parse_port_range:
        return "{}-{}".format(*value)
    if check is parse_size and value > 0:
        units = (unit for unit in reversed(_UNITS) if value % _UNITS[unit] == 0)
        unit = next(units)
        return f"{value // _UNITS[unit]}{unit}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | dict):
        plain = list(map(str, value)) if check is parse_networks else value
        plain = list(plain) if isinstance(plain, tuple) else plain
        return yaml.safe_dump(plain, default_flow_style=True, width=1000).strip()
    return str(value)


def load(path: Path) -> Config:
    """Read podyd.yaml; a file that is not there is an empty one.

    Raises ConfigError, in one sentence, for whatever cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    return parse(text, source=str(path))


def parse(text: str, *, source: str = "podyd.yaml") -> Config:
    """Check the text of a podyd.yaml; `source` names it in errors."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is malformed"
        raise ConfigError(f"{source} is not valid YAML{place}: {problem}.") from error
    try:
        config = _section(Config, {} if data is None else data, "")
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    assert isinstance(config, Config)
    _check_whole(config, source)
    return config


def _check_whole(config: Config, source: str) -> None:
    host, _ = config.address
    if not ipaddress.ip_address(host).is_loopback and not (config.tls or config.insecure):
        raise ConfigError(
            f"{source}: key 'listen' is {config.listen}, beyond loopback, where passwords would"
            " cross the network in the clear; give 'tls: {cert, key}', or say 'insecure: true'."
        )
    if config.pods.exec_timeout > config.pods.exec_timeout_max:
        raise ConfigError(
            f"{source}: key 'pods.exec_timeout' is above 'pods.exec_timeout_max'; expected at most"
            f" {config.pods.exec_timeout_max:g}."
        )


def _section(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{_named(where)} must be a mapping of keys, not {_shown(data)}.")
    known = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
            raise ValueError(f"{_named(_join(where, key))} is not known; {hint}")
    values = {
        name: _value(hints[name], known[name].metadata.get("check"), item, _join(where, name))
        for name, item in data.items()
    }
    try:
        return kind(**values)
    except TypeError:
        missing = [name for name, item in known.items() if name not in values and _required(item)]
        raise ValueError(f"{_named(where)} must also have {' and '.join(missing)}.") from None


def _required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _value(hint: Any, check: Callable[[Any], Any] | None, data: Any, where: str) -> Any:
    if check is not None:
        try:
            return check(data)
        except ValueError as error:
            raise ValueError(f"{_named(where)} is {_shown(data)}; expected {error}.") from None
    hint = _alternatives(hint)[0]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _section(hint, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{_named(where)} is {_shown(data)}; expected a list.")
        return tuple(
            _value(arguments[0], None, item, f"{where}[{index}]") for index, item in enumerate(data)
        )
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{_named(where)} is {_shown(data)}; expected a mapping of names.")
        return {
            _value(str, None, key, where): _value(arguments[1], None, item, _join(where, key))
            for key, item in data.items()
        }
    if not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool):
        raise ValueError(f"{_named(where)} is {_shown(data)}; expected {_WORDS[hint]}.")
    return data


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _named(where: str) -> str:
    return f"key {where!r}" if where else "the file"


def _shown(data: Any) -> str:
    return repr(data) if len(repr(data)) <= 60 else f"{repr(data)[:57]}..."
