"""No way round a lease: what root of a pod may try with a card that the pod has no longer.

Everything is tried in both ways that a host may have: the `devices` hierarchy of cgroup v1, and a
program at the cgroup of v2. The cards are the lab's, so that the kernel itself says whether anybody
has one open.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podyd.node.card_enforcement import WAYS
from podyd.node.payloads import Hierarchy, hierarchies
from tests.integration.harness import PYTHON, SMALL, Node, run, wait_until
from tests.lab import lab

Json = Any
CARD = "/dev/dri/card0"
NUMBER = f"4:{lab.FIRST_TERMINAL}"
MOUNTED = hierarchies(Path("/proc/self/mountinfo").read_text())
CONTROLLERS = {"cgroup1": "devices", "bpf": ""}

pytestmark = pytest.mark.usefixtures("lab_cards")


def is_open() -> bool:
    """Whether any process of this machine has the first card open, as the kernel says."""
    with open("/dev/tty0", "rb", buffering=0) as screen:
        state = fcntl.ioctl(screen, 0x5603, bytes(6))  # VT_GETSTATE
    return bool(struct.unpack("HHH", state)[2] >> lab.FIRST_TERMINAL & 1)


class Helper:
    """A connection to `podyd cards`."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rwb")

    def ask(self, request: Json) -> Json:
        self._file.write(json.dumps(request).encode() + b"\n")
        self._file.flush()
        return json.loads(self._file.readline())

    def permit(self, table: dict[str, list[str]]) -> Json:
        return self.ask({"permit": table})

    def holders(self) -> list[Json]:
        answer: list[Json] = self.ask({"holders": None})["holders"]
        return answer

    def end(self, *holders: Json, kill: bool = True) -> int:
        ended: int = self.ask({"end": [pick(holder) for holder in holders], "kill": kill})["ended"]
        return ended

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def pick(holder: Json) -> Json:
    return {"pid": holder["pid"], "started": holder["started"]}


# --- Pods ---------------------------------------------------------------------------------------

# A process of the pod's root: its cgroups, namespaces and uid; who has made it waits for it.
ENTER = """
import array, ctypes, os, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
SPACES = ("user", "net", "pid", "mnt")
def enter(pid, groups):
    spaces = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in SPACES]
    for group in groups:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write("0")
    for space in spaces:
        call("setns", space, 0)
    child = os.fork()
    if child:
        os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    os.setresgid(0, 0, 0), os.setresuid(0, 0, 0)
    # A process that has changed its uid may not look at itself in /proc else.
    call("prctl", 4, 1, 0, 0, 0)
def open_card(path="/dev/dri/card0"):
    return os.open(path, os.O_RDWR | os.O_NOCTTY)
def ready():
    print("ready", flush=True)
def mount(source, target, kind=None, flags=0):
    call("mount", source.encode(), target.encode(), kind and kind.encode(), flags, None)
NEWNS, NEWUSER, BIND, PRIVATE = 0x20000, 0x10000000, 4096, 16384 | 1 << 18
NEW = NEWNS | NEWUSER | 0x2000000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
def container():
    # Become the first process of a container: with namespaces of all kinds, and a root of its own.
    call("unshare", NEW)
    for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    child = os.fork()
    if child:
        os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    mount("none", "/", flags=PRIVATE), mount("none", "/tmp", "tmpfs"), os.chdir("/tmp")
    os.mkdir("old"), os.mkdir("dev"), open("dev/card", "w").close()
    mount("/dev/dri/card0", "dev/card", flags=BIND)
    call("pivot_root", b".", b"old")
    os.chdir("/"), call("umount2", b"/old", 2)
    assert os.listdir("/dev") == ["card"] and os.getpid() == 1
"""


