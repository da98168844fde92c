"""podyd itself: its configuration, and whether its processes answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from podyd import VERSION, __version__
from podyd.admin.doctor.case import Case, HostPaths
from podyd.admin.doctor.finding import Remark, check, error, note, ok, reason, warning
from podyd.base.errors import ConfigError
from podyd.config.loader import load
from podyd.config.schema import DEFAULT_PATH, Config
from podyd.engine.growth import parsed
from podyd.node.line_client import NOT_ITS_ANSWER
from podyd.node.relay_client import QUESTION, RelayAnswer

ANSWER_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 * 1024
RESTART_PORTS = "systemctl restart podyd-ports"
UNITS = (
    "podyd.service",
    "podyd-auth.service",
    "podyd-packing.service",
    "podyd-cards.service",
    "podyd-ports.service",
)
MIB = 1024**2
# The part of a memory limit from which on there is a warning.
NEARLY = 0.8
# systemd's message id in the journal for a unit's process that the kernel has killed for memory
# (sd-messages.h). The unit's cgroup counts these too, but is created again at each start.
OUT_OF_MEMORY = "fe6faa94e7774663a0da52717891d8ef"
JOURNAL_SECONDS = 10.0
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not listened on


@check
def configuration(path: Path) -> Iterator[Remark]:
    """The file is valid; the default one need not exist."""
    # Missing permissions are reported as such.
    with contextlib.suppress(FileNotFoundError):
        path.open().close()
    if path != DEFAULT_PATH and not path.exists():
        yield error(f"There is no file {path}.", "")
        return
    try:
        load(path)
    except ConfigError as problem:
        yield error(
            f"podyd cannot start: {problem}",
            f"edit {path}, then: podyd check --config {path}",
        )
        return
    yield ok(f"{path} can be used.")


@check
def pam_service(case: Case) -> Iterator[Remark]:
    """PAM has the service."""
    path = case.places.pam / case.config.auth.pam_service
    if path.exists():
        yield ok(f"{path} is there.")
    else:
        yield error(
            f"There is no {path}; PAM then applies /etc/pam.d/other, which may let nobody in.",
            case.podyd("setup"),
        )


@check
def login_service(case: Case) -> Iterator[Remark]:
    """`podyd auth` answers."""
    path = case.config.auth.socket
    try:
        answer = _ask(path, b'{"op": "ping"}\n')
    except PermissionError as problem:
        raise PermissionError(problem.errno, problem.strerror, path) from problem
    except (OSError, ValueError) as problem:
        yield error(
            f"Nobody can log in: 'podyd auth' does not answer at {path} ({reason(problem)}).",
            f"{_restart('podyd-auth', path)}; journalctl -u podyd-auth",
        )
        return
    if answer == {"ok": True}:
        yield ok(f"'podyd auth' answers at {path}.")
    else:
        yield error(f"What listens at {path} is not 'podyd auth'.", _restart("podyd-auth", path))


@check
def packing_service(case: Case) -> Iterator[Remark]:
    """`podyd packing` answers with the sizes of images."""
    path = str(case.config.packing_socket)
    try:
        parsed(_asked(path))
    except PermissionError as problem:
        raise PermissionError(problem.errno, problem.strerror, path) from problem
    except (OSError, ValueError) as problem:
        yield warning(
            "An image can become larger than its maker's 'image_size' before podyd sees it:"
            f" 'podyd packing' does not answer at {path} ({reason(problem)}).",
            f"{_restart('podyd-packing', path)}; journalctl -u podyd-packing",
        )
        return
    yield ok(f"'podyd packing' answers at {path}.")


@check
def cards_service(case: Case) -> Iterator[Remark]:
    """`podyd cards` answers, and the kernel refuses to each pod the cards that it lacks."""
    path = str(case.config.cards_socket)
    spoiled = "A lease of a card binds only who keeps to it"
    try:
        answer = _ask(path, b'{"enforcement": null}\n')
        way, problem = str(answer["way"]), str(answer["problem"])
    except PermissionError as refusal:
        raise PermissionError(refusal.errno, refusal.strerror, path) from refusal
    except (OSError, *NOT_ITS_ANSWER) as failure:
        yield warning(
            f"{spoiled}: 'podyd cards' does not answer at {path} ({reason(failure)}).",
            f"{_restart('podyd-cards', path)}; journalctl -u podyd-cards",
        )
        return
    if way:
        yield ok(f"'podyd cards' answers at {path}, and the kernel refuses cards by {way}.")
    else:
        yield warning(
            f"{spoiled}: the kernel does not refuse cards to pods ({problem}).",
            "journalctl -u podyd-cards",
        )


@check
def port_relay(case: Case) -> Iterator[Remark]:
    """`podyd ports` answers, and listens on all ports that it is to forward."""
    path = case.config.ports.socket
    try:
        answer = RelayAnswer.of(_ask(path, QUESTION))
    except PermissionError as problem:
        raise PermissionError(problem.errno, problem.strerror, path) from problem
    except (OSError, *NOT_ITS_ANSWER) as problem:
        yield warning(
            f"Ports of pods cannot be reached: 'podyd ports' does not answer at {path}"
            f" ({reason(problem)}).",
            f"{RESTART_PORTS}; journalctl -u podyd-ports",
        )
        return
    for port, why in answer.refused.items():
        yield warning(f"Port {port} of a pod cannot be opened: {why}.", f"ss -ltnp sport = :{port}")
    if answer.is_old:
        yield note(
            f"'podyd ports' is of podyd {answer.version}; restarting it ends the connections to"
            " pods.",
            RESTART_PORTS,
        )
    yield ok(f"'podyd ports' answers at {path}.")


def _restart(unit: str, path: str) -> str:
    """How a helper whose socket systemd makes is started anew, so that it answers at `path`."""
    restart = f"systemctl restart {unit}.socket {unit}.service"
    if Path(path).parent == Path(Config().auth.socket).parent:
        return restart
    return (
        f"systemctl edit {unit}.socket, which needs '[Socket]', 'ListenStream=' and"
        f" 'ListenStream={path}' (README.Debian, 'Other places and ports'); {restart}"
    )


def _ask(path: str, line: bytes) -> Any:
    """A process' answer to one line at its unix socket. Raises OSError, ValueError."""
    return json.loads(_asked(path, line))


