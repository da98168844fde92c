"""A podyd of the tests' own: accounts, an LXD project, `podyd auth` and `podyd serve`.

Everything is real and runs as it does in a lab: the service as an account without rights, the
helper as root, LXD with its own certificate. All of it is removed at the end.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import http.client
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from podyd.admin.advisories import Installed, load
from podyd.admin.doctor.advisories import package_of
from podyd.admin.doctor.case import HOST
from podyd.engine.dialect import named
from podyd.engine.rest import Credentials
from podyd.node.controllers import ALL
from podyd.pods.disks import BTRFS
from tests import slips
from tests.integration import small
from tests.lab import lab

ROOT = Path(__file__).resolve().parents[2]
# The engine that the tests talk to.
DIALECT = named(lab.ENGINE.key)
PYTHON = "/usr/bin/python3"
# Debian, and one of busybox alone: see small.py.
IMAGE, SMALL = "podyd-lab-base", "podyd-lab-small"
# The engine's project that is always there.
DEFAULT = "default"
BUNDLED = ("pylxd", "pynvml.py", "pam", "pylxd-*.dist-info")
PASSWORD = "correct-Horse-7"
START_SECONDS = 60.0
# What a podyd needs that has nothing to do: its pools of threads are bounded, and its files are
# LXD's events, the relay's socket, the database, and the event loop's own.
FILES_AT_REST, THREADS_AT_REST = 24, 20
# In the environment where the tests are measured (tests/covered.py): what each Python begins with.
MEASURED = "PODYD_COVERAGE"
# Of the accounts that each run of the tests makes.
LISTS = Path("/run/podyd-test-accounts")
# Who makes the images has its lock.
IMAGES = Path("/run/podyd-test-images")

# What podyd logs when it knows all pods.
FOLLOWING = f"following {lab.ENGINE.title}'s events"

Json = Any


def wait_until(
    condition: Callable[[], bool], what: str, limit: float = 30.0, *, passes: bool = False
) -> None:
    """Wait for a condition, or fail saying what it was.

    Most conditions ask LXD or look at all processes, and whoever waits together with others for the
    same two cores holds up what they wait for. So the longer it takes, the less often it is asked;
    but for one that soon `passes`.
    """
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        assert waited < limit, f"timed out waiting: {what}"
        time.sleep(0.02 if passes else min(max(0.02, waited / 10), 0.2))


def controllers() -> frozenset[str]:
    """The kernel's cgroup controllers that pods can have here: all of them with cgroup v1, and with
    v2 alone those that are no hierarchy's of v1 elsewhere."""
    listed = lab.CGROUPS / "cgroup.controllers"
    return frozenset(listed.read_text().split()) if listed.exists() else ALL


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold a file's lock, as fcntl.flock takes it; it goes with the process at the latest."""
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(*command: str, stdin: str = "", check: bool = True) -> str:
    """Run a command; what it wrote to stdout, or its stderr in the failure."""
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


def install(code: Path, vendor: Path) -> None:
    """Copy podyd's own code into a directory, and what it brings along beside or below that."""
    for name in ("podyd", "profiles"):
        shutil.copytree(ROOT / name, code / name)
    vendor.mkdir(exist_ok=True)
    installed = Path(sysconfig.get_paths()["purelib"])
    for pattern in BUNDLED:
        for path in installed.glob(pattern):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, vendor / path.name)


# --- HTTP ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    body: Json
    headers: http.client.HTTPMessage
    seconds: float

    @property
    def ok(self) -> Json:
        """The body of a 200."""
        assert self.status == 200, (self.status, self.body)
        return self.body

    def refused(self, status: int, code: str | None = None) -> Mapping[str, Any]:
        """The body of an error, which must have this status and code."""
        assert self.status == status, (self.status, self.body)
        assert code is None or self.body["code"] == code, self.body
        assert self.body["detail"].strip(), self.body
        body: Mapping[str, Any] = self.body
        return body


