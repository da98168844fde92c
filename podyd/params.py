"""Parameters: one declaration gives the parser, the words in `/help` and the OpenAPI schema.

A request is a frozen dataclass whose fields are made with `param(kind, help)`:

    @dataclass(frozen=True)
    class Exec:
        ins: str = param(PodName(), "the pod's name")
        timeout: float | None = param(Seconds(maximum=3600), "seconds", default=None)
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar

from podyd.errors import BadRequest

R = TypeVar("R")


class Kind:
    """How a parameter is written."""

    def parse(self, text: str) -> Any:
        """The parameter's value; raises ValueError with what is accepted."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """The parameter's JSON schema, as OpenAPI wants it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Text(Kind):
    """Any Unicode text without NUL, of `minimum` to `maximum` bytes of UTF-8."""

    maximum: int
    minimum: int = 1

    def parse(self, text: str) -> str:
        if not self.minimum <= len(text.encode()) <= self.maximum:
            raise ValueError(f"must have {self.minimum} to {self.maximum} bytes of UTF-8")
        if "\0" in text:
            raise ValueError("must not contain a NUL character")
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": self.minimum, "maxLength": self.maximum}


@dataclass(frozen=True)
class Pattern(Kind):
    """Text that matches `pattern` as a whole; `accepted` says so in words."""

    pattern: str
    accepted: str
    maximum: int

    def parse(self, text: str) -> str:
        if len(text) > self.maximum or not re.fullmatch(self.pattern, text):
            raise ValueError(f"must be {self.accepted}")
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{self.pattern}$", "maxLength": self.maximum}


def PodName() -> Pattern:  # noqa: N802 - used like a class, beside the other kinds
    """A pod's name as its owner says it; LXD's own name is made from it."""
    return Pattern(
        r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?",
        "1 to 63 letters, digits, '-' or '_', beginning and ending with a letter or digit",
        # As long as LXD's own names: an admin's instance may have no other.
        maximum=63,
    )


@dataclass(frozen=True)
class Password(Kind):
    """A new password: without control characters, at most 511 bytes of UTF-8.

    libxcrypt takes no more (CRYPT_MAX_PASSPHRASE_SIZE is 512, the final NUL included).
    """

    def parse(self, text: str) -> str:
        if not text or len(text.encode()) > 511:
            raise ValueError("must have 1 to 511 bytes")
        if any(ord(char) < 32 or ord(char) == 127 for char in text):
            raise ValueError("must not contain newlines, NUL or other control characters")
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "password", "minLength": 1, "maxLength": 511}


@dataclass(frozen=True)
class Seconds(Kind):
    """A duration in seconds, above 0 and finite; what is longest is the admin's to say."""

    def parse(self, text: str) -> float:
        accepted = "must be a number of seconds above 0, such as 10 or 2.5"
        # float() would also take '1_0', ' 1', 'nan' and 'infinity'.
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?|\.\d{1,9}", text, re.ASCII):
            raise ValueError(accepted)
        value = float(text)
        if not value > 0 or not math.isfinite(value):
            raise ValueError(accepted)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "exclusiveMinimum": 0}


@dataclass(frozen=True)
class Indices(Kind):
    """Indices separated by commas, each one once: `0,1`."""

    def parse(self, text: str) -> tuple[int, ...]:
        accepted = "must be indices separated by commas, each one once, such as 0 or 0,1"
        if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text, re.ASCII):
            raise ValueError(accepted)
        indices = tuple(int(part) for part in text.split(","))
        if len(set(indices)) != len(indices):
            raise ValueError(accepted)
        return indices

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^\d+(,\d+)*$"}


@dataclass(frozen=True)
class Param:
    """One parameter of a route, as `/help` and OpenAPI describe it."""

    name: str
    kind: Kind
    help: str
    optional: bool
    aliases: tuple[str, ...]


def param(kind: Kind, help: str, *, default: Any = MISSING, aliases: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is a parameter; optional if it has a default."""
    metadata = {"kind": kind, "help": help, "aliases": aliases}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def params_of(request: type) -> tuple[Param, ...]:
    """The parameters that a request class declares."""
    return tuple(
        Param(
            name=item.name,
            kind=item.metadata["kind"],
            help=item.metadata["help"],
            optional=item.default is not MISSING,
            aliases=item.metadata["aliases"],
        )
        for item in dataclasses.fields(request)
    )


def parse(request: type[R], pairs: Iterable[tuple[str, str]]) -> R:
    """Build a request from what the client sent.

    Raises BadRequest, naming the parameter and what is accepted, if one is missing, unknown,
    repeated or malformed.
    """
    declared = {name: item for item in params_of(request) for name in (item.name, *item.aliases)}
    values: dict[str, Any] = {}
    for name, text in pairs:
        known = declared.get(name)
        if known is None:
            raise BadRequest(
                f"Parameter {name[:64]!r} is not known here; accepted: {_names(request)}.",
                code="unknown_parameter",
                parameter=name[:64],
            )
        if known.name in values:
            raise BadRequest(
                f"Parameter {known.name!r} is given more than once; give it once.",
                code="repeated_parameter",
                parameter=known.name,
            )
        try:
            values[known.name] = known.kind.parse(text)
        except ValueError as error:
            raise BadRequest(
                f"Parameter {known.name!r} {error}.",
                code="malformed_parameter",
                parameter=known.name,
            ) from None
    for item in params_of(request):
        if not item.optional and item.name not in values:
            raise BadRequest(
                f"Parameter {item.name!r} is missing: {item.help}.",
                code="missing_parameter",
                parameter=item.name,
            )
    return request(**values)


def _names(request: type) -> str:
    return ", ".join(item.name for item in params_of(request)) or "none"
