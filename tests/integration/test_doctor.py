"""`podyd doctor` on a podyd of the tests' own: what it says when all is well, and when not."""

from __future__ import annotations

import dataclasses
import json
import platform
import pwd
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from podyd.admin.doctor import engine, limits
from podyd.admin.doctor.case import Case, HostPaths
from podyd.admin.doctor.diagnosis import diagnose
from podyd.admin.doctor.finding import Finding, Level
from podyd.config.schema import Config, PodsConfig
from podyd.engine.admin import Admin
from podyd.engine.dialect import LXD
from podyd.node.host_files import HostFiles
from tests.integration.harness import DIALECT, IMAGE, PYTHON, SMALL, Json, Node, Server, stopped
from tests.lab import lab

MISSING_CARD = "0000:99:00.0"
# The real cards of the host that the tests run on are not the tests' business, nor is a podyd that
# serves there.
OF_THE_HOST = {
    "nvidia_card",
    "nvidia_driver",
    "nvidia_versions",
    "nvidia_nodes",
    "nvml_answers",
    "nvidia_persistence",
    "pods_driver",
    "disk_space",
    "cgroup2",
    "service_memory",
    "service_killed",
    "lxd_limits",
    "lxd_advisories",
    "incus_advisories",
    "nvidia_advisories",
}


def doctor(
    node: Node, config: Path, constants: Mapping[str, float] | None = None
) -> tuple[int, dict[str, list[Json]]]:
    """Its exit status, and its findings by check."""
    done = node.command("doctor", "--json", "--config", str(config), constants=constants)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["well"] is (done.returncode == 0)
    findings: dict[str, list[Json]] = {}
    for item in report["findings"]:
        findings.setdefault(item["check"], []).append(item)
    return done.returncode, findings


def problems(findings: Mapping[str, list[Json]]) -> dict[str, list[Json]]:
    """What is wrong with podyd, whatever is wrong with the host."""
    return {
        check: items
        for check, items in findings.items()
        if check not in OF_THE_HOST and any(item["level"] in ("error", "warning") for item in items)
    }


def the_one(findings: Mapping[str, list[Json]]) -> Json:
    """The only problem that there is."""
    found_problems = [item for items in problems(findings).values() for item in items]
    assert len(found_problems) == 1, found_problems
    return found_problems[0]


