"""LXD's Executor, by itself: what tests assume of the fake one is true of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from podyd.base.tasks import Tasks
from podyd.engine.endings import Endings
from podyd.engine.execution import RestExecutor
from podyd.engine.rest import Credentials, RestClient
from tests.integration.harness import DIALECT, IMAGE, Client, Node
from tests.unit.engine.executor_cases import CASES, Case, World

STOPPED = "executor-stopped"


@pytest.fixture(scope="module")
def stopped(node: Node) -> Iterator[str]:
    node.lxc("init", IMAGE, STOPPED, "-p", "podyd-base")
    yield STOPPED
    node.lxc("delete", STOPPED)


def sockets() -> int:
    """How many this process has."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # The one that lists them.
            count += str(path.readlink()).startswith("socket:")
    return count


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_real_one(
    case: Case, node: Node, alice: Client, pod: str, stopped: str, tmp_path: Path
) -> None:
    running = alice.get("/pod/info", ins=pod).ok["name"]
    credentials = Credentials.below(node.base["state_dir"], DIALECT)

    async def play() -> None:
        before = sockets()
        client = RestClient(credentials.endpoint.read_text().strip(), node.project, credentials)
        tasks = Tasks()
        executor = RestExecutor(client, tasks, Endings(client, tmp_path))
        try:
            await case(
                World(executor, running, stopped, "executor-gone", scratch="/root", soon=3.0)
            )
        finally:
            await tasks.finish(30)
            client.close()
            # LXD lets go of its websockets a moment later.
            for _ in range(500):
                if sockets() <= before:
                    break
                await asyncio.sleep(0.02)

    asyncio.run(play())
