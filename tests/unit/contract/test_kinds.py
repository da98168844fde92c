"""How parameters are written."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone

import pytest

from podyd.base.errors import BadRequest
from podyd.contract.kinds import (
    Kind,
    Moment,
    Month,
    Names,
    NewSnapshotName,
    SnapshotName,
    Tag,
    Window,
    parse,
)
from podyd.contract.users import NewPassword


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("2.5", 2.5),
        ("1y 1w 1d 1h 1s", 31536000 + 604800 + 86400 + 3600 + 1),
        ("1y1w1d1h1s", 31536000 + 604800 + 86400 + 3600 + 1),
        ("36h", 129600),
        ("1s  1 d ", 86401),
        ("1h 1h", 7200),
    ],
)
def test_windows(text: str, seconds: float) -> None:
    assert Window().parse(text) == seconds
    assert re.search(Window().schema()["pattern"], text)


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "1m", "1mo", "1M", "-1", "1.5h", "1h 5", "h", "1e3", "nan", "٣h", "1,5"]
)
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match="years, weeks, days, hours and seconds"):
        Window().parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-24T08:00:00Z", 1_795_507_200),
        ("2026-11-24T09:00+01:00", 1_795_507_200),
        ("2026-11-24 08:00", 1_795_507_200),
        ("2026-11-24", 1_795_507_200 - 8 * 3600),
    ],
)
def test_moments(text: str, seconds: float) -> None:
    assert Moment().parse(text) == seconds


@pytest.mark.parametrize("kind", [NewSnapshotName(), Tag()])
def test_what_is_new_has_a_name_that_every_engine_takes(kind: Kind) -> None:
    for text in ("a", "v1.0", "a..b", "0-_.9"):
        assert kind.parse(text) == text
    for text in ("", "a-", "a_", "v1.", ".a", "-", "a b", "a\n", "x" * 101):
        with pytest.raises(ValueError, match="beginning and ending with a letter or digit"):
            kind.parse(text)


def test_a_snapshot_of_an_older_engine_may_have_another_name() -> None:
    for text in ("a-", "a_", "v1."):
        assert SnapshotName().parse(text) == text


def test_a_moment_that_is_some_time_ago() -> None:
    assert Moment().parse("2d") == pytest.approx(time.time() - 2 * 86400, abs=60)


@pytest.mark.parametrize(
    "text",
    ["", "0", "yesterday", "2026-13-01", "2026-11-24T25:00", "2026-11-24T08:00:00Z ", "20٢6-11-24"],
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time such as"):
        Moment().parse(text)


def test_months() -> None:
    assert Month().parse("2026-11") == datetime(2026, 11, 1, tzinfo=timezone.utc)
    assert re.search(Month().schema()["pattern"], "2026-11")


@pytest.mark.parametrize(
    "text", ["", "2026", "2026-13", "2026-1", "2026-11-01", "1026-11", "20٢6-11"]
)
def test_what_is_no_month(text: str) -> None:
    with pytest.raises(ValueError, match="must be a month such as 2026-11"):
        Month().parse(text)


def test_names() -> None:
    assert Names().parse("alice") == ("alice",)
    assert Names().parse("a.b@c_d,0815,Grün") == ("a.b@c_d", "0815", "Grün")


@pytest.mark.parametrize("text", ["", ",", "a,", "a,,b", "a, b", "a,a", "a:b", "a\nb"])
def test_what_are_no_names(text: str) -> None:
    with pytest.raises(ValueError, match="separated by commas"):
        Names().parse(text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Window(), "1d" * 30_000 + "!"),
        (Window(), " " * 30_000 + "1 "),
        (Names(), "a," * 30_000),
    ],
)
def test_long_nonsense_is_soon_refused(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        kind.parse(text)


def test_a_parameter_that_is_given_twice() -> None:
    with pytest.raises(BadRequest) as refused:
        parse(NewPassword, [("passwd", "a"), ("passwd", "b")])
    assert refused.value.body() == {
        "detail": "Parameter 'passwd' is given more than once.",
        "advice": "Give it once.",
        "code": "repeated_parameter",
        "parameter": "passwd",
    }
