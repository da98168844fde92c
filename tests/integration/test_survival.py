"""LXD killed with all that it had started, as when the machine loses its power."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.integration.harness import FOLLOWING, Client, Node, Server, wait_until
from tests.integration.test_cards import NUMBER, Helper, make
from tests.lab import lab


def kill_everything(node: Node) -> None:
    """Both daemons, the pods and what serves them; LXD is told nothing."""
    names = lab.instance_names()
    daemons = {lab.daemon_pid(lab.ENGINE.daemon), lab.daemon_pid("lxcfs")} - {None}
    assert len(daemons) == 2
    served = [pid for pid in lab.all_pids() if lab.is_servant(pid) or lab.in_instance(pid, names)]
    assert served
    for pid in [*daemons, *served]:
        assert pid is not None
        # Some go with those that have been killed.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(lab.is_alive(pid) for pid in served), "everything to be dead")


def test_the_lab_comes_up_again_and_podyd_with_it(
    node: Node, server: Server, alice: Client, pod: str
) -> None:
    if not node.lab_state.ours:
        pytest.skip("an LXD that is not the lab's own is never killed")
    alice.exec(pod, "echo kept > /root/before; sync")
    followed = server.log_text().count(FOLLOWING)
    kill_everything(node)
    alice.post("/pod/exec", ins=pod, cmd="true").refused(503, "lxd_unreachable")
    assert lab.main(["up"]) == 0
    wait_until(lambda: server.log_text().count(FOLLOWING) > followed, "podyd to follow", 20)
    # LXD starts what ran before.
    wait_until(lambda: alice.get("/pod/info", ins=pod).ok["status"] == "running", "the pod", 30)
    done = alice.exec(pod, "cat /root/before")
    assert (done["exit_code"], done["stdout"]) == (0, "kept\n"), done
    total_kb = int(alice.exec(pod, "awk '/^MemTotal/ {print $2}' /proc/meminfo")["stdout"])
    assert total_kb > 0, "lxcfs is alive"


def test_rules_for_cards_outlive_lxd_and_are_there_for_the_pods_that_it_starts(
    lab_cards: None,
) -> None:
    """By a podyd's own machine, whose helper nobody else tells anything."""
    node = Node()
    try:
        node.start_cards()
        with contextlib.closing(Helper(node.cards_socket)) as helper:
            pod = make(node, "kept")
            helper.permit({pod.name: [NUMBER]})
            pod.start()
            assert pod.opens()
            helper.permit({})
            lab.stop_daemon(lab.ENGINE.daemon)
            assert lab.main(["up"]) == 0
            assert not pod.opens()
            kill_everything(node)
            assert lab.main(["up"]) == 0
            wait_until(lambda: pod.init() > 0, "the pod to be started again", 60)
            assert not pod.opens()
            helper.permit({pod.name: [NUMBER]})
            assert pod.opens()
            pod.close()
    finally:
        node.close()