# The log of each `podyd serve`, by its port.
LOGS: dict[int, Path] = {}


@dataclass(frozen=True)
class Client:
    """Calls podyd as one user; without a user, as nobody."""

    port: int
    user: str = ""
    password: str = PASSWORD

    def get(self, path: str, /, **params: object) -> Answer:
        return self.call("GET", path, params)

    def post(self, path: str, /, **params: object) -> Answer:
        return self.call("POST", path, params)

    def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, object] | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        # LXD makes one image after the other, also for whoever else tests beside this.
        timeout: float = 180.0,
    ) -> Answer:
        connection = self.connection(timeout)
        sent = {**self.login_header(), **(headers or {})}
        target = f"{path}?{urlencode(params)}" if params else path
        started = time.monotonic()
        try:
            connection.request(method, target, body=body, headers=sent)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        seconds = time.monotonic() - started
        assert response.headers["Content-Type"] == "application/json", response.headers
        parsed = None if method == "HEAD" else json.loads(data)
        if response.status >= 500 and self.port in LOGS:
            # pytest shows it where the test fails; the file does not outlive the tests.
            print(LOGS[self.port].read_text(errors="replace")[-4000:])
        return Answer(response.status, parsed, response.headers, seconds)

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def login_header(self) -> dict[str, str]:
        if not self.user:
            return {}
        token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Authorization": f"Basic {token}"}

    def sees(self, ins: str, **fields: object) -> None:
        """Wait until /pod/info has these values: podyd hears by LXD's events what an admin does,
        which may come after LXD's answer to the admin."""

        def has_come() -> bool:
            info = self.get("/pod/info", ins=ins)
            return info.status == 200 and fields.items() <= info.body.items()

        wait_until(has_come, f"{ins} with {fields}")

    def lists(self, *pods: str) -> None:
        """Wait until these are all the pods that there are; see `sees`."""
        wait_until(lambda: self.get("/pod/list").ok == sorted(pods), f"{pods} and no more")

    def exec(self, ins: str, cmd: str, **params: object) -> Json:
        """The answer of a command that podyd could run."""
        return self.post("/pod/exec", ins=ins, cmd=cmd, **params).ok


# --- Accounts -----------------------------------------------------------------------------------


class Accounts:
    """Linux accounts and groups of the tests, all removed at the end.

    A run that is killed has no end, so each of them is written down first; the next run removes
    those whose list nobody has locked.
    """

    def __init__(self) -> None:
        LISTS.mkdir(exist_ok=True)
        for path in LISTS.iterdir():
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open() as left:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left.read().splitlines())
                path.unlink()
        self._list = (LISTS / secrets.token_hex(4)).open("a")
        fcntl.flock(self._list, fcntl.LOCK_EX)

    def will_make(self, kind: str, name: str) -> None:
        """Remove a "user" or "group" in the end, whoever makes it."""
        self._list.write(f"{kind}del {name}\n")
        self._list.flush()

    def user(self, name: str = "", *options: str, password: str = PASSWORD) -> str:
        """Make an account: without a name, one that nobody has; "" as password is none."""
        name = name or f"podydt{secrets.token_hex(4)}"
        assert name not in {entry.pw_name for entry in pwd.getpwall()}
        # Ids of their own below them are none of podyd's, and Debian 13 has few beside Incus'.
        without = ("-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0")
        # useradd 4.20 makes none of digits alone, which a directory may have all the same.
        made = f"podydt{name}" if name.isdecimal() else name
        for account in {name, made}:
            self.will_make("user", account)
        run("useradd", "--badname", "-M", "-N", *without, "-s", "/bin/bash", *options, made)
        if made != name:
            _rename(made, name)
        if password:
            run("chpasswd", stdin=f"{name}:{password}\n")
        return name

    def allow_root(self, name: str) -> None:
        """What an admin types once, here for one account: pods may have its directories."""
        account = pwd.getpwnam(name)
        for what, number in (("uid", account.pw_uid), ("gid", account.pw_gid)):
            # The group users is also that of accounts of other tests, and may stay.
            if number >= 1000:
                self._list.write(f"usermod --del-sub{what}s {number}-{number} root\n")
                self._list.flush()
            run("usermod", f"--add-sub{what}s", f"{number}-{number}", "root")

    def remove(self, name: str) -> None:
        run("userdel", name)

    def group(self, name: str = "") -> str:
        name = name or f"podydt{secrets.token_hex(4)}"
        self.will_make("group", name)
        run("groupadd", name)
        return name

    def close(self) -> None:
        path = Path(self._list.name)
        _remove(path.read_text().splitlines())
        path.unlink()
        self._list.close()


