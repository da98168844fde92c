"""A helper that answers lines, and one that is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from podyd.base.errors import Unavailable
from podyd.node import line_client
from podyd.node.line_client import LineClient, connected

SLOW = b'"slow"\n'


def talk(path: Path, work: Callable[[LineClient, asyncio.Event], Awaitable[None]]) -> None:
    """With a helper that repeats each line; the one that is SLOW once the event is set."""

    async def run() -> None:
        go = asyncio.Event()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                if line == SLOW:
                    await go.wait()
                writer.write(line)
            writer.close()

        async with (
            await asyncio.start_unix_server(echo, path),
            connected(str(path), Unavailable) as client,
        ):
            await work(client, go)

    asyncio.run(asyncio.wait_for(run(), 10))


def test_each_question_has_its_answer(tmp_path: Path) -> None:
    async def ask(client: LineClient, go: asyncio.Event) -> None:
        assert [await client.ask(number) for number in (1, 2)] == [1, 2]
        assert not client.gone.done()

    talk(tmp_path / "s", ask)


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_an_answer_that_nobody_waits_for_is_not_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    async def ask(client: LineClient, go: asyncio.Event) -> None:
        if not is_cancelled:
            monkeypatch.setattr(line_client, "TIMEOUT", 0.02)
        asking = asyncio.ensure_future(client.ask("slow"))
        await asyncio.wait({asking}, timeout=0.02 if is_cancelled else None)
        asking.cancel()
        await asyncio.wait({asking})
        go.set()
        with pytest.raises(Unavailable):
            await client.ask("next")
        await client.gone

    talk(tmp_path / "s", ask)
