"""LXD answers as the fake of the unit tests does, which the same cases are asked of there."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from podyd.base.errors import EngineRefused
from podyd.engine.rest import Credentials, RestClient
from podyd.engine.rest_engine import rest_engine
from podyd.engine.restore_guard import RestoreGuard
from tests.integration.harness import DIALECT, SMALL, Node
from tests.unit.engine.engine_cases import CASES, SECONDS, Case, World


async def play(case: Case, node: Node, holds: Path) -> None:
    """Ask LXD, as podyd's own certificate may, and leave nothing there."""
    credentials = Credentials.below(node.base["state_dir"], DIALECT)
    client = RestClient(credentials.endpoint.read_text().strip(), node.project, credentials)
    engine = rest_engine(client, RestoreGuard(holds))
    try:
        (image,) = [item for item in await engine.images.all() if SMALL in item.aliases]
        pool = (await engine.profiles.all())["podyd-base"].devices["root"]["pool"]
        world = World(engine, image.fingerprint, "podyd-base", pool, f"c-{case.__name__[:12]}")
        world.prefix = world.prefix.replace("_", "-")
        try:
            await asyncio.wait_for(case(world), 2 * SECONDS)
        finally:
            for name in world.made:
                with contextlib.suppress(EngineRefused):
                    await world.stop(name)
                with contextlib.suppress(EngineRefused):
                    await world.delete(name)
    finally:
        engine.instances.close()
        client.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_lxd(case: Case, node: Node, tmp_path: Path) -> None:
    asyncio.run(play(case, node, tmp_path))
