"""`pody login` and `pody logout`: a token in place of the password, which `pody passwd` changes."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

from podyd.client import kept
from podyd.client.failure import Failure, Refused, WrongLogin
from podyd.client.kept import Kept
from podyd.client.server import Server
from podyd.client.words import UNSEEN, from_stdin

# podyd's code for a password that is right, and with which nothing but a change of it is done.
EXPIRED = "password_expired"


def begin(server: Server) -> str:
    """Make a token with the password and keep it; what to tell the user."""
    made = _token(server)
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


def _token(server: Server) -> Any:
    # The name is for people: what is no text in it may be lost.
    host = socket.gethostname().encode(errors="replace").decode()[:64]
    wanted = [("name", host or "pody")]
    try:
        return server.post("user/token", wanted).data
    except Refused as refused:
        if refused.code != EXPIRED or not sys.stdin.isatty():
            raise
    print("Your password has expired; choose a new one.", file=sys.stderr)
    server.change_password(from_stdin(UNSEEN))
    return server.post("user/token", wanted).data


def change(server: Server) -> str:
    """Change the password; a token that is kept, and ends with it, is replaced. What to tell."""
    server.log_in()
    message: str = server.change_password(from_stdin(UNSEEN)).data["log"]
    before = kept.load(server.base)
    if before is None or before.user != server.user:
        return message
    return f"{message}\n{begin(server)}"


def end(server: Server, id: str) -> str:
    """Revoke the token and forget it; if podyd cannot be asked, nothing is done."""
    with contextlib.suppress(WrongLogin):  # It has ended already.
        revoke(server, id)
    kept.remove(server.base)
    return f"You are logged out at {server.base}; the token no longer works."


def revoke(server: Server, id: str) -> None:
    """Revoke one token."""
    server.post("user/token-revoke", [("id", id)])
