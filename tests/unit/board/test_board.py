"""What is on the board, for whom, and what has changed there."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from podyd.base.errors import Forbidden, Unavailable
from podyd.board.board import (
    ADMINS,
    ALL,
    GUESTS,
    MEMBERS,
    Board,
    audiences_of,
    message,
    oneself,
    owner_of,
)
from podyd.board.works import MOST_UNSEEN, Works
from podyd.config.schema import Quota
from podyd.model.member import Member

ALICE = Member("alice", False, Quota(), (), 1001, 1001)
ADMIN = replace(ALICE, name="root2", is_admin=True, uid=1000)


@dataclass(frozen=True)
class Value:
    text: str


def told(board: Board, member: Member | None) -> Any:
    """What a viewer is told of the changes since the last time."""
    changes = board.take()
    audiences = audiences_of(member)
    found = json.loads(message(0.0, (changes[item] for item in audiences & changes.keys())))
    return found["set"], found["gone"]


def whole(board: Board, member: Member | None) -> Any:
    return json.loads(message(0.0, board.whole(audiences_of(member)), whole=True))["set"]


def test_only_what_has_changed_is_told() -> None:
    board = Board()
    board.put("a", {(ALL, "x"): Value("1"), (ALL, "y"): 2})
    board.put("b", {(ALL, "z"): None})
    assert told(board, ALICE) == ({"x": {"text": "1"}, "y": 2, "z": None}, [])
    board.put("a", {(ALL, "x"): Value("1"), (ALL, "y"): 3})
    assert told(board, ALICE) == ({"y": 3}, [])
    board.put("a", {(ALL, "x"): Value("1")})
    assert told(board, ALICE) == ({}, ["y"])
    assert told(board, ALICE) == ({}, [])
    assert whole(board, ALICE) == {"x": {"text": "1"}, "z": None}


def test_what_comes_and_goes_between_two_messages_is_gone() -> None:
    board = Board()
    board.put("a", {(ALL, "x"): 1})
    board.put("a", {})
    assert told(board, None) == ({}, ["x"])


def test_each_sees_what_is_for_them() -> None:
    board = Board()
    later = replace(ALICE, uid=2001)
    board.put(
        "a",
        {
            (ALL, "host"): "all",
            (ADMINS, "use"): "admins",
            (MEMBERS, "use"): "members",
            (GUESTS, "use"): "guests",
            (ADMINS, "pod/1"): "hers",
            (owner_of("alice:1001"), "pod/1"): "hers",
            (owner_of("alice"), "pod/2"): "of any alice",
            (oneself(ALICE), "me"): "alice",
            (oneself(ADMIN), "me"): "admin",
        },
    )
    mine = {"host": "all", "use": "members", "pod/1": "hers", "pod/2": "of any alice"}
    assert whole(board, ALICE) == {**mine, "me": "alice"}
    assert whole(board, later) == {"host": "all", "use": "members", "pod/2": "of any alice"}
    assert whole(board, ADMIN) == {"host": "all", "use": "admins", "pod/1": "hers", "me": "admin"}
    assert whole(board, None) == {"host": "all", "use": "guests"}


def test_what_moves_to_another_audience_is_not_gone_for_who_is_in_both() -> None:
    board = Board()
    board.put("a", {(owner_of("alice"), "pod/1"): 1})
    board.take()
    board.put("a", {(owner_of("alice:1001"), "pod/1"): 2})
    assert told(board, ALICE) == ({"pod/1": 2}, [])


@pytest.mark.parametrize("text", ["\ud800", '"</script>', "\0\n\u2028", "ü€😀"])
def test_whatever_stands_in_a_value_is_valid_json(text: str) -> None:
    board = Board()
    board.put("a", {(ALL, f"pod/{text}"): text})
    ((key, value),) = whole(board, None).items()
    assert value == text.replace("\ud800", "?")
    assert json.loads(json.dumps(key)) == f"pod/{text}"


def test_the_time_is_to_the_millisecond() -> None:
    assert json.loads(message(1.25, [])) == {
        "time": "1970-01-01T00:00:01.250Z",
        "set": {},
        "gone": [],
    }


# --- What is being done to pods -----------------------------------------------------------------


def shown(works: Works) -> dict[str, str]:
    return {pod: work.shown.operation for pod, work in works.look().items()}


def test_of_what_is_under_way_the_oldest_is_shown() -> None:
    works = Works()
    changes: list[int] = []
    works.subscribe(lambda: changes.append(len(works.look())))
    with works.on("alice-a", "/pod/stop", ALICE):
        with works.on("alice-a", "/pod/start", ALICE), works.on("b", "/pod/port", ADMIN):
            assert shown(works) == {"alice-a": "/pod/stop", "b": "/pod/port"}
        assert shown(works) == {"alice-a": "/pod/stop"}
    assert changes == [1, 1, 2, 1, 1, 0]


def test_what_began_and_ended_between_two_looks_is_shown_once() -> None:
    works = Works()
    with works.on("alice-a", "/pod/snapshot", ALICE):
        pass
    with works.on("alice-a", "/pod/limits", ALICE):
        assert shown(works) == {"alice-a": "/pod/snapshot"}
        assert shown(works) == {"alice-a": "/pod/limits"}
    assert shown(works) == {}
    for number in range(MOST_UNSEEN + 1):
        with works.on(f"alice-{number}", "/pod/stop", ALICE):
            pass
    assert len(works.look()) == MOST_UNSEEN
    with works.on("alice-a", "/pod/stop", ALICE):
        pass
    works.forget()
    assert shown(works) == {}


def test_what_was_refused_between_two_looks_is_not_shown() -> None:
    """Nothing was done; what may be half done is shown."""
    works = Works()
    for error, is_shown in ((Forbidden("No."), False), (Unavailable("Later."), True)):
        with pytest.raises(type(error)), works.on("alice-a", "/pod/limits", ALICE):
            raise error
        assert shown(works) == ({"alice-a": "/pod/limits"} if is_shown else {})
    # Whoever has seen it under way learns that it is over.
    with pytest.raises(Forbidden), works.on("alice-a", "/pod/limits", ALICE):
        assert shown(works) == {"alice-a": "/pod/limits"}
        raise Forbidden("No.")
    assert shown(works) == {}
