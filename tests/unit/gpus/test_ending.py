"""What is run in pods: the command that ends processes, and the one that writes to terminals."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Sequence
from pathlib import Path

import pytest

from podyd.engine.streams import Streams
from podyd.gpus.access import Access
from podyd.gpus.ending import Ender
from podyd.gpus.inventory import Card
from podyd.gpus.presence import OnCard
from podyd.gpus.rights import Rights
from podyd.gpus.terminals import MAX_CHARACTERS, Terminals
from podyd.model.pod import Pod
from tests.unit.engine.fake_executor import FakeExecutor
from tests.unit.gpus.test_scheduler import CARDS, instance
from tests.unit.node.fake import FakeCardAccesses, FakeProcesses

POD = Pod("alice", "main", instance("alice-main"))


def nothing(name: str) -> Awaitable[None]:
    raise AssertionError(name)


def rights(*cards: Card) -> Rights:
    """The pod may have these cards alone."""
    return Rights(CARDS, {POD.name: POD}, {POD.name: frozenset(cards)}, {}, {}, frozenset())


async def ender(processes: FakeProcesses, *cards: Card) -> Ender:
    """Its commands run on this machine; the pod may have these cards alone."""
    access = Access(FakeCardAccesses(), aliases=dict)
    await access.permit(rights(*cards))
    return Ender(
        access=access,
        processes=processes,
        executor=FakeExecutor({"alice-main": "running"}),
        stop=nothing,
    )


async def end(
    processes: FakeProcesses, on_cards: Sequence[OnCard], *cards: Card, kill: bool
) -> None:
    await (await ender(processes, *cards)).end(POD, on_cards, kill=kill)


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def on_card(pid: int, begun: int) -> OnCard:
    return OnCard("alice-main", CARDS[0], pid, begun, 0.0, computes=True)


@pytest.mark.parametrize(("kill", "number"), [(False, signal.SIGTERM), (True, signal.SIGKILL)])
def test_a_process_is_ended_by_pid_and_start_time(kill: bool, number: int, tmp_path: Path) -> None:
    # The name of a process may hold anything.
    odd = tmp_path / ") (* 1"
    odd.symlink_to(str(shutil.which("sleep")))
    with subprocess.Popen([odd, "60"]) as one, subprocess.Popen(["sleep", "60"]) as other:
        processes = FakeProcesses()
        processes.inner = {one.pid: one.pid, other.pid: other.pid}
        on_cards = [on_card(one.pid, started(one.pid)), on_card(other.pid, started(other.pid) + 1)]
        try:
            asyncio.run(end(processes, on_cards, CARDS[0], kill=kill))  # It may have the card now.
            assert one.poll() is None
            asyncio.run(end(processes, on_cards, kill=kill))
            assert one.wait(10) == -number
            assert other.poll() is None, "it is another one"
        finally:
            one.kill()
            other.kill()


def test_the_first_process_of_a_pod_is_not_signalled() -> None:
    processes = FakeProcesses()
    processes.inner = {7: 1, 8: 2}

    async def whole() -> None:
        on_cards = [on_card(7, 1), on_card(8, 1)]
        assert await (await ender(processes)).inits(on_cards) == {7}
        await end(processes, on_cards[:1], kill=True)  # Nothing is run: it would be pid 1.

    asyncio.run(whole())


def test_a_line_on_terminals_is_short_and_harmless() -> None:
    ran: list[Sequence[str]] = []

    async def note(words: Sequence[str], streams: Streams) -> int:
        ran.append(words)
        return 0

    executor = FakeExecutor({"alice-main": "running"}, note)
    text = "über 'x'; $(reboot)\x1b[2J\n" + "y" * 1000
    asyncio.run(Terminals(executor).tell(POD, text))
    (words,) = ran
    assert "tell 'podyd: über '\"'\"'x'\"'\"'; $(reboot)?[2J?yyy" in words[-1]
    assert words[-1].count("y") <= MAX_CHARACTERS
