"""`pody` as members run it: a process of its own, against a real podyd."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.certificates import self_signed
from tests.integration.harness import (
    IMAGE,
    PASSWORD,
    ROOT,
    Client,
    free_port,
    started,
    wait_until,
)

# Prompt, answer and exit take milliseconds; a machine that is busy takes longer.
# LXD makes one image after the other, also for whoever else tests beside this.
PATIENCE = 60.0


@dataclass(frozen=True)
class Done:
    """What a run left behind."""

    status: int
    out: str
    err: str

    @property
    def ok(self) -> str:
        """The output of a run that succeeded without a word on stderr."""
        assert (self.status, self.err) == (0, ""), self
        return self.out

    def failed(self, status: int) -> str:
        """The one line on stderr of a run that failed with this status."""
        assert self.status == status, self
        assert self.err.startswith("pody: "), self
        assert self.err.endswith("\n"), self
        assert self.err.count("\n") == 1, self
        return self.err


@dataclass(frozen=True)
class Pody:
    """`pody`, with the environment of one user."""

    base: str
    user: str = "nobody"
    password: str = PASSWORD
    environment: Mapping[str, str] = field(default_factory=dict)
    script: str = "main"

    @property
    def command(self) -> list[str]:
        """As the console script that setup.cfg declares."""
        call = f"import sys; from podyd.client.main import {self.script}; sys.exit({self.script}())"
        return [sys.executable, "-c", call]

    @property
    def whole_environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "PODY_API_BASE": self.base,
            "PODY_USERNAME": self.user,
            "PODY_PASSWORD": self.password,
            **self.environment,
        }

    def __call__(self, *words: str | bytes, stdin: bytes | None = None) -> Done:
        done = subprocess.run(
            [*self.command, *words],
            env=self.whole_environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL if stdin is None else None,
            input=stdin,
            capture_output=True,
            # Without a terminal that it could ask, also if the tests have one.
            start_new_session=True,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextlib.contextmanager
    def at_terminal(self, *words: str) -> Iterator[Terminal]:
        """Run it at a terminal of 80 columns."""
        near, far = pty.openpty()
        try:
            process = subprocess.Popen(
                ["setsid", "--ctty", *self.command, *words],
                env=self.whole_environment,
                cwd=ROOT,
                stdin=far,
                stdout=far,
                stderr=far,
            )
            os.close(far)
            with process:
                try:
                    yield Terminal(near, process)
                finally:
                    process.kill()
        finally:
            os.close(near)

    def shown(self, *words: str) -> str:
        """What a terminal shows of a run that succeeds."""
        with self.at_terminal(*words) as terminal:
            assert terminal.end() == 0, terminal.text
            return terminal.text


class Terminal:
    """A terminal's other end: what it shows, and a keyboard."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self._process = process
        self._seen = b""

    @property
    def text(self) -> str:
        return self._seen.decode().replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, text: str, *, times: int = 1, limit: float = PATIENCE) -> None:
        wait_until(lambda: self.text.count(text) >= times or not self._read(), text, limit)
        assert self.text.count(text) >= times

    def end(self) -> int:
        """The exit status, once it has ended and all is read."""
        wait_until(lambda: not self._read(), "the end of the output", PATIENCE)
        return self._process.wait(PATIENCE)

    def _read(self) -> bool:
        """Take what there is; False at the end."""
        if not select.select([self._descriptor], [], [], 0.05)[0]:
            return True
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # The other end is closed: EIO.
            return False
        self._seen += data
        return bool(data)


@pytest.fixture(scope="session")
def pody(alice: Client) -> Pody:
    return Pody(f"http://127.0.0.1:{alice.port}", alice.user)


def as_user(client: Client, password: str = PASSWORD, **environment: str) -> Pody:
    return Pody(f"http://127.0.0.1:{client.port}", client.user, password, environment)


# --- Calls --------------------------------------------------------------------------------------


def test_get_prints_podyds_json_as_it_came(pody: Pody, alice: Client) -> None:
    expected = json.dumps(alice.get("/user/info").ok) + "\n"
    assert pody("get", "user/info").ok == expected
    assert pody("get", "/user/info", "--raw").ok == expected


def test_an_address_without_a_scheme(alice: Client, pod: str) -> None:
    bare = Pody(f"127.0.0.1:{alice.port}/", alice.user)
    assert pod in json.loads(bare("get", "pod/list").ok)


