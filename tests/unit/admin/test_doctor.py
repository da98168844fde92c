"""What `podyd doctor` says of files and programs that a test has made."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from podyd import __version__
from podyd.admin import kernel
from podyd.admin.doctor import engine, host, limits, nvidia, pods, service
from podyd.admin.doctor.case import Case, HostPaths
from podyd.admin.doctor.diagnosis import diagnose
from podyd.admin.doctor.finding import AS_ROOT, Finding, Level, Remark, check, error, ok
from podyd.base.errors import SetupError
from podyd.cli.doctor import show
from podyd.config.loader import parse as parse_config
from podyd.config.schema import Config
from podyd.engine.admin import Admin, Bridge
from podyd.engine.dialect import INCUS, LXD
from podyd.engine.types import PciCard, Profile
from podyd.node.controllers import ALL, Controllers
from podyd.node.host_files import HostFiles, ProcessFiles
from podyd.node.samples import Failure, Gpu, Sample
from tests.unit.pods.test_half_made import half_made
from tests.unit.pods.test_power import POD

ADDRESS = "0000:41:00.0"
DRIVER = "535.183.01"


@pytest.fixture
def places(tmp_path: Path) -> HostPaths:
    """A host that has nothing."""
    for name in ("pam", "proc", "sys/bus/pci/devices", "dev", "profiles", "bin"):
        (tmp_path / name).mkdir(parents=True)
    return HostPaths(
        pam=tmp_path / "pam",
        files=HostFiles(tmp_path / "proc", tmp_path / "sys", tmp_path / "dev"),
        admin_profiles=tmp_path / "profiles",
        path=str(tmp_path / "bin"),
        nvml=(str(tmp_path / "bin/nvml"),),
    )


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def program(places: HostPaths, name: str, output: str) -> None:
    """A program that writes something."""
    text = put(Path(places.path, f"{name}.out"), output)
    put(Path(places.path, name), f"#!/bin/sh\nexec /bin/cat {text}\n").chmod(0o755)


def add_card(places: HostPaths, address: str = ADDRESS, driver: str = "nvidia") -> None:
    directory = places.files.sysfs / "bus/pci/devices" / address
    put(directory / "class", "0x030200\n")
    put(directory / "vendor", "0x10de\n")
    (directory / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")


def load_driver(places: HostPaths, version: str = DRIVER) -> None:
    put(places.files.sysfs / "module/nvidia/version", f"{version}\n")


def install_library(places: HostPaths, version: str = DRIVER) -> Path:
    """The library as Debian has it: a link, then the file."""
    real = put(Path(places.path, f"libnvidia-ml.so.{version}"))
    link = real.with_name("libnvidia-ml.so.1")
    link.symlink_to(real.name)
    lines = [
        "1 libs found in cache `/etc/ld.so.cache'",
        "\tlibnvidia-ml.so.1 (libc6) => /usr/lib/i386-linux-gnu/libnvidia-ml.so.1",
        f"\tlibnvidia-ml.so.1 (libc6,x86-64) => {link}",
    ]
    program(places, "ldconfig", "\n".join(lines) + "\n")
    return real


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


# --- What makes a check -------------------------------------------------------------------------


def test_a_check_does_not_fail() -> None:
    @check
    def broken(problem: Exception) -> Iterator[Remark]:
        yield error("one thing is wrong", "mend it")
        raise problem

    for problem in (OSError("no disk"), SetupError("no LXD."), ValueError("no number")):
        first, second = broken(problem)
        assert first == Finding("broken", Level.ERROR, "one thing is wrong", "mend it")
        assert second.level is Level.WARNING
        assert str(problem).rstrip(".") in second.what


def test_what_only_root_may_see_is_a_note() -> None:
    @check
    def hidden() -> Iterator[Remark]:
        raise PermissionError(13, "Permission denied", "/root/secret")
        yield

    finding = only(hidden())
    assert (finding.level, finding.do) == (Level.NOTE, "sudo podyd doctor")
    assert "/root/secret" in finding.what
    assert not finding.is_problem


def test_well_is_said_only_where_all_is_well() -> None:
    @check
    def mixed(problem: bool) -> Iterator[Remark]:
        if problem:
            yield error("wrong", "")
        yield ok("right")

    assert only(mixed(True)).what == "wrong"
    assert only(mixed(False)) == Finding("mixed", Level.OK, "right")


# --- podyd itself -------------------------------------------------------------------------------


def test_configuration(tmp_path: Path) -> None:
    path = put(tmp_path / "podyd.yaml", "lissten: 1\n")
    finding = only(service.configuration(path))
    assert finding.level is Level.ERROR
    assert "did you mean 'listen'" in finding.what
    assert str(path) in finding.do
    put(path, "listen: 127.0.0.1:1\n")
    assert only(service.configuration(path)).level is Level.OK
    path.unlink()
    assert only(service.configuration(path)).level is Level.ERROR


def test_with_a_broken_configuration_the_host_is_looked_at(
    places: HostPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LXD_DIR", "INCUS_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    findings = diagnose(put(tmp_path / "podyd.yaml", "lissten: 1\n"), places)
    levels = {item.check: item.level for item in findings}
    assert levels == {
        "configuration": Level.ERROR,
        "cgroup2": Level.WARNING,
        "nvidia_card": Level.NOTE,
    }


@pytest.fixture(autouse=True)
def none_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which engine this machine has, says nothing; so it is LXD."""
    monkeypatch.setattr("podyd.engine.dialect.running", list)