def _rename(account: str, name: str) -> None:
    """Give an account a name that usermod refuses."""
    # As lckpwdf(3) of all who change these files.
    with open("/etc/.pwd.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        for path in ("/etc/passwd", "/etc/shadow"):
            run("sed", "--in-place", f"s/^{account}:/{name}:/", path)


def _remove(commands: Sequence[str]) -> None:
    # A group can be some account's first one, so the accounts go before it.
    for command in sorted(commands, reverse=True):
        run(*command.split(), check=False)


# --- podyd --------------------------------------------------------------------------------------


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Two configurations, the second one over the first."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


@dataclass
class Server:
    """A running `podyd serve`."""

    process: subprocess.Popen[bytes]
    port: int
    config: Path
    log: Path

    def client(self, user: str = "", password: str = PASSWORD) -> Client:
        return Client(self.port, user, password)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_log(self, text: str, limit: float = 30.0) -> None:
        wait_until(lambda: text in self.log_text(), f"{text!r} in {self.log_text()}", limit)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it in good order; its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def check_settled(self, limit: float = 30.0) -> None:
        """Fail if it has kept more than it needs of what it had for the tests, now over."""
        needs = {"files": FILES_AT_REST, "threads": THREADS_AT_REST, "children": 1}

        def kept() -> dict[str, int]:
            """What is too much."""
            has = {
                "files": self.files(),
                "threads": self.threads(),
                "children": len(children(self.process.pid)),
            }
            return {what: count for what, count in has.items() if count > needs[what]}

        wait_until(lambda: not kept(), f"{self.config.name} to let go, has {kept()}", limit)

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


class Node:
    """A server of a lab, small: everything that podyd needs, made and removed."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.project = f"podyd-test-{tag}"
        self.service = f"podyd-test-{tag}"
        self.account = f"podydt{tag}"
        self.directory = Path(tempfile.mkdtemp(prefix="podyd-test-", dir="/run"))
        self.directory.chmod(0o755)
        self.library = self.directory / "lib"
        self._held = contextlib.ExitStack()
        self.accounts = Accounts()
        self.accounts.will_make("user", self.account)
        self.base: dict[str, Any] = {
            "state_dir": str(self.directory / "state"),
            "engine": DIALECT.key,
            "lxd": {"project": self.project},
            "auth": {
                "pam_service": self.service,
                "socket": str(self.directory / "auth" / "auth.sock"),
                # The tests themselves fail more often than a person would.
                "failures_per_user": 1000,
                "failures_per_address": 100000,
            },
            "ports": {
                "socket": str(self.directory / "ports" / "ports.sock"),
                "range": "{0}000-{0}999".format(self._own_thousand()),
            },
        }
        self._servers: list[Server] = []
        self._helper: subprocess.Popen[bytes] | None = None
        self._relay: subprocess.Popen[bytes] | None = None
        self._packing: subprocess.Popen[bytes] | None = None
        self._cards: subprocess.Popen[bytes] | None = None
        self._install()
        slips.claim(self.project)
        self._prepare()

    def _own_thousand(self) -> int:
        """A thousand ports below those that the kernel gives out, apart from other podyds' here."""
        for number in range(10, 32):
            path = Path(f"/run/podyd-test-ports-{number}000")
            with contextlib.suppress(BlockingIOError):
                self._held.enter_context(locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
                return number
        raise AssertionError("too many podyds of tests are running")

    def _install(self) -> None:
        """Copy podyd to where its account may read it, whatever the checkout's modes are."""
        install(self.library, self.library)
        run("chmod", "-R", "a+rX", str(self.library))

    def _prepare(self) -> None:
        state = lab.read_state()
        assert state is not None, (
            f"no lab: type 'sudo tests/lab/lab.py up --engine {lab.ENGINE.key}'"
        )
        self.lab_state = state
        self.lxd = lab.Api(Path(state.socket))
        self._held.enter_context(slips.listening(lambda: Path(state.socket)))
        config = self.lxd.get("/1.0")["config"]
        if not state.ours and not config.get("core.https_address"):
            lab.write_state(dataclasses.replace(state, https_address_set=True))
        # In an LXD that has nothing yet, two at once would both make the pool and the bridge.
        with locked(IMAGES, fcntl.LOCK_EX):
            self.setup_output = self.podyd("setup", "--user", self.account)
            self._have_image(IMAGE, lambda: self.podyd("image", "build", IMAGE))
            self._have_image(SMALL, lambda: small.make(SMALL, self.images, self.environment))

    @property
    def credentials(self) -> Path:
        """The directory with the service's certificate and the engine's address."""
        return Credentials.below(self.base["state_dir"], DIALECT).directory

    @property
    def images(self) -> str:
        """The project with the images of podyd's."""
        return self.project if DIALECT.has_own_images else DEFAULT

    def _have_image(self, image: str, make: Callable[[], object]) -> None:
        """Have an image for pods; the default project keeps it for other projects of tests."""
        try:
            self.lxd.get(f"/1.0/images/aliases/{image}")
        except lab.NotFoundError:
            make()
            if self.images != DEFAULT:
                self._copy_image(image, self.project, DEFAULT)
        else:
            if self.images != DEFAULT:
                self._copy_image(image, DEFAULT, self.images)

    def _copy_image(self, image: str, source: str, target: str) -> None:
        def tokens() -> set[str]:
            return {item["id"] for item in self.operations(source) if item["class"] == "token"}

        before = tokens()
        copy = ("image", "copy", f"local:{image}", "local:", f"--alias={image}")
        self.lxc(*copy, f"--target-project={target}", project=source)
        # The command begins one for another server to fetch the image, and here nobody does.
        for token in tokens() - before:
            self.lxd.change("DELETE", f"/1.0/operations/{token}")

    @property
    def pool_drivers(self) -> set[str]:
        """The kinds of storage pools that LXD can make here."""
        answer = self.lxd.get("/1.0")["environment"]["storage_supported_drivers"]
        return {item["Name"] for item in answer}

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": ":".join(filter(None, (str(self.library), os.environ.get(MEASURED)))),
            "PYTHONDONTWRITEBYTECODE": "1",
            lab.ENGINE.variable: str(Path(self.lab_state.socket).parent),
            "LC_ALL": "C.UTF-8",
            **{
                key: value
                for key, value in os.environ.items()
                if key.lower().endswith("_proxy") or key == "COVERAGE_PROCESS_START"
            },
        }

    def write_config(self, changes: Mapping[str, Any], path: Path | None = None) -> Path:
        path = path or self.directory / f"podyd-{secrets.token_hex(3)}.yaml"
        path.write_text(yaml.safe_dump(merged(self.base, changes)))
        path.chmod(0o644)
        return path

    def command(
        self,
        *words: str,
        environment: Mapping[str, str] | None = None,
        constants: Mapping[str, float] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`podyd WORDS`, as root; `constants` as of `serve`."""
        return subprocess.run(
            [PYTHON, "-m", "podyd", *words],
            env={**(environment or self.environment), **self._with(constants or {})},
            cwd="/",
            text=True,
            capture_output=True,
            check=False,
        )

    def podyd(self, *words: str, changes: Mapping[str, Any] | None = None) -> str:
        """`podyd WORDS --config …`, which must succeed; what it printed."""
        done = self.command(*words, "--config", str(self.write_config(changes or {})))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start_helper(self) -> subprocess.Popen[bytes]:
        """`podyd auth`, as root."""
        config = str(self.write_config({}))
        log = (self.directory / "auth.log").open("ab")
        with log:
            self._helper = subprocess.Popen(
                [PYTHON, "-m", "podyd", "auth", "--config", config, "--user", self.account],
                env=self.environment,
                cwd="/",
                stderr=log,
            )
        path = Path(self.base["auth"]["socket"])
        wait_until(path.is_socket, "the helper's socket")
        return self._helper

    @property
    def helper(self) -> subprocess.Popen[bytes]:
        assert self._helper is not None
        return self._helper

    def start_packing(self) -> subprocess.Popen[bytes]:
        """`podyd packing`, as root."""
        config = self.write_config({})
        with (self.directory / "packing.log").open("ab") as log:
            self._packing = subprocess.Popen(
                [PYTHON, "-m", "podyd", "packing", "--config", config, "--user", self.account],
                env=self.environment,
                cwd="/",
                stderr=log,
            )
        path = Path(self.base["auth"]["socket"]).with_name("packing.sock")
        wait_until(path.is_socket, "the socket of 'podyd packing'")
        return self._packing

    @property
    def cards_socket(self) -> Path:
        return Path(self.base["auth"]["socket"]).with_name("cards.sock")

    def start_cards(self, way: str = "") -> subprocess.Popen[bytes]:
        """`podyd cards`, as root with those of its rights that its unit leaves; `way` is the only
        one that it may take, else that of the host."""
        config = self.write_config({})
        constants = {"podyd.node.card_enforcement.WAYS": way} if way else {}
        path = self.cards_socket
        # One that was killed has left it, and another may not ask whose it is.
        path.unlink(missing_ok=True)
        with (self.directory / "cards.log").open("ab") as log:
            self._cards = subprocess.Popen(
                [
                    *("setpriv", "--no-new-privs", "--bounding-set", _rights_of_cards()),
                    *(PYTHON, "-m", "podyd", "cards", "--config", str(config)),
                    *("--user", self.account),
                ],
                env={**self.environment, **self._with(constants)},
                cwd="/",
                stderr=log,
            )
        wait_until(lambda: _answers(path), "'podyd cards'")
        return self._cards

    def start_relay(self) -> subprocess.Popen[bytes]:
        """`podyd ports`, as podyd's own account, where only that may go."""
        path = Path(self.base["ports"]["socket"])
        account = pwd.getpwnam(self.account)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
            os.chown(path.parent, account.pw_uid, account.pw_gid)
        with (self.directory / "ports.log").open("ab") as log:
            self._relay = subprocess.Popen(
                [PYTHON, "-m", "podyd", "ports", "--config", str(self.write_config({}))],
                env=self.environment,
                cwd="/",
                stderr=log,
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
            )
        wait_until(lambda: _answers(path), "the relay")
        return self._relay

    @property
    def relay(self) -> subprocess.Popen[bytes]:
        assert self._relay is not None
        return self._relay

    def launch(
        self,
        config: Path,
        *,
        environment: Mapping[str, str] | None = None,
        constants: Mapping[str, float] | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        as_root: bool = False,
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """`podyd serve` as its own account; its log goes to a file.

        `constants` are as of `serve`, `prefix` are the words of a command that begins podyd in its
        own place, `as_root` if it leaves root behind itself.
        """
        log = self.directory / f"{config.stem}.log"
        account = pwd.getpwnam(self.account)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*prefix, PYTHON, "-m", "podyd", "serve", "--config", str(config)],
                env={**self.environment, **(environment or {}), **self._with(constants or {})},
                pass_fds=pass_fds,
                cwd="/",
                stdout=output,
                stderr=output,
                user=0 if as_root else account.pw_uid,
                group=0 if as_root else account.pw_gid,
                extra_groups=[],
            )
        return process, log

    def serve(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        constants: Mapping[str, float] | None = None,
        prefix: Sequence[str] = (),
    ) -> Server:
        """Start `podyd serve` and wait until it answers and follows LXD.

        `constants` are such of podyd's modules ("podyd.api.frames.START_SECONDS") as this one
        has others, for a test that would wait for long, or that a slow machine would keep waiting;
        `prefix` is as of `launch`.
        """
        environment = {**(environment or {}), **self._with(constants or {})}
        server = self.serve_soon(changes, environment=environment, prefix=prefix)
        server.wait_for_log(FOLLOWING)
        return server

    def _with(self, constants: Mapping[str, float | str]) -> Mapping[str, str]:
        """The environment in which Python sets these before it runs podyd, or does not run it."""
        if not constants:
            return {}
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        directory.chmod(0o755)
        lines = []
        for name, value in constants.items():
            module, _, constant = name.rpartition(".")
            lines.append(
                f"import {module}\nassert hasattr({module}, {constant!r})\n{name} = {value!r}\n"
            )
        # Python itself would go on without what this could not do.
        body = textwrap.indent("".join(lines), "    ")
        end = "import os, traceback\n    traceback.print_exc()\n    os._exit(99)"
        text = f"try:\n{body}except Exception:\n    {end}\n"
        (directory / "sitecustomize.py").write_text(text)
        return {"PYTHONPATH": f"{directory}:{self.environment['PYTHONPATH']}"}

    def serve_soon(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Server:
        """Start `podyd serve` and wait until it answers, LXD or not."""
        port = free_port()
        config = self.write_config(merged(changes or {}, {"listen": f"127.0.0.1:{port}"}))
        process, log = self.launch(config, environment=environment, prefix=prefix)
        server = Server(process, port, config, log)
        LOGS[port] = log
        self._servers.append(server)

        def answers() -> bool:
            assert process.poll() is None, server.log_text()
            with contextlib.suppress(OSError):
                return server.client().get("/version").status == 200
            return False

        wait_until(answers, "podyd's first answer", START_SECONDS)
        return server

    # --- LXD, as the admin sees it ---------------------------------------------------------------

    def lxc(self, *words: str, check: bool = True, project: str = "") -> str:
        """`lxc WORDS` or `incus WORDS`, by default in the tests' project, as an admin types it."""
        # LXD refuses a change that comes while it makes one of podyd's.
        refused = "operation has now succeeded"
        while True:
            done = subprocess.run(
                [lab.ENGINE.command, "-q", "--project", project or self.project, *words],
                env={**self.environment, "HOME": str(self.directory)},
                stdin=subprocess.DEVNULL,
                text=True,
                capture_output=True,
                check=False,
            )
            if not check or refused not in done.stderr:
                break
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def snapshot(self, instance: str, name: str) -> None:
        """Take a snapshot, for which each engine's command has other words."""
        self._change("POST", f"{instance}/snapshots", {"name": name})

    def restore(self, instance: str, snapshot: str) -> None:
        """Restore an instance, its settings too."""
        self._change("PUT", instance, {"restore": snapshot})

    def delete_snapshot(self, instance: str, name: str) -> None:
        self._change("DELETE", f"{instance}/snapshots/{name}", {})

    def _change(self, method: str, path: str, body: Mapping[str, Any]) -> None:
        self.lxd.change(method, f"/1.0/instances/{path}?project={self.project}", dict(body))

    def instances(self) -> dict[str, Json]:
        answer = self.lxd.get(f"/1.0/instances?recursion=1&project={self.project}")
        return {item["name"]: item for item in answer}

    def instance_of(self, user: str, ins: str) -> Json:
        """LXD's own view of a pod, by its owner key."""
        keys = {"user.podyd.owner": user, "user.podyd.ins": ins}
        instances = [
            item for item in self.instances().values() if keys.items() <= item["config"].items()
        ]
        assert len(instances) == 1, instances
        return instances[0]

    def operations(self, project: str = "") -> list[Json]:
        """What the engine is at in a project, by default the tests'."""
        path = f"/1.0/operations?recursion=1&project={project or self.project}"
        answer = self.lxd.get(path) or {}
        return [item for items in answer.values() for item in items]

    def close(self) -> None:
        """Remove everything. Raises AssertionError if a podyd has kept something."""
        try:
            for server in self._servers:
                if server.process.poll() is None:
                    server.check_settled()
        finally:
            self._remove()

    def _remove(self) -> None:
        for server in self._servers:
            server.process.send_signal(signal.SIGCONT)
            server.process.kill()
            server.process.wait()
        if self._helper is not None:
            self._helper.send_signal(signal.SIGCONT)
            self._helper.terminate()
            self._helper.wait(10)
        for process in (self._relay, self._packing, self._cards):
            if process is not None:
                process.kill()
                process.wait()
        wipe = lab.Wipe(self.lxd, time.monotonic() + 120)
        wipe.projects(self.project)
        wipe.certificates(self.project)
        self.accounts.close()
        Path("/etc/pam.d", self.service).unlink(missing_ok=True)
        shutil.rmtree(self.directory)
        self._held.close()
        left = [path for path in self.lxd.get("/1.0/projects") if path.endswith(self.project)]
        assert not left, left


def _rights_of_cards() -> str:
    """As setpriv takes them, from the unit; systemd makes its socket there."""
    unit = (ROOT / "systemd/podyd-cards.service").read_text()
    (names,) = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    rights = ("chown", "fowner", *(name.removeprefix("CAP_").lower() for name in names.split()))
    return ",".join(("-all", *(f"+{name}" for name in rights)))


def installed_engine() -> Installed | None:
    """The engine's package."""
    return package_of(DIALECT, load(), HOST)


def open_holes() -> Mapping[str, bool | None]:
    """Whether each advisory's hole is open in the engine here, by doctor's table; None is not
    known."""
    table = load()
    installed = installed_engine()
    standing = installed and table.standing(DIALECT.key, installed)
    if not standing:
        return {}
    found: dict[str, bool | None]
    found = {item.id: False for item in table.advisories if item.product == DIALECT.key}
    found |= {item.id: None for item in standing.not_known}
    return found | {item.id: True for item in (*standing.fixable, *standing.unfixed)}


def _answers(path: Path) -> bool:
    """Whether somebody listens at a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Pool:
    """A storage pool of a test's own, and a profile with which pods have their disk there.

    No other tests' pods are on it, so what it says is used is theirs alone.
    """

    def __init__(self, node: Node, driver: str, *options: str) -> None:
        self._node = node
        self.driver = driver
        self._options = options
        self.name = f"podyd-test-{secrets.token_hex(3)}"
        slips.claim(self.name)

    @property
    def profiles(self) -> list[str]:
        return ["podyd-base", self.name]

    def __enter__(self) -> Pool:
        self._node.lxc("storage", "create", self.name, self.driver, *self._options)
        self._node.lxc("profile", "create", self.name)
        device = ("root", "disk", "path=/", f"pool={self.name}")
        self._node.lxc("profile", "device", "add", self.name, *device)
        return self

    def __exit__(self, *error: object) -> None:
        self._node.lxc("profile", "delete", self.name)
        self._node.lxc("storage", "delete", self.name)

    def count_anew(self) -> None:
        """Let btrfs count what is used; a kernel may lose count when a subvolume is deleted (6.18
        does), and then no limit of the whole pool holds."""
        if self.driver != BTRFS:
            return
        # Of what is deleted in the background, a recent kernel counts no tree higher than this.
        uuid = self._btrfs("filesystem", "show").partition("uuid: ")[2].split()[0]
        threshold = Path(f"/sys/fs/btrfs/{uuid}/qgroups/drop_subtree_threshold")
        if threshold.exists():
            threshold.write_text("8")
        for words in (("filesystem", "sync"), ("subvolume", "sync"), ("quota", "rescan", "-w")):
            self._btrfs(*words)

    def has_lost_count(self) -> bool:
        """Whether btrfs says that it has lost count of what is used: then no limit holds."""
        return self.driver == BTRFS and "inconsistent" in self._btrfs("qgroup", "show")

    def _btrfs(self, *words: str) -> str:
        """`btrfs WORDS` of this pool, as LXD sees it; what it says, warnings too."""
        lxd = str(self._node.lxd.get("/1.0")["environment"]["server_pid"])
        path = Path(self._node.lab_state.socket).parent / "storage-pools" / self.name
        command = shlex.join(["btrfs", *words, str(path)])
        return run("nsenter", "-t", lxd, "-m", "sh", "-c", f"{command} 2>&1")


# --- A line to LXD that can be cut --------------------------------------------------------------


class Line:
    """A TCP relay between podyd and LXD that can be made to hang."""

    def __init__(self, target: int, port: int = 0) -> None:
        """To LXD's port `target`; `port` is this end, by default one that is free."""
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._loses = False
        self._listener = socket.create_server(("127.0.0.1", port))
        self._sockets: list[socket.socket] = []
        self._lost: set[socket.socket] = set()
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def hang(self) -> None:
        """From now on nothing passes."""
        self._open.clear()

    def lose(self) -> None:
        """From now on what is sent is lost for good, as are the connections of until `pass_on`."""
        self._loses = True
        self._lost.update(self._sockets)

    def pass_on(self) -> None:
        """Everything passes again."""
        self._loses = False
        self._open.set()

    def cut(self) -> None:
        """End the connections that there are; new ones are made as before."""
        for item in list(self._sockets):
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._open.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # LXD is away.
                near.close()
                continue
            self._sockets += [near, far]
            if self._loses:
                self._lost |= {near, far}
            threading.Thread(target=self._serve, args=(near, far), daemon=True).start()

    def _serve(self, near: socket.socket, far: socket.socket) -> None:
        """One connection, until both of its ends have been closed."""
        with near, far:
            back = threading.Thread(target=self._relay, args=(far, near), daemon=True)
            back.start()
            self._relay(near, far)
            back.join()
        self._sockets.remove(near)
        self._sockets.remove(far)
        self._lost -= {near, far}

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                if source not in self._lost:
                    sink.sendall(data)
        for item in (source, sink):
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A process that hangs meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def children(pid: int) -> Sequence[int]:
    """The processes that a process has started and that are there."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def pids(words: str) -> list[int]:
    """The processes of this machine, its pods' too, that have exactly this command line."""
    wanted = words.replace(" ", "\0").encode() + b"\0"
    numbers = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            if path.read_bytes() == wanted:
                numbers.append(int(path.parent.name))
    return numbers


def started(words: str) -> int:
    """How many processes have exactly this command line."""
    return len(pids(words))


@dataclass(frozen=True)
class Running:
    """A process in a pod, with its pid on the host, as NVML would give it."""

    pid: int
    cmd: str


@contextlib.contextmanager
def process_in(
    client: Client, ins: str, words: str = "sleep", script: str = "{}"
) -> Iterator[Running]:
    """A process of its own in a pod of the client's, of these words and a number, which stand for
    {} in the `script` that begins it; it is killed at the end."""
    cmd = f"{words} {secrets.randbelow(10**9) + 10**9}"
    client.exec(ins, f"setsid {script.format(cmd)} >/dev/null 2>&1 &")
    wait_until(lambda: started(cmd) == 1, cmd)
    (pid,) = pids(cmd)
    try:
        yield Running(pid, cmd)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not started(cmd), f"{cmd} to end")
