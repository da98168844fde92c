"""`podyd setup`, and profiles."""

from __future__ import annotations

import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import SMALL, Client, Node, Server, wait_until
from tests.lab import lab

# --- Idempotent ---------------------------------------------------------------------------------


def everything(node: Node) -> list[object]:
    """All that setup could touch, as LXD and the disk have it now."""
    urls = ["/1.0", "/1.0/storage-pools?recursion=1", "/1.0/networks?recursion=1"]
    urls += ["/1.0/projects?recursion=1", "/1.0/certificates?recursion=1"]
    urls += [f"/1.0/profiles?recursion=1&project={node.project}", "/1.0/profiles?recursion=1"]
    state = Path(node.base["state_dir"])
    data = state / "data"
    # What is in there the running service writes; with that go the directory's own times.
    own = (data.stat().st_mode, data.stat().st_uid, data.stat().st_gid)
    files = [
        (str(path), path.stat().st_mode, path.stat().st_mtime_ns, path.stat().st_uid)
        for path in [*state.rglob("*"), Path("/etc/pam.d", node.service)]
        if data not in (path, path.parent)
    ]
    return [*(node.lxd.get(url) for url in urls), own, sorted(files)]


@pytest.mark.alone
def test_a_second_time_it_changes_nothing(node: Node, server: Server) -> None:
    before = everything(node)
    output = node.podyd("setup", "--user", node.account)
    assert output == "Nothing to do: all is set up.\n"
    assert everything(node) == before


def of_others(node: Node) -> list[object]:
    """An LXD without the tests' projects and their certificates, and without who uses what."""
    urls = ["/1.0", "/1.0/storage-pools?recursion=1", "/1.0/networks?recursion=1"]
    urls += ["/1.0/projects?recursion=1", "/1.0/certificates?recursion=1"]
    urls += ["/1.0/profiles?recursion=1", "/1.0/images?recursion=1"]
    return [_without_use(node.lxd.get(url)) for url in urls]


def _without_use(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: value for key, value in found.items() if key != "used_by"}
    return [
        _without_use(item) for item in found if not item.get("name", "").startswith("podyd-test-")
    ]


@pytest.mark.alone
def test_an_lxd_in_use_keeps_all_that_is_not_podyds(node: Node, server: Server) -> None:
    before = of_others(node)
    assert node.lxd.get("/1.0")["config"]["core.https_address"]
    other = Node()
    try:
        assert of_others(node) == before
        assert "made restricted project" in other.setup_output
        for word in ("pool", "bridge", "listens"):
            assert word not in other.setup_output
    finally:
        other.close()


def test_it_mends_what_is_missing() -> None:
    node = Node()
    try:
        fingerprint = next(
            item["fingerprint"]
            for item in node.lxd.get("/1.0/certificates?recursion=1")
            if item["name"] == node.project
        )
        certificate = node.lxd.get(f"/1.0/certificates/{fingerprint}")
        loose = {key: certificate[key] for key in ("type", "name", "certificate")}
        loose |= {"restricted": False, "projects": []}
        node.lxd.change("PUT", f"/1.0/certificates/{fingerprint}", loose)
        node.lxd.change("DELETE", f"/1.0/profiles/podyd-gpu?project={node.project}")
        output = node.podyd("setup", "--user", node.account)
        assert "confined" in output
        assert "podyd-gpu" in output
        mended = node.lxd.get(f"/1.0/certificates/{fingerprint}")
        assert (mended["restricted"], mended["projects"]) == (True, [node.project])
    finally:
        node.close()


def test_its_files_are_for_the_service_alone(node: Node, server: Server) -> None:
    state = Path(node.base["state_dir"])
    data = state / "data"
    wait_until((data / "podyd.db").exists, "the service's own file")
    service = pwd.getpwnam(node.account).pw_uid
    for path in [state, *state.rglob("*")]:
        status = path.stat()
        if data in (path, path.parent):
            assert status.st_uid == service
            assert status.st_mode & 0o077 == 0, "nobody else looks"
        else:
            assert status.st_uid == 0, "the service cannot change them"
            assert status.st_mode & 0o027 == 0, "others cannot read them, its group cannot write"