@pytest.fixture
def spoken() -> Iterator[None]:
    """Sentences name LXD again when the test is over."""
    yield
    LXD.speak()


def test_on_incus_no_sentence_is_about_lxd(
    places: HostPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoken: None
) -> None:
    monkeypatch.setenv("INCUS_DIR", str(tmp_path))
    text = f"engine: incus\nstate_dir: {tmp_path}/state\n"
    findings = diagnose(put(tmp_path / "podyd.yaml", text), places)
    assert {item.check for item in findings} >= {"certificate_files", "lxd_answers"}
    of_engine = [item.what for item in findings if "Incus" in item.what]
    assert "Incus is not running here." in of_engine[-1]
    assert len(of_engine) >= 2
    for item in findings:
        assert not re.search(r"\blx[cd]\b", f"{item.what} {item.do}", re.I), item


def test_pam_file(places: HostPaths) -> None:
    case = Case(Config(), Path("/somewhere/podyd.yaml"), places)
    finding = only(service.pam_service(case))
    assert finding.level is Level.ERROR
    assert finding.do == "podyd setup --config /somewhere/podyd.yaml"
    put(places.pam / "podyd")
    assert only(service.pam_service(case)).level is Level.OK


@contextlib.contextmanager
def answering(path: Path, answer: bytes, *, unasked: bool = False) -> Iterator[None]:
    """Somebody who answers one question at a unix socket, or says it without one."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                if not unasked:
                    connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (b'{"ok": true}\n', Level.OK),
        (b'{"error": "busy"}\n', Level.ERROR),
        (b"hello\n", Level.ERROR),
        (b"", Level.ERROR),
    ],
)
def test_login_service(tmp_path: Path, answer: bytes, level: Level) -> None:
    path = tmp_path / "auth.sock"
    config = parse_config(f"auth: {{socket: {path}}}")
    assert only(service.login_service(Case(config))).level is Level.ERROR, "nobody listens"
    with answering(path, answer):
        finding = only(service.login_service(Case(config)))
    assert finding.level is level
    assert str(path) in finding.what


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        ({"images": {"0/lxd_build_1": 7}, "scratch": None}, Level.OK),
        ({"images": None, "scratch": {}}, Level.WARNING),
        ({"error": "forbidden"}, Level.WARNING),
        ({"sizes": []}, Level.WARNING),
    ],
)
def test_packing_service(tmp_path: Path, answer: object, level: Level) -> None:
    config = parse_config(f"auth: {{socket: {tmp_path}/auth.sock}}")
    assert only(service.packing_service(Case(config))).level is Level.WARNING, "nobody listens"
    with answering(tmp_path / "packing.sock", json.dumps(answer).encode() + b"\n", unasked=True):
        finding = only(service.packing_service(Case(config)))
    assert finding.level is level


@pytest.mark.parametrize(
    ("unit", "name", "ask"),
    [
        ("podyd-auth", "auth.sock", service.login_service),
        ("podyd-packing", "packing.sock", service.packing_service),
        ("podyd-cards", "cards.sock", service.cards_service),
    ],
)
def test_a_socket_elsewhere_is_systemds_too(
    tmp_path: Path, unit: str, name: str, ask: Callable[[Case], list[Finding]]
) -> None:
    config = parse_config(f"auth: {{socket: {tmp_path}/auth.sock}}")
    advice = only(ask(Case(config))).do
    assert advice.startswith(f"systemctl edit {unit}.socket")
    assert f"'ListenStream={tmp_path}/{name}'" in advice
    assert f"systemctl restart {unit}.socket" in advice


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        ({"way": "bpf", "problem": ""}, Level.OK, "by bpf"),
        ({"way": "", "problem": "bpf: Operation not permitted"}, Level.WARNING, "not permitted"),
        ({"error": "forbidden"}, Level.WARNING, "does not answer"),
        ([], Level.WARNING, "does not answer"),
    ],
)
def test_cards_service(tmp_path: Path, answer: object, level: Level, words: str) -> None:
    config = parse_config(f"auth: {{socket: {tmp_path}/auth.sock}}")
    assert only(service.cards_service(Case(config))).level is Level.WARNING, "nobody listens"
    with answering(tmp_path / "cards.sock", json.dumps(answer).encode() + b"\n"):
        finding = only(service.cards_service(Case(config)))
    assert finding.level is level
    assert words in finding.what


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        ({"version": __version__, "refused": {}}, Level.OK),
        ({"version": "0.0.1", "refused": {}}, Level.NOTE),
        ({"version": __version__, "refused": {"20001": "in use"}}, Level.WARNING),
        ({"ok": True}, Level.WARNING),
        ([], Level.WARNING),
    ],
)
def test_port_relay(tmp_path: Path, answer: object, level: Level) -> None:
    path = tmp_path / "ports.sock"
    config = parse_config(f"ports: {{socket: {path}}}")
    assert only(service.port_relay(Case(config))).level is Level.WARNING, "nobody listens"
    with answering(path, json.dumps(answer).encode() + b"\n"):
        finding = only(service.port_relay(Case(config)))
    assert finding.level is level


def test_an_lxd_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LXD_DIR", str(tmp_path))
    assert only(engine.engine_answers(Case(Config(engine="lxd")), 0.3)).level is Level.ERROR, (
        "there is none"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "unix.socket"))
        listener.listen()
        started = time.monotonic()
        finding = only(engine.engine_answers(Case(Config(engine="lxd")), 0.3))
        assert time.monotonic() - started < 5
    assert finding.level is Level.ERROR
    assert "does not answer" in finding.what
    assert finding.do.startswith("systemctl restart lxd")


# --- The host -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cgroup.controllers", "unified/cgroup.controllers"])
def test_cgroup2(places: HostPaths, name: str) -> None:
    assert only(host.cgroup2(places)).level is Level.WARNING
    put(places.files.sysfs / "fs/cgroup" / name)
    assert only(host.cgroup2(places)).level is Level.OK


@pytest.mark.skipif(os.geteuid() != 0, reason="it gives a file away")
@pytest.mark.parametrize(
    ("options", "level", "do"),
    [
        ("rw,relatime", Level.OK, ""),
        ("rw,hidepid=0", Level.OK, ""),
        ("rw,hidepid=invisible", Level.WARNING, "mount -o remount,gid=2 /proc"),
        ("rw,hidepid=2,gid=4242", Level.WARNING, "usermod -a -G 4242 bin"),
        ("rw,gid=2,hidepid=noaccess", Level.OK, ""),
    ],
)
def test_other_processes(
    places: HostPaths, tmp_path: Path, options: str, level: Level, do: str
) -> None:
    (tmp_path / "data").mkdir()
    account = pwd.getpwnam("bin")
    os.chown(tmp_path / "data", account.pw_uid, account.pw_gid)
    put(
        places.files.proc / "self/mounts",
        f"sysfs /sys sysfs rw 0 0\nproc /proc proc {options} 0 0\n",
    )
    finding = only(host.other_processes(Case(Config(state_dir=str(tmp_path)), places=places)))
    assert finding.level is level
    assert do in finding.do


ONLY_MEMORY = frozenset({"memory"})
NEITHER = ALL - {"memory", "pids"}


@pytest.mark.parametrize(
    ("of_lxd", "says", "do"),
    [
        # cgroup v1.
        (
            Controllers(ALL, NEITHER),
            "no cgroup hierarchy memory, pids is mounted",
            "mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory;",
        ),
        (Controllers(NEITHER, NEITHER), "the kernel has no controller memory", "cgroup_enable="),
        # cgroup2.
        (
            Controllers(NEITHER, ALL, "/system.slice/lxd.service", "/", is_root=True),
            "its own cgroup /system.slice/lxd.service has no controller memory, pids",
            "systemctl edit lxd: [Service], Delegate=yes; then systemctl restart lxd",
        ),
        (
            Controllers(ONLY_MEMORY, frozenset(), "/core", "/core", is_full=True),
            "/core, the cgroup in which those of pods are made, has processes in it",
            "/sys/fs/cgroup/core/cgroup.subtree_control; then restart LXD",
        ),
        (
            Controllers(NEITHER, NEITHER, "/", "/", is_root=True),
            "the kernel has no controller memory, pids",
            "cgroup_disable=",
        ),
        (
            Controllers(NEITHER, NEITHER, "/lxd", "/"),
            "/, the cgroup in which those of pods are made, has no controller memory, pids",
            "let what runs this container delegate it",
        ),
    ],
)
def test_an_lxd_that_cannot_limit_pods(of_lxd: Controllers, says: str, do: str) -> None:
    remark, last = limits.about_limits(of_lxd, (), "lxd")
    assert (remark.level, last.level) == (Level.ERROR, Level.OK)
    assert says in remark.what
    assert "What has no limit then: memory;" in remark.what
    assert do in remark.do
    fails = "memory" in of_lxd.seen - of_lxd.passed
    assert ("do not start, and a quota in podyd.yaml is one" in remark.what) is fails


@pytest.mark.parametrize(
    ("missing", "untold", "levels"),
    [
        ((), (), [Level.OK]),
        # Of other controllers LXD may say what it likes.
        ((), ("blkio", "devices", "hugetlb"), [Level.OK]),
        ((), ("pids", "cpuacct"), [Level.ERROR, Level.OK]),
        (("io",), (), [Level.NOTE, Level.OK]),
        (("cpu", "io"), ("cpu",), [Level.WARNING, Level.OK]),
        (("cpuset",), (), [Level.ERROR, Level.OK]),
    ],
)
def test_how_bad_it_is_that_lxd_cannot_limit_something(
    missing: tuple[str, ...], untold: tuple[str, ...], levels: list[Level]
) -> None:
    there = ALL - set(missing)
    remarks = list(limits.about_limits(Controllers(there, there, "/", "/"), untold, "lxd"))
    assert [remark.level for remark in remarks] == levels


def test_an_lxd_that_has_not_seen_the_controllers_is_restarted() -> None:
    remark, _ = limits.about_limits(Controllers(ALL, ALL), ("pids", "cpuacct"), "snap.lxd.daemon")
    assert "when it started, there was no controller pids, cpu." in remark.what
    assert remark.do == "systemctl restart snap.lxd.daemon"


@pytest.mark.parametrize(
    ("bridge", "says", "do"),
    [
        (Bridge("lxdbr0", "10.0.0.1/24", True), "Pods get IPv4 addresses", ""),
        (Bridge("lxdbr0", "", True), "has no IPv4 address", "lxc network set lxdbr0 ipv4.address="),
        (
            Bridge("lxdbr0", "10.0.0.1/24", False),
            "gives pods no IPv4 addresses",
            "lxc network unset lxdbr0 ipv4.dhcp",
        ),
    ],
)
def test_a_bridge_that_gives_pods_no_addresses(bridge: Bridge, says: str, do: str) -> None:
    first, *_ = engine.about_addresses([bridge])
    assert first.level is (Level.ERROR if do else Level.OK)
    assert says in first.what
    assert first.do.startswith(do)


WHOLE = "         0          0 4294967295\n"
SMALL = "         0     100000      65536\n"
NESTED = "         0     100000      65536\n    200000     300000     100000\n"


def process_with(
    directory: Path, subuid: str | None, uid_map: str = WHOLE, *, newuidmap: bool = True
) -> ProcessFiles:
    """An engine's, with this /etc/subuid and /etc/subgid, and these ids of the kernel's."""
    put(directory / "environ").write_bytes(b"A=1\0PATH=/nowhere:/usr/bin\0")
    for kind in ("uid", "gid"):
        put(directory / f"{kind}_map", uid_map)
        if subuid is not None:
            put(directory / f"root/etc/sub{kind}", subuid)
    if newuidmap:
        put(directory / "root/usr/bin/newuidmap").chmod(0o4755)
    return ProcessFiles(directory)


@pytest.mark.parametrize(
    ("subuid", "uid_map", "newuidmap", "wrong", "do"),
    [
        ("root:100000:65536\n", WHOLE, True, "", ""),
        ("_lxd:1:65536\n# root:1:1\nroot:100000:1000\nroot:200000:65536\n", WHOLE, True, "", ""),
        ("root:100000:65535\n", WHOLE, False, "no range of root's", "root:1000000:"),
        ("root 100000\n", WHOLE, True, "does not understand", "delete it"),
        # LXD takes ids from 1000000 on, and maps them itself or lets newuidmap do it.
        ("alice:100000:65536\n", WHOLE, False, "", ""),
        (None, WHOLE, False, "", ""),
        ("alice:100000:65536\n", WHOLE, True, "newuidmap is installed", "root:1000000:"),
        (None, WHOLE, True, "newuidmap is installed", "root:1000000:"),
        # In a container that was given few ids.
        ("root:200000:65536\n", NESTED, True, "", ""),
        ("root:100000:65536\n", NESTED, True, "which is a container", "root:200000:65536"),
        ("root:100000:65536\n", SMALL, True, "which is a container", "give this container"),
        ("root:200000:1000000\n", NESTED, True, "which is a container", "root:200000:65536"),
    ],
)
def test_id_ranges(
    tmp_path: Path, subuid: str | None, uid_map: str, newuidmap: bool, wrong: str, do: str
) -> None:
    process = process_with(tmp_path, subuid, uid_map, newuidmap=newuidmap)
    findings = list(host.about_ids(process, LXD))
    problems = [item for item in findings if item.level is Level.ERROR]
    assert len(problems) == (2 if wrong else 0), findings
    for kind, item in zip(("uid", "gid"), problems, strict=False):
        assert wrong in item.what
        assert f"/etc/sub{kind}" in item.do
        assert do in item.do


def test_incus_gives_pods_all_ranges_of_roots_at_once(tmp_path: Path) -> None:
    # As where Debian's LXD was installed after Incus; the third is for members' directories.
    ranges = "root:1000000:1000000000\nroot:1001000000:10000001\nroot:1000:59000\n"
    process = process_with(tmp_path, ranges)
    uids, gids, _ = host.about_ids(process, INCUS)
    for kind, finding in (("uid", uids), ("gid", gids)):
        assert finding.level is Level.ERROR
        assert f"root has 2 ranges for pods in /etc/sub{kind}" in finding.what
        assert finding.do.startswith(f"delete root:1001000000:10000001 from /etc/sub{kind}, and")
    assert [finding.level for finding in host.about_ids(process, LXD)] == [Level.OK]


def set_limits(places: HostPaths, **values: int) -> None:
    """The kernel's limits as podyd sets them, but for these: their last words."""
    for name, value in kernel.wanted().items():
        now = values.get(name.rpartition(".")[2], value)
        put(places.files.proc / "sys" / name.replace(".", "/"), f"{now}\n")