def test_a_pods_life(pody: Pody, alice: Client, ins: str) -> None:
    made = json.loads(pody("post", "pod/create", f"ins:{ins}", f"image:{IMAGE}").ok)
    assert (made["ins"], made["owner"], made["image"]) == (ins, alice.user, IMAGE)
    assert json.loads(pody("get", "pod/info", f"ins={ins}").ok)["status"] == "running"
    assert "stopped" in json.loads(pody("fetch", "pod/stop", f"ins:{ins}").ok)["log"]
    pody("fetch", "pod/delete", f"ins:{ins}").ok
    assert ins not in json.loads(pody("fetch", "pod/list").ok)


def test_podx_is_pody_fetch(pody: Pody, pod: str) -> None:
    podx = Pody(pody.base, pody.user, script="podx")
    done = json.loads(podx("pod/exec", f"ins:{pod}", "cmd:echo a=b:c; exit 3").ok)
    assert (done["stdout"], done["exit_code"]) == ("a=b:c\n", 3)
    assert json.loads(podx("--raw", "user/info").ok)["user"]["name"] == pody.user


def test_a_command_from_a_pipe(pody: Pody, pod: str) -> None:
    script = "echo 'grüß: 汉字'\nread -r x || echo none\n".encode()
    done = json.loads(pody("post", "pod/exec", f"ins:{pod}", "cmd:", stdin=script).ok)
    assert (done["stdout"], done["exit_code"]) == ("grüß: 汉字\nnone\n", 0)


def test_one_newline_of_standard_input_is_dropped(pody: Pody, pod: str) -> None:
    command = b"printf %s 'a\n\n'\n\r\n"
    done = json.loads(pody("post", "pod/exec", f"ins:{pod}", "cmd=", stdin=command).ok)
    assert done["stdout"] == "a\n\n"


def test_output_that_is_not_ascii_in_any_locale(pody: Pody, pod: str) -> None:
    latin = Pody(pody.base, pody.user, environment={"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"})
    done = latin("post", "pod/exec", f"ins:{pod}", "cmd:", stdin="echo 汉字 ü".encode())
    assert json.loads(done.ok)["stdout"] == "汉字 ü\n"


def test_a_new_password_from_a_pipe(new_user: Callable[[], Client]) -> None:
    client = new_user()
    new = "Näxt-Horse:8 =x"
    as_user(client)("fetch", "user/ch-passwd", "passwd:", stdin=f"{new}\n".encode()).ok
    as_user(client, new)("get", "user/info").ok
    as_user(client)("get", "user/info").failed(3)


def test_a_new_password_that_others_could_read(new_user: Callable[[], Client]) -> None:
    client = new_user()
    done = as_user(client)("post", "user/ch-passwd", "passwd:Next-Horse-8")
    assert (done.status, list(json.loads(done.out))) == (0, ["log"])
    assert done.err.startswith("pody: Other accounts could read the new password")
    assert done.err.count("\n") == 1
    assert "Horse" not in done.err
    as_user(client, "Next-Horse-8")("get", "user/info").ok


def test_help(pody: Pody) -> None:
    whole = pody("help").ok
    assert "pody post pod/create ins:INS image:IMAGE [gpus:GPUS] [disk:DISK]\n" in whole
    assert "pody get user/list\n" in whole
    below = pody("help", "host/").ok
    assert "pody get host/images\n" in below
    assert "pod/create" not in below
    one = pody("help", "pod/exec").ok
    assert "    cmd: a command for /bin/bash -c" in one
    raw = json.loads(pody("help", "--raw", "/pod/exec").ok)
    assert [item["path"] for item in raw] == ["/pod/exec"]
    assert "Did you mean /pod/exec" in pody("help", "pod/exek").failed(1)


@pytest.mark.parametrize("word", ["get", "post", "fetch"])
def test_a_prefix_shows_the_routes_below(pody: Pody, word: str) -> None:
    assert pody(word, "host/").ok == pody("help", "host/").ok


def test_the_figures_for_prometheus(admin: Client) -> None:
    assert "# TYPE podyd_" in as_user(admin)("get", "metrics").ok


def test_versions_need_no_login(pody: Pody) -> None:
    stranger = Pody(pody.base, environment={"PODY_PASSWORD": ""})
    assert stranger("version").ok == f"pody 0.1.0\npodyd 0.1.0 at {pody.base}\n"
    assert stranger("--version").ok == "pody 0.1.0\n"


# --- Errors -------------------------------------------------------------------------------------


