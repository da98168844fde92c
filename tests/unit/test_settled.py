"""That a test which leaves something over fails, and says what."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

LEAVES = """
import asyncio, socket, subprocess, threading, time
kept = []

def test_task():
    async def main():
        kept.append(asyncio.ensure_future(asyncio.sleep(60)))
    asyncio.run(main())

def test_thread():
    threading.Thread(target=time.sleep, args=(6,), name="straggler", daemon=True).start()

def test_child():
    kept.append(subprocess.Popen(["sleep", "6"]))

def test_socket():
    kept.append(socket.socket())

def test_nothing():
    pass
"""


def test_what_is_left_over_fails_the_test(pytester: pytest.Pytester) -> None:
    settled = Path(__file__).with_name("conftest.py").read_text()
    pytester.makeconftest(settled.replace("PATIENCE_SECONDS = 2.0", "PATIENCE_SECONDS = 0.1"))
    pytester.makepyfile(LEAVES)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, errors=4)
    for said in (
        "tasks: <coroutine object sleep",
        "threads: straggler",
        "children: ",
        "sockets: socket:",
    ):
        result.stdout.fnmatch_lines([f"*AssertionError: left over: {said}*"])
