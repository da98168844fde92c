"""How large one image is, of all those that LXD makes."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from podyd.engine.growth import Packing, Unfinished, parsed

Now = tuple[dict[str, int | None], dict[str, int] | None] | None


class Tells(Packing):
    """Says these, one after the other."""

    def __init__(self, *reports: Now) -> None:
        super().__init__("")
        self.reports = [None if now is None else Unfinished(*now) for now in reports]

    async def look(self) -> Unfinished | None:
        return self.reports.pop(0)


def sizes(*reports: Now, uncertain: int | None = None) -> list[int]:
    """Before LXD was asked, when it had been, and what that makes of all that follows."""

    async def all_of_them() -> list[int]:
        packing = Tells(*reports)
        growth = await packing.begin()
        await growth.asked()
        return [await growth.size(uncertain) for _ in reports[2:]]

    return asyncio.run(all_of_them())


def test_what_was_there_before_is_another() -> None:
    before: Now = ({"a": 90}, {})
    asked: Now = ({"a": 99, "b": None}, {})
    later: list[Now] = [
        ({"a": 100, "b": None}, {}),
        ({"b": 5, "c": 80}, {}),
        ({}, {}),
    ]
    assert sizes(before, asked, *later) == [0, 5, 0]


def test_of_two_it_is_the_smaller_one() -> None:
    asked: Now = ({"a": None, "b": None}, {})
    later: list[Now] = [({"a": 50, "b": None}, {}), ({"a": 50, "b": 20}, {}), ({"a": 50}, {})]
    # One has gone: which it was, nobody knows.
    assert sizes(({}, {}), asked, *later) == [0, 20, 0]


def test_where_nobody_tells_it_is_nothing() -> None:
    some: Now = ({"a": 50}, {})
    assert sizes(None, some, some) == [0]
    assert sizes(({}, {}), None, some) == [0]
    assert sizes(({}, {}), some, None, some) == [0, 50]


def test_a_squashfs_is_in_tmp_before() -> None:
    before: Now = ({}, {"old": 900})
    asked: Now = ({"a": None}, {"old": 900})
    later: list[Now] = [
        # Somebody else's has its turn.
        ({"a": None}, {"old": 900, "else": 800}),
        ({"a": 0}, {"old": 900, "else": 800, "ours": 30}),
        ({"a": 0}, {"old": 900, "ours": 70, "late": 1000}),
        ({"a": 60}, {"late": 1000}),
    ]
    assert sizes(before, asked, *later, uncertain=20) == [0, 10, 50, 60]
    assert sizes(before, asked, *later) == [0, 0, 0, 60]


def test_a_tmp_of_which_nobody_tells_once() -> None:
    flooded: Now = ({"a": None}, None)
    later: list[Now] = [({"a": 0}, None), ({"a": 0}, {"x": 90}), ({"a": 40}, {"x": 90})]
    assert sizes(({}, None), flooded, *later[1:], uncertain=0) == [0, 40]
    assert sizes(({}, {}), flooded, *later, uncertain=0) == [0, 0, 40]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": "forbidden"}, "forbidden"),
        ({"images": None, "scratch": {}}, "does not see"),
        ({"images": {"a": "1"}, "scratch": {}}, "another version"),
        ({"images": {}, "scratch": {"a": None}}, "another version"),
        ({"images": []}, "another version"),
        ([], "another version"),
    ],
)
def test_an_answer_of_another_version(answer: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parsed(json.dumps(answer).encode())


def test_that_nobody_answers_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "packing.sock"

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"images": {"a": 1}, "scratch": {}}\n')
        writer.close()

    async def looks() -> None:
        packing = Packing(str(path))
        for _ in range(3):
            assert await packing.look() is None
        async with await asyncio.start_unix_server(answer, str(path)):
            assert await packing.look() == Unfinished({"a": 1}, {})
        path.unlink(missing_ok=True)
        assert await packing.look() is None

    with caplog.at_level(logging.WARNING):
        asyncio.run(looks())
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert str(path) in caplog.text
