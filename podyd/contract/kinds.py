"""Parameters: one declaration has the parser, the text in `/help` and the OpenAPI schema.

A request is a frozen dataclass whose fields are made with `param(kind, help)`:

    @dataclass(frozen=True)
    class Exec:
        ins: str = param(PodName(), "the pod's name")
        timeout: float | None = param(Seconds(maximum=3600), "seconds", default=None)
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

from podyd.base.clock import now
from podyd.base.errors import BadRequest
from podyd.base.quantities import SECONDS, typed_size
from podyd.model.gpu import CardChoice

R = TypeVar("R")


class Kind:
    """The syntax of a parameter."""

    def parse(self, text: str) -> Any:
        """The parameter's value. Raises ValueError with the accepted values."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """The parameter's JSON schema for OpenAPI."""
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
    """Text that matches `pattern` as a whole; `accepted` describes it for an error."""

    pattern: str
    accepted: str
    maximum: int

    def parse(self, text: str) -> str:
        if len(text) > self.maximum or not re.fullmatch(self.pattern, text):
            raise ValueError(f"must be {self.accepted}")
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{self.pattern}$", "maxLength": self.maximum}


def TokenId() -> Pattern:  # noqa: N802 - used like a class, beside the other kinds
    """A token by its id, or `all`."""
    return Pattern(r"[0-9a-f]{16}|all", "an id of /user/tokens, or all", maximum=16)


def LoginId() -> Pattern:  # noqa: N802 - used like a class, beside the other kinds
    """A login on the page by its id, or `others`."""
    return Pattern(r"[0-9a-f]{16}|others", "an id of /user/logins, or others", maximum=16)


def UserLogin() -> Pattern:  # noqa: N802 - used like a class, beside the other kinds
    """A user's name."""
    return Pattern(r"[^\s,:]+", "the name of a user", maximum=256)


def PodName() -> Pattern:  # noqa: N802 - used like a class, beside the other kinds
    """A pod's name as its owner uses it; the instance's name is made from it."""
    return Pattern(
        r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?",
        "1 to 63 letters, digits, '-' or '_', beginning and ending with a letter or digit",
        # The limit of the engine's names: a pod that an admin made may have its instance's name.
        maximum=63,
    )


def SnapshotName() -> Pattern:  # noqa: N802
    """The name of a snapshot that exists, which an older engine took with any end."""
    return Pattern(
        r"[A-Za-z0-9][A-Za-z0-9_.-]*",
        "1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit",
        maximum=63,
    )


def NewSnapshotName() -> Pattern:  # noqa: N802
    """A name for a snapshot."""
    return _name(63)


def Tag() -> Pattern:  # noqa: N802
    """The part of an image's name after the user's name."""
    return _name(100)


def _name(maximum: int) -> Pattern:
    """What every engine takes; since 6.16 Incus looks at the end, too (IsAPIName)."""
    return Pattern(
        r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?",
        f"1 to {maximum} letters, digits, '-', '_' or '.', beginning and ending with a letter or"
        " digit",
        maximum,
    )


@dataclass(frozen=True)
class PodPath(Kind):
    """An absolute path in a pod, up to Linux's limit of a path."""

    def parse(self, text: str) -> str:
        if not text.startswith("/") or len(text.encode()) > 4095 or "\0" in text:
            raise ValueError("must begin with '/', and have 4095 bytes of UTF-8 at most")
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^/", "maxLength": 4095}


def Mode() -> Pattern:  # noqa: N802 - used like a class, beside the other kinds
    """A mode in octal as for chmod, without setuid, setgid and sticky."""
    return Pattern(r"0?[0-7]{3}", "an octal mode such as 644", maximum=4)


@dataclass(frozen=True)
class Password(Kind):
    """A new password: without control characters, at most 511 bytes of UTF-8.

    This is libxcrypt's limit (CRYPT_MAX_PASSPHRASE_SIZE is 512, the final NUL included).
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
class Duration(Kind):
    """A number of `unit`, above 0; the admin may set a lower limit than `maximum`."""

    unit: str = "seconds"
    maximum: float = 1e9

    def parse(self, text: str) -> float:
        accepted = (
            f"must be a number of {self.unit} above 0 and at most {self.maximum:.0f}, such as 10"
            " or 2.5"
        )
        # float() would also take '1_0', ' 1', 'nan' and 'infinity'.
        if not re.fullmatch(r"\d{1,9}(\.\d{1,20})?|\.\d{1,20}", text, re.ASCII):
            raise ValueError(accepted)
        value = float(text)
        if not 0 < value <= self.maximum:
            raise ValueError(accepted)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "exclusiveMinimum": 0}


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number, `minimum` to `maximum`."""

    minimum: int
    maximum: int

    def parse(self, text: str) -> int:
        digits = re.fullmatch(r"\d{1,12}", text, re.ASCII)
        if not digits or not self.minimum <= int(text) <= self.maximum:
            raise ValueError(f"must be a whole number, {self.minimum} to {self.maximum}")
        return int(text)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