# Debian's kernel, and that with the file of Debian's LXD.
@pytest.mark.parametrize(("instances", "pods"), [(128, 0), (128, 25), (1024, 60)])
def test_too_few_inotify_instances(places: HostPaths, instances: int, pods: int) -> None:
    set_limits(places, max_user_instances=instances)
    (finding,) = list(host.about_limits(pods, places))[:-1]
    assert finding.level is Level.WARNING
    name = "fs.inotify.max_user_instances"
    assert f"{name} is {instances}," in finding.what
    assert f"there are {pods}." in finding.what
    assert finding.do.startswith(f"sysctl -w {name}=1048576;")


@pytest.mark.parametrize("missing", [False, True])
def test_enough_of_the_kernels_limits(places: HostPaths, missing: bool) -> None:
    set_limits(places)
    if missing:  # A kernel without keyrings.
        (places.files.proc / "sys/kernel/keys/maxkeys").unlink()
    (finding,) = host.about_limits(100, places)
    assert finding.level is Level.OK


def test_limits_are_raised_and_never_lowered(places: HostPaths) -> None:
    set_limits(places, max_user_instances=128, max_user_watches=2**31, maxkeys=200)
    messages: list[str] = []
    kernel.raise_limits(messages.append, places.files)
    assert messages == [
        "raised fs.inotify.max_user_instances from 128 to 1048576",
        "raised kernel.keys.maxkeys from 200 to 10000",
    ]
    now = {limit.name: limit.now for limit in kernel.limits(places.files)}
    assert now == {**kernel.wanted(), "fs.inotify.max_user_watches": 2**31}
    kernel.raise_limits(messages.append, places.files)
    assert len(messages) == 2


