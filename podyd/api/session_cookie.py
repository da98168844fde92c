"""The cookie of a login on the page."""

from __future__ import annotations

# Under TLS a browser takes a cookie of this name from this very host alone, encrypted.
_SECURE_PREFIX = "__Host-"
NAME = "podyd"


def secret_in(header: str, *, is_encrypted: bool) -> str:
    """The secret in a Cookie header, "" if it has none."""
    name = _name(is_encrypted=is_encrypted)
    for pair in header.split(";"):
        key, equals, value = pair.strip().partition("=")
        if equals and key == name:
            return value
    return ""


def set_cookie(secret: str, *, is_encrypted: bool) -> str:
    """The Set-Cookie header that stores a secret, or with "" removes it."""
    end = "" if secret else "; Max-Age=0"
    secure = "; Secure" if is_encrypted else ""
    name = _name(is_encrypted=is_encrypted)
    return f"{name}={secret}; Path=/; HttpOnly; SameSite=Strict{secure}{end}"


def _name(*, is_encrypted: bool) -> str:
    return f"{_SECURE_PREFIX}{NAME}" if is_encrypted else NAME