@dataclass
class Pod:
    """A pod with a card's device, whether or not it may open that."""

    node: Node
    name: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self) -> None:
        self.node.lxc("start", self.name)

    def stop(self) -> None:
        self.node.lxc("stop", "-f", self.name)

    def init(self) -> int:
        url = f"/1.0/instances/{self.name}/state?project={self.node.project}"
        pid: int = self.node.lxd.get(url)["pid"]
        return pid

    def groups(self) -> list[str]:
        """Where its first process is, in each hierarchy that counts."""
        text = Path(f"/proc/{self.init()}/cgroup").read_text()
        return [f"{item.root}{item.path_in(text)}" for item in MOUNTED.values()]

    def run(self, code: str, groups: Sequence[str] = ()) -> subprocess.Popen[str]:
        """A process of the pod's root, which has said that it is ready."""
        return ready(self.begin(code, groups))

    def begin(self, code: str, groups: Sequence[str] = ()) -> subprocess.Popen[str]:
        enter = f"enter({self.init()}, {groups or self.groups()!r})"
        process = subprocess.Popen(
            [PYTHON, "-c", f"{ENTER}\n{enter}\n{code}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def opens(self) -> bool:
        """Whether a new process of its root can open the card."""
        process = self.run("ready()\ntry: open_card()\nexcept PermissionError: sys.exit(13)")
        code = process.wait(20)
        assert code in (0, 13)
        return code == 0

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        self.processes.clear()


def ready(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.args
    return process


@pytest.fixture(scope="module")
def cards_node() -> Iterator[Node]:
    """A machine of its own: these tests say what its pods may open."""
    node = Node()
    try:
        yield node
    finally:
        node.close()


def make(node: Node, name: str) -> Pod:
    node.lxc("init", SMALL, name, "-p", "podyd-base")
    node.lxc("config", "device", "add", name, "g0", "gpu", f"pci={lab.DEFAULT_CARDS[0].pci}")
    return Pod(node, name)


@dataclass
class Site:
    """A machine whose helper refuses cards in one way; two pods on it."""

    node: Node
    way: str
    hierarchy: Hierarchy
    process: subprocess.Popen[bytes]
    helper: Helper
    one: Pod
    two: Pod

    def restart(self, meanwhile: Callable[[], None]) -> None:
        """Kill the helper, and start it again."""
        self.helper.close()
        self.process.kill()
        self.process.wait()
        meanwhile()
        self.process = self.node.start_cards(self.way)
        self.helper = Helper(self.node.cards_socket)


@pytest.fixture(scope="module", params=WAYS.split())
def way(cards_node: Node, request: pytest.FixtureRequest) -> Iterator[Site]:
    name: str = request.param
    if CONTROLLERS[name] not in MOUNTED:
        pytest.skip(f"this machine has no cgroups for {name}")
    process = cards_node.start_cards(name)
    helper = Helper(cards_node.cards_socket)
    pods = [make(cards_node, f"{kind}-{name}") for kind in ("one", "two")]
    site = Site(cards_node, name, MOUNTED[CONTROLLERS[name]], process, helper, *pods)
    assert helper.permit({}) == {"way": name, "problem": ""}
    for pod in pods:
        pod.start()
    yield site
    site.helper.close()
    site.process.terminate()
    site.process.wait(10)
    for pod in pods:
        cards_node.lxc("delete", "-f", pod.name)


@pytest.fixture
def site(way: Site) -> Iterator[Site]:
    """The first pod may have the card, the other one may not."""
    assert way.helper.permit({way.one.name: [NUMBER]}) == {"way": way.way, "problem": ""}
    yield way
    for pod in (way.one, way.two):
        pod.close()
    wait_until(lambda: not is_open(), "the card to be closed")


# --- Opening ------------------------------------------------------------------------------------


def test_a_pod_opens_what_it_is_permitted_while_it_is(site: Site) -> None:
    assert site.one.opens()
    assert not site.two.opens()
    site.helper.permit({site.two.name: [NUMBER]})
    assert not site.one.opens()
    assert site.two.opens()


CONTAINER = "a container in the pod"
# What is done while the pod may have the card, and what then opens it no longer.
WAYS_ROUND = {
    "a descriptor that was kept": (
        "kept = open_card()",
        "open_card(f'/proc/self/fd/{kept}')",
    ),
    "another process' descriptor": (
        "kept = open_card(); parent = os.getpid(); gate = os.pipe()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.close(kept); os.read(gate[0], 1)\n"
        "    try: open_card(f'/proc/{parent}/fd/{kept}')\n"
        "    except PermissionError: os._exit(13)\n"
        "    os._exit(1)",
        "os.write(gate[1], b'x')\n"
        "    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 13: raise PermissionError",
    ),
    "a bind mount": (
        "call('unshare', NEWNS); mount('none', '/', flags=PRIVATE)\n"
        "open('/root/stash', 'w').close(); mount('/dev/dri/card0', '/root/stash', flags=BIND)",
        "open_card('/root/stash')",
    ),
    "a user namespace": (
        "call('unshare', NEWUSER | NEWNS)\nopen('/proc/self/uid_map', 'w').write('0 0 1')",
        "open_card()",
    ),
    "a user namespace with a descriptor": (
        "kept = open_card(); call('unshare', NEWUSER | NEWNS)\n"
        "open('/proc/self/uid_map', 'w').write('0 0 1')",
        "open_card(f'/proc/self/fd/{kept}')",
    ),
    "a node of its own": (
        "call('unshare', NEWNS); mount('none', '/', flags=PRIVATE); mount('none', '/tmp', 'tmpfs')",
        "os.mknod('/tmp/card', 0o20666, os.makedev(4, 10)); open_card('/tmp/card')",
    ),
    CONTAINER: ("container()", "open_card('/dev/card')"),
    "a container with a descriptor": (
        "kept = open_card(); container()",
        "open_card('/dev/card')",
    ),
    "a devtmpfs of its own": (
        "call('unshare', NEWNS); mount('none', '/', flags=PRIVATE)",
        "mount('none', '/tmp', 'devtmpfs'); open_card('/tmp/nvidia0')",
    ),
}


def test_what_was_kept_does_not_open_it_again(site: Site) -> None:
    below = [f"{group}/below" for group in site.one.groups()]
    for group in below:
        Path(group).mkdir()

    def begin(way_round: tuple[str, str], groups: Sequence[str]) -> subprocess.Popen[str]:
        before, after = way_round
        return site.one.begin(
            f"{before}\nready()\nsys.stdin.readline()\n"
            f"try:\n    {after}\nexcept PermissionError: sys.exit(13)",
            groups,
        )

    processes = {name: begin(way_round, ()) for name, way_round in WAYS_ROUND.items()}
    first, *_ = WAYS_ROUND.values()
    processes["in a cgroup below the pod's"] = begin(first, below)
    processes["a container in a cgroup below the pod's"] = begin(WAYS_ROUND[CONTAINER], below)
    for process in processes.values():
        ready(process)
    site.helper.permit({})
    for process in processes.values():
        process.communicate("go\n", timeout=20)
    assert {name: process.returncode for name, process in processes.items()} == dict.fromkeys(
        processes, 13
    )


def test_a_cgroup_below_has_a_card_again_with_its_pod(site: Site) -> None:
    groups = [f"{group}/again" for group in site.one.groups()]
    for group in groups:
        Path(group).mkdir()
        # As the kernel has them where the pod's own root has made it.
        for path in (Path(group), *Path(group).iterdir()):
            os.chown(path, 100_000, 100_000)
    process = site.one.run("ready()\nsys.stdin.readline()\nopen_card()", groups)
    site.helper.permit({})
    site.helper.permit({site.one.name: [NUMBER]})
    process.communicate("go\n", timeout=20)
    assert process.returncode == 0


# --- What is open -------------------------------------------------------------------------------

SLEEP = "ready()\ntime.sleep(1000)"
PASS = (
    "near, far = socket.socketpair()\nkept = open_card()\n"
    "socket.send_fds(near, [b'x'], [kept]); os.close(kept)\n"
)
HOLD = {
    "a descriptor": f"kept = open_card()\n{SLEEP}",
    "by a thread alone": (
        "def run():\n    call('unshare', 0x400)\n    kept = open_card()\n    ready()\n"
        "    time.sleep(1000)\n"
        "threading.Thread(target=run).start()"
    ),
    "by a thread whose first has ended": (
        "def run():\n    time.sleep(0.1)\n    kept = open_card()\n    ready()\n"
        "    time.sleep(1000)\n"
        "threading.Thread(target=run).start()\nlibc.syscall(60, 0)"
        if os.uname().machine == "x86_64"
        else f"kept = open_card()\n{SLEEP}"
    ),
    "in a container, by its first process": f"container()\nkept = open_card('/dev/card')\n{SLEEP}",
    "in a container, by another process": (
        "container()\nchild = os.fork()\nif child: os.wait(), os._exit(0)\n"
        f"kept = open_card('/dev/card')\n{SLEEP}"
    ),
    "stopped": "kept = open_card()\nready()\nos.kill(os.getpid(), signal.SIGSTOP)",
    "deaf to SIGTERM": (
        f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\nkept = open_card()\n{SLEEP}"
    ),
    "passed to another process": (
        f"{PASS}child = os.fork()\n"
        "if not child:\n    socket.recv_fds(far, 1, 1)\n    ready()\n    time.sleep(1000)\n"
        "near.close(); far.close(); os.wait()"
    ),
    "on its way through a socket": f"{PASS}{SLEEP}",
    "on its way in a socket that is on its way": (
        f"{PASS}third, fourth = socket.socketpair()\n"
        f"socket.send_fds(third, [b'x'], [far.fileno()]); far.close()\n{SLEEP}"
    ),
    "in an io_uring": (
        "parameters = ctypes.create_string_buffer(120)\n"
        "ring = libc.syscall(425, 4, parameters)\n"
        "kept = open_card()\n"
        "assert not libc.syscall(427, ring, 2, (ctypes.c_int * 1)(kept), 1)\n"
        f"os.close(kept)\n{SLEEP}"
    ),
}


def possible() -> dict[str, str]:
    """Those that this kernel has."""
    ring = ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(120))
    if ring < 0:
        return {name: code for name, code in HOLD.items() if "io_uring" not in name}
    os.close(ring)
    return HOLD


def test_a_card_that_is_taken_away_is_closed(site: Site) -> None:
    processes = {name: site.one.begin(code) for name, code in possible().items()}
    for process in processes.values():
        ready(process)
    assert is_open()
    site.helper.permit({})

    def ended() -> bool:
        holders = site.helper.holders()
        assert all(holder["cgroup"] == site.one.name for holder in holders)
        assert not any(holder["is_init"] for holder in holders), (
            "the pod's, not a container's in it"
        )
        assert all(holder["numbers"] == [NUMBER] for holder in holders)
        site.helper.end(*holders)
        return not is_open()

    def left() -> list[str]:
        return [name for name, process in processes.items() if process.poll() is None]

    wait_until(ended, f"{left()} to end")
    wait_until(lambda: not left(), f"{left()} to end")


def test_only_what_is_open_is_ended(site: Site) -> None:
    """By the pid and the start of a process of a pod, and nothing else."""
    (holder,) = held = [site.one.run(f"kept = open_card()\n{SLEEP}")]
    site.one.run(SLEEP)
    here = os.open("/dev/nvidia0", os.O_RDWR | os.O_NOCTTY)
    try:
        (holders,) = site.helper.holders()
        others = {
            "another start": {**holders, "started": holders["started"] + 1},
            "the host's, with the card": identity(os.getpid()),
            "a pod's first": identity(site.one.init()),
            "the host's first": identity(1),
            "the helper": identity(site.process.pid),
        }
        assert site.helper.end(*others.values()) == 0
        assert holder.poll() is None
        assert site.helper.end(holders, kill=False) == 1
    finally:
        os.close(here)
    assert held[0].wait(20) == signal.SIGTERM


def identity(pid: int) -> Json:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return {"pid": pid, "started": int(stat.rpartition(")")[2].split()[19])}


# --- A pod's life -------------------------------------------------------------------------------

INIT = """#!/bin/sh
if (exec 7<>/dev/dri/card0) 2>/tmp/why; then echo opened >/tmp/why; fi
mv /tmp/why /tmp/said
trap exit PWR
while :; do sleep 3600 & wait; done
"""


def made_to_open(site: Site, pod: Pod) -> Pod:
    """Its first process tries to open the card."""
    path = site.node.directory / "init"
    path.write_text(INIT)
    site.node.lxc("file", "push", "--mode=0755", str(path), f"{pod.name}/sbin/init")
    return pod


def said(pod: Pod) -> str:
    """What came of it."""
    pull = ("file", "pull", f"{pod.name}/tmp/said", "-")
    wait_until(lambda: bool(pod.node.lxc(*pull, check=False)), "the pod's first process")
    return pod.node.lxc(*pull)


def test_the_first_process_of_a_pod_is_refused_too(site: Site) -> None:
    pod = made_to_open(site, make(site.node, f"boot-{site.way}"))
    try:
        for table, word in (({pod.name: [NUMBER]}, "opened"), ({}, "not permitted")):
            site.helper.permit(table)
            pod.start()
            assert word in said(pod)
            pod.stop()
            site.node.lxc("file", "delete", f"{pod.name}/tmp/said")
    finally:
        site.node.lxc("delete", "-f", pod.name)


def test_a_copy_of_when_it_had_the_card_has_none(site: Site) -> None:
    assert site.one.opens()
    name = f"copy-{site.way}"
    site.node.snapshot(site.one.name, "then")
    site.node.lxc("copy", f"{site.one.name}/then", name)
    pod = Pod(site.node, name)
    try:
        pod.start()
        assert not pod.opens()
        assert site.one.opens()
    finally:
        pod.close()
        site.node.lxc("delete", "-f", name)
        site.node.delete_snapshot(site.one.name, "then")


def test_rules_outlive_the_helper_and_it_catches_up(site: Site) -> None:
    def meanwhile() -> None:
        assert site.one.opens()
        assert not site.two.opens()
        site.two.stop()
        site.two.start()
        assert site.two.opens(), "nobody was there to refuse it"

    site.restart(meanwhile)
    # By what it has kept, before anybody tells it anything.
    assert site.one.opens()
    assert not site.two.opens()


# --- Who may ask, and for what ------------------------------------------------------------------


def test_nobody_else_may_ask(site: Site) -> None:
    code = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as asking:\n"
        "    asking.connect(sys.argv[1]); print(asking.recv(1000).decode())"
    )

    def ask() -> subprocess.CompletedProcess[str]:
        command = [PYTHON, "-c", code, str(site.node.cards_socket)]
        return subprocess.run(
            command, user=65534, group=65534, capture_output=True, text=True, check=False
        )

    assert "PermissionError" in ask().stderr
    site.node.cards_socket.chmod(0o666)
    assert json.loads(ask().stdout) == {"error": "forbidden"}
    assert site.one.opens()


@pytest.mark.parametrize(
    "request_",
    [
        [],
        {},
        {"permit": {"../other": []}},
        {"permit": {"one": ["c 1:3 rwm"]}},
        {"end": [{"pid": -1, "started": 0}], "kill": True},
        {"end": [{"pid": 2**63, "started": 0}], "kill": True},
        {"end": [{"pid": 1}], "kill": True},
        {"end": [{"pid": 1, "started": 0}] * 1001, "kill": True},
        {"end": []},
    ],
)
def test_what_is_no_request_changes_nothing(site: Site, request_: Json) -> None:
    assert set(site.helper.ask(request_)) == {"error"}
    assert site.helper.ask({"enforcement": None}) == {"way": site.way, "problem": ""}


@contextlib.contextmanager
def cgroup(path: Path, owner: int = 0) -> Iterator[str]:
    path.mkdir()
    os.chown(path, owner, owner)
    try:
        yield str(path)
    finally:
        path.rmdir()


TRY = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write("0")
for path in sys.argv[2:]:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))
    except PermissionError:
        print(path)
