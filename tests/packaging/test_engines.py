"""podyd on a server without an engine, and on one whose LXD is in use already, or both are."""

from __future__ import annotations

import json
from pathlib import Path

from podyd.engine.dialect import INCUS, LXD
from tests.integration.harness import PASSWORD, wait_until
from tests.packaging.machine import ENGINES, Machine

SNAP = "/var/snap/lxd/common/lxd"
# All that an admin has set in LXD; podyd's own project and certificate are left out.
QUERIES = (
    "/1.0/storage-pools?recursion=1",
    "/1.0/networks?recursion=1",
    "/1.0/profiles?recursion=1&project=default",
    "/1.0/instances?recursion=1&project=default",
    "/1.0/projects/default",
)


def test_without_an_engine_it_says_what_to_install_and_comes_with_it(
    bare: Machine, debs: list[Path]
) -> None:
    bare.push(*debs)
    bare.apt("install", "--no-install-recommends", *(f"/root/{deb.name}" for deb in debs))
    bare.user("alice", PASSWORD)
    status = bare.attempt("systemctl", "status", "--no-pager", "podyd").stdout
    package = {"lxd": "lxd", "incus": "incus-base"}[bare.engine.key]
    assert f"apt install {package}" in status, status
    assert bare.show("podyd", "NRestarts") == "0"
    bare.apt("install", package)
    wait_until(lambda: bare.is_active("podyd"), "podyd to come with it", 60)
    assert bare.client("alice", PASSWORD).get("/host/images").ok == []


def setting(machine: Machine) -> dict[str, object]:
    """How the admin's LXD is set up."""
    decoded: dict[str, object] = {}
    for query in QUERIES:
        data = json.loads(machine.ask("query", query))
        for item in data if isinstance(data, list) else [data]:
            item.pop("used_by", None)
        decoded[query] = data
    decoded["server"] = json.loads(machine.ask("query", "/1.0"))["config"]
    return decoded


def test_an_lxd_in_use_at_the_snaps_place_stays_as_it_is(release: str, debs: list[Path]) -> None:
    machine = Machine(release, LXD)
    try:
        machine.start()
        machine.apt("update")
        for unit in ("lxd.service", "lxd.socket"):
            machine.write(f"/etc/systemd/system/{unit}.d/place.conf", _placed(unit))
        machine.path(SNAP).mkdir(parents=True)
        machine.environment["LXD_DIR"] = SNAP
        machine.apt("install", "lxd")
        preseed = """
            config: {core.https_address: "127.0.0.1:9443"}
            storage_pools: [{name: tank, driver: dir}]
            networks: [{name: mybr0, type: bridge, config: {ipv4.address: 10.99.7.1/24}}]
            profiles:
              - name: default
                devices:
                  root: {type: disk, path: /, pool: tank}
                  eth0: {type: nic, name: eth0, network: mybr0}"""
        machine.run("lxd", "init", "--preseed", stdin=preseed)
        before = setting(machine)
        machine.push(*debs)
        machine.apt("install", *(f"/root/{deb.name}" for deb in debs))
        wait_until(lambda: machine.is_active("podyd"), machine.journal("-u", "podyd*"))
        assert setting(machine) == before
        base = json.loads(machine.ask("query", "/1.0/profiles/podyd-base?project=podyd"))
        assert base["devices"]["root"]["pool"] == "tank"
        assert base["devices"]["eth0"]["parent"] == "mybr0"
        machine.user("alice", PASSWORD)
        assert machine.client("alice", PASSWORD).get("/host/images").ok == []
        assert not machine.has("incus-base")
        if ENGINES[release] is INCUS:
            _with_incus_too(machine)
    finally:
        machine.close()


def _with_incus_too(machine: Machine) -> None:
    """Podyd stays where its project is, and says so if it has to look."""
    machine.apt("install", "incus-base")
    machine.run("systemctl", "restart", "podyd")
    assert "run here" not in machine.journal("-u", "podyd-setup")
    # As if it had never been set up here: what an older podyd has left is a choice, too.
    for name in ("engine", "lxd/client.crt"):
        machine.path(f"/var/lib/podyd/{name}").unlink()
    machine.run("systemctl", "restart", "podyd")
    said = "LXD and Incus run here; pods are made in LXD. To change that, write 'engine: incus'"
    assert said in machine.journal("-u", "podyd-setup")
    assert machine.client("alice", PASSWORD).get("/host/images").ok == []


def _placed(unit: str) -> str:
    """LXD of the deb, where the snap has it."""
    if unit.endswith(".socket"):
        return f"[Socket]\nListenStream=\nListenStream={SNAP}/unix.socket\n"
    return f"[Service]\nEnvironment=LXD_DIR={SNAP}\n"