@pytest.fixture
def seen(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests' engine is also the one that this process finds, and names."""
    monkeypatch.setenv(lab.ENGINE.variable, node.environment[lab.ENGINE.variable])
    DIALECT.speak()
    yield
    LXD.speak()


@pytest.fixture
def profile(node: Node) -> Iterator[str]:
    """A profile of a test's own."""
    name = "doctored"
    node.lxc("profile", "create", name)
    yield name
    node.lxc("profile", "delete", name)


def test_all_is_well(node: Node, server: Server) -> None:
    status, findings = doctor(node, server.config)
    assert not problems(findings)
    assert set(findings) >= {
        "configuration",
        "cgroup2",
        "pam_service",
        "login_service",
        "port_relay",
        "service_answers",
        "lxd_answers",
        f"{lab.ENGINE.key}_advisories",
        "lxd_program",
        "lxd_pool",
        "lxd_bridge",
        "lxd_limits",
        "lxd_address",
        "lxd_project",
        "lxd_profiles",
        "pod_addresses",
        "lxd_images",
        "limits_aside",
        "certificate_files",
        "certificate_trust",
        "certificate_works",
        "id_ranges",
        "kernel_limits",
        "disk_space",
        "gpu_devices",
    }
    assert ("nvidia_runtime" in findings) is bool(node.lab_state.gpus)
    wrong = [item for items in findings.values() for item in items if item["level"] != "ok"]
    if all(item["level"] == "note" for item in wrong):
        assert status == 0
        shown = node.command("doctor", "--config", str(server.config)).stdout
        assert shown.startswith("All is well.\n")


def test_it_changes_nothing(node: Node, server: Server) -> None:
    def everything() -> list[object]:
        trusted = node.lxd.get("/1.0/certificates?recursion=1")
        files = Path(node.base["state_dir"]).rglob("*")
        return [
            node.lxd.get("/1.0")["config"],
            node.lxd.get(f"/1.0/projects/{node.project}")["config"],
            node.lxd.get(f"/1.0/profiles?recursion=1&project={node.project}"),
            [item for item in trusted if item["name"] == node.project],
            sorted((str(path), path.stat().st_mtime_ns) for path in files),
        ]

    # podyd itself writes into its database each minute.
    for _ in range(3):
        before = everything()
        doctor(node, server.config)
        if (after := everything()) == before:
            return
    assert after == before


def test_what_setup_has_not_made(node: Node) -> None:
    changes = {"lxd": {"project": "podyd-test-nosuch"}, "state_dir": str(node.directory / "none")}
    config = node.write_config({**changes, "auth": {"pam_service": "podyd-test-nosuch"}})
    status, findings = doctor(node, config)
    assert status == 1
    do = f"podyd setup --config {config}"
    for check in ("pam_service", "certificate_files", "lxd_project"):
        assert [(item["level"], item["do"]) for item in findings[check]] == [("error", do)]
    assert not {"lxd_profiles", "certificate_trust", "certificate_works"} & set(findings)
    assert findings["service_answers"][0]["level"] == "warning"


def test_a_podyd_that_is_taken_apart() -> None:
    """One of its own, for others must not see it so."""
    node = Node()
    try:
        server = node.serve()
        found_problems = problems(doctor(node, server.config)[1])
        levels = {check: item["level"] for check, (item,) in found_problems.items()}
        helpers = ("packing_service", "cards_service", "port_relay")
        away = dict.fromkeys(helpers, "warning")
        assert levels == {"login_service": "error", **away}
        node.start_helper()
        node.start_relay()
        node.start_packing()
        node.start_cards()
        assert not problems(doctor(node, server.config)[1])

        trusted = node.lxd.get("/1.0/certificates?recursion=1")
        certificate = next(item for item in trusted if item["name"] == node.project)
        url = f"/1.0/certificates/{certificate['fingerprint']}"
        kept = {key: certificate[key] for key in ("type", "name", "certificate")}
        for change, words in (
            ({"restricted": False, "projects": []}, "do everything"),
            ({"restricted": True, "projects": [node.project, "default"]}, "project"),
        ):
            node.lxd.change("PUT", url, kept | change)
            status, findings = doctor(node, server.config)
            found_problems = the_one(findings)
            assert (status, found_problems["check"], found_problems["level"]) == (
                1,
                "certificate_trust",
                "error",
            )
            assert words in found_problems["what"]
            assert found_problems["do"].startswith("podyd setup")
            assert "confined" in node.podyd("setup", "--user", node.account)

        node.lxc("project", "set", node.project, "restricted.devices.disk=allow")
        node.lxc("project", "set", node.project, "restricted.containers.privilege=allow")
        node.lxc("project", "unset", node.project, "restricted.networks.access")
        key = node.credentials / "client.key"
        key.chmod(0o644)
        Path("/etc/pam.d", node.service).unlink()
        node.lxd.change("DELETE", f"/1.0/profiles/podyd-gpu?project={node.project}")
        found_problems = problems(doctor(node, server.config)[1])
        assert set(found_problems) == {
            "lxd_project",
            "certificate_files",
            "pam_service",
            "lxd_profiles",
        }
        assert [item["level"] for item in found_problems["lxd_project"]] == ["warning"] * 3
        assert [item["do"] for item in found_problems["certificate_files"]] == [f"chmod 640 {key}"]
        assert [item["level"] for item in found_problems["pam_service"]] == ["error"]
        (item,) = found_problems["lxd_profiles"]
        assert "podyd-gpu" in item["what"]
        node.lxc("project", "unset", node.project, "restricted.containers.privilege")
        key.chmod(0o640)
        node.podyd("setup", "--user", node.account)
        assert not problems(doctor(node, server.config)[1])

        node.lxd.change("DELETE", url)
        checks = problems(doctor(node, server.config)[1])
        assert set(checks) == {"certificate_trust", "certificate_works"}
        node.podyd("setup", "--user", node.account)
        assert not problems(doctor(node, server.config)[1])
    finally:
        node.close()


def test_no_image_is_offered(node: Node) -> None:
    server = node.serve({"images": {"offer": ["nosuch-*"]}})
    finding = the_one(doctor(node, server.config)[1])
    assert (finding["check"], finding["level"]) == ("lxd_images", "warning")
    assert IMAGE in finding["what"]
    assert server.stop() == 0


def test_what_hangs_is_not_waited_for(node: Node) -> None:
    server = node.serve()
    with stopped(server.process), stopped(node.helper), stopped(node.relay):
        started = time.monotonic()
        patience = {"podyd.admin.doctor.service.ANSWER_SECONDS": 2.0}
        checks = problems(doctor(node, server.config, patience)[1])
        assert time.monotonic() - started < 20
    assert set(checks) == {"login_service", "port_relay", "service_answers"}
    assert server.stop() == 0


def test_without_lxd_it_says_so(node: Node, server: Server, tmp_path: Path) -> None:
    done = subprocess.run(
        [PYTHON, "-m", "podyd", "doctor", "--config", str(server.config)],
        env=node.environment | {lab.ENGINE.variable: str(tmp_path)},
        cwd="/",
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert f"error: {lab.ENGINE.title} is not running here. Install it" in done.stdout


def test_a_card_that_is_not_there(node: Node, server: Server, profile: str) -> None:
    node.lxc("profile", "device", "add", profile, "one", "gpu", f"pci={MISSING_CARD}")
    node.lxc("profile", "device", "add", profile, "two", "gpu", "id=0")
    status, findings = doctor(node, server.config)
    assert status == 1
    items = problems(findings).pop("gpu_devices")
    assert {item["level"] for item in items} == {"error", "warning"}
    missing = next(item for item in items if item["level"] == "error")
    assert MISSING_CARD in missing["what"]
    by_id = next(item for item in items if item["level"] == "warning")
    if not node.lab_state.gpus:
        return
    assert "0000:41:00.0" in missing["what"]
    # What it says to type, typed.
    for item in items:
        words = item["do"].replace("ADDRESS", "0000:41:00.0").split()
        assert words[0] == lab.ENGINE.command
        node.lxc(*words[1:-2])
    assert "id=" in by_id["do"]
    assert not problems(doctor(node, server.config)[1])


def test_a_bridge_without_addresses(node: Node, seen: None, profile: str) -> None:
    bridge, key = f"pt{secrets.token_hex(4)}", "restricted.networks.access"
    allowed = node.lxd.get(f"/1.0/projects/{node.project}")["config"][key]
    # Networks are the default project's.
    url, without = f"/1.0/networks/{bridge}", {"ipv4.address": "none", "ipv6.address": "none"}
    admin = Admin(DIALECT, node.project, 10.0)
    case = Case(Config(pods=PodsConfig(profiles=(profile,))))
    node.lxd.change("POST", "/1.0/networks", {"name": bridge, "config": without})
    try:
        node.lxc("project", "set", node.project, f"{key}={allowed},{bridge}")
        nic = ("nictype=bridged", f"parent={bridge}")
        node.lxc("profile", "device", "add", profile, "eth0", "nic", *nic)
        (finding,) = engine.pod_addresses(admin, case)
        assert finding.level is Level.ERROR
        assert f"Bridge {bridge} has no IPv4 address" in finding.what
        # What it says to type, but for the words "lxc network set" and the bridge.
        words = finding.do.partition(",")[0].split()[4:]
        node.lxd.change("PATCH", url, {"config": dict(word.split("=") for word in words)})
        (finding,) = engine.pod_addresses(admin, case)
        assert finding.level is Level.OK
        node.lxd.change("PATCH", url, {"config": {"ipv4.dhcp": "false"}})
        (finding,) = engine.pod_addresses(admin, case)
        assert finding.do.startswith(f"{lab.ENGINE.command} network unset {bridge} ipv4.dhcp")
    finally:
        node.lxc("profile", "device", "remove", profile, "eth0")
        node.lxc("project", "set", node.project, f"{key}={allowed}")
        node.lxd.change("DELETE", url)


# In a mount namespace of its own; what follows becomes its process.
WITHOUT_TWO = "mount --make-rprivate / && umount /sys/fs/cgroup/memory /sys/fs/cgroup/pids && exec "


@pytest.fixture
def unlimited(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    """An engine of a test's own where the hierarchies of memory and pids are not mounted."""
    program = lab.daemon_program()
    if not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() or program is None:
        pytest.skip("needs cgroup v1, and the engine's own program")
    monkeypatch.setenv(lab.ENGINE.variable, str(tmp_path))
    environment = {**node.environment, lab.ENGINE.variable: str(tmp_path)}
    command = ["unshare", "--mount", "sh", "-c", f"{WITHOUT_TWO}{program} --logfile={tmp_path}/log"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            ready = [program, "waitready", "--timeout=60"]
            subprocess.run(ready, env=environment, check=True)
            yield process
        finally:
            process.kill()


def test_an_lxd_that_cannot_limit_pods(unlimited: subprocess.Popen[bytes]) -> None:
    admin = Admin(DIALECT, "default", 10.0)
    assert admin.server().pid == unlimited.pid
    findings = limits.engine_limits(admin, Case(Config()), "lxd")
    assert [item.level for item in findings] == [Level.ERROR]
    assert "no cgroup hierarchy memory, pids is mounted where it looks" in findings[0].what
    assert "Pods with a limit of memory, pids do not start" in findings[0].what
    assert "mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory;" in findings[0].do


def of(check: str, findings: list[Finding]) -> list[Finding]:
    return [item for item in findings if item.check == check]


def test_a_pod_of_an_older_driver(
    node: Node, server: Server, seen: None, tmp_path: Path, ins: str
) -> None:
    """The host is another one here: LXD and the pod are real, /proc and the driver are not."""
    if not node.lab_state.gpus:
        pytest.skip("this LXD has no simulated cards")
    client = server.client(node.accounts.user())
    client.post("/pod/create", ins=ins, image=SMALL).ok
    try:
        name = node.instance_of(client.user, ins)["name"]
        state = node.lxd.get(f"/1.0/instances/{name}/state?project={node.project}")
        mounts = tmp_path / "proc" / str(state["pid"]) / "mountinfo"
        mounts.parent.mkdir(parents=True)
        library = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.535.183.01"
        mounts.write_text(f"9 8 0:25 {library} {library} ro,nosuid - ext4 /dev/sda1 rw\n")
        version = tmp_path / "sys/module/nvidia/version"
        version.parent.mkdir(parents=True)
        version.write_text("535.216.01\n")
        places = dataclasses.replace(
            HostPaths(),
            files=HostFiles(proc=tmp_path / "proc", sysfs=tmp_path / "sys"),
            nvml=("/bin/true",),
        )
        (finding,) = of("pods_driver", diagnose(server.config, places))
        assert finding.level is Level.WARNING
        assert finding.do == f"{lab.ENGINE.command} restart {name} --project {node.project}"
        assert "535.183.01" in finding.what
        version.write_text("535.183.01\n")
        (finding,) = of("pods_driver", diagnose(server.config, places))
        assert finding.level is Level.OK
    finally:
        client.post("/pod/delete", ins=ins).ok


def test_not_root(node: Node, server: Server) -> None:
    account = pwd.getpwnam(node.accounts.user())
    done = subprocess.run(
        [PYTHON, "-m", "podyd", "doctor", "--json", "--config", str(server.config)],
        env=node.environment,
        cwd="/",
        text=True,
        capture_output=True,
        check=False,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
    )
    assert done.stderr == ""
    data = {item["check"]: item for item in json.loads(done.stdout)["findings"]}
    for check in ("login_service", "certificate_files", "lxd_answers"):
        assert (data[check]["level"], data[check]["do"]) == ("note", "sudo podyd doctor"), check
    assert data["service_answers"]["level"] == "ok"
    assert "lxd_project" not in data
    check = f"{lab.ENGINE.key}_advisories"
    assert data[check] == doctor(node, server.config)[1][check][-1]


# What the newest LXD of a Debian has fixed, and what not.
OF_RELEASES = {
    "12": ("CVE-2026-34179", "CVE-2026-48751"),
    "13": ("CVE-2026-48751", "CVE-2026-63298"),
}


def test_the_holes_of_the_installed_lxd(node: Node, server: Server) -> None:
    release = platform.freedesktop_os_release().get("VERSION_ID", "")
    if DIALECT is not LXD or release not in OF_RELEASES or "snap" in node.lab_state.socket:
        pytest.skip("needs the LXD of Debian 12 or 13; tests/packaging looks at 13's Incus")
    query = ["dpkg-query", "--show", "--showformat=${Version}", "lxd"]
    version = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    findings = doctor(node, server.config)[1]["lxd_advisories"]
    closed, open_there = OF_RELEASES[release]
    assert all(f"LXD (lxd {version})" in item["what"] for item in findings)
    assert not any(closed in item["what"] for item in findings)
    (worst,) = (item for item in findings if open_there in item["what"])
    assert worst["level"] == "error"
    assert "whoever breaks into podyd can become root" in worst["what"]
    assert "Firewall" in worst["do"]
