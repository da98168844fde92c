"""Who calls: PODY_USERNAME and PODY_PASSWORD, or what the terminal says."""

from __future__ import annotations

import base64
import getpass
import os
import warnings
from dataclasses import dataclass

from podyd.client.failure import NoLogin, Usage


@dataclass(frozen=True)
class Login:
    """A Linux account of the server's."""

    user: str
    password: str

    @property
    def header(self) -> str:
        """HTTP Basic (RFC 7617), in UTF-8."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def log_in(where: str) -> Login:
    """The login for the server at `where`. Raises NoLogin or Usage."""
    user = os.environ.get("PODY_USERNAME") or _local_user()
    if ":" in user:
        raise Usage("PODY_USERNAME must not contain a colon.")
    password = os.environ.get("PODY_PASSWORD") or ask(f"Password of {user!r} at {where}: ")
    login = Login(user, password)
    try:
        login.header.encode()
    except UnicodeEncodeError:
        raise Usage("PODY_USERNAME or PODY_PASSWORD is not valid UTF-8.") from None
    return login


def ask(prompt: str) -> str:
    """What somebody types at the terminal, unseen. Raises NoLogin where there is no terminal."""
    with warnings.catch_warnings():
        # Where there is no terminal, getpass warns and then reads, and shows, standard input.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(prompt)
        except (getpass.GetPassWarning, EOFError):
            raise NoLogin(
                "No password, and no terminal to ask for it; set PODY_PASSWORD."
            ) from None


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # It differs between Python's versions.
        raise Usage("This machine does not say who you are; set PODY_USERNAME.") from None
