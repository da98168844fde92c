"""A test that leaves something over fails: what it left would disturb another one, or nobody."""

from __future__ import annotations

import asyncio.runners
import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# A thread or child that has been told to end needs a moment for it.
PATIENCE_SECONDS = 2.0


def _open_sockets() -> set[str]:
    sockets = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            target = str(path.readlink())
        except FileNotFoundError:  # The one that lists them.
            continue
        if target.startswith("socket:"):
            sockets.add(target)
    return sockets


def _children() -> set[str]:
    """The processes that this one has started and not yet waited for."""
    pids: set[str] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # This thread has ended meanwhile.
            pids |= set(path.read_text().split())
    return pids


def _threads() -> set[str]:
    return {f"{thread.name} ({thread.ident})" for thread in threading.enumerate()}


LOOKS = {"sockets": _open_sockets, "children": _children, "threads": _threads}


def _left(before: dict[str, set[str]]) -> list[str]:
    return [
        f"{kind}: {', '.join(sorted(more))}"
        for kind, look in LOOKS.items()
        if (more := look() - before[kind])
    ]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that leaves an asyncio task, a thread, a child process or a socket over."""
    tasks: list[str] = []
    cancel_all: Any = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

    def cancel_and_tell(loop: asyncio.AbstractEventLoop) -> None:
        """asyncio.run's own way to end what a test has not."""
        tasks.extend(repr(task.get_coro()) for task in asyncio.all_tasks(loop))
        cancel_all(loop)

    monkeypatch.setattr(asyncio.runners, "_cancel_all_tasks", cancel_and_tell)
    before = {kind: look() for kind, look in LOOKS.items()}
    yield
    end = time.monotonic() + PATIENCE_SECONDS
    if left := _left(before):
        gc.collect()
    while (left := _left(before)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not tasks, f"left over: tasks: {', '.join(tasks)}"
    assert not left, f"left over: {'; '.join(left)}"
