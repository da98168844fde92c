"""The certificate that podyd serves with, read again when its files change.

certbot and a lab's own CA replace the files every few weeks, which must not need a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

from podyd.base.errors import ConfigError
from podyd.config.current import Settings
from podyd.config.schema import TlsConfig

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0

Use = Callable[[ssl.SSLContext], None]
# Identity, size and times of each file, after symbolic links: a new file differs in one of them.
_Stamp = tuple[tuple[int, ...], ...]


class Certificate:
    """The pair of files that `settings` name; if they name none, the old one stays in use."""

    def __init__(self, settings: Settings, files: TlsConfig) -> None:
        """Raises ConfigError if the files cannot be used."""
        self._settings = settings
        self._files = files
        self._seen = _stamp(files)
        self.context = load(files)

    async def watch(self, use: Use) -> None:
        """Check for new files every `LOOK_SECONDS`, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            files = self._settings.current.tls or self._files
            if (files, _stamp(files)) != (self._files, self._seen):
                self.renew(use)

    def renew(self, use: Use) -> None:
        """Load the files and call `use` with the new context, for later connections.

        A pair that does not match, as while it is being replaced, is logged once and not used.
        """
        self._files = self._settings.current.tls or self._files
        # Before it is loaded: a later write counts as another change.
        self._seen = _stamp(self._files)
        try:
            self.context = load(self._files)
        except ConfigError as error:
            log.warning("the old certificate stays in use: %s", error)
            return
        use(self.context)
        log.info("the certificate is read from %s", self._files.cert)


def load(files: TlsConfig) -> ssl.SSLContext:
    """A server's context with this certificate. Raises ConfigError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        for path in (files.cert, files.key):
            Path(path).open("rb").close()  # OpenSSL's errors name no file.
        # A key with a passphrase is refused, where OpenSSL would ask the terminal.
        context.load_cert_chain(files.cert, files.key, password="")
    except PermissionError as error:
        raise ConfigError(_how_to_read(str(error.filename))) from error
    except OSError as error:
        where = f"{error.filename} " if error.filename else ""
        raise ConfigError(
            f"The TLS certificate {files.cert} with key {files.key} cannot be used:"
            f" {where}{error.strerror or error}."
        ) from error
    return context


def _how_to_read(path: str) -> str:
    copy = f"/etc/podyd/tls/{Path(path).name}"
    group = _group()
    how = (
        f"chgrp {group} {path} && chmod 640 {path}'"
        if path == copy
        else f"install -m 640 -g {group} {path} {copy}' and name {copy} in 'tls'"
    )
    return f"podyd may not read {path}; as root, type '{how}."


def _group() -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(os.getegid()).gr_name
    return str(os.getegid())


def _stamp(files: TlsConfig) -> _Stamp:
    return tuple(_stamp_of(path) for path in (files.cert, files.key))


def _stamp_of(path: str) -> tuple[int, ...]:
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
