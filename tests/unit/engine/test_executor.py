"""The Executor that tests have in place of LXD's, as true to it as the cases are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from podyd.engine.collected import Collected
from podyd.engine.streams import STDOUT, Executor, Exit, Streams
from tests.unit.engine.executor_cases import CASES, Case, World
from tests.unit.engine.fake_executor import FakeExecutor

INSTANCES = {"a": "running", "b": "stopped"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_fake_one(case: Case, tmp_path: Path) -> None:
    async def play() -> None:
        executor = FakeExecutor(INSTANCES)
        await case(World(executor, "a", "b", "c", scratch=str(tmp_path), soon=0.3))
        await executor.settle()

    asyncio.run(play())


def test_a_coroutine_may_be_the_command() -> None:
    async def program(words: Sequence[str], streams: Streams) -> int:
        await streams.output(STDOUT, words[-1].encode())
        return 3

    async def play() -> Exit:
        executor: Executor = FakeExecutor(INSTANCES, program)
        return await executor.run("a", ("x", "said"), output, timeout=None)

    output = Collected(10)
    assert asyncio.run(play()) == Exit(3, oom_killed=False)
    assert str(output.stdout) == "said"
