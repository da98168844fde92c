"""The fake engine answers as LXD does; tests/integration/test_engine.py asks LXD the same."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.engine.engine_cases import CASES, Case, World
from tests.unit.engine.fake import IMAGE, PROFILE, FakeEngine


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_fake(case: Case) -> None:
    engine = FakeEngine().engine
    asyncio.run(case(World(engine, IMAGE.fingerprint, PROFILE.name, "default", "a")))
