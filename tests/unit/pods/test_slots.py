"""So many at once for each, and so many for all."""

from __future__ import annotations

from typing import cast

import pytest

from podyd.base.errors import TooMany
from podyd.model.member import Member
from podyd.pods.slots import Slots


def named(name: str) -> Member:
    return cast(Member, type("Named", (), {"name": name}))


ANN, BOB, CAT = map(named, ("ann", "bob", "cat"))


def slots() -> Slots:
    return Slots(
        per_member=2, total=3, what="of yours are open", advice="End one first.", code="too_many_x"
    )


def test_each_has_so_many_and_no_more() -> None:
    error = slots()
    first, _ = error.take(ANN), error.take(ANN)
    with pytest.raises(TooMany, match=r"^2 of yours are open\. End one first\.$") as refused:
        error.take(ANN)
    assert (refused.value.code, refused.value.retry_after) == ("too_many_x", 1)
    error.take(BOB)
    with pytest.raises(TooMany, match=r"^0 of yours"):
        error.take(CAT)
    first.close()
    error.take(CAT)


def test_one_is_given_back_once() -> None:
    limited = slots()
    first, _ = limited.take(ANN), limited.take(ANN)
    first.close()
    first.close()
    limited.take(ANN)
    with pytest.raises(TooMany):
        limited.take(ANN)


def test_nothing_is_kept_of_who_has_none() -> None:
    limited = slots()
    with limited.take(ANN), limited.take(BOB):
        assert set(limited._taken) == {"ann", "bob"}
    assert not limited._taken
