"""`podyd serve`: start of the server from the configuration, and its orderly shutdown."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import signal
import socket
import ssl
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from podyd import __version__
from podyd.admin.migration import lock as migration
from podyd.api.handler import MAX_DROPPED_BYTES
from podyd.api.tls import Certificate
from podyd.app import App, build
from podyd.base import systemd
from podyd.base.errors import ConfigError, NotSetUp, StartError
from podyd.base.logs import log_to, stderr_is_journal
from podyd.base.tasks import log_crash
from podyd.config.current import Settings
from podyd.config.loader import load
from podyd.config.schema import Config

log = logging.getLogger(__name__)

# How long a stop waits for requests under way.
STOP_SECONDS = 10.0
# How long a stop waits for the first request on connections that were just accepted.
LAST_REQUEST_SECONDS = 0.3
IDLE_SECONDS = 600.0
# How long a client may take to send a request's body.
BODY_SECONDS = 60.0
MAX_HEADER_BYTES = 64 * 1024
# From glibc's malloc.h; the threshold is its default.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MALLOC_THRESHOLD = 128 * 1024


def serve(path: Path) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads the configuration.

    Raises ConfigError, NotSetUp or StartError if podyd cannot start, before it serves any request.
    """
    _give_back_memory()
    if stderr_is_journal():
        log_to(systemd.JournalHandler(), "%(message)s")
    else:
        log_to(logging.StreamHandler(), "%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = load(path)
    # Before its port is taken, which says that podyd runs.
    with migration.without(config.state_dir, NotSetUp):
        pass
    settings = Settings(config, path)
    certificate = Certificate(settings, config.tls) if config.tls else None
    sockets = _listen(config, path)
    try:
        asyncio.run(_run(settings, sockets, certificate))
    finally:
        for item in sockets:
            item.close()


async def _run(
    settings: Settings, sockets: list[socket.socket], certificate: Certificate | None
) -> None:
    app = _build(settings)
    server = HTTPServer(
        app.application,
        ssl_options=certificate.context if certificate else None,
        max_body_size=MAX_DROPPED_BYTES,
        max_header_size=MAX_HEADER_BYTES,
        body_timeout=BODY_SECONDS,
        idle_connection_timeout=IDLE_SECONDS,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_crash)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    url = settings.current.url
    problem = ""

    def tell(text: str) -> None:
        nonlocal problem
        problem = text
        systemd.status(_serving(url, problem))

    app.pods.ports.subscribe(tell)

    def use(context: ssl.SSLContext) -> None:
        # Tornado reads this attribute for every connection.
        server.ssl_options = context

    def reload() -> None:
        systemd.reloading()
        refused = settings.reload()
        if certificate:
            certificate.renew(use)
        not_reloaded = f"not reloaded: {refused}" if refused else ""
        systemd.ready(_serving(url, problem, not_reloaded))

    loop.add_signal_handler(signal.SIGHUP, reload)
    app.start()
    keep = app.backends.background.keep
    if certificate:
        keep(partial(certificate.watch, use), "looking for a new certificate")
    if (seconds := systemd.watchdog_seconds()) is not None:
        keep(partial(systemd.feed_watchdog, seconds), "feeding the watchdog")
    server.add_sockets(sockets)
    systemd.ready(_serving(url))
    log.info("podyd %s serves %s", __version__, url)
    if os.geteuid() == 0:
        log.warning("podyd serve runs as root and need not; use its own account")
    await stopping.wait()
    await _stop(server, app)


def _build(settings: Settings) -> App:
    """The application; if setup has failed before, the error has its reason."""
    try:
        return build(settings)
    except NotSetUp as error:
        try:
            reason = settings.current.setup_error.read_text(encoding="utf-8").strip()
        except OSError:
            raise error from None
        raise NotSetUp(f"{reason} Then type 'systemctl restart podyd'.") from error


def _serving(url: str, *problems: str) -> str:
    return "; ".join([f"serving {url}", *filter(None, problems)])


async def _stop(server: HTTPServer, app: App) -> None:
    count = len(app.requests.under_way)
    systemd.stopping(f"stopping: {count} requests under way")
    log.info("stopping: %d requests under way", count)
    # Closes podyd's own descriptor only: systemd's queues connections for the next podyd.
    server.stop()
    app.requests.ending = True
    await asyncio.sleep(LAST_REQUEST_SECONDS)
    await app.stop(STOP_SECONDS)
    await server.close_all_connections()
    log.info("stopped")


def _give_back_memory() -> None:
    """Have glibc return the memory of large answers to the kernel.

    By default it raises both thresholds with the largest block that was freed, up to 64 MiB, and
    does not return blocks up to that size; see mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MALLOC_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, MALLOC_THRESHOLD)


def _listen(config: Config, path: Path) -> list[socket.socket]:
    """The listening socket: the one that systemd has stored, unless its address is another."""
    stored = systemd.stored_sockets()
    if len(stored) == 1 and _is_bound(stored[0], *config.address):
        return stored
    if stored:
        systemd.drop_stored_sockets(stored)
    sockets = _bind(config, path)
    systemd.store_sockets(sockets)
    return sockets


def _bind(config: Config, path: Path) -> list[socket.socket]:
    host, port = config.address
    try:
        return bind_sockets(port, host)
    except OSError as error:
        if error.errno == errno.EACCES:
            raise ConfigError(
                f"{config.listen} may not be used by podyd's account, as ports below 1024 may not.",
                advice=f"Change 'listen' in {path}, or see README.Debian for the capability.",
            ) from error
        why = {
            errno.EADDRINUSE: "is taken by another program",
            errno.EADDRNOTAVAIL: "is no address of this machine",
        }.get(error.errno or 0, f"cannot be used ({error.strerror})")
        raise StartError(
            f"{config.listen} {why}.",
            advice=f"Change 'listen' in {path}, or free it.",
        ) from error


def _is_bound(item: socket.socket, host: str, port: int) -> bool:
    bound_host, bound_port = item.getsockname()[:2]
    return (ip_address(bound_host), bound_port) == (ip_address(host), port)