UNSET = -1


@dataclass(frozen=True)
class Size(Kind):
    """Bytes, `minimum` at least, as `8GiB`, `8G` (the same), `8GB` or a number; `none` is -1."""

    minimum: int
    maximum: int = 1024**5

    def parse(self, text: str) -> int:
        if text == "none":
            return UNSET
        value = typed_size(text)
        if value is None or not self.minimum <= value <= self.maximum:
            raise ValueError(
                "must be none, or a size such as 8GiB, 512MiB or a number of bytes, at least"
                f" {self.minimum // 1024**2}MiB"
            )
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "examples": ["8GiB", "8G", "512MiB", "none"]}


@dataclass(frozen=True)
class WholeOrNone(Kind):
    """A whole number, 1 to `maximum`; `none` is -1."""

    maximum: int

    def parse(self, text: str) -> int:
        if text == "none":
            return UNSET
        digits = re.fullmatch(r"\d{1,12}", text, re.ASCII)
        if not digits or not 1 <= int(text) <= self.maximum:
            raise ValueError(f"must be none, or a whole number, 1 to {self.maximum}")
        return int(text)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "examples": ["4", "none"]}


@dataclass(frozen=True)
class Indices(Kind):
    """Indices separated by commas, without repetitions: `0,1`."""

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
class Names(Kind):
    """User names separated by commas, without repetitions."""

    _PATTERN = r"[^\s,:]+(,[^\s,:]+)*"

    def parse(self, text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if not re.fullmatch(self._PATTERN, text) or len(set(names)) != len(names):
            raise ValueError(
                "must be user names separated by commas, each one once, such as alice or alice,bob"
            )
        return names

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{self._PATTERN}$"}


@dataclass(frozen=True)
class Window(Kind):
    """A period up to now, in seconds or as `1y 1w 1d 1h 1s`."""

    _PATTERN = r"\d{1,9}(\.\d{1,9})?| *(\d{1,9} *[ywdhs] *)+"

    def parse(self, text: str) -> float:
        value = 0.0
        if re.fullmatch(self._PATTERN, text, re.ASCII):
            parts = re.findall(r"(\d+) *([ywdhs])", text, re.ASCII)
            value = sum(int(n) * SECONDS[unit] for n, unit in parts) if parts else float(text)
        if not value > 0:
            raise ValueError(
                "must be seconds above 0, or made of years, weeks, days, hours and seconds, such as"
                " 1y 2w 3d 4h 5s"
            )
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^({self._PATTERN})$"}


@dataclass(frozen=True)
class Moment(Kind):
    """A time in seconds since 1970: written as ISO 8601, UTC unless it says otherwise, or as a
    `Window` before now."""

    _PATTERN = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?)?"

    def parse(self, text: str) -> float:
        try:
            if not re.fullmatch(self._PATTERN, text, re.ASCII):
                return now().timestamp() - Window().parse(text)
            # Python 3.10 does not read the Z.
            moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=timezone.utc)
            return moment.timestamp()
        except (ValueError, OverflowError):
            raise ValueError(
                "must be a time such as 2026-11-24T08:00:00Z, or how long ago, in seconds or made"
                " of years, weeks, days, hours and seconds, such as 2d 4h"
            ) from None

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "examples": ["2026-11-24T08:00:00Z", "2026-11-24", "2d 4h"]}


@dataclass(frozen=True)
class Month(Kind):
    """A month of UTC, such as `2026-11`: its first moment."""

    _PATTERN = r"2\d{3}-(0[1-9]|1[0-2])"

    def parse(self, text: str) -> datetime:
        if not re.fullmatch(self._PATTERN, text, re.ASCII):
            raise ValueError("must be a month such as 2026-11")
        return datetime(int(text[:4]), int(text[5:]), 1, tzinfo=timezone.utc)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{self._PATTERN}$"}