def put_memory(places: HostPaths, unit: str, *, limit: str = "2147483648", **values: int) -> None:
    """A unit's cgroup, as cgroup2 shows it: 100 MiB, of which 20 are files'."""
    now = {"current": 100 * 2**20, "file": 20 * 2**20, **values}
    directory = places.files.sysfs / "fs/cgroup/system.slice" / unit
    put(directory / "memory.max", f"{limit}\n")
    put(directory / "memory.current", f"{now['current']}\n")
    put(directory / "memory.stat", f"anon 1\nfile {now['file']}\n")


def test_memory_of_the_service(places: HostPaths) -> None:
    assert service.service_memory(places) == [], "without systemd, or without cgroup2"
    put_memory(places, "podyd.service")
    put_memory(places, "podyd-auth.service", limit="max")
    finding = only(service.service_memory(places))
    assert finding.level is Level.OK
    assert finding.what == "podyd.service has 80 MiB of memory, of 2048 MiB that it may have."


def test_a_service_that_is_at_its_memory_limit(places: HostPaths) -> None:
    put_memory(places, "podyd.service")
    put_memory(places, "podyd-ports.service", current=2000 * 2**20)
    finding = only(service.service_memory(places))
    assert finding.level is Level.WARNING
    assert "beyond that" in finding.what
    assert finding.do.startswith("systemctl edit podyd-ports.service")


