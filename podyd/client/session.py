"""`pody login` and `pody logout`: a token in place of the password."""

from __future__ import annotations

import contextlib
import socket

from podyd.client import kept
from podyd.client.failure import Failure, WrongLogin
from podyd.client.kept import Kept
from podyd.client.server import Server


def begin(server: Server) -> str:
    """Make a token with the password and keep it; what to tell the user."""
    # The name is for people: what is no text in it may be lost.
    host = socket.gethostname().encode(errors="replace").decode()[:64]
    made = server.post("user/token", [("name", host or "pody")]).data
    try:
        new = Kept(str(server.base), server.user, made["token"], made["id"])
        until = made["expires"]
    except (TypeError, KeyError):
        raise server.no_podyd("its /user/token is not podyd's") from None
    try:
        path = kept.save(server.base, new)
    except Failure:
        with contextlib.suppress(Failure):
            revoke(server, new.id)
        raise
    return f"{new.user!r} is logged in at {server.base} until {until}, by a token in {path}."


def end(server: Server, id: str) -> str:
    """Revoke the token and forget it; if podyd cannot be asked, nothing is done."""
    with contextlib.suppress(WrongLogin):  # It has ended already.
        revoke(server, id)
    kept.remove(server.base)
    return f"You are logged out at {server.base}; the token no longer works."


def revoke(server: Server, id: str) -> None:
    """Revoke one token."""
    server.post("user/token-revoke", [("id", id)])
