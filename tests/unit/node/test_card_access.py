"""The client of the root helper, which answers as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from podyd.base.errors import Unavailable
from podyd.node.card_access import MAX_ENDED, CardAccessClient, Holder, card_access_at


def talk(
    path: Path, answer: Any, work: Callable[[CardAccessClient], Awaitable[Any]]
) -> list[dict[str, Any]]:
    """What the helper was asked, which answers all of it alike."""
    asked: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked.append(json.loads(line))
            writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    async def whole() -> None:
        async with (
            await asyncio.start_unix_server(serve, path, limit=1024**2),
            card_access_at(str(path)) as client,
        ):
            await work(client)

    asyncio.run(asyncio.wait_for(whole(), 10))
    return asked


def holder(pid: int) -> Holder:
    return Holder("alice-main", pid, 7, frozenset({"195:0"}))


@pytest.mark.parametrize(
    "work",
    [
        lambda client: client.permit({}),
        lambda client: client.holders(),
        lambda client: client.end([holder(1)], kill=True),
    ],
    ids=["permit", "holders", "end"],
)
@pytest.mark.parametrize(
    ("answer", "said"),
    [({"error": "no such request"}, "refuses a request: no such request"), ([], "not answer")],
)
def test_an_error_is_one(
    tmp_path: Path, work: Callable[[CardAccessClient], Awaitable[Any]], answer: Any, said: str
) -> None:
    with pytest.raises(Unavailable, match=said):
        talk(tmp_path / "s", answer, work)


def test_however_many_are_to_end_they_are_all_sent(tmp_path: Path) -> None:
    pids = range(1, 2 * MAX_ENDED + 2)
    asked = talk(
        tmp_path / "s",
        {"ended": 0},
        lambda client: client.end(map(holder, pids), kill=True),
    )
    assert [len(request["end"]) for request in asked] == [MAX_ENDED, MAX_ENDED, 1]
    assert [item["pid"] for request in asked for item in request["end"]] == [*pids]