def test_a_service_that_was_ended_for_its_memory(places: HostPaths) -> None:
    assert service.service_killed(places) == [], "without a journal"
    remarks = "podyd.service: A process of this unit has been killed by the OOM killer.\n"
    program(places, "journalctl", 2 * remarks)
    findings = service.service_killed(places)
    assert [item.level for item in findings] == [Level.WARNING] * len(service.UNITS)
    assert "of podyd.service 2 times" in findings[0].what
    assert findings[-1].do.startswith("systemctl edit podyd-ports.service")
    program(places, "journalctl", "")
    assert service.service_killed(places) == []


def test_files_that_the_kernel_keeps_are_not_a_services_memory(places: HostPaths) -> None:
    put_memory(places, "podyd.service", current=2000 * 2**20, file=1900 * 2**20)
    assert only(service.service_memory(places)).level is Level.OK


# --- NVIDIA -------------------------------------------------------------------------------------


def test_a_host_without_cards(places: HostPaths) -> None:
    assert not nvidia.is_there(places)
    directory = places.files.sysfs / "bus/pci/devices/0000:00:01.0"
    put(directory / "class", "0x030000\n")
    put(directory / "vendor", "0x1234\n")
    add_card(places, driver="vfio-pci")
    assert not nvidia.is_there(places), "another maker's card, and one that a VM has"
    add_card(places, "0000:61:00.0")
    assert nvidia.is_there(places)
    assert places.files.nvidia_cards() == ["0000:61:00.0"]


