"""Cards: chosen, changed in a running pod, leased, waited for, taken back; on a real LXD.

One podyd of their own, because two that share a project would both hand cards out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.certificates import self_signed
from tests.integration.harness import (
    IMAGE,
    SMALL,
    Client,
    Node,
    Running,
    Server,
    process_in,
    run,
    started,
    wait_until,
)
from tests.integration.test_client import as_user
from tests.lab.lab import DEFAULT_CARDS, ENGINE, write_atomically
from tests.lab.nvml import FakeDriver, FakeNvml, FakeProcess

UUIDS = [card.uuid for card in DEFAULT_CARDS]
PCI = [card.pci for card in DEFAULT_CARDS]
SECOND = 1 / 3600


@dataclass
class Bed:
    """A node whose podyd has NVML, and which can be started anew with other settings."""

    node: Node
    driver: FakeDriver
    server: Server

    def restart(self, **changes: Any) -> None:
        assert self.server.stop() == 0
        self.server = self.node.serve(changes, environment=self.driver.environment)

    def user(self) -> str:
        return self.node.accounts.user()

    def client(self, user: str = "") -> Client:
        return self.server.client(user or self.user())


@pytest.fixture(scope="module")
def bed(lab_cards: None) -> Iterator[Bed]:
    node = Node()
    try:
        node.start_helper()
        node.start_cards()
        driver = FakeDriver(node.directory / "nvidia")
        yield Bed(node, driver, node.serve(environment=driver.environment))
    finally:
        node.close()


@pytest.fixture(autouse=True)
def _as_before(bed: Bed) -> Iterator[None]:
    yield
    bed.driver.write(FakeNvml())
    wait_until(lambda: _is_cleared(bed.node), "the pods to go", 30)


def _is_cleared(node: Node) -> bool:
    for name in node.instances():
        # While podyd gives its cards back, LXD deletes none.
        node.lxc("delete", "-f", name, check=False)
    return not node.instances()


@contextmanager
def pods(*owned: tuple[Client, str], image: str = SMALL, **params: Any) -> Iterator[None]:
    """Running pods, which are deleted in the end."""
    for client, ins in owned:
        client.post("/pod/create", ins=ins, image=image, **params).ok
    yield
    for client, ins in owned:
        # A podyd that was started anew listens elsewhere.
        with suppress(OSError):
            client.post("/pod/delete", ins=ins)


def cards_in(client: Client, ins: str) -> list[int]:
    """The cards whose device nodes are in the pod."""
    answer = client.exec(ins, "ls /dev | sed -n 's/^nvidia\\([0-9]\\)$/\\1/p'")["stdout"].split()
    return sorted(int(word) for word in answer)


def wait_for_cards(client: Client, ins: str, wanted: list[int], limit: float = 10.0) -> None:
    wait_until(lambda: cards_in(client, ins) == wanted, f"cards {wanted} in {ins}", limit)
    # In the pod they are a moment before LXD is done with it.
    wait_until(lambda: client.get("/pod/info", ins=ins).ok["gpu_ids"] == wanted, f"{wanted} shown")


# --- Choosing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "wanted"),
    [
        ("all", [0, 1]),
        ("none", []),
        ("0", []),
        ("2", [0, 1]),
        ("1,", [1]),
        ("0,1", [0, 1]),
        (UUIDS[1], [1]),
        (f"{PCI[0]},{UUIDS[1].lower()}", [0, 1]),
    ],
)
def test_a_new_pod_has_the_cards_that_were_chosen(bed: Bed, gpus: str, wanted: list[int]) -> None:
    client = bed.client()
    with pods((client, "made"), gpus=gpus):
        assert cards_in(client, "made") == wanted
        assert client.get("/pod/info", ins="made").ok["gpu_ids"] == wanted


def test_the_profiles_decide_where_nothing_was_chosen(bed: Bed) -> None:
    client = bed.client()
    with pods((client, "made")):
        wait_for_cards(client, "made", [0, 1])
        name = bed.node.instance_of(client.user, "made")["name"]
        bed.node.lxc("profile", "device", "set", "podyd-gpu", "gpus", f"pci={PCI[0]}")
        wait_for_cards(client, "made", [0])
        bed.node.lxc("profile", "device", "unset", "podyd-gpu", "gpus", "pci")
        # What an admin takes away on the instance itself stays away.
        bed.node.lxc("config", "device", "add", name, "gpus", "none")
        wait_for_cards(client, "made", [])
        client.post("/pod/restart", ins="made").ok
        assert cards_in(client, "made") == []


@pytest.mark.parametrize(
    ("gpus", "code"),
    [
        ("x", "malformed_parameter"),
        ("0,0", "malformed_parameter"),
        ("-1", "malformed_parameter"),
        ("", "malformed_parameter"),
        ("3", "no_such_gpu"),
        ("7,", "no_such_gpu"),
        ("GPU-0000", "no_such_gpu"),
    ],
)
def test_a_bad_choice_is_refused(bed: Bed, gpus: str, code: str) -> None:
    client = bed.client()
    body = client.post("/pod/create", ins="made", image=SMALL, gpus=gpus).refused(400, code)
    assert "gpus" in body["detail"]
    assert client.get("/pod/list").ok == []


def test_a_number_is_the_least_used_ones(bed: Bed) -> None:
    client = bed.client()
    with pods((client, "first"), gpus="0,"), pods((client, "second"), gpus="1"):
        assert cards_in(client, "second") == [1]
        with process_in(client, "second") as running:
            # In use counts for more than had.
            bed.driver.write(FakeNvml().holding(1, FakeProcess(running.pid)))
            wait_until(lambda: bool(client.get("/host/gpu-ps").ok["1"]), "the process")
            with pods((client, "third"), gpus="1"):
                assert cards_in(client, "third") == [0]


# --- Changing -----------------------------------------------------------------------------------


def test_cards_come_and_go_while_the_pod_runs(bed: Bed) -> None:
    client = bed.client()
    with pods((client, "live"), gpus="none"), process_in(client, "live") as running:
        for gpus, wanted in (("1,", [1]), ("all", [0, 1]), ("0,", [0]), ("none", [])):
            assert client.post("/pod/gpus", ins="live", gpus=gpus).ok["gpu_ids"] == wanted
            assert cards_in(client, "live") == wanted
        assert started(running.cmd) == 1
        # A smaller number keeps what is there already.
        client.post("/pod/gpus", ins="live", gpus="1,").ok
        assert client.post("/pod/gpus", ins="live", gpus="1").ok["gpu_ids"] == [1]
        client.post("/pod/restart", ins="live").ok
        assert cards_in(client, "live") == [1]


def test_a_card_in_use_is_taken_away_by_force_only(bed: Bed) -> None:
    client = bed.client()
    with pods((client, "busy"), gpus="all"), process_in(client, "busy") as running:
        bed.driver.write(FakeNvml().holding(1, FakeProcess(running.pid)))
        wait_until(lambda: bool(client.get("/host/gpu-ps").ok["1"]), "the process")
        body = client.post("/pod/gpus", ins="busy", gpus="none").refused(409, "gpu_in_use")
        assert (body["gpu"], body["pids"]) == (1, [running.pid])
        assert cards_in(client, "busy") == [0, 1], "nothing is half done"
        # Of two, the one in use is the one that stays.
        assert client.post("/pod/gpus", ins="busy", gpus="1").ok["gpu_ids"] == [1]
        assert client.post("/pod/gpus", ins="busy", gpus="none", force=1).ok["gpu_ids"] == []
        assert cards_in(client, "busy") == []
        assert started(running.cmd) == 1


def test_gpu_count_is_over_all_pods_of_a_user(bed: Bed) -> None:
    bed.restart(quota={"default": {"gpu_count": 2}})
    client = bed.client()
    with pods((client, "one"), gpus="0,"), pods((client, "two")):
        assert len(cards_in(client, "two")) == 1, "what the quota leaves"
        body = client.post("/pod/create", ins="three", image=SMALL, gpus="1").refused(403)
        assert (body["code"], body["limit"], body["used"]) == ("quota_exceeded", 2, 2)
        client.post("/pod/gpus", ins="one", gpus="all").refused(403, "quota_exceeded")
        client.post("/gpu/lease", ins="one", gpus="2", hours=1).refused(403, "quota_exceeded")
        # A lease of a card that it does not share yet is one more, and what waits counts too.
        other = (1 - client.get("/pod/info", ins="one").ok["gpu_ids"][0],)
        named = f"{other[0]},"
        client.post("/gpu/lease", ins="one", gpus=named, hours=1).refused(403, "quota_exceeded")
        client.post("/gpu/queue", ins="one", gpus=named, hours=1).refused(403, "quota_exceeded")
        done = client.post("/gpu/lease", ins="one", gpus="1", hours=1).ok
        assert [item["index"] for item in done["leases"]] == [0], "the one that it shares"
        client.post("/gpu/release", ins="one").ok
        client.post("/pod/gpus", ins="two", gpus="none").ok
        assert client.post("/pod/gpus", ins="one", gpus="all").ok["gpu_ids"] == [0, 1]
    bed.restart()


def test_many_at_once_stay_within_the_quota(bed: Bed) -> None:
    bed.restart(quota={"default": {"gpu_count": 2, "max_pods": 9}})
    client = bed.client()
    names = [f"r{number}" for number in range(4)]
    with pods(*((client, name) for name in names), gpus="none"):
        with ThreadPoolExecutor(6) as pool:
            changed = [pool.submit(client.post, "/pod/gpus", ins=name, gpus="1") for name in names]
            made = [
                pool.submit(client.post, "/pod/create", ins=name, image=SMALL, gpus="1")
                for name in ("new1", "new2")
            ]
            statuses = sorted(future.result().status for future in changed + made)
        assert statuses == [200, 200, 403, 403, 403, 403]
        listed = client.get("/pod/list").ok
        held = [client.get("/pod/info", ins=name).ok["gpu_ids"] for name in listed]
        assert sum(map(len, held)) == 2
        for name in set(listed) - set(names):
            client.post("/pod/delete", ins=name).ok
    bed.restart()


# --- Leases -------------------------------------------------------------------------------------


def test_a_lease_is_exclusive_and_given_back(bed: Bed) -> None:
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), (bob, "b")):
        wait_for_cards(bob, "b", [0, 1])
        done = alice.post("/gpu/lease", ins="a", gpus="1,", hours=2).ok
        assert done["place"] == 0
        (lease,) = done["leases"]
        assert (lease["index"], lease["uuid"]) == (1, UUIDS[1])
        assert (cards_in(alice, "a"), cards_in(bob, "b")) == ([0, 1], [0])
        name = bed.node.instance_of(alice.user, "a")["name"]
        for refused in (
            bob.post("/gpu/lease", ins="b", gpus="1,", hours=1),
            bob.post("/pod/gpus", ins="b", gpus="0,1"),
            bob.post("/pod/create", ins="c", image=SMALL, gpus="2"),
        ):
            body = refused.refused(409, "gpu_held")
            assert body["holders"] == [
                {
                    "gpu": 1,
                    "pod": name,
                    "owner": alice.user,
                    "since": lease["since"],
                    "until": lease["until"],
                }
            ]
            for word in (name, alice.user, lease["since"], lease["until"]):
                assert word in body["detail"]
        # What comes meanwhile does not have it either.
        with pods((bob, "later")):
            assert cards_in(bob, "later") == [0]
            info = {item["index"]: item["pods"] for item in bob.get("/host/gpus").ok}
            holder = {key: lease[key] for key in ("since", "until")}
            assert info[1] == [
                {"pod": name, "owner": alice.user, "attached": True, "exclusive": True, **holder}
            ]
            assert len(info[0]) == 3
            assert not any(item["exclusive"] for item in info[0])
            alice.post("/gpu/release", ins="a").ok
            for client, ins in ((alice, "a"), (bob, "b"), (bob, "later")):
                wait_for_cards(client, ins, [0, 1])
        config = bed.node.instance_of(bob.user, "b")
        assert config["devices"] == {}, "as if nothing had been"


def test_where_sharers_are_waited_for_a_card_that_somebody_uses_is_not_leased(bed: Bed) -> None:
    bed.restart(lease={"sharers": "wait"})
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), (bob, "b")), process_in(bob, "b") as running:
        bed.driver.write(FakeNvml().holding(0, FakeProcess(running.pid)))
        wait_until(lambda: bool(bob.get("/host/gpu-ps").ok["0"]), "the process")
        body = alice.post("/gpu/lease", ins="a", gpus="all", hours=1).refused(409, "gpu_held")
        assert [item["owner"] for item in body["holders"]] == [bob.user]
        # Of a number, those that are free.
        done = alice.post("/gpu/lease", ins="a", gpus="1", hours=1).ok
        assert [item["index"] for item in done["leases"]] == [1]
        # Its own processes are no hindrance.
        done = bob.post("/gpu/lease", ins="b", gpus="0,", hours=1).ok
        assert [item["index"] for item in done["leases"]] == [0]
        assert (cards_in(alice, "a"), cards_in(bob, "b")) == ([1], [0])
        bob.post("/gpu/release", ins="b").refused(409, "gpu_in_use")
        bed.driver.write(FakeNvml())
        wait_until(lambda: not bob.get("/host/gpu-ps").ok["0"], "the process to leave the card")
        bob.post("/gpu/release", ins="b").ok


def test_the_line_moves_when_a_process_ends(bed: Bed) -> None:
    """Where sharers are waited for."""
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), (bob, "b"), gpus="all"):
        with process_in(bob, "b") as running:
            state = FakeNvml().holding(0, FakeProcess(running.pid))
            bed.driver.write(replace(state.holding(1, FakeProcess(running.pid))))
            wait_until(lambda: bool(bob.get("/host/gpu-ps").ok["1"]), "the process")
            assert alice.post("/gpu/queue", ins="a", gpus="1", hours=1).ok["place"] == 1
        bed.driver.write(FakeNvml())
        wait_until(lambda: alice.get("/gpu/line").ok == [], "its turn")
        assert len(cards_in(bob, "b")) == 1
    bed.restart()


def test_a_lease_ends_by_itself(bed: Bed) -> None:
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), gpus="none"), pods((bob, "b"), gpus="all"):
        alice.post("/gpu/lease", ins="a", gpus="all", hours=4 * SECOND).ok
        assert (cards_in(alice, "a"), cards_in(bob, "b")) == ([0, 1], [])
        # Asked for again, it is longer.
        first = alice.post("/gpu/lease", ins="a", gpus="all", hours=5 * SECOND).ok["leases"]
        wait_for_cards(bob, "b", [0, 1], 15)
        assert first[0]["until"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        wait_for_cards(alice, "a", [])


def test_a_lease_that_ended_while_podyd_was_down(bed: Bed) -> None:
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), gpus="none"), pods((bob, "b"), gpus="all"):
        alice.post("/gpu/lease", ins="a", gpus="0,", hours=3 * SECOND).ok
        alice.post("/gpu/lease", ins="a", gpus="1,", hours=1).ok
        bed.server.process.kill()
        bed.server.process.wait()
        key = f"user.podyd.lease.{UUIDS[0]}"
        value = bed.node.instance_of(alice.user, "a")["config"][key]
        until = value.partition("/")[2]
        wait_until(
            lambda: time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) > until[:19], "the end"
        )
        bed.server = bed.node.serve(environment=bed.driver.environment)
        alice, bob = bed.client(alice.user), bed.client(bob.user)
        wait_for_cards(bob, "b", [0])
        wait_for_cards(alice, "a", [1])
        alice.post("/gpu/release", ins="a").ok


def test_the_admins_limits(bed: Bed) -> None:
    bed.restart(lease={"max_hours": 8, "max_gpus": 1})
    client = bed.client()
    with pods((client, "a"), (client, "b")):
        body = client.post("/gpu/lease", ins="a", gpus="1", hours=8.5).refused(403)
        assert (body["code"], body["limit"]) == ("lease_too_long", 8)
        client.post("/gpu/lease", ins="a", gpus="2", hours=1).refused(403, "quota_exceeded")
        client.post("/gpu/lease", ins="a", gpus="1", hours=8).ok
        client.post("/gpu/lease", ins="b", gpus="1", hours=1).refused(403, "quota_exceeded")
        client.post("/gpu/queue", ins="b", gpus="1", hours=1).refused(403, "quota_exceeded")
        client.post("/gpu/lease", ins="a", gpus="1", hours=4).ok
        client.post("/gpu/lease", ins="a", gpus="0,1", hours=4).refused(403, "quota_exceeded")
    bed.restart()


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "x", "", "999999999"])
def test_a_bad_time_is_refused(bed: Bed, hours: str) -> None:
    answer = bed.client().post("/gpu/lease", ins="a", gpus="1", hours=hours)
    assert "hours" in answer.refused(400, "malformed_parameter")["detail"]


def test_a_copy_holds_no_lease(bed: Bed) -> None:
    client = bed.client()
    with pods((client, "a"), gpus="none"):
        client.post("/gpu/lease", ins="a", gpus="0,", hours=1).ok
        name = bed.node.instance_of(client.user, "a")["name"]
        bed.node.lxc("copy", name, f"{name}-copy", "--stateless")
        copy = f"{name}-copy"
        wait_until(lambda: client.get("/pod/info", ins=copy).ok["gpu_ids"] == [], "no card")
        assert cards_in(client, "a") == [0]
        (gpu, _) = client.get("/host/gpus").ok
        assert [item["pod"] for item in gpu["pods"]] == [name]
        client.post("/pod/delete", ins=copy).ok


# --- The line -----------------------------------------------------------------------------------


def test_first_come_first_served_also_after_a_restart(bed: Bed) -> None:
    alice, bob, carol = (bed.client() for _ in range(3))
    with pods((alice, "a"), (bob, "b"), (carol, "c"), gpus="none"):
        alice.post("/gpu/queue", ins="a", gpus="all", hours=1).ok
        assert cards_in(alice, "a") == [0, 1], "nothing to wait for"
        assert bob.post("/gpu/queue", ins="b", gpus="2", hours=1).ok["place"] == 1
        assert carol.post("/gpu/queue", ins="c", gpus="1", hours=2).ok["place"] == 2
        assert bob.post("/gpu/queue", ins="b", gpus="2", hours=1).ok["place"] == 1
        bob.post("/gpu/queue", ins="b", gpus="1", hours=1).refused(409, "already_waiting")
        line = carol.get("/gpu/line").ok
        assert [(item["place"], item["owner"], item["gpus"], item["hours"]) for item in line] == [
            (1, bob.user, "2", 1.0),
            (2, carol.user, "1", 2.0),
        ]
        bed.restart()
        alice, bob, carol = (bed.client(client.user) for client in (alice, bob, carol))
        assert carol.get("/gpu/line").ok == line
        # One is free: not enough for bob, and nobody goes before him.
        alice.post("/gpu/release", ins="a", gpus="0,").ok
        carol.post("/gpu/lease", ins="c", gpus="1", hours=1).refused(409, "gpu_held")
        assert carol.get("/gpu/line").ok == line
        alice.post("/gpu/release", ins="a").ok
        wait_for_cards(bob, "b", [0, 1])
        assert [item["owner"] for item in bob.get("/gpu/line").ok] == [carol.user]
        bob.post("/pod/delete", ins="b").ok
        wait_until(lambda: carol.get("/gpu/line").ok == [], "carol's turn")
        assert len(cards_in(carol, "c")) == 1


def test_what_waits_is_kept_for_it_by_the_quota(bed: Bed) -> None:
    bed.restart(quota={"default": {"gpu_count": 2}})
    holder, client = bed.client(), bed.client()
    with pods((holder, "h"), (client, "a"), (client, "b"), gpus="none"):
        holder.post("/gpu/lease", ins="h", gpus="2", hours=1).ok
        assert client.post("/gpu/queue", ins="a", gpus="2", hours=1).ok["place"] == 1
        for ins in ("a", "b"):
            client.post("/pod/gpus", ins=ins, gpus="all").refused(403, "quota_exceeded")
        assert client.post("/gpu/queue", ins="a", gpus="2", hours=1).ok["place"] == 1
        holder.post("/gpu/release", ins="h").ok
        wait_for_cards(client, "a", [0, 1])
        client.post("/pod/gpus", ins="b", gpus="1").refused(409, "gpu_held")
        client.post("/gpu/release", ins="a").ok
        assert client.post("/pod/gpus", ins="b", gpus="all").ok["gpu_ids"] == [0, 1]
    bed.restart()


def test_who_has_a_card_does_not_keep_it_from_the_line(bed: Bed) -> None:
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), (bob, "b"), gpus="none"):
        first = alice.post("/gpu/lease", ins="a", gpus="all", hours=2).ok["leases"]
        # Never shorter, and while nobody waits, longer.
        again = alice.post("/gpu/lease", ins="a", gpus="0,", hours=1).ok["leases"]
        assert [item["until"] for item in again] == [item["until"] for item in first]
        assert bob.post("/gpu/queue", ins="b", gpus="0,", hours=1).ok["place"] == 1
        body = alice.post("/gpu/lease", ins="a", gpus="0,", hours=9).refused(409, "gpu_held")
        assert "1 in the queue before you" in body["detail"]
        alice.post("/gpu/lease", ins="a", gpus="1,", hours=9).ok
        # Who has one and waits for another keeps both when the first is prolonged.
        alice.post("/gpu/release", ins="a", gpus="1,").ok
        bob.post("/gpu/lease", ins="b", gpus="1,", hours=1).ok
        assert [item["owner"] for item in bob.get("/gpu/line").ok] == [bob.user]
        assert "left the queue" in bob.post("/gpu/release", ins="b", gpus="none").ok["log"]
        assert bob.get("/gpu/line").ok == []
        assert cards_in(bob, "b") == [1]


def test_a_card_that_an_admin_has_given_is_not_leased(bed: Bed) -> None:
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), (bob, "b"), gpus="none"):
        name = bed.node.instance_of(bob.user, "b")["name"]
        # As short as LXD takes it.
        bed.node.lxc("config", "device", "add", name, "mine", "gpu", f"pci={PCI[0][5:]}")
        wait_for_cards(bob, "b", [0])
        body = alice.post("/gpu/lease", ins="a", gpus="0,", hours=1).refused(409, "gpu_held")
        assert [item["pod"] for item in body["holders"]] == [name]
        alice.post("/gpu/lease", ins="a", gpus="1", hours=1).ok
        assert (cards_in(alice, "a"), cards_in(bob, "b")) == ([1], [0])


def test_who_leaves_the_line_holds_nobody_up(bed: Bed) -> None:
    alice, bob, carol = (bed.client() for _ in range(3))
    with pods((alice, "a"), (bob, "b"), (carol, "c"), gpus="none"):
        alice.post("/gpu/lease", ins="a", gpus="0,", hours=1).ok
        bob.post("/gpu/queue", ins="b", gpus="2", hours=1).ok
        assert carol.post("/gpu/queue", ins="c", gpus="1", hours=1).ok["place"] == 2
        bob.post("/gpu/release", ins="b").ok
        wait_for_cards(carol, "c", [1])
        assert carol.get("/gpu/line").ok == []


# --- After a lease -------------------------------------------------------------------------------


def holding(
    client: Client, ins: str, card: int, *, stubborn: bool = False
) -> AbstractContextManager[Running]:
    """A process in a pod that has a card open; a `stubborn` one ignores SIGTERM."""
    trap = 'trap "" TERM; ' if stubborn else ""
    # A process that leads no session, as the card is a terminal.
    opener = f"({trap}exec 7<>/dev/dri/card{card} && exec {{}}) &"
    return process_in(client, ins, script=f"sh -c '{opener}'")


def end_of_lease(bed: Bed, client: Client, ins: str) -> float:
    """When the lease of the first card ends, in seconds since 1970."""
    value = bed.node.instance_of(client.user, ins)["config"][f"user.podyd.lease.{UUIDS[0]}"]
    until = datetime.fromisoformat(value.partition("/")[2].replace("Z", "+00:00"))
    return until.timestamp()


def test_who_is_next_waits_no_longer_than_the_grace(bed: Bed) -> None:
    bed.restart(lease={"grace": 2})
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), (bob, "b"), gpus="none"), pods((alice, "other"), gpus="0,"):
        alice.post("/gpu/lease", ins="a", gpus="0,", hours=6 * SECOND).ok
        end = end_of_lease(bed, alice, "a")
        with holding(alice, "a", 0, stubborn=True) as running:
            assert bob.post("/gpu/queue", ins="b", gpus="0,", hours=1).ok["place"] == 1
            wait_until(lambda: cards_in(alice, "a") == [], "the end of the lease")
            assert started(running.cmd) == 1
            body = alice.post("/gpu/lease", ins="other", gpus="0,", hours=1).refused(409)
            assert body["code"] == "gpu_held"
            wait_until(lambda: bob.get("/gpu/line").ok == [], "its turn")
            took = time.time() - end
            assert started(running.cmd) == 0
            print(f"{took:.2f} s from the end of a lease to the next one's")
            assert took < 10
            assert (cards_in(bob, "b"), cards_in(alice, "other")) == ([0], [])
        ended, left = (item["text"] for item in alice.get("/user/notices").ok)
        assert ended == "The lease of GPU 0 has ended: its time is up."
        assert f"still on it: pid {running.pid}" in left
        (turn,) = bob.get("/user/notices").ok
        assert turn["text"] == "It was this pod's turn: it has leased GPU 0."
        bob.post("/gpu/release", ins="b").ok
        wait_for_cards(alice, "other", [0])


def test_who_computes_on_a_card_that_is_leased_is_ended_first(bed: Bed) -> None:
    bed.restart(lease={"grace": 600})
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), gpus="none"), pods((bob, "b"), gpus="0,"):
        name = bed.node.instance_of(bob.user, "b")["name"]
        with holding(bob, "b", 0, stubborn=True) as running:
            bed.driver.write(FakeNvml().holding(0, FakeProcess(running.pid)))
            wait_until(lambda: bool(bob.get("/host/gpu-ps").ok["0"]), "the process")
            # Of a number, first one on which nobody computes.
            done = alice.post("/gpu/lease", ins="a", gpus="1", hours=1).ok
            assert ([item["index"] for item in done["leases"]], done["ending"]) == ([1], [])
            done = alice.post("/gpu/lease", ins="a", gpus="0,", hours=1).ok
            assert (done["place"], len(done["leases"])) == (0, 2)
            assert done["ending"] == [{"gpu": 0, "pod": name, "grace": 600.0, "processes": 1}]
            assert done["log"].endswith("The pod gets GPU 0 as soon as that is done.")
            assert (cards_in(alice, "a"), cards_in(bob, "b")) == ([1], [])
            assert started(running.cmd) == 1
            assert {
                item["owner"]: (item["attached"], item["exclusive"])
                for item in alice.get("/host/gpus").ok[0]["pods"]
            } == {alice.user: (False, True), bob.user: (False, False)}
            wait_until(lambda: bool(bob.get("/user/notices").ok), "it to be told")
            assert cards_in(alice, "a") == [1]
            os.kill(running.pid, signal.SIGKILL)
            wait_for_cards(alice, "a", [0, 1])
        (notice,) = bob.get("/user/notices").ok
        assert f"still on it: pid {running.pid}; they are ended in 600 s" in notice["text"]
        alice.post("/gpu/release", ins="a").ok


def test_what_is_to_end_is_ended_by_the_next_podyd_too(bed: Bed) -> None:
    ends = {"lease": {"grace": 3}}
    bed.restart(**ends)
    alice = bed.client()
    with pods((alice, "a"), gpus="0,"):
        alice.post("/gpu/lease", ins="a", gpus="0,", hours=1).ok
        with holding(alice, "a", 0, stubborn=True) as running:
            done = alice.post("/gpu/release", ins="a", force=1).ok
            name = bed.node.instance_of(alice.user, "a")["name"]
            assert done["ending"] == [{"gpu": 0, "pod": name, "grace": 3.0, "processes": 1}]
            bed.server.process.kill()
            bed.server.process.wait()
            key = f"user.podyd.evict.{UUIDS[0]}"
            assert key in bed.node.instance_of(alice.user, "a")["config"]
            assert started(running.cmd) == 1
            bed.server = bed.node.serve(ends, environment=bed.driver.environment)
            wait_until(lambda: not started(running.cmd), "it to be killed")
        alice = bed.client(alice.user)
        wait_for_cards(alice, "a", [0])
        assert key not in bed.node.instance_of(alice.user, "a")["config"]
        alice.post("/pod/delete", ins="a").ok


def test_who_still_has_a_leased_card_open_is_ended(bed: Bed) -> None:
    bed.restart(lease={"grace": 1})
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), gpus="none"), pods((bob, "b"), gpus="all"):
        name = bed.node.instance_of(bob.user, "b")["name"]
        bob.exec("b", "touch /root/stash && mount --bind /dev/dri/card0 /root/stash")
        assert bob.exec("b", "(exec 7<>/root/stash)")["exit_code"] == 0
        with holding(bob, "b", 0, stubborn=True) as kept, holding(bob, "b", 1) as other:
            done = alice.post("/gpu/lease", ins="a", gpus="0,", hours=1).ok
            assert done["ending"] == [{"gpu": 0, "pod": name, "grace": 1.0, "processes": 1}]

            def shown() -> list[Any]:
                answer = alice.get("/host/gpus").ok[0]
                attached = {item["pod"]: item["attached"] for item in answer["pods"]}
                assert attached.get(name, False) is False
                return [(item["pid"], item["pod"]) for item in answer["intruders"]]

            assert "not permitted" in bob.exec("b", "(exec 7<>/root/stash)")["stderr"]
            wait_until(lambda: shown() == [(kept.pid, name)], "it to be shown")
            wait_until(lambda: not started(kept.cmd), "it to be ended")
            assert started(other.cmd) == 1, "it may have its card"
            wait_until(lambda: shown() == [], "it to be shown no more")
        for client in (alice, bob):
            (notice,) = client.get("/user/notices").ok
            assert f"pid {kept.pid}" in notice["text"]
        alice.post("/gpu/release", ins="a").ok


def test_who_computes_where_they_may_not_is_ended_by_a_command_in_the_pod(bed: Bed) -> None:
    """As NVML alone shows it, and it has no card open."""
    bed.restart(lease={"grace": 1})
    client = bed.client()
    with pods((client, "busy"), gpus="1,"), process_in(client, "busy") as running:
        bed.driver.write(FakeNvml().holding(1, FakeProcess(running.pid)))
        wait_until(lambda: bool(client.get("/host/gpu-ps").ok["1"]), "the process")
        done = client.post("/pod/gpus", ins="busy", gpus="none", force=1).ok
        assert [(item["gpu"], item["processes"]) for item in done["ending"]] == [(1, 1)]
        wait_until(lambda: not started(running.cmd), "it to be ended")
    bed.restart()


# --- What the cards do --------------------------------------------------------------------------


def test_host_gpus_has_what_nvml_says(bed: Bed) -> None:
    client = bed.client()
    state = FakeNvml().with_gpu(
        0, memory_used=5 * 1024**3, utilisation=73, temperature=64, power=251.25
    )
    nothing = dict.fromkeys(
        ("memory_total", "memory_used", "utilisation", "temperature", "power", "power_limit")
    )
    bed.driver.write(state.with_gpu(1, **nothing))
    wait_until(lambda: client.get("/host/gpus").ok[0]["utilisation"] == 73, "the figures")
    first, second = client.get("/host/gpus").ok
    assert first == {
        "index": 0,
        "uuid": UUIDS[0],
        "pci": PCI[0],
        "name": "NVIDIA A100 80GB PCIe",
        "driver": "535.183.01",
        "memory_total": 80 * 1024**3,
        "memory_used": 5 * 1024**3,
        "utilisation": 73,
        "temperature": 64,
        "power": 251.25,
        "power_limit": 300.0,
        "idle": None,
        "problem": None,
        "pods": [],
        "intruders": [],
    }
    assert {key: second[key] for key in nothing} == nothing


def test_a_lost_card_is_shown_with_its_problem(bed: Bed) -> None:
    client = bed.client()
    bed.driver.write(FakeNvml().with_gpu(1, lost=True))
    wait_until(lambda: client.get("/host/gpus").ok[1]["problem"] is not None, "the problem")
    first, second = client.get("/host/gpus").ok
    assert (second["pci"], second["memory_used"]) == (PCI[1], None)
    assert first["problem"] is None


def test_without_nvml_cards_are_shared_out_all_the_same(bed: Bed) -> None:
    client = bed.client()
    bed.driver.write(replace(FakeNvml(), init_fails=999))
    bed.restart()
    client = bed.client(client.user)
    with pods((client, "a")):
        wait_for_cards(client, "a", [0, 1])
        first, _ = client.get("/host/gpus").ok
        assert (first["uuid"], first["memory_total"]) == (UUIDS[0], None)
        assert first["problem"]
        # Nobody can tell whether somebody is on it.
        client.post("/gpu/lease", ins="a", gpus="1", hours=1).refused(503, "nvml_failed")
        client.post("/pod/gpus", ins="a", gpus="none").refused(503, "nvml_failed")
        assert client.post("/pod/gpus", ins="a", gpus="none", force=1).ok["gpu_ids"] == []
    bed.driver.write(FakeNvml())
    bed.restart()


@pytest.mark.alone
def test_a_gpu_that_keeps_a_pod_from_starting_says_why(bed: Bed) -> None:
    client = bed.client()
    text = ENGINE.cards_file.read_text()
    broken = {**json.loads(text), "configure_error": "initialization error: driver not loaded"}
    write_atomically(ENGINE.cards_file, json.dumps(broken))
    try:
        body = client.post("/pod/create", ins="a", image=SMALL).refused(502, "pod_start_failed")
    finally:
        write_atomically(ENGINE.cards_file, text)
    assert "forkstart" not in body["detail"]
    assert "hook" in body["detail"]
    assert client.get("/pod/list").ok == []
    with pods((client, "a")):
        assert cards_in(client, "a") == [0, 1]


# --- Which card is which ------------------------------------------------------------------------


class Untold:
    """LXD as it is without nvidia-container-cli: it tells no UUIDs. `state` is the directory of a
    podyd that speaks to it."""

    def __init__(self, node: Node) -> None:
        known = Path(node.base["state_dir"])
        self.state = node.directory / f"untold-{secrets.token_hex(3)}"
        run("cp", "-a", str(known), str(self.state))
        lxd = self.state / node.credentials.name
        target = urlsplit((lxd / "endpoint").read_text().strip())
        self._target = str(target.hostname), int(target.port or 443)
        self._far = ssl.create_default_context(cafile=str(lxd / "server.crt"))
        self._far.check_hostname = False
        self._far.load_cert_chain(lxd / "client.crt", lxd / "client.key")
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.load_cert_chain(self._certify(lxd / "server.crt"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result(10)
        (lxd / "endpoint").write_text(f"https://127.0.0.1:{port}")
        self.forget()

    def forget(self) -> None:
        """Take away what podyd has written; it must not run."""
        for path in (self.state / "data").glob("podyd.db*"):
            path.unlink()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _certify(self, shown: Path) -> Path:
        """A certificate with its key; podyd is shown the certificate as LXD's."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = self_signed(key, "LXD").public_bytes(serialization.Encoding.PEM)
        shown.write_bytes(pem)
        both = self.state / "untold.pem"
        both.write_bytes(
            pem
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return both

    async def _begin(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._near)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        self._server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """One request, as podyd makes a connection for each."""
        far, on = await asyncio.open_connection(*self._target, ssl=self._far)
        with suppress(OSError, asyncio.CancelledError):
            head = await near.readuntil(b"\r\n")
            if head.startswith(b"GET /1.0/resources?"):
                # In one piece, until LXD hangs up.
                on.write(
                    head.replace(b" HTTP/1.1", b" HTTP/1.0") + await near.readuntil(b"\r\n\r\n")
                )
                back.write((await far.read()).replace(b'"nvidia":', b'"hidden":'))
            else:
                on.write(head)
                ways = [asyncio.ensure_future(_pass_on(*way)) for way in ((near, on), (far, back))]
                _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in left:
                    way.cancel()
        on.close()
        back.close()


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()


@pytest.fixture
def untold(bed: Bed) -> Iterator[Untold]:
    cards = Untold(bed.node)
    yield cards
    bed.restart()
    cards.close()


def test_a_leased_card_is_its_holders_while_nobody_tells_which_card_is_which(
    bed: Bed, untold: Untold
) -> None:
    bed.restart(state_dir=str(untold.state))
    alice, bob = bed.client(), bed.client()
    with pods((alice, "a"), gpus="none"), pods((bob, "b"), gpus="all"):
        alice.post("/gpu/lease", ins="a", gpus="0,", hours=1).ok
        assert (cards_in(alice, "a"), cards_in(bob, "b")) == ([0], [1])
        # As an update of the driver leaves it until the host restarts; podyd remembers.
        bed.driver.write(FakeNvml(init_fails=999))
        bed.restart(state_dir=str(untold.state))
        alice, bob = bed.client(alice.user), bed.client(bob.user)
        assert bob.post("/pod/gpus", ins="b", gpus="all").ok["gpu_ids"] == [1]
        assert (cards_in(alice, "a"), cards_in(bob, "b")) == ([0], [1])
        assert [item["uuid"] for item in bob.get("/host/gpus").ok] == UUIDS
        # One that remembers nothing leaves everything where it is.
        assert bed.server.stop() == 0
        untold.forget()
        bed.restart(state_dir=str(untold.state))
        alice, bob = bed.client(alice.user), bed.client(bob.user)
        assert [item["uuid"] for item in bob.get("/host/gpus").ok] == ["", ""]
        bed.server.wait_for_log(
            f"cannot be shared out now: Neither {ENGINE.title} nor NVML reports the UUID"
        )
        for refused in (
            bob.post("/pod/gpus", ins="b", gpus="all"),
            bob.post("/gpu/lease", ins="b", gpus="1,", hours=1),
            alice.post("/gpu/release", ins="a"),
        ):
            assert UUIDS[0] in refused.refused(503, "gpus_unknown")["detail"]
        with pods((bob, "new")):
            assert cards_in(bob, "new") == [], "it has them of its profiles once they are known"
            assert (cards_in(alice, "a"), cards_in(bob, "b")) == ([0], [1])
            bed.driver.write(FakeNvml())
            wait_for_cards(bob, "new", [1])
        assert bed.server.log_text().count(f"shared out now: Neither {ENGINE.title}") == 1, (
            "it is said once"
        )
        assert (cards_in(alice, "a"), cards_in(bob, "b")) == ([0], [1])
        alice.post("/gpu/release", ins="a").ok
        wait_for_cards(bob, "b", [0, 1])


# --- Idle ---------------------------------------------------------------------------------------


def check_notices(client: Client, pod: str) -> None:
    """That what was told of an idle card of this member's pod can still be read, and by them."""
    wait_until(lambda: len(client.get("/user/notices").ok) == 3, "them to be written")
    warned, ended, still = answer = client.get("/user/notices").ok
    assert re.fullmatch(
        r"GPU 1 has been idle for \d+ s; its lease ends in 3 s unless it is used\.", warned["text"]
    )
    assert ended["text"] == "The lease of GPU 1 has ended: it was idle."
    assert re.fullmatch(
        r"The lease of GPU 1 has ended; still on it: pid \d+; they are ended in 1 s\.",
        still["text"],
    )
    for notice in answer:
        assert (notice["pod"], notice["to"], notice["count"]) == (pod, "you", 1)
        assert (notice["read"], notice["id"] > 0) == (False, True)
    assert client.get("/user/notices", limit=1).ok == [still]
    assert client.get("/user/notices", since="2099-01-01").ok == []
    pody = as_user(client)
    assert json.loads(pody("notices").ok) == answer
    assert "pody: 3 new notices: pody notices" in pody.shown("ls")
    shown = pody.shown("notices").splitlines()
    assert [line.partition("  ")[0] for line in shown] == [
        "time",
        *(notice["time"] for notice in answer),
    ]
    assert shown[-1].endswith(f"{pod}  {still['text']}")
    assert "notice" not in pody.shown("ls")
    assert [notice["read"] for notice in client.get("/user/notices").ok] == [True] * 3
    client.post("/user/notices-read", id=0).refused(400, "malformed_parameter")


# A few milliseconds of work now and then, of which NVML shows nothing.
LITTLE_TRAFFIC = """cat >/root/serve <<'EOF'
import time
while True:
    time.sleep(0.3)
    sum(range(100_000))
EOF
"""


def test_an_idle_lease_is_warned_of_and_released_and_one_of_little_use_is_not(bed: Bed) -> None:
    bed.restart(idle={"after": 3, "grace": 3, "policy": "release"}, lease={"grace": 1})
    busy, lazy = bed.client(), bed.client()
    with pods((busy, "b"), (lazy, "l"), image=IMAGE, gpus="none"):
        lazy.exec("l", "setsid script -qfc 'sleep 60' /root/screen </dev/null >/dev/null 2>&1 &")
        busy.exec("b", LITTLE_TRAFFIC)
        with (
            process_in(busy, "b", "python3 /root/serve") as serving,
            process_in(lazy, "l") as resting,
        ):
            state = FakeNvml().holding(0, FakeProcess(serving.pid))
            bed.driver.write(state.holding(1, FakeProcess(resting.pid)))
            busy.post("/gpu/lease", ins="b", gpus="0,", hours=1).ok
            lazy.post("/gpu/lease", ins="l", gpus="1,", hours=1).ok
            wait_until(lambda: (busy.get("/host/gpus").ok[1]["idle"] or 0) > 2, "it to be idle")
            screen = "cat /root/screen"
            wait_until(
                lambda: "GPU 1 has been idle" in lazy.exec("l", screen)["stdout"], "the warning"
            )
            wait_for_cards(lazy, "l", [])
            wait_until(lambda: "has ended" in lazy.exec("l", screen)["stdout"], "the end of it")
            check_notices(lazy, f"{lazy.user}-l")
            wait_until(lambda: not started(resting.cmd), "what has not used the card to be ended")
            # Nobody is logged in there, but it computes.
            assert cards_in(busy, "b") == [0]
            (row,) = busy.get("/host/gpu-ps").ok["0"]
            assert row["idle"] < 2
            assert busy.get("/host/gpus").ok[0]["idle"] < 2
            assert busy.get("/user/notices").ok == []
    bed.restart()
    assert len(bed.client(lazy.user).get("/user/notices").ok) == 3, "the next podyd has them too"


def test_a_process_that_does_nothing_is_shown_as_idle(bed: Bed) -> None:
    client = bed.client()
    with pods((client, "a"), gpus="0,"), process_in(client, "a") as running:
        bed.driver.write(FakeNvml().holding(0, FakeProcess(running.pid, utilisation=0)))

        def idle() -> float:
            rows = client.get("/host/gpu-ps").ok["0"]
            return rows[0]["idle"] if rows else 0

        wait_until(lambda: idle() > 2, "it to be idle")
        # Where the card does not tell, nobody is taken for idle.
        state = FakeNvml().with_gpu(0, process_utilisation=False, utilisation=None)
        bed.driver.write(state.holding(0, FakeProcess(running.pid)))
        wait_until(lambda: client.get("/host/gpu-ps").ok["0"][0]["idle"] is None, "no figure")
        assert client.get("/host/gpus").ok[0]["idle"] is None


def test_the_keys_are_for_an_admin_to_read(bed: Bed) -> None:
    client = bed.client()
    with pods((client, "a"), (client, "b"), gpus="none"):
        client.post("/gpu/lease", ins="a", gpus="all", hours=1).ok
        client.post("/gpu/queue", ins="b", gpus="1,", hours=2).ok
        config = bed.node.instance_of(client.user, "a")["config"]
        since, _, until = config[f"user.podyd.lease.{UUIDS[0]}"].partition("/")
        assert since < until
        assert until.endswith("Z")
        waiting = json.loads(bed.node.instance_of(client.user, "b")["config"]["user.podyd.waiting"])
        assert (waiting["gpus"], waiting["hours"]) == (f"{UUIDS[1]},", 2)
        (place,) = client.get("/gpu/line").ok
        assert place["gpus"] == "1,"
