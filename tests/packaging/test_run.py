"""`sudo make run` where systemd runs."""

from __future__ import annotations

from tests.integration.harness import PASSWORD
from tests.packaging.machine import Machine
from tests.packaging.test_build import SOURCE, copy_of_the_tree


def test_make_run_installs_the_package_and_podyd_serves(bare: Machine) -> None:
    copy_of_the_tree(bare.path(SOURCE))
    bare.apt("install", "--no-install-recommends", "make")
    out = bare.run("make", "-C", SOURCE, "run", timeout=900)
    assert "podyd serves http://127.0.0.1:8799" in out
    bare.user("alice", PASSWORD)
    alice = bare.client("alice", PASSWORD)
    alice.post("/pod/create", ins="first", image="debian12").ok
    assert alice.exec("first", "uname -n")["stdout"] == "alice-first\n"
    # The second time it changes nothing, and leaves the pod alone.
    bare.run("make", "-C", SOURCE, "run", timeout=900)
    assert alice.get("/pod/info", ins="first").ok["status"] == "running"