def test_driver(places: HostPaths) -> None:
    add_card(places)
    finding = only(nvidia.nvidia_driver(places))
    assert finding.level is Level.ERROR
    assert ADDRESS in finding.what
    assert finding.do.startswith("modprobe nvidia")
    (places.files.sysfs / "module/nouveau").mkdir(parents=True)
    assert "nouveau" in only(nvidia.nvidia_driver(places)).what
    load_driver(places)
    assert only(nvidia.nvidia_driver(places)).what == f"The NVIDIA driver {DRIVER} is loaded."


@pytest.mark.parametrize(
    ("line", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC",
            "535.183.01",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build ",
            "580.65.06",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  390.48  Thu Mar 22 00:42:57", "390.48"),
    ],
)
def test_driver_version(places: HostPaths, line: str, version: str) -> None:
    assert places.files.nvidia_driver() is None
    put(places.files.proc / "driver/nvidia/version", f"{line}\nGCC version:  gcc version 12.2.0\n")
    assert places.files.nvidia_driver() == version


def test_versions(places: HostPaths) -> None:
    add_card(places)
    load_driver(places)
    finding = only(nvidia.nvidia_versions(places))
    assert (finding.level, "not installed" in finding.what) == (Level.ERROR, True)
    library = install_library(places)
    assert only(nvidia.nvidia_versions(places)).level is Level.OK
    library.rename(library.with_name("libnvidia-ml.so.535.216.01"))
    library.with_name("libnvidia-ml.so.1").unlink()
    library.with_name("libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.535.216.01")
    finding = only(nvidia.nvidia_versions(places))
    assert finding.level is Level.ERROR
    assert DRIVER in finding.what
    assert "535.216.01" in finding.what
    assert finding.do.startswith("reboot")


def test_nodes(places: HostPaths) -> None:
    load_driver(places)
    put(places.files.dev / "nvidiactl")
    finding = only(nvidia.nvidia_nodes(places))
    assert (finding.level, finding.do) == (Level.WARNING, "nvidia-modprobe -u -c 0")
    assert "nvidia-uvm" in finding.what
    put(places.files.dev / "nvidia-uvm")
    assert only(nvidia.nvidia_nodes(places)).level is Level.OK


@pytest.mark.parametrize(
    ("dwords", "level"),
    [
        ("", Level.OK),
        ("RMDisableScrubOnFree=0; RmForceEnableGen2=1", Level.OK),
        ("RmForceEnableGen2=1;rmdisablescrubonfree = 0x1", Level.WARNING),
    ],
)
@pytest.mark.parametrize("key", ["RegistryDwords", "RegistryDwordsPerDevice"])
def test_scrubbing(places: HostPaths, key: str, dwords: str, level: Level) -> None:
    assert not list(nvidia.nvidia_scrubbing(places))
    load_driver(places)
    assert not list(nvidia.nvidia_scrubbing(places))
    put(places.files.proc / "driver/nvidia/params", f'EnableMSI: 1\n{key}: "{dwords}"\n')
    finding = only(nvidia.nvidia_scrubbing(places))
    assert finding.level is level
    assert ("/etc/modprobe.d" in finding.do) == (level is Level.WARNING)


def test_nvml(places: HostPaths) -> None:
    load_driver(places)
    gpu = Gpu("GPU-1", ADDRESS, "NVIDIA A100")
    sample = Sample(0.0, DRIVER, "12.2", (gpu,))
    for line, level, words in (
        (sample.to_line(), Level.OK, ADDRESS),
        (Failure("Unknown Error", absent=False).to_line(), Level.ERROR, "Unknown Error"),
        ("", Level.ERROR, "has died"),
        ("{}", Level.ERROR, "has died"),
    ):
        program(places, "nvml", line)
        finding = only(nvidia.nvml_answers(places))
        assert (finding.level, words in finding.what) == (level, True), finding
    lost = dataclasses.replace(gpu, problem="GPU is lost")
    program(places, "nvml", Sample(0.0, DRIVER, "12.2", (gpu, lost)).to_line())
    finding = only(nvidia.nvml_answers(places))
    assert finding.what == f"Card 1 {ADDRESS} does not answer: GPU is lost."