def test_a_refusal(pody: Pody) -> None:
    done = pody("get", "pod/info", "ins:none")
    assert "none" in done.failed(1)
    assert done.out == ""
    raw = pody("get", "--raw", "pod/info", "ins:none")
    raw.failed(1)
    assert json.loads(raw.out)["code"] == "no_such_pod"


def test_an_unknown_route_names_the_nearest(pody: Pody) -> None:
    for word in ("get", "post", "fetch"):
        assert "Did you mean /pod/list?" in pody(word, "pod/lst").failed(1)
    assert "%0A" in pody("get", "pod/\n?x#y").failed(1)


def test_a_wrong_password(pody: Pody, alice: Client) -> None:
    wrong = Pody(pody.base, pody.user, "wrong")
    message = wrong("get", "user/info").failed(3)
    assert "wrong" in message
    assert pody.user in message
    raw = wrong("fetch", "user/info", "--raw")
    raw.failed(3)
    assert json.loads(raw.out)["code"] == "unauthorized"


def test_no_password_and_nobody_to_ask(pody: Pody) -> None:
    nobody = Pody(pody.base, environment={"PODY_PASSWORD": ""})
    assert "PODY_PASSWORD" in nobody("get", "user/info", stdin=b"guess\n").failed(3)


@pytest.mark.parametrize(
    "words",
    [
        ("get", "pod/info", "first"),
        ("get", "user/ch-passwd", "passwd:Secret-1"),
        ("get", "pod/info", b"ins:\xff"),
        ("get", b"pod/\xff"),
    ],
    ids=str,
)
def test_what_cannot_be_meant(pody: Pody, words: tuple[str | bytes, ...]) -> None:
    assert "Secret-1" not in pody(*words).failed(2)


def test_standard_input_that_is_no_text(pody: Pody) -> None:
    assert "'cmd'" in pody("post", "pod/exec", "ins:a", "cmd:", stdin=b"\xff").failed(2)


@pytest.mark.parametrize("words", [(), ("no-such",), ("get",), ("get", "x", "--no-such", "a:b")])
def test_a_wrong_command_line(pody: Pody, words: tuple[str, ...]) -> None:
    done = pody(*words)
    assert done.status == 2
    assert "usage: pody" in done.err


def test_podyd_is_away() -> None:
    base = f"http://127.0.0.1:{free_port()}"
    assert base in Pody(base)("get", "user/info").failed(4)
    assert "refused" in Pody(base)("fetch", "user/info").failed(4)
    done = Pody(base)("version")
    done.failed(4)
    assert done.out == "pody 0.1.0\n"
    assert "no-such.invalid" in Pody("https://no-such.invalid")("get", "x").failed(4)


@pytest.mark.parametrize("base", ["http://192.0.2.1:8799", "192.0.2.1:8799", "http://gpu1.lab"])
def test_no_password_crosses_the_network_in_the_clear(base: str) -> None:
    for password in (PASSWORD, ""):
        message = Pody(base, password=password)("get", "user/info").failed(2)
        assert "unencrypted" in message


def test_output_that_nobody_takes(pody: Pody) -> None:
    def run(stdout: int) -> tuple[int, bytes]:
        done = subprocess.run(
            [*pody.command, "get", "--raw", "help"],
            env=pody.whole_environment,
            cwd=ROOT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )
        return done.returncode, done.stderr

    reader, writer = os.pipe()
    os.close(reader)
    assert run(writer) == (141, b"")
    os.close(writer)
    full = os.open("/dev/full", os.O_WRONLY)
    status, output = run(full)
    os.close(full)
    assert status == 1
    assert output == b"pody: The answer cannot be written: No space left on device.\n"


def test_input_that_cannot_be_read(pody: Pody, tmp_path: Path) -> None:
    with (tmp_path / "written").open("wb") as unreadable:
        done = subprocess.run(
            [*pody.command, "post", "pod/exec", "ins:a", "cmd:"],
            env=pody.whole_environment,
            cwd=ROOT,
            stdin=unreadable,
            capture_output=True,
            check=False,
        )
    message = Done(done.returncode, done.stdout.decode(), done.stderr.decode()).failed(2)
    assert "Standard input cannot be read" in message


def test_without_input_output_or_errors(pody: Pody, pod: str) -> None:
    def run(words: str, *closed: str) -> int:
        return subprocess.run(
            ["sh", "-c", f'"$@" {words} {" ".join(closed)}', "sh", *pody.command],
            env=pody.whole_environment,
            cwd=ROOT,
            check=False,
        ).returncode

    assert run("get user/info", ">&-") == 0
    assert run("get user/info", "<&-", ">&-", "2>&-") == 0
    assert run("get no/such", "2>&-") == 1
    assert run(f"post pod/exec ins:{pod} cmd:", "<&-", ">&-", "2>&-") == 1