def _asked(path: str, line: bytes = b"") -> bytes:
    """The answer as bytes; without a `line` the process may have closed the connection already."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(path)
        if line:
            connection.sendall(line)
        return connection.makefile("rb").readline(MAX_ANSWER_BYTES)


@check
def service_memory(places: HostPaths) -> Iterator[Remark]:
    """No process of podyd's is near the memory limit of its unit (MemoryMax=)."""
    for unit in UNITS:
        memory = places.files.unit_memory(unit)
        if memory is None or memory.limit is None:
            continue
        # The kernel frees the page cache when memory is needed.
        used, limit = max(0, memory.used - memory.counted["file"]), memory.limit
        words = f"{unit} has {used // MIB} MiB of memory, of {limit // MIB} MiB that it may have"
        if used > NEARLY * limit:
            yield warning(
                f"{words}; beyond that the kernel ends it, and systemd starts it again.",
                _more_memory(unit),
            )
        else:
            yield ok(f"{words}.")


@check
def service_killed(places: HostPaths) -> Iterator[Remark]:
    """The kernel has killed no process of podyd for memory within a day."""
    program = shutil.which("journalctl", path=places.path)
    if program is None:
        return
    for unit in UNITS:
        query = [f"--unit={unit}", f"MESSAGE_ID={OUT_OF_MEMORY}", "--since=-1d"]
        done = subprocess.run(
            [program, "--quiet", "--no-pager", "--output=cat", *query],
            capture_output=True,
            timeout=JOURNAL_SECONDS,
            check=False,
        )
        if times := done.stdout.count(b"\n"):
            yield warning(
                f"Within a day the kernel has ended processes of {unit} {times} times, as they had"
                " more memory than the unit may have.",
                _more_memory(unit),
            )


def _more_memory(unit: str) -> str:
    return f"systemctl edit {unit}: [Service], MemoryMax=4G; then systemctl restart {unit}"


@check
def service_answers(case: Case) -> Iterator[Remark]:
    """`podyd serve` answers, in the version that is installed."""
    listen = case.config.listen
    try:
        version = _version(case.config)
    except (OSError, ValueError, http.client.HTTPException) as problem:
        yield warning(
            f"'podyd serve' does not answer at {listen} ({reason(problem)}).",
            "systemctl start podyd; journalctl -u podyd",
        )
        return
    if version == list(VERSION):
        yield ok(f"'podyd serve' {__version__} answers at {listen}.")
    else:
        yield warning(
            f"What answers at {listen} says version {version}, and podyd {__version__} is"
            " installed.",
            "systemctl restart podyd",
        )


def _version(config: Config) -> object:
    host, port = config.address
    host = _HERE.get(host, host)
    connection: http.client.HTTPConnection
    if config.tls is None:
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    else:
        # Trust in the certificate is not checked here, as its name is not that of this address.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            host, port, timeout=ANSWER_SECONDS, context=context
        )
    with contextlib.closing(connection):
        connection.request("GET", "/version")
        answer: object = json.loads(connection.getresponse().read(MAX_ANSWER_BYTES))
        return answer