def test_nvml_that_is_really_asked(places: HostPaths) -> None:
    """The command that podyd runs, on a machine that need not have a driver."""
    load_driver(places)
    finding = only(nvidia.nvml_answers(dataclasses.replace(places, nvml=HostPaths().nvml)))
    assert finding.check == "nvml_answers"
    assert "has died" not in finding.what


def test_nvml_that_hangs_is_ended(places: HostPaths, tmp_path: Path) -> None:
    load_driver(places)
    pid_file = tmp_path / "pid"
    text = f"#!/bin/sh\necho $$ >{pid_file}\nexec /bin/sleep 1000\n"
    put(Path(places.path, "nvml"), text).chmod(0o755)
    finding = only(nvidia.nvml_answers(places, seconds=0.5))
    assert (finding.level, "within 0.5 s" in finding.what) == (Level.ERROR, True)
    assert not Path("/proc", pid_file.read_text().strip()).exists()


def test_persistence(places: HostPaths) -> None:
    load_driver(places)
    assert nvidia.nvidia_persistence(places) == [], "without nvidia-smi nobody knows"
    program(places, "nvidia-smi", f"0000{ADDRESS}, Enabled\n00000000:61:00.0, Disabled\n")
    finding = only(nvidia.nvidia_persistence(places))
    assert finding.level is Level.NOTE
    assert "00000000:61:00.0" in finding.what
    assert ADDRESS not in finding.what
    program(places, "nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch\n")
    assert nvidia.nvidia_persistence(places) == []
    program(places, "nvidia-smi", f"0000{ADDRESS}, Enabled\n")
    assert only(nvidia.nvidia_persistence(places)).level is Level.OK


# --- Cards of pods ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "level"),
    [
        ({"type": "gpu"}, None),
        ({"type": "gpu", "pci": ADDRESS}, None),
        ({"type": "gpu", "pci": "41:00.0"}, None),
        ({"type": "gpu", "pci": "0000:C1:00.0"}, None),
        ({"type": "gpu", "pci": "0000:42:00.0"}, Level.ERROR),
        ({"type": "gpu", "id": "0"}, Level.WARNING),
    ],
)
def test_devices(device: dict[str, str], level: Level | None) -> None:
    cards = [PciCard(ADDRESS, "10de", ""), PciCard("0000:c1:00.0", "10de", "")]
    holder = pods.Holder("Profile", "profile", "podyd-gpu", {"gpu0": device})
    findings = list(pods.about_device(holder, "gpu0", device, cards, Case(Config())))
    assert [item.level for item in findings] == ([] if level is None else [level])
    for item in findings:
        assert ADDRESS in item.what
        assert item.do.startswith("lxc profile device set podyd-gpu gpu0 ")
        assert item.do.endswith("pci=ADDRESS --project podyd")


@pytest.mark.parametrize(
    ("kind", "name", "device", "do"),
    [
        ("Profile", "podyd-gpu", {"type": "gpu"}, "podyd profiles reset podyd-gpu"),
        (
            "Profile",
            "mine",
            {"type": "gpu", "pci": ADDRESS},
            "lxc profile device set mine g pci= id=nvidia.com/gpu=all --project podyd",
        ),
        (
            "Pod",
            "podyd-gpu",
            {"type": "gpu", "id": "0"},
            "lxc config device set podyd-gpu g pci= id=nvidia.com/gpu=all --project podyd",
        ),
        ("Profile", "mine", {"type": "gpu", "id": "nvidia.com/gpu=all"}, None),
        ("Profile", "mine", {"type": "gpu", "id": "nvidia.com/gpu=1"}, None),
        ("Profile", "mine", {"type": "gpu", "id": "nvidia.com/gpu=GPU-b"}, None),
        (
            "Profile",
            "mine",
            {"type": "gpu", "id": "nvidia.com/gpu=2"},
            "lxc profile device set mine g id=CARD --project podyd",
        ),
        ("Profile", "mine", {"type": "gpu", "vendorid": "1002"}, None),
        ("Profile", "mine", {"type": "gpu", "gputype": "mig", "mig.uuid": "x"}, None),
    ],
)
def test_devices_where_cards_are_given_by_cdi_ids(
    kind: str, name: str, device: dict[str, str], do: str | None
) -> None:
    cards = [
        PciCard(ADDRESS, "10de", "GPU-a", by_cdi=True),
        PciCard("0000:c1:00.0", "10de", "GPU-b", by_cdi=True),
    ]
    command = {"Profile": "profile", "Pod": "config"}[kind]
    holder = pods.Holder(kind, command, name, {"g": device})
    findings = list(pods.about_device(holder, "g", device, cards, Case(Config())))
    assert [(item.level, item.do) for item in findings] == (
        [] if do is None else [(Level.ERROR, do)]
    )


