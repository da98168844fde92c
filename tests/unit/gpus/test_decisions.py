"""Who may have which card: decisions on pods, leases and a queue that a test makes up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from podyd.auth.client import Account
from podyd.base.errors import BadRequest, Conflict, Unavailable
from podyd.contract.kinds import Cards
from podyd.engine.types import Instance, Profile
from podyd.gpus.decisions import WISH, Making, View
from podyd.gpus.inventory import Card, by_index
from podyd.gpus.leases import (
    WAITING,
    Lease,
    QueueEntry,
    Withdrawal,
    entry_value,
    lease_key,
    lease_value,
    leases_of,
    queue_of,
)
from podyd.model.gpu import CardChoice
from podyd.model.pod import Pod

START = datetime(2026, 11, 24, tzinfo=timezone.utc)
ALICE = Account("alice", 1000, 1000, frozenset())
CARDS = tuple(Card(index, f"0000:{index}1:00.0", f"GPU-{index}") for index in range(3))
PROFILE = Profile("podyd-gpu", devices={"gpus": {"type": "gpu"}})


def pod(name: str, owner: str = "", **config: str) -> Pod:
    owner = owner or f"owner-{name}"
    keys = {"user.podyd.owner": owner, **config}
    instance = Instance(name, "running", START, START, keys, keys, {}, {}, ("podyd-gpu",))
    return Pod(owner, name, instance)


def shares(name: str, wish: str, owner: str = "") -> Pod:
    return pod(name, owner, **{WISH: wish})


def lease(of: Pod, card: Card, since: int = 0) -> Lease:
    return Lease(of, card.key, START + timedelta(minutes=since), START + timedelta(hours=9))


def withdrawal(of: Pod, card: Card, lessee: str = "") -> Withdrawal:
    return Withdrawal(of, card.key, "", START, START + timedelta(minutes=1), lessee)


def entry(of: Pod, gpus: str, minute: int, more: int = 9) -> QueueEntry:
    return QueueEntry(of, START + timedelta(minutes=minute), choice(gpus), 1.0, more)


def choice(gpus: str) -> CardChoice:
    return Cards().parse(gpus)


def view_of(*pods: Pod, leases: tuple[Lease, ...] = (), **changes: Any) -> View:
    parts: dict[str, Any] = {
        "cards": CARDS,
        "pods": pods,
        "profiles": {"podyd-gpu": PROFILE},
        "leases": {item.key: item for item in leases},
        "queue": (),
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
    view = view_of(A, B, leases=(lease(A, CARDS[1]),))
    assert (indices(view.due(A)), indices(view.due(B))) == ([0, 1, 2], [0, 2])
    none = shares("n", "none")
    view = view_of(none, B, leases=(lease(none, CARDS[1]),))
    assert indices(view.due(none)) == [1]


def test_a_number_prefers_what_nobody_uses() -> None:
    users = {CARDS[0]: frozenset({"b"}), CARDS[1]: frozenset({"b"})}
    view = view_of(A, shares("b", "GPU-2"), users=users)
    assert indices(view.choose(choice("1"))) == [2]
    # A pod's own come first: changing them would take something away for nothing.
    one = shares("s", "GPU-1")
    assert indices(view_of(one, B, users=users).choose(choice("1"), one)) == [1]


def test_what_others_have_leased_cannot_be_chosen() -> None:
    view = view_of(A, B, leases=(lease(A, CARDS[1]),))
    with pytest.raises(Conflict, match="GPU 1 is leased to a of owner-a since") as refused:
        view.choose(choice("0,1"), B)
    assert "/gpu/queue" not in refused.value.detail, "there is no queue for sharing"
    assert indices(view.choose(choice("all"), B)) == [0, 2]
    with pytest.raises(BadRequest):
        view.choose(choice("4"), B)


def test_those_before_are_not_passed_over() -> None:
    waiting = entry(B, "1", 1)
    view = view_of(A, B, C, leases=(lease(A, CARDS[0]),), queue=(waiting, entry(C, "1", 2)))
    assert len(view.grantable(waiting)) == 1
    with pytest.raises(Conflict, match="1 in the queue before you"):
        view.grantable(entry(C, "1", 2))
    # Who waits for one card keeps nobody from another.
    view = view_of(A, B, C, leases=(lease(A, CARDS[0]),), queue=(entry(B, "0,", 1),))
    assert indices(view.grantable(entry(C, "1,", 2))) == [1]


def test_who_waits_for_more_than_there_is_holds_nobody_up() -> None:
    view = view_of(A, B, queue=(entry(A, "9", 1), entry(B, "0,7", 2)))
    assert indices(view.grantable(entry(C, "3", 3))) == [0, 1, 2]
    for item in view.queue:
        with pytest.raises(Conflict):
            view.grantable(item)


def test_a_holder_does_not_prolong_past_the_line() -> None:
    view = view_of(A, B, leases=(lease(A, CARDS[0]),), queue=(entry(B, "0,", 1),))
    with pytest.raises(Conflict, match="in the queue before you"):
        view.grantable(entry(A, "0,", 2))
    assert indices(view_of(A, B, leases=(lease(A, CARDS[0]),)).grantable(entry(A, "0,", 2))) == [0]


def test_a_lease_within_a_quota_takes_first_what_the_pod_shares() -> None:
    one = shares("s", "GPU-1")
    view = view_of(one)
    assert view.more_of(one, choice("1"), 0) == 0
    assert indices(view.grantable(entry(one, "1", 1, more=0))) == [1]
    with pytest.raises(Conflict):
        view.grantable(entry(one, "2", 1, more=0))
    assert view.more_of(one, choice("0,"), 0) == 1, "a card that it does not share is one more"


def test_everything_counts_once() -> None:
    waiting = entry(shares("w", "GPU-0", "alice"), "2", 1, more=2)
    made = shares("m", "GPU-1", "alice")
    making = {"m": Making("alice", frozenset({CARDS[1]}), 1), "n": Making("alice", frozenset(), 1)}
    view = view_of(waiting.pod, made, B, queue=(waiting,), making=making)
    assert view.counted(ALICE) == 1 + 2 + 1 + 1
    assert view.counted(ALICE, but="w") == 2
    assert view.counted(ALICE, but="m") == 4


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"users": {CARDS[0]: frozenset({"b", ""})}}, "in use by b of owner-b"),
        ({"troubled": {CARDS[0]: "it is lost"}}, "does not answer: it is lost"),
        ({"making": {"new": Making("x", frozenset({CARDS[0]}), 1)}}, "just being made"),
    ],
)
def test_a_card_that_cannot_be_had_alone(changes: Mapping[str, Any], problem: str) -> None:
    view = view_of(A, B, **changes)
    with pytest.raises(Conflict, match=problem):
        view.grantable(entry(A, "0,", 1))
    assert indices(view.grantable(entry(A, "2", 1))) == [1, 2]


def test_a_card_on_which_others_compute_is_taken_where_they_are_ended() -> None:
    users = {CARDS[0]: frozenset({"b", ""}), CARDS[1]: frozenset({"b", "c"})}
    view = view_of(A, B, C, users=users, ends_sharers=True)
    assert indices(view.grantable(entry(A, "0,", 1))) == [0]
    assert indices(view.grantable(entry(A, "all", 1))) == [0, 1, 2]
    # Of a number, first those on which nobody computes, then those of the fewest pods.
    for number, wanted in ((1, [2]), (2, [0, 2]), (3, [0, 1, 2])):
        assert indices(view.grantable(entry(A, str(number), 1))) == wanted
    assert indices(view.grantable(entry(B, "1", 1))) == [2], "its own come after free ones"


def test_within_a_quota_no_more_is_taken_than_it_leaves() -> None:
    users = {CARDS[0]: frozenset({"b"}), CARDS[1]: frozenset({"b"})}
    one = shares("s", "GPU-1")
    view = view_of(one, B, users=users, ends_sharers=True)
    assert indices(view.grantable(entry(one, "1", 1, more=0))) == [1]
    assert indices(view.grantable(entry(one, "2", 1, more=1))) == [1, 2]
    with pytest.raises(Conflict):
        view.grantable(entry(one, "3", 1, more=1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"leases": (lease(C, CARDS[0]),)}, "is leased to c"),
        ({"withdrawals": (withdrawal(C, CARDS[0]),)}, "is being taken from c of owner-c until"),
        ({"troubled": {CARDS[0]: "it is lost"}}, "does not answer: it is lost"),
        ({"making": {"new": Making("x", frozenset({CARDS[0]}), 1)}}, "just being made"),
    ],
)
def test_only_who_shares_a_card_is_ended_for_a_lease(changes: Any, said: str) -> None:
    users = {CARDS[0]: frozenset({"b", "c"})}
    view = view_of(A, B, C, users=users, ends_sharers=True, **changes)
    with pytest.raises(Conflict, match=said) as refused:
        view.grantable(entry(A, "0,", 1))
    assert [item["pod"] for item in refused.value.fields["holders"]] in (["c"], [])


def test_a_card_that_an_admin_has_given_to_a_pod_is_not_taken() -> None:
    given = pod("g")
    own = {"mine": {"type": "gpu", "pci": CARDS[0].pci}}
    given = replace(given, instance=replace(given.instance, own_devices=own, devices=own))
    users = {CARDS[0]: frozenset({"b", "g"})}
    with pytest.raises(Conflict, match="in use by g"):
        view_of(A, B, given, users=users, ends_sharers=True).grantable(entry(A, "0,", 1))


def test_a_leased_card_is_its_holders_once_the_others_are_off_it() -> None:
    none = shares("n", "none")
    for withdrawals, wanted in (((withdrawal(B, CARDS[0], "n"),), []), ((), [0])):
        view = view_of(none, B, leases=(lease(none, CARDS[0]),), withdrawals=withdrawals)
        assert indices(view.due(none)) == wanted
        assert indices(view.due(B)) == [1, 2]
    # Nobody takes it from a pod that shares it too, and may compute on it.
    taken = (withdrawal(B, CARDS[0], "a"),)
    view = view_of(A, B, leases=(lease(A, CARDS[0]),), withdrawals=taken)
    assert indices(view.due(A)) == [0, 1, 2]
    kept = having("k", CARDS[:1], **{WISH: "none"})
    view = view_of(kept, leases=(lease(kept, CARDS[0]),), withdrawals=taken)
    assert indices(view.due(kept)) == [0], "nor from one that has it"


def test_the_hosts_own_processes_keep_nobody_out() -> None:
    view = view_of(A, users={CARDS[0]: frozenset({""})})
    assert indices(view.grantable(entry(A, "0,", 1))) == [0]


def test_without_nvml_nobody_can_tell() -> None:
    with pytest.raises(Unavailable, match="because"):
        view_of(A, users=None, problem="because").grantable(entry(A, "1", 1))
    # What a pod has already, it may have longer.
    view = view_of(A, leases=(lease(A, CARDS[0]),), users=None)
    assert indices(view.grantable(entry(A, "0,", 1))) == [0]


# --- What stands on the instances ---------------------------------------------------------------


def test_what_is_written_is_read() -> None:
    item = entry(A, "GPU-0,0000:21:00.0", 5, more=1)
    kept = pod(
        "a",
        **{
            "user.podyd.waiting": entry_value(item),
            lease_key("GPU-1"): lease_value(START, START + timedelta(hours=9)),
        },
    )
    (read,) = queue_of([kept], CARDS)
    assert (read.since, read.hours, read.more) == (item.since, 1.0, 1)
    assert read.choice.named == ("GPU-0", "GPU-2")
    assert leases_of([kept], CARDS) == {
        "GPU-1": Lease(kept, "GPU-1", START, START + timedelta(hours=9))
    }


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
    assert queue_of([pod("a", **{"user.podyd.waiting": text})], CARDS) == []


@pytest.mark.parametrize("text", ["", "x", "2026-11-24T00:00:00Z", "a/b", "2026-11-24/2026-11-25"])
def test_what_is_no_interval_is_no_lease(text: str) -> None:
    assert leases_of([pod("a", **{lease_key("GPU-1"): text})], CARDS) == {}


def test_of_two_leases_of_one_card_the_older_counts() -> None:
    old = pod("a", **{lease_key("GPU-1"): lease_value(START, START + timedelta(hours=1))})
    later = START + timedelta(minutes=1)
    new = pod("b", **{lease_key("GPU-1"): lease_value(later, later + timedelta(hours=1))})
    assert leases_of([new, old], CARDS)["GPU-1"].pod == old


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("all", CardChoice(everything=True)),
        ("2", CardChoice(count=2)),
        ("GPU-1,", CardChoice(named=("GPU-1",))),
        ("0,1", CardChoice(named=("GPU-0", "GPU-1"))),
        ("1,", CardChoice(named=("GPU-1",))),
        ("7,", CardChoice(named=("7",))),
        ("GPU-gone,GPU-2,", CardChoice(named=("GPU-gone", "GPU-2"))),
    ],
)
def test_a_place_in_line_as_any_podyd_wrote_it(text: str, choice: CardChoice) -> None:
    data = {"pod": "a", "since": "2026-11-24T00:00:00Z", "gpus": text, "hours": 1, "more": 1}
    (read,) = queue_of([pod("a", **{WAITING: json.dumps(data)})], CARDS)
    assert read.choice == choice


def test_who_waits_for_a_card_waits_for_it_in_whatever_order_they_are() -> None:
    waits = pod("a", **{WAITING: entry_value(entry(A, "GPU-0,", 1))})
    others = (replace(CARDS[2], index=0), CARDS[1], replace(CARDS[0], index=2))
    queue = tuple(queue_of([waits], others))
    view = view_of(waits, cards=others, queue=queue)
    assert {card.uuid for card in view.grantable(queue[0])} == {"GPU-0"}
    assert str(by_index(queue[0].choice, others)) == "2,", "as it is shown"


# --- Where nobody tells which card is which -----------------------------------------------------

UNTOLD = tuple(replace(card, uuid="") for card in CARDS)
HOURS = lease_value(START, START + timedelta(hours=9))


def having(name: str, cards: Iterable[Card], **config: str) -> Pod:
    """A pod with these cards, which podyd has given to it."""
    bare = pod(name, **config)
    own: dict[str, Mapping[str, str]] = {"gpus": {"type": "none"}}
    own |= {f"podyd-gpu-{card.index}": {"type": "gpu", "pci": card.pci} for card in cards}
    return replace(bare, instance=replace(bare.instance, own_devices=own, devices=own))


def standing(*pods: Pod, cards: tuple[Card, ...]) -> View:
    """How things stand by what is written on the instances."""
    queue = tuple(queue_of(pods, cards))
    return replace(view_of(*pods, cards=cards, queue=queue), leases=leases_of(pods, cards))


LEASING = having("a", CARDS[:1], **{WISH: "none", lease_key("GPU-0"): HOURS})
SHARING = having("b", CARDS[1:], **{WISH: "all"})


def test_a_leased_card_stays_where_it_is_while_nobody_tells_which_it_is() -> None:
    view = standing(LEASING, SHARING, cards=UNTOLD)
    assert (indices(view.due(LEASING)), indices(view.due(SHARING))) == ([0], [1, 2])
    assert view.key_updates(LEASING) == {}, "nor is the lease forgotten"
    # Once it is told, all is as it was, in whatever slot the card is.
    moved = (replace(CARDS[0], pci=CARDS[1].pci), replace(CARDS[1], pci=CARDS[0].pci), CARDS[2])
    for cards in (CARDS, moved):
        view = standing(LEASING, SHARING, cards=cards)
        assert {card.uuid for card in view.due(LEASING)} == {"GPU-0"}
        assert {card.uuid for card in view.due(SHARING)} == {"GPU-1", "GPU-2"}


@pytest.mark.parametrize(
    "config",
    [
        {lease_key("GPU-0"): HOURS},
        {WISH: "GPU-0,GPU-1"},
        {WAITING: entry_value(entry(A, "GPU-0,", 1))},
    ],
)
def test_only_the_cards_that_may_be_meant_are_frozen(config: Mapping[str, str]) -> None:
    named = having("a", (), **{WISH: "none", **config})
    free = having("b", (), **{WISH: "all"})
    view = standing(named, free, cards=(UNTOLD[0], *CARDS[1:]))
    assert indices(view.frozen) == [0]
    assert indices(view.due(free)) == [1, 2]
    assert indices(view.choose(choice("2"))) == [1, 2]
    assert indices(view.grantable(entry(free, "2", 2))) == [1, 2]
    for asked in ("all", "0,", "3"):
        with pytest.raises(Unavailable, match=r"UUID of GPU 0 \(0000:01:00.0\).* GPU-0, which a "):
            view.choose(choice(asked))
        with pytest.raises(Unavailable, match="UUID of GPU 0"):
            view.grantable(entry(free, asked, 2))
    with pytest.raises(Unavailable):
        view.check_known(named)
    view.check_known(free)


def test_a_card_that_has_gone_with_the_hardware_freezes_nothing() -> None:
    gone = having("a", (), **{WISH: "GPU-9", lease_key("GPU-8"): HOURS})
    view = standing(gone, SHARING, cards=CARDS)
    assert (view.frozen, indices(view.due(SHARING))) == (frozenset(), [0, 1, 2])
    # Nor does one that was written with its address, whatever is told.
    gone = having("a", (), **{WISH: "0000:99:00.0", lease_key("0000:98:00.0"): HOURS})
    view = standing(gone, SHARING, cards=UNTOLD)
    assert (view.frozen, indices(view.due(SHARING))) == (frozenset(), [0, 1, 2])


def test_where_no_uuid_was_ever_told_the_address_is_enough() -> None:
    keys = {WISH: "0000:11:00.0", lease_key("0000:01:00.0"): HOURS}
    leasing = having("a", CARDS[:2], **keys)
    view = standing(leasing, SHARING, cards=UNTOLD)
    assert (view.frozen, view.key_updates(leasing)) == (frozenset(), {})
    assert (indices(view.due(leasing)), indices(view.due(SHARING))) == ([0, 1], [1, 2])


def test_what_was_written_by_address_is_written_anew_once_the_uuid_is_told() -> None:
    waiting = replace(entry(A, "0000:21:00.0,", 1))
    keys = {WISH: "0000:11:00.0", lease_key("0000:01:00.0"): HOURS, WAITING: entry_value(waiting)}
    leasing = having("a", CARDS[:2], **keys)
    view = standing(leasing, SHARING, cards=CARDS)
    assert (indices(view.due(leasing)), indices(view.due(SHARING))) == ([0, 1], [1, 2])
    lasting = replace(waiting, choice=CardChoice(named=("GPU-2",)))
    assert view.key_updates(leasing) == {
        WISH: "GPU-1",
        lease_key("0000:01:00.0"): None,
        lease_key("GPU-0"): HOURS,
        WAITING: entry_value(lasting),
    }
    assert view.lease_keys(leasing, ["GPU-0"]) == [lease_key("0000:01:00.0")]


def test_a_lease_of_what_another_has_leased_is_taken_away() -> None:
    later = lease_value(START + timedelta(minutes=1), START + timedelta(hours=9))
    copy = having("b", (), **{lease_key("0000:01:00.0"): later})
    view = standing(LEASING, copy, cards=CARDS)
    assert view.leases["GPU-0"].pod == LEASING
    assert view.key_updates(copy) == {lease_key("0000:01:00.0"): None}


def test_a_card_that_is_promised_is_so_under_each_of_its_names() -> None:
    before = frozenset({replace(CARDS[0], uuid="", index=2)})
    view = view_of(A, making={"new": Making("x", before, 1)})
    with pytest.raises(Conflict, match="just being made"):
        view.grantable(entry(A, "0,", 1))


def test_what_is_not_known_counts_towards_the_quota() -> None:
    mine = replace(LEASING, owner="alice")
    assert standing(mine, cards=UNTOLD).counted(ALICE) == 1
    assert standing(mine, cards=CARDS).counted(ALICE) == 1