WHICH_CARDS = "all, none, a number of GPUs (2), or which ones: indices (0,1 or 0,) or UUIDs"


@dataclass(frozen=True)
class Cards(Kind):
    """`all`, `none`, a count (`2`), or names: indices with a comma (`0,1`; the first alone is
    `0,`), UUIDs, PCI addresses."""

    def parse(self, text: str) -> CardChoice:
        if text in ("all", "none"):
            return CardChoice(everything=text == "all", count=None if text == "all" else 0)
        if re.fullmatch(r"\d{1,3}", text, re.ASCII):
            return CardChoice(count=int(text))
        named = tuple(text.removesuffix(",").split(","))
        name = (
            r"\d{1,3}|GPU-[0-9a-fA-F-]{1,40}|[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
        )
        if len(set(named)) != len(named) or not all(
            re.fullmatch(name, item, re.IGNORECASE) for item in named
        ):
            raise ValueError(
                "must be 'all', 'none', a number of GPUs (2), or which ones: indices (0,1 or 0,) or"
                " UUIDs, separated by commas, each one once"
            )
        return CardChoice(named=named)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "examples": ["all", "none", "2", "0,1", "0,"]}


@dataclass(frozen=True)
class Flag(Kind):
    """Yes or no: `1` or `0`."""

    def parse(self, text: str) -> bool:
        if text not in ("0", "1"):
            raise ValueError("must be 1 or 0")
        return text == "1"

    def schema(self) -> dict[str, Any]:
        return {"enum": ["0", "1"]}


@dataclass(frozen=True)
class Word(Kind):
    """One of several words."""

    words: tuple[str, ...]

    def parse(self, text: str) -> str:
        if text not in self.words:
            raise ValueError(f"must be {' or '.join(self.words)}")
        return text

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.words)}


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
    """Build a request from the client's parameters.

    Raises BadRequest, with the parameter and the accepted values, if one is missing, unknown,
    repeated or malformed.
    """
    declared = {name: item for item in params_of(request) for name in (item.name, *item.aliases)}
    values: dict[str, Any] = {}
    for name, text in pairs:
        param = declared.get(name)
        if param is None:
            raise BadRequest(
                f"Parameter {name[:64]!r} is not known here; accepted: {_names(request)}.",
                code="unknown_parameter",
                parameter=name[:64],
            )
        if param.name in values:
            raise BadRequest(
                f"Parameter {param.name!r} is given more than once.",
                advice="Give it once.",
                code="repeated_parameter",
                parameter=param.name,
            )
        try:
            values[param.name] = param.kind.parse(text)
        except ValueError as error:
            raise BadRequest(
                f"Parameter {param.name!r} {error}.",
                code="malformed_parameter",
                parameter=param.name,
            ) from None
    for item in params_of(request):
        if not item.optional and item.name not in values:
            raise BadRequest(
                f"Parameter {item.name!r} is missing: {item.help}.",
                code="missing_parameter",
                parameter=item.name,
            )
    return request(**values)


def parse_json(request: type[R], data: bytes, what: str) -> R:
    """As `parse`, for one JSON object; an error begins with `what`."""
    return parse(request, json_pairs(decode(data, what), what))


def decode(data: bytes, what: str) -> str:
    """UTF-8 as text. Raises BadRequest."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"{what} is not UTF-8.", code="not_utf8") from None


def json_pairs(text: str, what: str) -> list[tuple[str, str]]:
    """The names and values of a JSON object, as of a form. Raises BadRequest."""
    accepted = f"{what} must be one JSON object with text or numbers as values"
    try:
        # As pairs, so that a repeated name is detected.
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise BadRequest(f"{accepted}.", code="malformed_body") from None
    if not isinstance(pairs, list):
        raise BadRequest(f"{accepted}.", code="malformed_body")
    values = []
    for pair in pairs:
        if not isinstance(pair, tuple):
            raise BadRequest(f"{accepted}.", code="malformed_body")
        name, value = pair
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise BadRequest(f"{accepted}; {name[:64]!a} has neither.", code="malformed_body")
        values.append((name, value if isinstance(value, str) else repr(value)))
    try:
        # JSON can have half of a surrogate pair ("\\ud800"), which is not valid text.
        "".join(text for pair in values for text in pair).encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{what} has half of a surrogate pair.", code="not_utf8") from None
    return values


def _names(request: type) -> str:
    return ", ".join(item.name for item in params_of(request)) or "none"
