"""The cluster of three members, brought up and taken away: an own one of $PODYD_TEST_ENGINE."""

from __future__ import annotations

import os
import sys

import pytest

from tests.integration import small
from tests.lab import lab
from tests.lab.cluster import POOL, Cluster, Member, cards
from tests.lab.conftest import traces

IMAGE = "small"
POD = "podyd-test-pod"
WHICH_CARDS = """
import pynvml
pynvml.nvmlInit()
for index in range(pynvml.nvmlDeviceGetCount()):
    print(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
"""


def make_pod(cluster: Cluster) -> None:
    """On the third, with its last card; asked of the first."""
    first, _, third = cluster.members
    environment = {"PATH": os.environ["PATH"], lab.ENGINE.variable: str(first.api.path.parent)}
    small.make(IMAGE, "default", environment)
    body = {
        "name": POD,
        "source": {"type": "image", "alias": IMAGE},
        "devices": {"gpu0": {"type": "gpu", "pci": third.cards[-1].pci}},
    }
    first.api.change("POST", f"/1.0/instances?target={third.name}", body)
    first.api.change("PUT", f"/1.0/instances/{POD}/state", {"action": "start"})


@pytest.fixture(scope="module")
def cluster(cluster: Cluster) -> Cluster:
    make_pod(cluster)
    return cluster


def state(asked: Member) -> tuple[str, int]:
    """The pod's status and the number of its first process on its host."""
    answer = asked.api.get(f"/1.0/instances/{POD}/state")
    return answer["status"], answer["pid"]


def wait_until_offline(cluster: Cluster, asked: Member, member: Member) -> None:
    assert lab.wait_for(lambda: cluster.states(asked)[member.name] == "Offline", 60)


# --- Without a cluster ----------------------------------------------------------------------------


def test_no_two_cards_of_a_cluster_are_one() -> None:
    all_cards = [card for number in (1, 2, 3) for card in cards(number)]
    assert [len(cards(number)) for number in (1, 2, 3)] == [1, 2, 3]
    assert len({card.uuid for card in all_cards}) == 6
    # The kernel tells of 1 to 15 whether anybody has them open.
    assert sorted(os.minor(card.device) for card in all_cards) == [10, 11, 12, 13, 14, 15]
    assert cards(3)[0].pci == cards(1)[0].pci


# --- With one -------------------------------------------------------------------------------------


def test_each_member_is_a_host_with_cards_of_its_own(cluster: Cluster, first: Member) -> None:
    for member in cluster.members:
        assert member.run("hostname").strip() == member.name
        uuids = [card.uuid for card in member.cards]
        assert member.run(sys.executable, "-c", WHICH_CARDS).split() == uuids
        # The engine's word, asked of another one.
        found = first.api.get(f"/1.0/resources?target={member.name}")["gpu"]["cards"]
        assert [row["nvidia"]["uuid"] for row in found if "nvidia" in row] == uuids
        assert member.first_process() in member.processes()
        # A lab beside it kills its own leftovers by names that are the same here.
        assert not {*member.processes()}.intersection(lab.all_pids())
        assert "podyd-cluster" not in member.run("cat", "/proc/self/cgroup")


def test_a_pod_is_where_it_was_wanted_and_is_reached_from_another_member(
    cluster: Cluster, third: Member
) -> None:
    second = cluster.members[1]
    assert second.api.get(f"/1.0/instances/{POD}")["location"] == third.name
    # A client's websockets, handed on by the member that is asked.
    said = second.run(lab.ENGINE.command, "exec", POD, "--", "sh", "-c", "hostname; ls /dev/dri")
    assert said.split() == [POD, f"card{third.cards[-1].minor}"]
    assert POD in third.run("sh", "-c", f"ls /sys/fs/cgroup/* /sys/fs/cgroup | grep {POD}")
    assert third.outside(
        lab.ENGINE.directory / "storage-pools" / POOL / "containers" / POD
    ).exists()


def test_a_member_that_is_cut_off_is_offline_and_comes_back(
    cluster: Cluster, first: Member, third: Member
) -> None:
    before = state(first)
    third.cut()
    wait_until_offline(cluster, first, third)
    # What the engine says of its pods then: not even whose they are.
    (pod,) = first.api.list("/1.0/instances?recursion=1")
    assert (pod["status"], pod["location"], pod["config"] or {}) == ("Error", third.name, {})
    third.mend()
    cluster.wait()
    assert state(first) == before


def test_an_engine_that_is_paused_answers_nothing(cluster: Cluster, third: Member) -> None:
    third.pause()
    assert not lab.answers(third.api.path, 1)
    third.resume()
    # It may say first that its database has not answered in time.
    assert lab.wait_for(lambda: lab.answers(third.api.path), 60)


def test_a_pod_outlives_its_engine(cluster: Cluster, first: Member, third: Member) -> None:
    before = state(first)
    third.kill()
    assert not third.listens()
    with pytest.raises(lab.LabError, match="does not run"):
        third.kill()
    third.start()
    cluster.wait()
    assert state(first) == before
    assert before[0] == "Running"


def test_a_member_that_lost_its_power_comes_back_with_its_pods(
    cluster: Cluster, first: Member, third: Member
) -> None:
    third.power_off()
    assert (third.processes(), third.first_process(), third.listens()) == ([], None, False)
    third.power_on()
    cluster.wait()
    # The engine starts what ran before.
    assert lab.wait_for(lambda: state(first)[0] == "Running", 30)


def test_nothing_is_left(cluster: Cluster, before: dict[str, object]) -> None:
    assert traces() != before
    cluster.down()
    assert traces() == before
    assert not any(before.values())
    with pytest.raises(lab.LabError, match="gpu1 is down"):
        cluster.members[0].run("true")
