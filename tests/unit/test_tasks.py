"""Background work that must not end."""

from __future__ import annotations

import asyncio

import pytest

from podyd import tasks


def test_what_dies_is_mourned_and_begins_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)

    async def play() -> int:
        lives = 0
        alive = asyncio.Event()

        async def work() -> None:
            nonlocal lives
            lives += 1
            if lives < 3:
                raise OverflowError("date value out of range")
            alive.set()
            await asyncio.sleep(60)

        kept = tasks.Tasks()
        kept.keep(work, "sharing GPUs out")
        await asyncio.wait_for(alive.wait(), 5)
        await kept.cancel()
        return lives

    assert asyncio.run(play()) == 3
    assert caplog.text.count("sharing GPUs out died and begins again") == 2
    assert "OverflowError" in caplog.text
