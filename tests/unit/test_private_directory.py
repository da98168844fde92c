"""podyd as the Debian package has it: in a directory of its own, begun by an isolated Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.harness import install

# What the launcher does, and then what `podyd serve` and `podyd setup` do.
PROGRAM = """
import asyncio, contextlib, sys
sys.path[:0] = sys.argv[1:]
from podyd.engine import profile_files
from podyd.node.telemetry import Telemetry

async def ask():
    telemetry = Telemetry()
    task = asyncio.create_task(telemetry.run())
    await telemetry.first(20)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return telemetry.problem

print(*sorted(profile_files.shipped()))
print(asyncio.run(ask()))
"""


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """/usr/share/podyd."""
    share = tmp_path / "share"
    install(share, share / "vendor")
    return share


def test_its_own_process_finds_the_same_code_and_nothing_of_the_directory_around(
    share: Path, tmp_path: Path
) -> None:
    # Where an admin may stand who types `sudo podyd doctor`.
    around = tmp_path / "around"
    around.mkdir()
    for name in ("podyd", "pynvml", "json"):
        (around / f"{name}.py").write_text(f"open({str(tmp_path / 'caught')!r}, 'w').close()\n")
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", PROGRAM, str(share / "vendor"), str(share)],
        cwd=around,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names, problem = done.stdout.splitlines()
    assert names == "podyd-base podyd-gpu"
    assert problem in ("None", "NVML Shared Library Not Found"), "a driver, or none"
    assert not (tmp_path / "caught").exists()
