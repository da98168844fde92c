"""Where podyd is: what PODY_API_BASE says."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

from podyd.client.failure import Usage

DEFAULT = "http://127.0.0.1:8799"


@dataclass(frozen=True)
class Base:
    """An address; `prefix` is the path below which a proxy has podyd, "" at the top."""

    scheme: str
    host: str
    port: int | None
    prefix: str

    @classmethod
    def of(cls, text: str) -> Base:
        """Read an address; one without a scheme is http. Raises Usage."""
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            port = parts.port
            host = parts.hostname or ""
            host.encode("idna")
        except ValueError:  # UnicodeError is one.
            raise _no_address() from None
        if parts.scheme not in ("http", "https") or not host or _has_more(parts, text):
            raise _no_address()
        return cls(parts.scheme, host, port, quote(parts.path.rstrip("/"), safe="/%"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.prefix}"

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent there stays on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def _has_more(parts: SplitResult, text: str) -> bool:
    odd = any(char.isspace() or not char.isprintable() for char in text)
    return odd or bool(parts.query or parts.fragment or "@" in parts.netloc)


def _no_address() -> Usage:
    # What was given is not repeated: a password may stand in it.
    return Usage(
        "PODY_API_BASE must be podyd's address and nothing more, such as https://gpu1.lab:8799;"
        " the login belongs in PODY_USERNAME and PODY_PASSWORD."
    )
