"""The cookie of a login on the page.

Cookies do not know ports (RFC 6265, 8.5), so its name has the one that the browser has connected
to: two podyds of one host name, such as two tunnels to localhost, do not replace each other's.
"""

from __future__ import annotations

import re

# Under TLS a browser takes a cookie of this name from this very host alone, encrypted.
_SECURE_PREFIX = "__Host-"
NAME = "podyd"
# What else serves on this host name can set cookies of the same name for longer paths, or for the
# whole domain; browsers send all that match.
MAX_COOKIES = 32


def cookie_name(host: str, *, is_encrypted: bool) -> str:
    """What the cookie is called for requests with this Host header."""
    port = re.search(r":([0-9]{1,5})\Z", host, re.ASCII)
    name = f"{NAME}-{port[1]}" if port else NAME
    return f"{_SECURE_PREFIX}{name}" if is_encrypted else name


def cookies_in(header: str, name: str) -> list[str]:
    """The values of the cookies of this name in a Cookie header, the first `MAX_COOKIES`."""
    values: dict[str, None] = {}
    for pair in header.split(";"):
        key, equals, value = pair.strip().partition("=")
        if equals and key == name and len(values) < MAX_COOKIES:
            values[value] = None
    return list(values)


def set_cookie(name: str, value: str) -> str:
    """The Set-Cookie header that stores a value, or with "" removes it."""
    end = "" if value else "; Max-Age=0"
    secure = "; Secure" if name.startswith(_SECURE_PREFIX) else ""
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{end}"
