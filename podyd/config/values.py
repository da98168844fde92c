"""Parsers of values of podyd.yaml.

Each converts a value of the file, or raises ValueError with the expected value.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podyd.base.quantities import UNLIMITED, parse_size

# A century: times beyond the year 9999 cannot be written.
MAX_DAYS = 36_525
MAX_OUTPUT_BYTES = 16 * 1024**2

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_output_size(value: Any) -> int:
    accepted = f"a size such as 1MiB, from 1kB to {MAX_OUTPUT_BYTES // 1024**2}MiB"
    try:
        size = parse_size(value)
    except ValueError:
        raise ValueError(accepted) from None
    if not 1000 <= size <= MAX_OUTPUT_BYTES:
        raise ValueError(accepted)
    return size


def above_0(parse: Callable[[Any], int]) -> Callable[[Any], int]:
    """A parser that also refuses 0, for resources of which a pod needs some."""

    def check(value: Any) -> int:
        number = parse(value)
        if not number:
            raise ValueError("more than 0, or -1 for no limit")
        return number

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
    """`auto`, or the engine's `https://host:port`. Raises ValueError."""
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
    """A member's directory on the host, below `prefix`, and its path in pods, `pod`."""

    prefix: str
    pod: str
    readonly: bool

    def __str__(self) -> str:
        return f"{self.prefix}/$user:{self.pod}{':ro' if self.readonly else ''}"


# The first three are hidden from the service; the others belong to the kernel.
_NOT_BELOW = ("/home", "/root", "/run/user", "/dev", "/proc", "/sys")


def parse_mounts(value: Any) -> tuple[Mount, ...]:
    """The mounts of a list such as ["/data/$user:/workspace", "/ref/$user:/ref:ro"].

    `$user` must be the whole last component, so that members cannot change any part of the path.
    Raises ValueError.
    """
    expected = (
        'a list such as ["/data/$user:/workspace"], each with $user as the last name on the host,'
        f" no part of it below {', '.join(_NOT_BELOW)}, and ':ro' at the end if only to be read"
    )
    if not isinstance(value, list):
        raise ValueError(expected)
    mounts = []
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
        mounts.append(Mount(match[1], match[2], bool(match[3])))
    if len({mount.pod for mount in mounts}) < len(mounts):
        raise ValueError(f"{expected}; each place in a pod once")
    return tuple(mounts)


def parse_positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number above 0")
    return value


def parse_days(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DAYS:
        raise ValueError(f"a whole number of days from 1 to {MAX_DAYS}")
    return value


def parse_duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError("a number of seconds above 0")
    return float(value)


def parse_grace(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        raise ValueError("a number of seconds from 0 to 3600")
    return float(value)


def parse_interval(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 3600:
        raise ValueError("a number of seconds from 1 to 3600")
    return float(value)


def parse_hours(value: Any) -> float:
    if value == UNLIMITED and not isinstance(value, bool):
        return float(UNLIMITED)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError("a number of hours above 0, or -1 for no limit")
    return float(value)


def parse_idle_hours(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 720:
        raise ValueError("a number of hours above 0, up to 720")
    return float(value)


def parse_pam_service(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value):
        raise ValueError("the name of a file in /etc/pam.d")
    return value


def one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return str(value)

    return check
