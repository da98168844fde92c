"""Profiles as files, in the engine's own format: what podyd ships, and what the admin puts beside
it.

After setup the engine's copy counts; these files are copied to the engine only when a profile is
missing there, or by an admin's command.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from podyd.base.engine_words import ENGINE
from podyd.base.errors import ConfigError, SetupError
from podyd.engine.gpu_devices import in_cdi, without_runtime
from podyd.engine.types import Profile

ADMIN_DIRECTORY = Path("/etc/podyd/profiles")
# A checkout, a virtual environment, the Debian package.
SHIPPED_DIRECTORIES = (
    Path(__file__).parents[2] / "profiles",
    Path(sys.prefix) / "share/podyd/profiles",
    Path("/usr/share/podyd/profiles"),
)
# What the shipped profiles call the pool and the bridge, which setup finds or makes.
POOL = "default"
BRIDGE = "lxdbr0"


def on_host(profile: Profile, pool: str, bridge: str, uuids: Mapping[str, str] | None) -> Profile:
    """The same with this host's pool and bridge; `uuids` as of `Admin.cdi_uuids`.

    Raises SetupError for a card whose UUID is needed and not known.
    """
    devices = {name: _device_on(item, pool, bridge) for name, item in profile.devices.items()}
    if uuids is None:
        return replace(profile, devices=devices)
    return replace(
        profile,
        config=without_runtime(profile.config),
        devices={name: in_cdi(device, uuids) for name, device in devices.items()},
    )


def body_of(profile: Profile) -> dict[str, Any]:
    """What the engine's API takes."""
    return {
        "description": profile.description,
        "config": dict(profile.config),
        "devices": {name: dict(device) for name, device in profile.devices.items()},
    }


def as_yaml(profile: Profile) -> str:
    """The profile as `lxc profile show` writes it."""
    body = {"name": profile.name, **body_of(profile)}
    return yaml.safe_dump(body, sort_keys=True, allow_unicode=True, default_flow_style=False)


def _device_on(device: Mapping[str, str], pool: str, bridge: str) -> dict[str, str]:
    wanted = {"pool": (POOL, pool), "parent": (BRIDGE, bridge)}
    return {
        key: wanted[key][1] if key in wanted and value == wanted[key][0] else value
        for key, value in device.items()
    }


def shipped() -> dict[str, Profile]:
    """The profiles that podyd brings. Raises SetupError if they are nowhere."""
    for directory in SHIPPED_DIRECTORIES:
        if profiles := read(directory):
            return profiles
    raise SetupError(
        "podyd's own profiles are in none of"
        f" {', '.join(str(directory) for directory in SHIPPED_DIRECTORIES)}.",
        advice="Install podyd again.",
    )


def read(directory: Path) -> dict[str, Profile]:
    """The profiles of a directory by name, which is the file's. Raises ConfigError."""
    return {path.stem: _read_file(path) for path in sorted(directory.glob("*.yaml"))}


def _read_file(path: Path) -> Profile:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a profile: {error}.") from error
    expected = (
        f"{path} is no {ENGINE} profile; expected what '{ENGINE.command} profile show' prints"
    )
    if not isinstance(data, dict):
        raise ConfigError(f"{expected}.")
    unknown = set(data) - {"name", "description", "config", "devices"}
    # The engine shows these two as well; they say nothing about what a profile is.
    unknown -= {"used_by", "project"}
    if unknown:
        raise ConfigError(f"{expected}, without {', '.join(sorted(map(str, unknown)))}.")
    if data.get("name", path.stem) != path.stem:
        raise ConfigError(
            f"{path} holds a profile named {data['name']!r}.",
            advice="Name the file after it.",
        )
    config, devices = data.get("config") or {}, data.get("devices") or {}
    if not _is_flat(config) or not isinstance(devices, dict):
        raise ConfigError(f"{expected}: 'config' and 'devices' are mappings of text.")
    if not all(_is_flat(device) and "type" in device for device in devices.values()):
        raise ConfigError(f"{expected}: a device is a mapping of text with a 'type'.")
    return Profile(path.stem, str(data.get("description") or ""), config, devices)


def _is_flat(data: object) -> bool:
    return isinstance(data, dict) and all(isinstance(item, str) for item in data.values())


def difference(old: Profile | None, new: Profile, *, before: str, after: str) -> str:
    """A unified diff from `old` to `new`; empty if they are the same."""
    lines = difflib.unified_diff(
        as_yaml(old).splitlines(keepends=True) if old else [],
        as_yaml(new).splitlines(keepends=True),
        f"{new.name} ({before})",
        f"{new.name} ({after})",
    )
    return "".join(lines)
