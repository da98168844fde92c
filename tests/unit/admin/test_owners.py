"""Whose a pod or an image is, once another account has its owner's name."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from podyd.auth.client import Account
from podyd.engine.types import Instance
from podyd.model.pod import ACCOUNT, INS, OWNER, owner_keys, pods_of

CREATED = datetime(2026, 1, 1, tzinfo=timezone.utc)
BEFORE = Account("alice", 1001, 100, frozenset())
NOW = replace(BEFORE, uid=1002)
BOB = Account("bob", 1003, 100, frozenset())


def instance(name: str, config: dict[str, str], *, age: int = 0) -> Instance:
    created = CREATED - timedelta(days=age)
    return Instance(name, "running", created, created, config, config, {}, {}, ())


def seen_by(account: Account, *instances: Instance) -> dict[str, str]:
    """The pods of an account: under which names, and LXD's."""
    return {pod.ins: pod.name for pod in pods_of(instances) if pod.is_of(account)}


@pytest.mark.parametrize(
    ("config", "owners"),
    [
        (owner_keys(BEFORE), [BEFORE]),
        # Of a podyd before, or of an admin.
        ({OWNER: "alice"}, [BEFORE, NOW]),
        # An admin has given it away.
        ({**owner_keys(BEFORE), OWNER: "bob"}, [BOB]),
        ({OWNER: "alice", ACCOUNT: "alice:1002"}, [NOW]),
        ({OWNER: "", ACCOUNT: "alice:1002"}, []),
    ],
    ids=["podyd's", "no uid", "given away", "handed over", "nobody's"],
)
def test_whose_a_pod_is(config: dict[str, str], owners: list[Account]) -> None:
    pod = instance("alice-x", config)
    assert [one for one in (BEFORE, NOW, BOB) if seen_by(one, pod)] == owners


def test_a_new_account_has_its_own_names() -> None:
    old = instance("alice-main", {**owner_keys(BEFORE), INS: "main"}, age=9)
    new = instance("alice-main-1234", {**owner_keys(NOW), INS: "main"})
    assert seen_by(NOW, old, new) == {"main": "alice-main-1234"}
    assert seen_by(BEFORE, old, new) == {"main": "alice-main"}


def test_of_two_that_one_account_sees_the_older_one_keeps_the_name() -> None:
    unmarked = {OWNER: "alice", INS: "main"}
    marked = {**owner_keys(NOW), INS: "main"}
    for first, second in ((unmarked, marked), (marked, unmarked), (marked, marked)):
        both = instance("a", first, age=1), instance("b", second)
        assert seen_by(NOW, *both) == {"main": "a", "b": "b"}
