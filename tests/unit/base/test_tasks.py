"""Background work that must not end."""

from __future__ import annotations

import asyncio
import gc

import pytest

from podyd.base import tasks
from podyd.base.tasks import beside


def test_what_fails_is_logged_and_started_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "RESTART_SECONDS", 0.01)

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
    assert caplog.text.count("sharing GPUs out failed and is started again") == 2
    assert "OverflowError" in caplog.text


async def hang() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise OverflowError


async def one() -> int:
    await asyncio.sleep(0)
    return 1


def test_what_goes_on_beside_a_work_ends_with_it() -> None:
    async def play() -> None:
        assert await beside(one(), hang(), asyncio.sleep(0)) == 1
        with pytest.raises(OverflowError):
            await beside(hang(), hang(), fail())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(beside(hang(), hang()), 0.01)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(play())


def test_a_crash_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(tasks.log_crash)
        lost = asyncio.ensure_future(fail())
        await asyncio.wait({lost})
        del lost
        gc.collect()

    asyncio.run(play())
    assert "fail crashed, and nothing awaited it" in caplog.text
    assert "OverflowError" in caplog.text


def test_where_one_of_several_fails_no_other_goes_on() -> None:
    async def play() -> None:
        assert await tasks.together(one(), one()) == [1, 1]
        with pytest.raises(OverflowError):
            await tasks.together(hang(), fail())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(play())