"""


def refused(group: str, *paths: str) -> list[str]:
    """Which of these a process in a cgroup may not open."""
    return run(PYTHON, "-c", TRY, group, *paths).split()


def test_cards_alone_are_refused_and_to_podyds_pods_alone(site: Site) -> None:
    root, project = site.hierarchy.root, site.node.project
    others = ("/dev/null", "/dev/zero", "/dev/tty12", "/dev/fuse")
    # These numbers are nobody's to refuse, whatever is permitted.
    site.helper.permit({"x": ["1:5", "10:229"]})
    with cgroup(root / f"lxc.payload.{project}_x") as ours:
        assert refused(ours, CARD, *others) == [CARD]
        with cgroup(Path(ours, f"lxc.payload.{project}_inside")) as inside:
            assert refused(inside, CARD, *others) == [CARD]
    with cgroup(root / f"lxc.payload.{project}x_x") as another_project:
        assert refused(another_project, CARD) == []
    with (
        cgroup(root / project, owner=65534) as members,
        cgroup(Path(members, f"lxc.payload.{project}_x")) as forged,
    ):
        site.helper.ask({"enforcement": None})
        assert refused(forged, CARD) == []
    with (
        cgroup(root / f"{project}.slice") as roots,
        cgroup(Path(roots, f"lxc.payload.{project}_x")) as deeper,
    ):
        assert refused(deeper, CARD) == [CARD]


def test_a_cgroup_that_liblxc_had_to_number_has_the_rules_of_its_pod(site: Site) -> None:
    name = f"lxc.payload.{site.node.project}_{site.one.name}"
    for number, may in ((f"{name}-1", True), (f"{name}-1x", False)):
        with cgroup(site.hierarchy.root / number) as group:
            assert (not refused(group, CARD)) is may
