"""The cookie of a login on the page."""

from __future__ import annotations

# Under TLS a browser takes a cookie of this name from this very host alone, encrypted.
_SECURE_PREFIX = "__Host-"
NAME = "podyd"


def cookie_in(header: str, *, is_encrypted: bool) -> str:
    """The value of the cookie in a Cookie header, "" if it has none."""
    name = _name(is_encrypted=is_encrypted)
    for pair in header.split(";"):
        key, equals, value = pair.strip().partition("=")
        if equals and key == name:
            return value
    return ""


def set_cookie(value: str, *, is_encrypted: bool) -> str:
    """The Set-Cookie header that stores a value, or with "" removes it."""
    end = "" if value else "; Max-Age=0"
    secure = "; Secure" if is_encrypted else ""
    name = _name(is_encrypted=is_encrypted)
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{end}"


def _name(*, is_encrypted: bool) -> str:
    return f"{_SECURE_PREFIX}{NAME}" if is_encrypted else NAME