def test_the_programs_that_bring_the_driver(tmp_path: Path) -> None:
    profiles = [
        Profile("old", config={"nvidia.runtime": "true"}),
        Profile("new", devices={"g": {"type": "gpu", "id": "nvidia.com/gpu=all"}}),
        Profile("none", devices={"g": {"type": "gpu", "id": "0"}}),
    ]
    put(tmp_path / "environ", "A=b\0PATH=/snap/lxd/current/bin:/usr/bin\0")
    process = ProcessFiles(tmp_path)
    missing = list(pods.about_programs(profiles, process))
    assert [item.level for item in missing] == [Level.ERROR, Level.ERROR]
    assert "no nvidia-container-cli in" in missing[0].what
    assert missing[0].what.endswith("so no pod with profile old starts.")
    assert "no nvidia-ctk in /snap/lxd/current/bin:/usr/bin" in missing[1].what
    assert missing[1].what.endswith("so no pod with profile new starts.")
    assert missing[1].do.startswith("apt install nvidia-container-toolkit")
    put(tmp_path / "root/snap/lxd/current/bin/nvidia-ctk", "")
    found = list(pods.about_programs(profiles[1:], process))
    assert [(item.level, item.what) for item in found] == [
        (Level.OK, "LXD finds /snap/lxd/current/bin/nvidia-ctk.")
    ]


def test_cards_of_which_nobody_tells_which_is_which(places: HostPaths) -> None:
    cards = [
        PciCard(ADDRESS, "10de", ""),
        PciCard("0000:c1:00.0", "10de", "GPU-b"),
        PciCard("x", "1002", ""),
    ]
    (finding,) = pods.about_identities(cards, places)
    assert finding.level is Level.WARNING
    assert f"UUID of {ADDRESS}. podyd" in finding.what
    program(places, "nvml", Sample(1.0, DRIVER, "12.2", (Gpu("GPU-a", ADDRESS, "A"),)).to_line())
    assert not list(pods.about_identities(cards, places))
    program(places, "nvml", Failure("version mismatch", absent=False).to_line())
    assert len(list(pods.about_identities(cards, places))) == 1


def test_versions_in_a_pod(tmp_path: Path) -> None:
    assert pods.mounted_versions(ProcessFiles(tmp_path)) == set()
    line = "911 884 0:25 {root} {point} ro,nosuid,nodev master:1 - ext4 /dev/sda1 rw\n"
    library = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.535.183.01"
    text = line.format(root="/", point="/") + line.format(root=f"{library}//deleted", point=library)
    text += line.format(root="/x/libnvidia-ml.so.1.2", point="/mnt")
    # As root of a pod may have mounted it.
    text += "912 884 0:26 / /x rw - tmpfs  rw\n"
    put(tmp_path / "mountinfo", text)
    assert pods.mounted_versions(ProcessFiles(tmp_path)) == {DRIVER}


# --- What is left half-made ---------------------------------------------------------------------


def test_what_is_left_half_made_is_told() -> None:
    now = datetime.now(timezone.utc)
    there = [
        half_made("old", now - timedelta(hours=26)),
        half_made("being-made", now - timedelta(minutes=50)),
        dataclasses.replace(POD, created=now - timedelta(days=9)),
    ]
    admin = cast(Admin, SimpleNamespace(as_podyd_reads_them=lambda: there))
    case = Case(parse_config("lxd: {project: p}"))
    (finding,) = engine.half_made_pods(admin, case)
    assert finding.level is Level.WARNING
    assert "old was left half-made 26 hours ago" in finding.what
    assert finding.do == "lxc delete --force old --project p"
    del there[0]
    (finding,) = engine.half_made_pods(admin, case)
    assert finding.level is Level.OK


# --- The command --------------------------------------------------------------------------------


def test_output(capsys: pytest.CaptureFixture[str]) -> None:
    fine = Finding("a", Level.OK, "fine")
    known = Finding("b", Level.NOTE, "good to know", "look")
    wrong = Finding("c", Level.ERROR, "it is broken", "mend it")
    assert show([fine, known], as_json=False) == 0
    assert capsys.readouterr().out == "All is well.\nnote: good to know\n    look\n"
    hidden = Finding("d", Level.NOTE, "only root can look", AS_ROOT)
    assert show([fine, hidden], as_json=False) == 0
    assert capsys.readouterr().out.startswith("All is well, as far as this account may look.\n")
    assert show([fine, known, wrong], as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["error: it is broken", "    mend it", "note: good to know"]
    assert show([fine, wrong], as_json=True) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["well"] is False
    assert shown["findings"][1] == {
        "check": "c",
        "level": "error",
        "what": "it is broken",
        "do": "mend it",
    }
