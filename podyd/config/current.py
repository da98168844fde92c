"""The configuration in force, which a reload replaces as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path

from podyd.base.errors import ConfigError
from podyd.config.loader import load
from podyd.config.schema import Config

log = logging.getLogger(__name__)

# What takes effect at a restart only: the process is bound to an address, a socket, a project.
# For TLS it is whether there is any; the certificate's files are read again.
_FIXED: Mapping[str, Callable[[Config], object]] = {
    "listen": attrgetter("listen"),
    "tls": lambda config: config.tls is None,
    "state_dir": attrgetter("state_dir"),
    "engine": attrgetter("engine"),
    "lxd": attrgetter("lxd"),
    "auth.socket": attrgetter("auth.socket"),
    "auth.pam_service": attrgetter("auth.pam_service"),
    "ports.socket": attrgetter("ports.socket"),
}


class Settings:
    """Holds the `current` configuration; services read it at each request."""

    def __init__(self, current: Config, path: Path | None = None) -> None:
        self.current = current
        self._path = path

    def reload(self) -> str:
        """Read the file again; if it is not valid, the old configuration stays in force.

        Returns why it is not valid, or "".
        """
        if self._path is None:
            return ""
        try:
            new = load(self._path)
        except ConfigError as error:
            log.error("not reloaded, the old configuration stays in force: %s", error)
            return str(error)
        changed = [key for key, value in _FIXED.items() if value(new) != value(self.current)]
        if changed:
            log.warning("takes effect at the next restart only: %s", ", ".join(changed))
        self.current = new
        log.info("reloaded %s", self._path)
        return ""
