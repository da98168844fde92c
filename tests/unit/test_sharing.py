"""Who may have which card: decisions on pods, leases and a line that a test makes up."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from podyd.errors import BadRequest, Conflict, Unavailable
from podyd.gpus import Card
from podyd.leases import Lease, Place, lease_key, lease_value, leases_of, line_of, place_value
from podyd.lxd.instances import Instance
from podyd.params import CardChoice, Cards
from podyd.pod import Pod
from podyd.sharing import WISH, Making, View

START = datetime(2026, 11, 24, tzinfo=timezone.utc)
CARDS = tuple(Card(index, f"0000:{index}1:00.0", f"GPU-{index}") for index in range(3))
PROFILE = {"devices": {"gpus": {"type": "gpu"}}}


def pod(name: str, owner: str = "", **config: str) -> Pod:
    owner = owner or f"owner-{name}"
    keys = {"user.podyd.owner": owner, **config}
    instance = Instance(name, "Running", START, START, keys, keys, {}, {}, ("podyd-gpu",))
    return Pod(owner, name, instance)


def shares(name: str, wish: str, owner: str = "") -> Pod:
    return pod(name, owner, **{WISH: wish})


def lease(of: Pod, card: Card, since: int = 0) -> Lease:
    return Lease(of, card.key, START + timedelta(minutes=since), START + timedelta(hours=9))


def place(of: Pod, gpus: str, minute: int, more: int = 9) -> Place:
    return Place(of, START + timedelta(minutes=minute), choice(gpus), 1.0, more)


def choice(gpus: str) -> CardChoice:
    return Cards().parse(gpus)


def view(*pods: Pod, leases: tuple[Lease, ...] = (), **changes: Any) -> View:
    parts: dict[str, Any] = {
        "cards": CARDS,
        "pods": pods,
        "profiles": {"podyd-gpu": PROFILE},
        "leases": {item.key: item for item in leases},
        "line": (),
        "making": {},
        "users": {},
        "troubled": {},
        **changes,
    }
    return View(**parts)


def indices(cards: object) -> list[int]:
    assert isinstance(cards, frozenset)
    return sorted(card.index for card in cards)


A, B, C = pod("a"), pod("b"), pod("c")


def test_what_is_leased_is_its_holders_alone() -> None:
    found = view(A, B, leases=(lease(A, CARDS[1]),))
    assert (indices(found.due(A)), indices(found.due(B))) == ([0, 1, 2], [0, 2])
    none = shares("n", "none")
    found = view(none, B, leases=(lease(none, CARDS[1]),))
    assert indices(found.due(none)) == [1]


def test_a_number_prefers_what_nobody_uses() -> None:
    users = {CARDS[0]: frozenset({"b"}), CARDS[1]: frozenset({"b"})}
    found = view(A, shares("b", "GPU-2"), users=users)
    assert indices(found.choose(choice("1"))) == [2]
    # A pod's own come first: changing them would take something away for nothing.
    one = shares("s", "GPU-1")
    assert indices(view(one, B, users=users).choose(choice("1"), one)) == [1]


def test_what_others_have_leased_cannot_be_chosen() -> None:
    found = view(A, B, leases=(lease(A, CARDS[1]),))
    with pytest.raises(Conflict, match="GPU 1 is leased to a of owner-a since") as refused:
        found.choose(choice("0,1"), B)
    assert "/gpu/queue" not in refused.value.detail, "there is no line for sharing"
    assert indices(found.choose(choice("all"), B)) == [0, 2]
    with pytest.raises(BadRequest):
        found.choose(choice("4"), B)


def test_those_before_are_not_passed_over() -> None:
    waiting = place(B, "1", 1)
    found = view(A, B, C, leases=(lease(A, CARDS[0]),), line=(waiting, place(C, "1", 2)))
    assert len(found.grantable(waiting)) == 1
    with pytest.raises(Conflict, match="1 in line before you"):
        found.grantable(place(C, "1", 2))
    # Who waits for one card keeps nobody from another.
    found = view(A, B, C, leases=(lease(A, CARDS[0]),), line=(place(B, "0,", 1),))
    assert indices(found.grantable(place(C, "1,", 2))) == [1]


def test_who_waits_for_more_than_there_is_holds_nobody_up() -> None:
    found = view(A, B, line=(place(A, "9", 1), place(B, "0,7", 2)))
    assert indices(found.grantable(place(C, "3", 3))) == [0, 1, 2]
    for item in found.line:
        with pytest.raises(Conflict):
            found.grantable(item)


def test_a_holder_does_not_prolong_past_the_line() -> None:
    found = view(A, B, leases=(lease(A, CARDS[0]),), line=(place(B, "0,", 1),))
    with pytest.raises(Conflict, match="in line before you"):
        found.grantable(place(A, "0,", 2))
    assert indices(view(A, B, leases=(lease(A, CARDS[0]),)).grantable(place(A, "0,", 2))) == [0]


def test_a_lease_within_a_quota_takes_first_what_the_pod_shares() -> None:
    one = shares("s", "GPU-1")
    found = view(one)
    assert found.more_of(one, choice("1"), 0) == 0
    assert indices(found.grantable(place(one, "1", 1, more=0))) == [1]
    with pytest.raises(Conflict):
        found.grantable(place(one, "2", 1, more=0))
    assert found.more_of(one, choice("0,"), 0) == 1, "a card that it does not share is one more"


def test_everything_counts_once() -> None:
    waiting = place(shares("w", "GPU-0", "alice"), "2", 1, more=2)
    made = shares("m", "GPU-1", "alice")
    making = {"m": Making("alice", frozenset({CARDS[1]}), 1), "n": Making("alice", frozenset(), 1)}
    found = view(waiting.pod, made, B, line=(waiting,), making=making)
    assert found.counted("alice") == 1 + 2 + 1 + 1
    assert found.counted("alice", but="w") == 2
    assert found.counted("alice", but="m") == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"users": {CARDS[0]: frozenset({"b", ""})}}, "in use by b of owner-b"),
        ({"troubled": {CARDS[0]: "it is lost"}}, "does not answer: it is lost"),
        ({"making": {"new": Making("x", frozenset({CARDS[0]}), 1)}}, "just being made"),
    ],
)
def test_a_card_that_cannot_be_had_alone(changes: Mapping[str, Any], said: str) -> None:
    found = view(A, B, **changes)
    with pytest.raises(Conflict, match=said):
        found.grantable(place(A, "0,", 1))
    assert indices(found.grantable(place(A, "2", 1))) == [1, 2]


def test_the_hosts_own_processes_keep_nobody_out() -> None:
    found = view(A, users={CARDS[0]: frozenset({""})})
    assert indices(found.grantable(place(A, "0,", 1))) == [0]


def test_without_nvml_nobody_can_tell() -> None:
    with pytest.raises(Unavailable, match="because"):
        view(A, users=None, problem="because").grantable(place(A, "1", 1))
    # What a pod has already, it may have longer.
    found = view(A, leases=(lease(A, CARDS[0]),), users=None)
    assert indices(found.grantable(place(A, "0,", 1))) == [0]


# --- What stands on the instances ---------------------------------------------------------------


def test_what_is_written_is_read() -> None:
    item = place(A, "0,", 5, more=1)
    kept = pod(
        "a",
        **{
            "user.podyd.waiting": place_value(item),
            lease_key("GPU-1"): lease_value(START, START + timedelta(hours=9)),
        },
    )
    (read,) = line_of([kept])
    assert (read.since, read.choice, read.hours, read.more) == (item.since, item.choice, 1.0, 1)
    assert leases_of([kept]) == {"GPU-1": Lease(kept, "GPU-1", START, START + timedelta(hours=9))}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"pod": "a"}',
        '{"pod": "a", "since": "2026-11-24", "gpus": "1", "hours": 1, "more": 1}',
        '{"pod": "a", "since": "2026-11-24T00:00:00Z", "gpus": "x", "hours": 1, "more": 1}',
        '{"pod": "a", "since": "2026-11-24T00:00:00Z", "gpus": "1", "hours": NaN, "more": 1}',
        '{"pod": "a", "since": "2026-11-24T00:00:00Z", "gpus": "1", "hours": 1e12, "more": 1}',
        '{"pod": "b", "since": "2026-11-24T00:00:00Z", "gpus": "1", "hours": 1, "more": 1}',
    ],
)
def test_what_is_no_place_in_line_is_none(text: str) -> None:
    assert line_of([pod("a", **{"user.podyd.waiting": text})]) == []


@pytest.mark.parametrize("text", ["", "x", "2026-11-24T00:00:00Z", "a/b", "2026-11-24/2026-11-25"])
def test_what_is_no_interval_is_no_lease(text: str) -> None:
    assert leases_of([pod("a", **{lease_key("GPU-1"): text})]) == {}


def test_of_two_leases_of_one_card_the_older_counts() -> None:
    old = pod("a", **{lease_key("GPU-1"): lease_value(START, START + timedelta(hours=1))})
    later = START + timedelta(minutes=1)
    new = pod("b", **{lease_key("GPU-1"): lease_value(later, later + timedelta(hours=1))})
    assert leases_of([new, old])["GPU-1"].pod == old
