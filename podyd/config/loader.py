"""The loader of podyd.yaml, which checks a file against schema.py, and the list of its keys.

The error for an unknown key or a wrong type is one sentence with file, key and expected value.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from podyd.base.errors import ConfigError
from podyd.base.quantities import UNITS, parse_size
from podyd.config.schema import Config
from podyd.config.values import parse_networks, parse_port_range

_WORDS: dict[Any, str] = {str: "text", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """A key as the manual shows it; `path` is for example auth.admin_groups.

    `value` is shown in examples: the default, if there is one. It is "" for a section.
    """

    path: str
    help: str
    expected: str = ""
    value: str | None = None
    has_default: bool = False


def keys(kind: type = Config, below: str = "") -> Iterator[Key]:
    """All keys of the file in their order, each section before its keys."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        path, check = _join(below, item.name), item.metadata.get("check")
        help_text = item.metadata.get("help", "")
        inner = next(filter(dataclasses.is_dataclass, _alternatives(hints[item.name])), None)
        if isinstance(inner, type):
            yield Key(path, help_text)
            yield from keys(inner, path)
            continue
        expected = _expected(hints[item.name], check)
        if _required(item):
            yield Key(path, help_text, expected, item.metadata["example"])
            continue
        factory = item.default_factory
        value = item.default if factory is dataclasses.MISSING else factory()
        yield Key(path, help_text, expected, _written(value, check), has_default=True)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _expected(hint: Any, check: Callable[[Any], Any] | None) -> str:
    """The expected value, for an error."""
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
    """A value as YAML."""
    if check is parse_port_range:
        return "{}-{}".format(*value)
    if check is parse_size and value > 0:
        units = (unit for unit in reversed(UNITS) if value % UNITS[unit] == 0)
        unit = next(units)
        return f"{value // UNITS[unit]}{unit}"
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
    """Read podyd.yaml; a missing file is the same as an empty one.

    Raises ConfigError, with one sentence, if it is not valid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    return parse(text, source=str(path))


def parse(text: str, *, source: str = "podyd.yaml") -> Config:
    """Check the text of a podyd.yaml; `source` is its name in errors. Raises ConfigError."""
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
    if data is False and type(None) in _alternatives(hint):
        return None  # A section that can be turned off.
    is_on = data is True and type(None) in _alternatives(hint)
    hint = _alternatives(hint)[0]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _section(hint, {} if is_on else data, where)
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