# --- Servers that are no podyd ------------------------------------------------------------------


class Fake(ThreadingHTTPServer):
    """A web server that says always the same, and notes what it is asked."""

    def __init__(
        self,
        *,
        status: int = 200,
        media: str = "application/json",
        body: bytes = b"[]",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        noted = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                noted.append((self.command, self.path, self.rfile.read(length)))
                self.send_response(status)
                self.send_header("Content-Type", media)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that trusts us not hangs up."""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def served(server: Fake) -> Iterator[Fake]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_parameters_of_a_post_stand_in_no_url() -> None:
    with served(Fake(body=b'{"log": "x"}')) as fake:
        Pody(fake.base)("post", "pod/exec", "ins:a", "cmd:rm ü&x=1").ok
    (method, path, body) = fake.asked[0]
    assert (method, path) == ("POST", "/pod/exec")
    assert parse_qs(body.decode(), strict_parsing=True) == {"ins": ["a"], "cmd": ["rm ü&x=1"]}


def test_below_a_path_of_a_proxy() -> None:
    with served(Fake()) as fake:
        assert Pody(f"{fake.base}/lab/")("get", "pod/list", "a:b c").ok == "[]\n"
    assert fake.asked == [("GET", "/lab/pod/list?a=b+c", b"")]


@pytest.mark.parametrize(
    ("status", "media", "body"),
    [
        (200, "text/html", b"<html>Welcome to nginx!</html>"),
        (502, "text/html", b"<html>Bad gateway</html>"),
        (200, "application/json", b"{"),
        (200, "application/json", b"\xff"),
        (200, "application/json", "[]".encode("utf-16")),
        (200, "application/json", b"[" * 100_000),
        (404, "application/json", b'{"error": "x"}'),
        (401, "application/json", b"[]"),
    ],
)
def test_a_server_that_is_no_podyd(status: int, media: str, body: bytes) -> None:
    with served(Fake(status=status, media=media, body=body)) as fake:
        message = Pody(fake.base)("get", "user/info").failed(4)
    assert "is no podyd" in message
    assert fake.base in message


@pytest.mark.parametrize("body", [b"[]", b"{}", b'[{"path": "/x", "methods": []}]', b'["GET"]'])
def test_a_help_that_is_not_podyds(body: bytes) -> None:
    with served(Fake(body=body)) as fake:
        for words in (("help",), ("fetch", "user/info")):
            assert "is no podyd" in Pody(fake.base)(*words).failed(4)


def test_a_version_that_is_not_podyds() -> None:
    with served(Fake(body=b'{"a": "\\u001b[2J"}')) as fake:
        assert "is no podyd" in Pody(fake.base)("version").failed(4)


def test_a_redirect_is_not_followed() -> None:
    with (
        served(Fake()) as target,
        served(Fake(status=307, headers={"Location": target.base})) as fake,
    ):
        done = Pody(fake.base)("post", "user/ch-passwd", "passwd:", stdin=b"x")
        assert target.base in done.failed(4)
    assert target.asked == []


def test_an_answer_cannot_steer_the_terminal() -> None:
    body = b'{"detail": "\\u001b]0;x\\u0007 \xc2\x9b2J", "code": "\xc2\x9b"}'
    with served(Fake(status=400, body=body)) as fake:
        message = Pody(fake.base)("get", "x").failed(1)
        with Pody(fake.base).at_terminal("get", "x", "--raw") as terminal:
            assert terminal.end() == 1
    assert message == "pody: \\x1b]0;x\\x07 \\x9b2J\n"
    assert "\x1b" not in terminal.text
    assert "\x9b" not in terminal.text


def test_what_podyd_adds_to_an_answer() -> None:
    hint = {"X-Podyd-Hint": "No image: type 'podyd image build'. \x9b2J"}
    shown = "pody: No image: type 'podyd image build'. \\x9b2J\n"
    with served(Fake(headers=hint)) as fake:
        for words in (("host/images",), ("host/images", "--raw")):
            assert Pody(fake.base)("get", *words) == Done(0, "[]\n", shown)
        assert Pody(fake.base).shown("get", "host/images") == f"(none)\n{shown}"
        assert Pody(fake.base).shown("get", "host/images", "--raw") == f"[]\n{shown}"


@pytest.mark.parametrize(
    ("header", "shown"),
    [("1", "1 new notice: pody notices"), ("12", "12 new notices: pody notices"), ("\xb2\x9b", "")],
)
def test_new_notices_are_said_at_a_terminal(header: str, shown: str) -> None:
    with served(Fake(headers={"X-Podyd-Notices": header})) as fake:
        assert Pody(fake.base)("ls") == Done(0, "[]\n", "")
        last = f"pody: {shown}\n" if shown else ""
        assert Pody(fake.base).shown("ls").endswith(f"address\n{last}")
        assert len(fake.asked) == 2, "without another request"


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_a_server_that_speaks_no_http(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            near, _ = listener.accept()
            near.sendall(greeting)
            near.recv(65536)
            near.close()

        thread = threading.Thread(target=greet)
        thread.start()
        message = Pody(f"http://127.0.0.1:{listener.getsockname()[1]}")("get", "user/info").failed(
            4
        )
        thread.join()
    assert ("not use HTTP" if greeting else "closed the connection") in message


def test_in_the_clear_where_that_is_asked_for() -> None:
    # To Linux 0.0.0.0 is this machine; to pody it is not a loopback address.
    with served(Fake()) as fake:
        base = fake.base.replace("127.0.0.1", "0.0.0.0")
        Pody(base)("get", "pod/list").failed(2)
        assert fake.asked == []
        assert Pody(base, environment={"PODY_INSECURE": "1"})("get", "pod/list").ok == "[]\n"


# --- TLS ----------------------------------------------------------------------------------------


def certificate(directory: Path, *, days: int = 1) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = self_signed(key, "a lab", since_days=2, days=days, address="127.0.0.1")
    path = directory / "server.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@contextlib.contextmanager
def served_by_tls(pem: Path) -> Iterator[str]:
    """The address of a web server with this certificate."""
    fake = Fake()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    fake.socket = context.wrap_socket(fake.socket, server_side=True)
    with served(fake):
        yield fake.base.replace("http", "https")


def test_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    with served_by_tls(pem) as base:
        message = Pody(base)("get", "pod/list").failed(4)
        assert "not trusted" in message
        assert "--cacert" in message
        assert Pody(base)("get", "pod/list", "--cacert", str(pem)).ok == "[]\n"
        assert Pody(base, environment={"PODY_CA": str(pem)})("get", "pod/list").ok == "[]\n"
        named = base.replace("127.0.0.1", "localhost")
        message = Pody(named)("get", "pod/list", "--cacert", str(pem)).failed(4)
        assert "PODY_API_BASE" in message
        message = Pody(base.replace("https", "http"))("get", "pod/list").failed(4)
        assert "https://" in message


def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    pem = certificate(tmp_path, days=-1)
    with served_by_tls(pem) as base:
        assert "expired" in Pody(base)("get", "pod/list", "--cacert", str(pem)).failed(4)


def test_a_ca_that_cannot_be_used(pody: Pody, tmp_path: Path) -> None:
    https = Pody(pody.base.replace("http", "https"), pody.user)
    assert "No such file" in https("get", "x", "--cacert", "/no/such").failed(2)
    empty = tmp_path / "empty.pem"
    empty.touch()
    assert "empty.pem" in https("get", "x", "--cacert", str(empty)).failed(2)


def test_tls_where_there_is_none(pody: Pody) -> None:
    https = Pody(pody.base.replace("http", "https"), pody.user)
    assert "is it http://?" in https("get", "user/info").failed(4)
    with served(Fake()) as fake:
        https = Pody(fake.base.replace("http", "https"))
        assert "is it http://?" in https("get", "user/info").failed(4)


# --- At a terminal ------------------------------------------------------------------------------


def test_a_person_reads_lines_and_tables(pody: Pody, admin: Client, pod: str) -> None:
    assert pody.shown("get", "user/info") == (
        f"user:\n  name: {pody.user}\n  is_admin: no\n"
        "quota:\n  max_pods: 5\n  gpu_count: no limit\n"
        "  memory_limit: no limit\n  cpu_limit: no limit\n"
        "  disk_limit: no limit\n  disk_total: no limit\n"
        "  max_snapshots: 10\n  max_ports: 10\n  max_images: 5\n  image_size: no limit\n"
    )
    assert pod in pody.shown("get", "pod/list").splitlines()
    assert "\nstatus: running\n" in pody.shown("get", "pod/info", f"ins:{pod}")
    table = pody.shown("get", "user/list").splitlines()
    assert table[0].split() == ["name", "is_admin"]
    assert [admin.user, "yes"] in [line.split() for line in table]
    assert len({line.find(line.split()[1]) for line in table}) == 1
    assert pody.shown("get", "user/info", "--raw") == pody("get", "user/info").ok
    assert pody.shown("help", "pod/exec") == pody("help", "pod/exec").ok


def test_a_person_sees_what_the_command_wrote(pody: Pody, pod: str) -> None:
    command = r"cmd:printf '\033[1mgr\303\274n\n'; exit 3"
    shown = pody.shown("post", "pod/exec", f"ins:{pod}", command)
    assert shown == "\x1b[1mgrün\npody: The command ended with exit status 3.\n"
    assert pody.shown("post", "pod/exec", f"ins:{pod}", "cmd:printf a") == "a\n"
    late = pody.shown("post", "pod/exec", f"ins:{pod}", "cmd:echo a; sleep 60", "timeout:0.5")
    assert late.startswith("a\npody: The command reached its timeout")


def test_the_password_is_asked_for_unseen(pody: Pody) -> None:
    # Without PODY_USERNAME it is the local user.
    asking = Pody(pody.base, "", "", {"LOGNAME": pody.user})
    with asking.at_terminal("get", "user/info") as terminal:
        terminal.wait_for(f"Password of {pody.user!r} at {pody.base}: ")
        terminal.type(f"{PASSWORD}\n")
        assert terminal.end() == 0
    assert f"name: {pody.user}" in terminal.text
    assert PASSWORD not in terminal.text


def test_a_new_password_is_asked_for_twice(new_user: Callable[[], Client]) -> None:
    client = new_user()
    for again, status in (("Another-2", 2), ("Next-Horse-8", 0)):
        with as_user(client).at_terminal("fetch", "user/ch-passwd", "passwd:") as terminal:
            terminal.wait_for("New password: ")
            terminal.type("Next-Horse-8\n")
            terminal.wait_for("Again: ")
            terminal.type(f"{again}\n")
            assert terminal.end() == status
        assert "Horse" not in terminal.text
    as_user(client, "Next-Horse-8")("get", "user/info").ok


def test_a_new_password_that_get_would_show_is_not_asked_for(pody: Pody) -> None:
    with pody.at_terminal("get", "user/ch-passwd", "passwd:") as terminal:
        assert terminal.end() == 2
    assert "URL" in terminal.text


def test_a_value_from_the_keyboard(pody: Pody, pod: str) -> None:
    with pody.at_terminal("post", "pod/exec", f"ins:{pod}", "cmd:") as terminal:
        terminal.wait_for("cmd: type")
        terminal.type("echo $((6*7))\n\x04")
        assert terminal.end() == 0
    assert terminal.text.endswith("\n42\n")


def test_ctrl_c(pody: Pody, pod: str) -> None:
    command = "sleep 86399"
    with pody.at_terminal("post", "pod/exec", f"ins:{pod}", f"cmd:{command}") as terminal:
        wait_until(lambda: started(command) == 1, command)
        terminal.type("\x03")
        assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    wait_until(lambda: started(command) == 0, f"{command} to end")


@pytest.mark.parametrize(("key", "status"), [("\x03", 130), ("\x04", 3)], ids=["c", "d"])
def test_ctrl_at_the_password(pody: Pody, key: str, status: int) -> None:
    with Pody(pody.base, pody.user, "").at_terminal("get", "user/info") as terminal:
        terminal.wait_for("Password")
        terminal.type(key)
        assert terminal.end() == status
    assert "Traceback" not in terminal.text


# --- By itself ----------------------------------------------------------------------------------


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_it_starts_soon_and_without_any_library() -> None:
    def seconds() -> float:
        """Of the processor, whatever else it does."""
        begun = cpu_of_children()
        # -S: no package that is installed can be imported.
        command = [sys.executable, "-S", "-m", "podyd.client", "--help"]
        shown = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, check=True).stdout
        assert b"PODY_API_BASE" in shown
        return cpu_of_children() - begun

    assert min(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pody fe", "fetch"),
        ("pody cp shar", "shared:"),
        ("pody cp shared:a debian/sour", "debian/source/"),
    ],
)
def test_the_shell_completes_words(pody: Pody, pod: str, line: str, words: str) -> None:
    assert completed(pody, line) == words


def completed(pody: Pody, line: str) -> str:
    """What a shell is told that completes a line."""
    pytest.importorskip("argcomplete")
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    return Pody(pody.base, pody.user, environment=asked)().out
