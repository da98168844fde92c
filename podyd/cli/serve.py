"""`podyd serve`: from the configuration to a running server, and down again in good order."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import signal
import socket
import ssl
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from podyd import __version__
from podyd.api.endpoint import MAX_DROPPED_BYTES
from podyd.app import App, build
from podyd.config import Config, load
from podyd.errors import ConfigError
from podyd.settings import Settings

log = logging.getLogger(__name__)

# Requests under way at the end have so long.
STOP_SECONDS = 10.0
IDLE_SECONDS = 600.0
# A client that is so slow with its request is cut off.
BODY_SECONDS = 60.0
MAX_HEADER_BYTES = 64 * 1024
# From glibc's malloc.h; the threshold is its default.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MALLOC_THRESHOLD = 128 * 1024


def serve(path: Path) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again.

    Raises ConfigError or Unavailable, before anything is served, if podyd cannot start.
    """
    _give_back_memory()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Tornado's own access log prints the query string, where passwords may be.
    logging.getLogger("tornado.access").propagate = False
    config = load(path)
    settings = Settings(config, path)
    tls = _tls(config)
    sockets = _listen(config, path)
    try:
        asyncio.run(_run(settings, sockets, tls))
    finally:
        for item in sockets:
            item.close()


async def _run(
    settings: Settings, sockets: list[socket.socket], tls: ssl.SSLContext | None
) -> None:
    app = build(settings)
    server = HTTPServer(
        app.application,
        ssl_options=tls,
        max_body_size=MAX_DROPPED_BYTES,
        max_header_size=MAX_HEADER_BYTES,
        body_timeout=BODY_SECONDS,
        idle_connection_timeout=IDLE_SECONDS,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, settings.reload)
    app.start()
    server.add_sockets(sockets)
    scheme = "https" if tls else "http"
    log.info("podyd %s serves %s://%s", __version__, scheme, settings.current.listen)
    if os.geteuid() == 0:
        log.warning("podyd serve runs as root and need not; use its own account")
    await stopping.wait()
    await _stop(server, app)


async def _stop(server: HTTPServer, app: App) -> None:
    log.info("stopping: %d requests under way", len(app.requests.under_way))
    server.stop()
    await app.stop(STOP_SECONDS)
    await server.close_all_connections()
    log.info("stopped")


def _give_back_memory() -> None:
    """Let what large answers took go back to the system.

    Left alone, glibc raises both thresholds with the largest block that it has seen, up to 64 MiB,
    and keeps as much; see mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MALLOC_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, MALLOC_THRESHOLD)


def _listen(config: Config, path: Path) -> list[socket.socket]:
    host, port = config.address
    try:
        return bind_sockets(port, host)
    except OSError as error:
        why = {
            errno.EADDRINUSE: "is taken by another program",
            errno.EADDRNOTAVAIL: "is no address of this machine",
            errno.EACCES: "needs root, as ports below 1024 do",
        }.get(error.errno or 0, f"cannot be used ({error.strerror})")
        raise ConfigError(
            f"{config.listen} {why}; change 'listen' in {path}, or free it."
        ) from error


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls.cert, config.tls.key)
    except OSError as error:
        raise ConfigError(
            f"The TLS certificate {config.tls.cert} with key {config.tls.key} cannot be used:"
            f" {error.strerror or error}."
        ) from error
    return context
