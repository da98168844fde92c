"""Who calls: PODY_USERNAME and PODY_PASSWORD, the token of `pody login`, or what is typed."""

from __future__ import annotations

import base64
import getpass
import os
import sys
import warnings
from dataclasses import dataclass, field

from podyd.client import kept
from podyd.client.base import Base
from podyd.client.failure import NoLogin, Usage
from podyd.client.kept import Kept


@dataclass(frozen=True)
class Login:
    """An account of the server's; `advice` is for where podyd does not take it."""

    user: str
    header: str = field(repr=False)
    advice: str
    by_token: bool = False


def log_in(base: Base) -> Login:
    """The login for a server. Raises NoLogin or Usage."""
    user = os.environ.get("PODY_USERNAME")
    if not os.environ.get("PODY_PASSWORD"):
        stored = kept.load(base)
        # A token is never used in another one's name.
        if stored is not None and user in (None, "", stored.user):
            return with_token(stored)
    return with_password(user or _local_user(), base)


def typed(base: Base) -> Login:
    """The same, but never by a token that is kept; who it is, is asked for too."""
    return with_password(os.environ.get("PODY_USERNAME") or _asked_user(base), base)


def proven(base: Base) -> Login:
    """The same for who is logged in by a token that is kept, if somebody is."""
    stored = None if os.environ.get("PODY_USERNAME") else kept.load(base)
    return typed(base) if stored is None else with_password(stored.user, base)


def with_token(token: Kept) -> Login:
    """A login by a token that is kept."""
    return Login(
        token.user, f"Bearer {token.token}", "Type 'pody login' for a new one.", by_token=True
    )


def with_password(user: str, base: Base) -> Login:
    """A login by PODY_PASSWORD; without it, pody asks."""
    if ":" in user:
        raise Usage("PODY_USERNAME must not contain a colon.")
    return by_password(
        user, os.environ.get("PODY_PASSWORD") or ask(f"Password of {user!r} at {base}: ")
    )


def by_password(user: str, password: str) -> Login:
    """A login by HTTP Basic (RFC 7617), in UTF-8. Raises Usage."""
    try:
        pair = f"{user}:{password}".encode()
    except UnicodeEncodeError:
        raise Usage("PODY_USERNAME or PODY_PASSWORD is not valid UTF-8.") from None
    header = "Basic " + base64.b64encode(pair).decode()
    return Login(user, header, f"(You are {user!r}; PODY_USERNAME says otherwise.)")


def ask(prompt: str) -> str:
    """What somebody types at the terminal, unseen. Raises NoLogin where there is no terminal."""
    with warnings.catch_warnings():
        # Where there is no terminal, getpass warns and then reads, and shows, standard input.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(prompt)
        except (getpass.GetPassWarning, EOFError):
            raise NoLogin(
                "No password, and no terminal to ask for it; set PODY_PASSWORD, or type"
                " 'pody login' once."
            ) from None


def _asked_user(base: Base) -> str:
    local = _local_user()
    if not sys.stdin.isatty():
        return local
    print(f"User at {base} [{local}]: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise NoLogin("No user name; nothing is done.")
    return line.strip() or local


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # It differs between Python's versions.
        raise Usage("Your user name is not known on this machine; set PODY_USERNAME.") from None
