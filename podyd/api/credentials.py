"""The credentials of a request."""

from __future__ import annotations

import base64
import binascii

from podyd.base.errors import Unauthorized
from podyd.people.tokens import is_token, refused
from podyd.people.web_sessions import is_web_secret


def credentials(header: str) -> tuple[str, str]:
    """User and password of an HTTP Basic header (RFC 7617, UTF-8), or "" and a token (RFC 6750).

    Raises Unauthorized.
    """
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        if not is_token(value.strip()):
            raise refused()
        return "", value.strip()
    if scheme.lower() != "basic":
        raise Unauthorized(
            "Log in with your Linux user name and password (HTTP Basic), or with a token (Bearer)."
        )
    try:
        name, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise Unauthorized("The Authorization header is not valid HTTP Basic in UTF-8.") from None
    is_text = "\0" not in name + password
    if not colon or not name or not password or not is_text or is_web_secret(password):
        raise Unauthorized("User name or password is wrong.")
    return name, password