def test_without_lxd_it_says_what_to_do(node: Node, tmp_path: Path) -> None:
    config = node.write_config(
        {"auth": {"socket": str(tmp_path / "run/auth.sock")}, "state_dir": str(tmp_path / "state")}
    )
    environment = node.environment | {lab.ENGINE.variable: str(tmp_path)}
    done = node.command("setup", "--config", str(config), environment=environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"podyd: {lab.ENGINE.title} is not running here. Install it")
    assert done.stderr.count("\n") == 1
    reason = tmp_path / "run/setup.error"
    assert done.stderr == f"podyd: {reason.read_text()}"
    assert (reason.stat().st_uid, reason.stat().st_mode & 0o777) == (0, 0o644)

    done = node.command("serve", "--config", str(config))
    assert done.returncode == 78
    assert done.stderr.startswith(f"podyd: {lab.ENGINE.title} is not running here. Install it")
    assert done.stderr.endswith("Then type 'systemctl restart podyd'.\n")


def test_a_reason_is_gone_when_setup_has_worked(node: Node) -> None:
    reason = Path(node.base["auth"]["socket"]).with_name("setup.error")
    reason.parent.mkdir(exist_ok=True)
    reason.write_text("LXD is not running here.\n")
    node.podyd("setup", "--user", node.account)
    assert not reason.exists()


def test_a_reason_does_not_stop_a_podyd_that_was_set_up(node: Node) -> None:
    reason = Path(node.base["auth"]["socket"]).with_name("setup.error")
    reason.write_text("LXD is not running here.\n")
    try:
        assert node.serve().stop() == 0
    finally:
        reason.unlink()


# --- Profiles -----------------------------------------------------------------------------------


@pytest.fixture
def profile(node: Node) -> Iterator[str]:
    """A profile that a test may edit."""
    yield "podyd-base"
    node.podyd("profiles", "reset")


def edit(node: Node, name: str, key: str, value: str) -> None:
    """What `lxc profile edit` does, without an editor."""
    node.lxc("profile", "set", name, f"{key}={value}")


def test_an_edit_takes_effect_at_the_next_start_and_survives(
    node: Node, new_user: Callable[[], Client], profile: str, ins: str
) -> None:
    client = new_user()
    client.post("/pod/create", ins=ins, image=SMALL).ok
    edit(node, profile, "environment.PODYD_TEST", "edited")
    edit(node, profile, "limits.memory", "512MiB")
    client.post("/pod/restart", ins=ins).ok
    shown = client.exec(ins, "tr '\\0' '\\n' </proc/1/environ | grep PODYD_TEST")["stdout"]
    assert shown == "PODYD_TEST=edited\n"
    assert client.get("/pod/info", ins=ins).ok["memory_limit"] == 512 * 1024**2

    again = node.serve()
    assert again.client(client.user).get("/pod/info", ins=ins).ok["memory_limit"] == 512 * 1024**2
    assert again.stop() == 0
    node.podyd("setup", "--user", node.account)
    assert "edited" in node.lxc("profile", "show", profile)
    client.post("/pod/delete", ins=ins).ok


def test_diff_apply_and_reset(node: Node, profile: str) -> None:
    config = str(node.write_config({}))
    assert node.command("profiles", "diff", "--config", config).returncode == 0
    edit(node, profile, "limits.memory", "512MiB")
    done = node.command("profiles", "diff", "--config", config)
    assert done.returncode == 1
    assert "+  limits.memory: 512MiB" in done.stdout
    assert node.command("profiles", "diff", "--config", config, "podyd-gpu").returncode == 0
    done = node.command("profiles", "apply", "--config", config, profile)
    assert (done.returncode, done.stderr) == (0, "")
    assert "-  limits.memory: 512MiB" in done.stdout
    assert "limits.memory" not in node.lxc("profile", "show", profile)
    assert node.command("profiles", "diff", "--config", config).returncode == 0
    edit(node, profile, "limits.memory", "512MiB")
    node.podyd("profiles", "reset")
    assert "limits.memory" not in node.lxc("profile", "show", profile)


def test_an_unknown_profile_is_named(node: Node) -> None:
    done = node.command("profiles", "apply", "--config", str(node.write_config({})), "nosuch")
    assert done.returncode == 1
    assert "nosuch" in done.stderr
    assert done.stderr.count("\n") == 1


def test_profiles_by_user_and_group(node: Node) -> None:
    group = node.accounts.group()
    user = node.accounts.user("", "-G", group)
    server = node.serve({"pods": {"group_profiles": {group: ["podyd-base"]}}})
    client = server.client(user)
    made = client.post("/pod/create", ins="plain", image=SMALL).ok
    assert (made["profiles"], made["gpu_ids"]) == (["podyd-base"], [])
    client.post("/pod/delete", ins="plain").ok
    wait_until(lambda: not client.get("/pod/list").ok, "the pod to go")
    assert server.stop() == 0
