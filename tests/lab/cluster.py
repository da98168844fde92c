"""Three servers of one cluster, on one machine: each is an engine with simulated cards, as
lab.py's, in namespaces of its own, and a network joins them. As root, in the repository:

    python3 -m tests.lab.cluster up          bring up the members and join them
    python3 -m tests.lab.cluster down        take all of it away
    python3 -m tests.lab.cluster status      what each member says of the others
    python3 -m tests.lab.cluster run gpu2 CMD...
    python3 -m tests.lab.cluster cut|mend|pause|resume|kill|start|power-off|power-on gpu2

`--engine lxd|incus` says which engine; a cluster of each can be up at once, beside the labs.

To what runs in a member it is a host: it has processes, a network, a name, /etc, /var/lib, /run,
/dev and cgroups of its own, and lab.py brings the engine up there as on any other machine. /usr,
/home and /tmp are the machine's. All of a member ends with its first process, whatever kills it,
but for its cgroups and its directory, by whose names `down` finds them.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from podyd.engine.dialect import named
from tests.lab import lab, nvml

SETUP = Path(__file__).resolve().with_name("member.sh")
PARENT = Path("/var/cache")
POOL = "default"
# A member's pods are behind a bridge of its own, so all bridges can have the same addresses.
NETWORK = {"ipv4.address": "10.155.0.1/24", "ipv4.nat": "true", "ipv6.address": "none"}
# For benchmarks of networks (RFC 2544), and so nobody's. In what is for documentation (RFC 5737),
# some sandboxes have their gateway and their mirrors.
SUBNETS = {"lxd": "198.18.1", "incus": "198.18.2"}
PORT = 8443
# The engines refuse less: one beat of the heart, and a second.
OFFLINE_THRESHOLD = 11
# What is no card's and that no engine makes, as far as the machine has it.
DEVICES = (
    *("null", "zero", "full", "random", "urandom", "tty", "tty0", "console", "kmsg"),
    *("fuse", "kvm", "net/tun", "loop-control", "btrfs-control"),
)
JOIN = 'for group in $GROUPS_TO_JOIN; do echo $$ >"$group/cgroup.procs"; done; exec "$@"'
# The name of a cgroup in which nobody counts as an inner node's process.
LEAF = "init.scope"
START_TIMEOUT = 120.0

T = TypeVar("T")


def cards(member: int) -> tuple[lab.Card, ...]:
    """Those of the first, second, third member: one, two, three. Their PCI addresses are the same
    on each, as they are on servers of one make."""
    first = lab.FIRST_TERMINAL + member * (member - 1) // 2
    return tuple(
        dataclasses.replace(
            card,
            uuid=f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'podyd {member} {card.minor}')}",
            terminal=first + card.minor,
        )
        for card in lab.CARDS[:member]
    )


def hierarchies() -> list[Path]:
    return [Path(point) for point, kind in lab.mounts() if kind in ("cgroup", "cgroup2")]


def processes(cgroup: Path) -> Iterator[int]:
    """Of a cgroup and of all below it."""
    for directory, _, _ in os.walk(cgroup):
        # One that has just gone has none.
        with contextlib.suppress(OSError):
            yield from map(int, Path(directory, "cgroup.procs").read_text().split())


def is_first_of_namespace(pid: int) -> bool:
    """Whether it is process 1 in a namespace right below this one's."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[2:] == ["1"]
    return False


