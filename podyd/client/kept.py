"""The token of `pody login`, in a file of its own for each server."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from podyd.client import private
from podyd.client.base import Base
from podyd.client.failure import Usage


@dataclass(frozen=True)
class Kept:
    """A token for `user` at the server `base`; `id` is what revokes it."""

    base: str
    user: str
    token: str = field(repr=False)
    id: str


def load(base: Base) -> Kept | None:
    """The token for this server, if there is one. Raises Usage if its file is not to be trusted."""
    path = path_of(base)
    try:
        with path.open("rb") as file:
            _refuse_if_shared(path, os.fstat(file.fileno()))
            return _parse(file.read(), base)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Usage(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError):
        # Without `from`: the error holds the token.
        raise Usage(f"{path} is malformed; remove it, and type 'pody login'.") from None


def save(base: Base, kept: Kept) -> Path:
    """Keep a token, readable by its owner alone from the first moment. Raises Usage."""
    path = path_of(base)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private.write(path, json.dumps(asdict(kept)).encode())
    except OSError as error:
        raise Usage(f"The token cannot be stored in {path}: {error.strerror}.") from error
    return path


def remove(base: Base) -> None:
    """Forget the token for this server. Raises Usage."""
    path = path_of(base)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise Usage(f"{path} cannot be removed: {error.strerror}.") from error


def path_of(base: Base) -> Path:
    """The file for a server: its name is the server's address. Raises Usage."""
    return directory() / f"{quote(str(base), safe='')}.json"


def directory() -> Path:
    """Where pody keeps what is its own. Raises Usage."""
    variable, default = ("XDG_CONFIG_HOME", ".config")
    if os.name == "nt":
        variable, default = ("APPDATA", "AppData/Roaming")
    configured = os.environ.get(variable, "")
    # The XDG specification has a relative path ignored.
    if Path(configured).is_absolute():
        return Path(configured) / "pody"
    try:
        return Path.home() / default / "pody"
    except RuntimeError:
        raise Usage(f"You have no home directory on this machine; set {variable}.") from None


def _refuse_if_shared(path: Path, status: os.stat_result) -> None:
    if os.name == "nt":  # Its modes say nothing; %APPDATA% is the user's alone.
        return
    if status.st_uid != os.geteuid():
        raise Usage(f"{path} is not your own; remove it, and type 'pody login'.")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Usage(
            f"Others can read the token in {path}; type 'chmod 600' on it, and"
            " 'pody login' for another one."
        )


def _parse(data: bytes, base: Base) -> Kept:
    """Raises ValueError or TypeError."""
    kept = Kept(**json.loads(data))
    texts = (kept.base, kept.user, kept.token, kept.id)
    if not all(isinstance(text, str) and text.isprintable() for text in texts):
        raise ValueError
    if kept.base != str(base) or not kept.token.isascii():
        raise ValueError
    return kept
