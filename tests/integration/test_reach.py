"""From a member's own machine into a pod: ports, the real ssh, and scp, as one types them there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import re
import secrets
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.harness import (
    IMAGE,
    PASSWORD,
    PYTHON,
    ROOT,
    Client,
    Node,
    started,
    wait_until,
)
from tests.integration.test_client import PATIENCE, Done, Fake, Pody, as_user, served

MEGABYTE = 1024**2
KEYGEN = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "")


@dataclass(frozen=True)
class Laptop:
    """A member's own machine: an account with a home, and pody on its PATH."""

    account: str
    home: Path
    path: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def begin(self, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        entry = pwd.getpwnam(self.account)
        shell = {"PATH": self.path, "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        return subprocess.Popen(
            words,
            env={**shell, **self.environment},
            cwd=self.home,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
            start_new_session=True,
        )

    def __call__(self, *words: str, stdin: bytes | None = None) -> Done:
        source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        with self.begin(*words, stdin=source) as process:
            try:
                out, err = process.communicate(stdin, timeout=30)
            finally:
                process.kill()
        return Done(process.returncode, out.decode(), err.decode())

    @contextlib.contextmanager
    def forwarding(self, pod: str, *ports: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        """`pody forward`, and the port of this machine that it listens on."""
        with self.begin("pody", "forward", pod, *ports) as process:
            try:
                assert process.stdout is not None
                output = process.stdout.readline().decode()
                match = re.fullmatch(
                    r"127\.0\.0\.1:(\d+) is forwarded to port \d+ of pod .*\n", output
                )
                assert match is not None, (output, process.communicate(timeout=5))
                yield process, int(match[1])
            finally:
                process.kill()


@pytest.fixture(scope="module")
def laptop(node: Node, alice: Client) -> Laptop:
    """Alice's, of another name than her account on the server."""
    home = node.directory / "home of a member"
    name = node.accounts.user("", "-d", str(home))
    (home / "bin").mkdir(parents=True)
    script = home / "bin" / "pody"
    script.write_text(
        f"#!{PYTHON} -I\nimport sys\nsys.path.insert(0, {str(node.library)!r})\n"
        "from podyd.client.main import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    account = pwd.getpwnam(name)
    for path in (home, *home.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid)
    environment = {
        "PODY_API_BASE": f"http://127.0.0.1:{alice.port}",
        "PODY_USERNAME": alice.user,
        "PODY_PASSWORD": PASSWORD,
    }
    logged_out = Laptop(name, home, f"{home}/bin:/usr/bin:/bin", environment)
    assert logged_out("pody", "login").status == 0
    # From now on the token, and the name that it is for.
    return Laptop(name, home, logged_out.path, {"PODY_API_BASE": environment["PODY_API_BASE"]})


# --- Ports --------------------------------------------------------------------------------------

SERVER = """
use Socket;
socket(S, PF_INET, SOCK_STREAM, 0); setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
bind(S, pack_sockaddr_in(%d, inet_aton("127.0.0.1"))) or die; listen(S, 64);
$SIG{CHLD} = "IGNORE";
while (accept(C, S)) { if (!fork) { %s; exit } close C }
"""
ECHO = """
while (sysread(C, $d, 65536)) {
  for ($n = 0; $n < length $d;) { $n += syswrite(C, $d, 65536, $n) }
}
"""
# It says all that it has to say, and then reads to the end.
TELL_FIRST = """
syswrite(C, "hello"); shutdown(C, 1);
while (sysread(C, $d, 65536)) { $all .= $d }
open F, ">/root/told"; print F $all; close F
"""


@pytest.fixture(scope="module")
def services(alice: Client, pod: str) -> None:
    """What listens in the pod, on its loopback alone."""
    for port, what in ((4001, ECHO), (4002, TELL_FIRST)):
        text = shlex.quote(SERVER % (port, what))
        alice.exec(pod, f"setsid perl -e {text} >/dev/null 2>&1 </dev/null &")
    for port in (4001, 4002):
        listening = f"grep -q ':{port:04X} .* 0A ' /proc/net/tcp"
        wait_until(lambda: alice.exec(pod, listening)["exit_code"] == 0, "the services")  # noqa: B023


def send(near: socket.socket, data: bytes) -> None:
    """Send all, and say that no more comes."""
    near.sendall(data)
    near.shutdown(socket.SHUT_WR)


def received(near: socket.socket) -> bytes:
    """All that comes."""
    parts = []
    while data := near.recv(65536):
        parts.append(data)
    return b"".join(parts)


@pytest.mark.usefixtures("services")
def test_many_connections_at_once(laptop: Laptop, pod: str) -> None:
    data = secrets.token_bytes(2 * MEGABYTE)
    came: list[bytes] = []

    def talk(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as near:
            sending = threading.Thread(target=send, args=(near, data))
            sending.start()
            came.append(received(near))
            sending.join()

    with laptop.forwarding(pod, "0:4001") as (_, port):
        talking = [threading.Thread(target=talk, args=(port,)) for _ in range(8)]
        for thread in talking:
            thread.start()
        for thread in talking:
            thread.join()
    assert [len(item) for item in came] == [len(data)] * 8
    assert all(item == data for item in came)
    wait_until(lambda: not relays(), "the relays to end")


def relays() -> list[Path]:
    """The relays of all pods, as this machine sees them."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0] == b"perl" and b"podyd-end" in b"".join(words):
                pids.append(path)
    return pids


@pytest.mark.usefixtures("services")
def test_each_direction_ends_by_itself(laptop: Laptop, alice: Client, pod: str) -> None:
    with (
        laptop.forwarding(pod, "0:4002") as (_, port),
        socket.create_connection(("127.0.0.1", port), PATIENCE) as near,
    ):
        assert received(near) == b"hello"
        near.sendall(b"heard")
        near.shutdown(socket.SHUT_WR)
        answer = lambda: alice.exec(pod, "cat /root/told")["stdout"] == "heard"  # noqa: E731
        wait_until(answer, "what was sent later")


@pytest.mark.usefixtures("services")
def test_what_is_refused_is_said_once_and_it_goes_on(laptop: Laptop, pod: str) -> None:
    with laptop.forwarding(pod, "0:4003", "0:4001") as (process, port):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as near:
                assert received(near) == b""
        assert process.stdout is not None
        other = int(process.stdout.readline().split()[0].partition(b":")[2])
        with socket.create_connection(("127.0.0.1", other), PATIENCE) as near:
            near.sendall(b"x")
            assert near.recv(1) == b"x"
            # All that is open ends with it.
            process.send_signal(signal.SIGINT)
            assert received(near) == b""
        _, output = process.communicate(timeout=10)
        assert process.returncode == 130
    assert output.decode().splitlines() == [
        "Ctrl-C ends this.",
        f"pody: Nothing listens on port 4003 in pod {pod}.",
    ]
    wait_until(lambda: not relays(), "the relays to end")


@pytest.mark.usefixtures("services")
def test_more_connections_than_a_member_may_have(laptop: Laptop, pod: str) -> None:
    with contextlib.ExitStack() as stack:
        process, port = stack.enter_context(laptop.forwarding(pod, "0:4001"))
        opened = []
        for number in range(21):
            near = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            near.sendall(b"x")
            opened.append(near.recv(1))
            assert opened[-1] == (b"x" if number < 20 else b""), number
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=10)
    assert b"20 shells and commands of yours are open" in output
    wait_until(lambda: not relays(), "the relays to end")


@pytest.mark.usefixtures("services")
def test_standard_input_and_output(laptop: Laptop, pod: str) -> None:
    data = "grüß\n" * 100_000
    assert laptop("pody", "forward", pod, "4001", "--stdio", stdin=data.encode()).ok == data
    refused = laptop("pody", "forward", pod, "4003", "--stdio").failed(1)
    assert refused == f"pody: Nothing listens on port 4003 in pod {pod}.\n"


def test_what_cannot_be_led(laptop: Laptop, alice: Client, pod: str) -> None:
    for words in (("x",), ("0",), ("1:2:3",), ("65536",), ("1", "2", "--stdio")):
        assert "port" in laptop("pody", "forward", pod, *words).err
        assert laptop("pody", "forward", pod, *words).status == 2
    assert "no pod 'none'" in laptop("pody", "forward", "none", "80").failed(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use" in laptop("pody", "forward", pod, f"{port}:80").failed(2)


def test_what_listens_in_a_pod_is_listed() -> None:
    body = b'[{"port": 8888, "address": "127.0.0.1", "protocol": "tcp", "host_port": null}]'
    with served(Fake(body=body)) as fake:
        done = Pody(fake.base)("forward", "a")
        shown = Pody(fake.base).shown("forward", "a")
    assert done.out.encode() == body + b"\n"
    assert shown.splitlines()[1].split() == ["8888", "tcp", "127.0.0.1", "-"]
    missing = b'{"detail": "There is no route", "code": "no_such_route"}'
    with served(Fake(status=404, body=missing)) as fake:
        assert "pody forward a 8888" in Pody(fake.base)("forward", "a").failed(1)


# --- ssh ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(laptop: Laptop, pod: str) -> Laptop:
    """The same, once its key is in the pod."""
    assert "ssh-keygen -t ed25519" in laptop("pody", "copy-id", pod).failed(2)
    file = f"{laptop.home}/.ssh/id_ed25519"
    laptop("mkdir", "-m", "700", f"{laptop.home}/.ssh").ok
    laptop(*KEYGEN, "-C", "it's $(mine)", "-f", file).ok
    assert "private key" in laptop("pody", "copy-id", pod, file).failed(2)
    assert f"pody ssh {pod}" in laptop("pody", "copy-id", pod).ok
    return laptop


def test_the_key_is_there_once(keyed: Laptop, alice: Client, pod: str) -> None:
    file = keyed.home / ".ssh" / "id_ed25519.pub"
    alice.exec(pod, "rm -r /root/.ssh")
    for _ in range(2):
        keyed("pody", "copy-id", pod, str(file)).ok
    shown = alice.exec(pod, "cd /root/.ssh && stat -c %a . authorized_keys && cat authorized_keys")
    assert shown["stdout"] == f"700\n600\n{file.read_text()}"
    # A line that is no key, and that has no end.
    line = 'cd /root/.ssh; line="# $(cat authorized_keys)"; printf %s "$line" >authorized_keys'
    alice.exec(pod, line)
    other = f"{keyed.home}/other"
    keyed(*KEYGEN, "-C", "", "-f", other).ok
    for name in (f"{other}.pub", str(file), str(file)):
        keyed("pody", "copy-id", pod, name).ok
    keys = alice.exec(pod, "cat /root/.ssh/authorized_keys")["stdout"]
    expected = (f"# {file.read_text()}", Path(f"{other}.pub").read_text(), file.read_text())
    assert keys.splitlines() == [text.strip() for text in expected]


def test_ssh_to_a_pod(keyed: Laptop, pod: str) -> None:
    done = keyed("pody", "ssh", pod, "--", "id -un; uname -n; echo err >&2; exit 7")
    assert (done.status, done.err) == (7, "err\n")
    assert done.out.splitlines()[0] == "root"
    data = "x" * MEGABYTE
    assert keyed("pody", "connect", pod, "-T", "cat", stdin=data.encode()).ok == data


@dataclass(frozen=True)
class AtHome(Pody):
    """Pody as it is installed on the laptop."""

    program: str = ""

    @property
    def command(self) -> list[str]:
        return [self.program]


def test_a_terminal_by_ssh(keyed: Laptop, alice: Client, pod: str) -> None:
    base = keyed.environment["PODY_API_BASE"]
    program = f"{keyed.home}/bin/pody"
    pody = AtHome(base, alice.user, environment={"HOME": str(keyed.home)}, program=program)
    with pody.at_terminal("ssh", pod, "-i", f"{keyed.home}/.ssh/id_ed25519") as terminal:
        terminal.wait_for("#")
        terminal.type("sleep 97301\r")
        wait_until(lambda: started("sleep 97301") == 1, "the command")
        terminal.type("\3")
        terminal.type("echo status=$?\r")
        terminal.wait_for("status=130")
        terminal.type("exit 6\r")
        assert terminal.end() == 6


def test_what_keeps_ssh_out(keyed: Laptop, alice: Client, pod: str) -> None:
    assert "no pod 'none'" in keyed("pody", "ssh", "none").failed(255)
    asked = Laptop(keyed.account, keyed.home, keyed.path, {"PODY_API_BASE": "http://127.0.0.1:9"})
    assert "pody login" in asked("pody", "ssh", pod).failed(255)
    alice.exec(pod, "mv /usr/sbin/sshd /usr/sbin/sshd-away")
    try:
        assert "openssh-server" in keyed("pody", "ssh", pod, "true").failed(255)
    finally:
        alice.exec(pod, "mv /usr/sbin/sshd-away /usr/sbin/sshd")


def test_ssh_alone_by_what_pody_wrote(keyed: Laptop, new_user: object, pod: str) -> None:
    config = keyed.home / ".ssh" / "config"
    config.write_bytes(b"Host *\n    ServerAliveInterval 5\n# gr\xfc\xdf\r\n")
    config.chmod(0o644)
    for _ in range(2):
        assert f"pod-{pod}" in keyed("pody", "ssh-config", "--write").ok
    text = config.read_bytes()
    assert text.count(b"Include") == 1
    assert text.endswith(b"\n\nHost *\n    ServerAliveInterval 5\n# gr\xfc\xdf\r\n")
    assert config.stat().st_mode & 0o777 == 0o644
    (own,) = (keyed.home / ".ssh" / "pody.d").iterdir()
    assert own.stat().st_mode & 0o777 == 0o600
    assert own.read_text() == keyed("pody", "ssh-config").ok
    # As from a desktop: nothing of pody in the environment.
    bare = Laptop(keyed.account, keyed.home, "/usr/bin:/bin")
    assert bare("ssh", "-oBatchMode=yes", f"pod-{pod}", "uname -n; exit 3").status == 3
    file = keyed.home / "a file"
    file.write_bytes(secrets.token_bytes(MEGABYTE))
    file.chmod(0o644)
    bare("scp", "-q", str(file), f"pod-{pod}:/root/b").ok
    bare("scp", "-q", f"pod-{pod}:/root/b", f"{keyed.home}/c").ok
    assert (keyed.home / "c").read_bytes() == file.read_bytes()


def newcomers_page() -> list[str]:
    """The commands of README's page, without what cannot run here."""
    text = (ROOT / "README.md").read_text().partition("## From login to nvidia-smi")[2]
    block = text.partition("\n    ")[2].partition("\n\n")[0]
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    begins = {line.split()[0] for line in lines}
    assert {"pip", "export", "pody", "ssh", "scp"} <= begins, lines
    elsewhere = ("pip ", "export ", "pody forward ")
    return [line for line in lines if not line.startswith(elsewhere)]


def test_the_newcomers_page(keyed: Laptop, alice: Client) -> None:
    password = {**keyed.environment, "PODY_USERNAME": alice.user, "PODY_PASSWORD": PASSWORD}
    keyed("mkdir", "-p", "project/data").ok
    for line in newcomers_page():
        typed = dataclasses.replace(keyed, environment=password) if "login" in line else keyed
        done = typed("sh", "-c", line.replace("debian12", IMAGE))
        assert (done.status, done.err) == (0, ""), (line, done)
        if line.startswith("pody new"):
            smi = "echo echo a card >/usr/bin/nvidia-smi; chmod +x /usr/bin/nvidia-smi"
            assert alice.exec("first", smi)["exit_code"] == 0
        elif "nvidia-smi" in line:
            assert done.out == "a card\n", line
    assert alice.exec("first", "ls /root/project")["stdout"] == "data\n"
    # Made again, it has other host keys, and ssh knows them.
    keys = "cat /etc/ssh/ssh_host_*_key.pub"
    before = keyed("ssh", "pod-first", keys).ok
    for words in (("rm", "first", "--yes"), ("new", "first", "--image", IMAGE)):
        keyed("pody", *words).ok
    keyed("pody", "copy-id", "first").ok
    # At once: its sshd has yet to make its keys and to begin.
    assert keyed("ssh", "-oBatchMode=yes", "pod-first", keys).ok != before
    keyed("pody", "rm", "first", "--yes").ok


def test_a_pod_with_other_keys_than_podyd_says(keyed: Laptop, alice: Client, pod: str) -> None:
    file = "/etc/ssh/ssh_host_ed25519_key.pub"
    others = f"cd /root && cp {file} kept && ssh-keygen -q -t ed25519 -N '' -f k && cp k.pub {file}"
    assert alice.exec(pod, others)["exit_code"] == 0
    try:
        done = keyed("pody", "ssh", pod, "-oHostKeyAlgorithms=ssh-ed25519", "true")
    finally:
        alice.exec(pod, f"cd /root && cp kept {file} && rm k k.pub kept")
    assert done.status == 255
    assert "Host key verification failed" in done.err


# --- Usage --------------------------------------------------------------------------------------


def test_stat(alice: Client) -> None:
    pody = as_user(alice)
    for what in ("cputime", "gputime"):
        assert pody("stat", what).out == pody("get", f"stat/{what}").out
    table = pody("get", "stat/gpu-hours", "format:csv").ok
    assert table.splitlines()[0] == "user,hours,leased_hours"
    body = b'{"bob": 3600, "alice": 7200.0, "\\u001b[2J": 0}'
    with served(Fake(body=body)) as fake:
        assert Pody(fake.base).shown("stat", "gputime", "1w").splitlines() == [
            "user     time",
            f"alice    2 h   {'█' * 30}",
            f"bob      1 h   {'█' * 15}",
            "\\x1b[2J  0 s",
        ]
    assert fake.asked[0][1] == "/stat/gputime?t=1w"
    assert "disk" in pody("stat", "disk").err