def is_stopped(pid: int) -> bool:
    """Whether all threads of a process are."""
    states = (task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat"))
    # A thread that has just ended has no state.
    with contextlib.suppress(OSError):
        return all(text.rpartition(")")[2].split()[0] == "T" for text in states)
    return False


@dataclasses.dataclass(frozen=True)
class Member:
    """A server of the cluster. Whatever fails raises LabError."""

    # As they are on every server.
    engine: lab.Engine
    number: int

    @property
    def name(self) -> str:
        return f"gpu{self.number}"

    @property
    def cards(self) -> tuple[lab.Card, ...]:
        return cards(self.number)

    @property
    def address(self) -> str:
        return f"{SUBNETS[self.engine.key]}.{10 + self.number}"

    @property
    def https(self) -> str:
        return f"{self.address}:{PORT}"

    @property
    def cgroup(self) -> str:
        return f"{lab.CLUSTER_PREFIX}-{self.engine.key}-{self.name}"

    @property
    def cable(self) -> str:
        """The machine's end of its network."""
        return f"{switch(self.engine)}{self.number}"

    @property
    def directory(self) -> Path:
        return directory(self.engine) / self.name

    def outside(self, path: Path) -> Path:
        """Where a file of its /etc or /var/lib is for the machine."""
        return self.directory / path.relative_to("/")

    @property
    def api(self) -> lab.Api:
        return lab.Api(self.outside(self.engine.socket))

    @property
    def driver(self) -> Path:
        """The directory of its NVML."""
        return self.directory / "nvml"

    @property
    def environment(self) -> dict[str, str]:
        """Of what runs in it: the usual one, in which its NVML is found."""
        return {
            "PATH": lab.SYSTEM_PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            **nvml.environment(self.driver),
        }

    def groups(self) -> list[Path]:
        return [top / self.cgroup for top in hierarchies()]

    def processes(self) -> list[int]:
        """All that run in it, by the machine's numbers."""
        return sorted({pid for group in self.groups() for pid in processes(group)})

    def first_process(self) -> int | None:
        """The machine's number of the member's process 1; None if it is down."""
        for pid in processes(hierarchies()[0] / self.cgroup / LEAF):
            if is_first_of_namespace(pid) and lab.is_alive(pid):
                return pid
        return None

    # --- Running something in it ------------------------------------------------------------------

    def inside(self, *words: str) -> list[str]:
        """The command that runs another one in all of its namespaces and in its cgroups."""
        first = self.first_process()
        if first is None:
            raise lab.LabError(f"{self.name} is down.")
        enter = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        return joining(
            [group / LEAF for group in self.groups()],
            ["nsenter", f"--target={first}", *enter, "--", *words],
        )

    def run(self, *words: str, timeout: float = lab.CALL_TIMEOUT) -> str:
        """What a command says, which must succeed."""
        return lab.output(self.inside(*words), timeout, self.environment)

    # --- Faults -----------------------------------------------------------------------------------

    def cut(self) -> None:
        """Pull its network cable; what runs in it goes on."""
        lab.run(["ip", "link", "set", self.cable, "down"])

    def mend(self) -> None:
        """Plug it in again."""
        lab.run(["ip", "link", "set", self.cable, "up"])

    def listens(self) -> bool:
        """Whether its engine runs, be it paused."""
        return lab.listener_pid(self.api.path) is not None

    def daemon(self) -> int:
        """The machine's number of its engine."""
        pid = lab.listener_pid(self.api.path)
        if pid is None:
            raise lab.LabError(f"The {self.engine.title} of {self.name} does not run.")
        return pid

    def pause(self) -> None:
        """SIGSTOP its engine: connections are taken and nothing is answered."""
        pid = self.daemon()
        os.kill(pid, signal.SIGSTOP)
        # One of its threads may be running meanwhile.
        if not lab.wait_for(lambda: is_stopped(pid), lab.STOP_TIMEOUT):
            raise lab.LabError(f"The {self.engine.title} of {self.name} does not stop.")

    def resume(self) -> None:
        """SIGCONT its engine."""
        os.kill(self.daemon(), signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL its engine; its pods go on."""
        lab.end([self.daemon()], signal.SIGKILL, lab.STOP_TIMEOUT)
        # Its first thread has ended; the last one closes its sockets.
        if not lab.wait_for(lambda: not self.listens(), lab.STOP_TIMEOUT):
            raise lab.LabError(f"Another process listens for the {self.engine.title} killed.")

    def start(self) -> None:
        """Start its engine, if it does not run. A member of a cluster answers only if most run."""
        described = self.outside(Path("/etc/podyd-cards.json"))
        self.run(
            lab.PYTHON,
            str(Path(lab.__file__).resolve()),
            "up",
            f"--engine={self.engine.key}",
            f"--cards=/etc/{described.name}",
            timeout=START_TIMEOUT,
        )

    def power_off(self) -> None:
        """Kill all that runs in it at once; its disk stays."""
        self.end()

    def power_on(self) -> None:
        """Begin it anew, with its engine."""
        self.begin()
        self.start()

    # --- Up and down ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make its directory."""
        own, links = self.directory / "etc", self.directory / "var/lib"
        links.mkdir(parents=True)
        shutil.copytree("/etc", own, symlinks=True, copy_function=copy_if_there)
        (own / "hostname").write_text(f"{self.name}\n")
        description = lab.cards_description(self.cards)
        (own / "podyd-cards.json").write_text(json.dumps(description))
        nvml.FakeDriver(self.driver).write(nvml.FakeNvml(nvml.gpus(self.cards)))
        for entry in os.scandir("/var/lib"):
            if not is_of_engines(Path(entry.path)):
                (links / entry.name).symlink_to(f"/run/machine/{entry.name}")

    def make_groups(self) -> None:
        for group in self.groups():
            group.mkdir(exist_ok=True)
            # Version 1 lets nobody in before these are set.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (group / "cgroup.clone_children").exists() and (group / file).exists():
                    (group / file).write_text((group.parent / file).read_text())

    def begin(self) -> None:
        """Start its first process and give it a network."""
        self.make_groups()
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        devices = " ".join(name for name in DEVICES if os.path.exists(f"/dev/{name}"))
        command = [
            "unshare",
            *namespaces,
            "--propagation=slave",
            "--fork",
            "--mount-proc",
            str(SETUP),
            self.name,
            str(self.directory),
            self.cgroup,
            devices,
        ]
        log = self.directory / "member.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                joining(self.groups(), command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )
        ready = functools.partial(self.is_ready, process)
        if not lab.wait_for(lambda: ready() or process.poll() is not None, START_TIMEOUT):
            raise lab.LabError(f"{self.name} does not start.")
        if process.returncode is not None:
            raise lab.LabError(f"{self.name} did not start: {log.read_text().strip()}")
        # It stays, as the parent, and no cgroup of version 2 has both processes and children.
        for group in self.groups():
            (group / LEAF / "cgroup.procs").write_text(str(process.pid))
        process.returncode = 0  # It outlives this: no warning about a child left running.
        self.connect()

    def is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        first = self.first_process()
        return first is not None and os.path.exists(f"/proc/{first}/root/run/ready")

    def connect(self) -> None:
        end = ["type", "veth", "peer", "name", "eth0", "netns", str(self.first_process())]
        lab.run(["ip", "link", "add", self.cable, *end])
        lab.run(["ip", "link", "set", self.cable, "master", switch(self.engine), "up"])
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def end(self) -> None:
        """Kill all that runs in it, and remove its cable and its cgroups."""
        for group in self.groups():
            # Version 1 does not kill who is frozen.
            for state in group.rglob("freezer.state"):
                with contextlib.suppress(OSError):
                    state.write_text("THAWED")
        if (first := self.first_process()) is not None:
            lab.end([first], signal.SIGKILL, lab.STOP_TIMEOUT)
        if rest := self.processes():
            lab.end(rest, signal.SIGKILL, lab.STOP_TIMEOUT)
        remove_link(self.cable)
        for group in self.groups():
            # A process that has ended leaves its cgroup a moment later.
            if not lab.wait_for(functools.partial(is_removed, group), lab.STOP_TIMEOUT):
                raise lab.LabError(f"{group} cannot be removed.")


def directory(engine: lab.Engine) -> Path:
    return PARENT / f"{lab.CLUSTER_PREFIX}-{engine.key}"


def switch(engine: lab.Engine) -> str:
    """The bridge to which all members are connected; the machine has its first address."""
    return f"podydc-{engine.key}"


def is_of_engines(path: Path) -> bool:
    """Whether it is what a lab, a cluster or an engine keeps, of which each member has its own."""
    own = [path for engine in lab.ENGINES.values() for path in (engine.directory, engine.lab_dir)]
    return path in (*own, lab.LXCFS_DIR) or path.name.startswith("podyd")


def joining(groups: Sequence[Path], words: Sequence[str]) -> list[str]:
    """The command that runs another one in some cgroups."""
    names = " ".join(map(str, groups))
    return ["env", f"GROUPS_TO_JOIN={names}", "sh", "-euc", JOIN, "sh", *words]


def copy_if_there(source: str, target: str) -> None:
    """As what useradd(8) makes for a moment is not."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def is_removed(group: Path) -> bool:
    lab.remove_cgroup(group)
    return not group.exists()


def remove_link(name: str) -> None:
    """Also while it goes by itself, with the other end's namespace."""
    device = Path("/sys/class/net", name)
    if device.exists():
        try:
            lab.run(["ip", "link", "delete", name])
        except lab.LabError:
            if device.exists():
                raise


@dataclasses.dataclass(frozen=True)
class Cluster:
    engine: lab.Engine

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(Member(self.engine, number) for number in (1, 2, 3))

    def member(self, name: str) -> Member:
        return next(member for member in self.members if member.name == name)

    def states(self, asked: Member) -> dict[str, str]:
        """Member → what another one says of it: Online, Offline, ..."""
        rows = asked.api.list("/1.0/cluster/members?recursion=1")
        return {row["server_name"]: row["status"] for row in rows}

    def is_up(self) -> bool:
        """Whether each member answers, says that all are online, and reaches them: one that has
        come back is called online for seconds in which nothing is forwarded to it."""
        online = {member.name: "Online" for member in self.members}
        with contextlib.suppress(lab.LabError):
            for member in self.members:
                if self.states(member) != online:
                    return False
                for name in online:
                    member.api.get(f"/1.0?target={name}")
            return True
        return False

    def up(self) -> None:
        if self.is_up():
            return
        self.down()
        directory(self.engine).mkdir(mode=0o711)
        bridge = switch(self.engine)
        lab.run(["ip", "link", "add", bridge, "type", "bridge"])
        lab.run(["ip", "address", "add", f"{SUBNETS[self.engine.key]}.1/24", "dev", bridge])
        lab.run(["ip", "link", "set", bridge, "up"])
        for member in self.members:
            member.prepare()
        self.at_once(Member.power_on)
        self.bootstrap()
        for member in self.members[1:]:
            self.join(member)
        self.wait()

    def wait(self) -> None:
        """Until all is as it was after `up`."""
        if not lab.wait_for(self.is_up, START_TIMEOUT):
            raise lab.LabError(f"The members do not see each other: {self.describe()}")

    def at_once(self, action: Callable[[Member], T]) -> list[T]:
        with ThreadPoolExecutor(max_workers=len(self.members)) as pool:
            return list(pool.map(action, self.members))

    def bootstrap(self) -> None:
        first = self.members[0]
        bridge = named(self.engine.key).bridge
        api = first.api
        api.change("PATCH", "/1.0", {"config": {"core.https_address": first.https}})
        api.change("POST", "/1.0/storage-pools", {"name": POOL, "driver": "dir"})
        api.change("POST", "/1.0/networks", {"name": bridge, "type": "bridge", "config": NETWORK})
        devices = {
            "root": {"type": "disk", "path": "/", "pool": POOL},
            "eth0": {"type": "nic", "name": "eth0", "network": bridge},
        }
        api.change("PATCH", "/1.0/profiles/default", {"devices": devices})
        api.change("PUT", "/1.0/cluster", {"server_name": first.name, "enabled": True})
        threshold = {"cluster.offline_threshold": str(OFFLINE_THRESHOLD)}
        api.change("PATCH", "/1.0", {"config": threshold})

    def join(self, member: Member) -> None:
        first = self.members[0]
        begun = first.api.begin("POST", "/1.0/cluster/members", {"server_name": member.name})
        token = begun["metadata"]
        words = {
            "server_name": token["serverName"],
            "fingerprint": token["fingerprint"],
            "addresses": token["addresses"],
            "secret": token["secret"],
            "expires_at": token["expiresAt"],
        }
        packed = base64.b64encode(json.dumps(words).encode()).decode()
        member.api.change(
            "PUT",
            "/1.0/cluster",
            {
                "server_name": member.name,
                "enabled": True,
                "server_address": member.https,
                "cluster_address": first.https,
                "cluster_certificate": first.api.get("/1.0")["environment"]["certificate"],
                # LXD's word for it, and Incus'.
                "cluster_password": packed,
                "cluster_token": packed,
                "member_config": [
                    {"entity": "storage-pool", "name": POOL, "key": "source", "value": ""}
                ],
            },
        )

    def down(self) -> None:
        self.at_once(Member.end)
        remove_link(switch(self.engine))
        if directory(self.engine).exists():
            shutil.rmtree(directory(self.engine))

    def describe(self) -> str:
        """A line per member."""
        return "\n".join(self.at_once(self.describe_member))

    def describe_member(self, member: Member) -> str:
        if member.first_process() is None:
            return f"{member.name}: down"
        try:
            states = ", ".join(f"{name} {state}" for name, state in self.states(member).items())
        except lab.LabError as error:
            states = str(error)
        return f"{member.name}: {member.address}, {len(member.cards)} cards; says: {states}"


FAULTS: dict[str, Callable[[Member], None]] = {
    "cut": Member.cut,
    "mend": Member.mend,
    "pause": Member.pause,
    "resume": Member.resume,
    "kill": Member.kill,
    "start": Member.start,
    "power-off": Member.power_off,
    "power-on": Member.power_on,
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A cluster of three engines with simulated GPUs.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="bring it up")
    verbs.add_parser("down", help="take all of it away")
    verbs.add_parser("status", help="say what runs")
    names = [member.name for member in Cluster(lab.ENGINE).members]
    verb = verbs.add_parser("run", help="run a command in a member")
    verb.add_argument("member", choices=names)
    verb.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD")
    for name, action in FAULTS.items():
        verb = verbs.add_parser(name, help=(action.__doc__ or "").splitlines()[0])
        verb.add_argument("member", choices=names)
    for verb in verbs.choices.values():
        verb.add_argument("--engine", choices=lab.ENGINES, default=lab.ENGINE.key)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    lab.use(arguments.engine)
    cluster = Cluster(lab.ENGINE)
    try:
        if os.geteuid() != 0:
            raise lab.LabError("The cluster needs root.")
        if arguments.verb == "run":
            member = cluster.member(arguments.member)
            command = member.inside(*arguments.words)
            return subprocess.run(command, env=member.environment, check=False).returncode
        if arguments.verb in FAULTS:
            FAULTS[arguments.verb](cluster.member(arguments.member))
        elif arguments.verb != "status":
            with lab.one_at_a_time(PARENT):
                cluster.up() if arguments.verb == "up" else cluster.down()
    except (lab.LabError, OSError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    if arguments.verb in ("up", "status"):
        print(cluster.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
