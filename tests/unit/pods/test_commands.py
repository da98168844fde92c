"""Commands and shells, on an engine in memory: who may have how many, and what they come to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from podyd.base.errors import (
    BadRequest,
    Conflict,
    EngineRefused,
    Forbidden,
    NotFound,
    NotRunning,
    PodydError,
    TooMany,
    Unavailable,
)
from podyd.config.current import Settings
from podyd.config.schema import Config, PodsConfig, Quota
from podyd.contract.pods import Start
from podyd.engine.collected import Collected
from podyd.engine.streams import STDERR, STDOUT, Exit, Streams, TerminalSize
from podyd.engine.types import FromImage, NewInstance
from podyd.model.member import Member
from podyd.model.pod import INS, owner_keys
from podyd.pods import commands as module
from podyd.pods.commands import Commands
from podyd.pods.owned import Owned
from tests.unit.engine.fake import IMAGE, FakeEngine
from tests.unit.engine.fake_executor import FakeExecutor, Program

ALICE = Member("alice", False, Quota(), (), 1000, 1000)
BOB = replace(ALICE, name="bob", uid=1001)
SIZE = TerminalSize(24, 80)


class Lab:
    """A running pod `main` of alice's and a stopped one, `off`."""

    def __init__(self, program: Program, **config: Any) -> None:
        self.lxd = FakeEngine()
        for ins in ("main", "off"):
            keys = {**owner_keys(ALICE), INS: ins, "limits.memory": "64MiB"}
            self.lxd.make(NewInstance(f"alice-{ins}", FromImage(IMAGE.fingerprint), (), keys, {}))
        self.lxd.stored["alice-main"].status = "running"
        self.executor = FakeExecutor({"alice-main": "running"}, program)
        self.executed: list[bool] = []
        instances = self.lxd.engine.instances
        self.commands = Commands(
            owned=Owned(instances),
            instances=instances,
            executor=self.executor,
            executed=lambda seconds, *, timed_out: self.executed.append(timed_out),
            settings=Settings(Config(pods=PodsConfig(**config))),
        )


def play(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 10))


def says(code: int, stdout: bytes = b"", stderr: bytes = b"") -> Program:
    async def program(words: Sequence[str], streams: Streams) -> int:
        await streams.output(STDOUT, stdout)
        await streams.output(STDERR, stderr)
        return code

    return program


async def never(words: Sequence[str], streams: Streams) -> int:
    await streams.output(STDOUT, b"begun")
    await asyncio.Event().wait()
    return 0


@pytest.mark.parametrize("code", [0, 1, 126, 127, 137, 255])
def test_a_command_that_ends(code: int) -> None:
    async def work() -> None:
        lab = Lab(says(code, b"out\n", b"err\n"))
        answer = await lab.commands.exec(ALICE, "main", "true", None)
        result = answer.body
        assert (result.exit_code, str(result.stdout), str(result.stderr)) == (
            code,
            "out\n",
            "err\n",
        )
        assert (result.timed_out, result.truncated, result.oom_killed) == (False, False, False)
        assert result.memory_limit is None
        assert lab.executed == [False]
        answer.close()

    play(work)


def test_a_command_whose_time_is_up_keeps_what_it_has_written() -> None:
    async def work() -> None:
        lab = Lab(never)
        result = (await lab.commands.exec(ALICE, "main", "sleep 9", 0.05)).body
        assert (result.exit_code, result.timed_out, str(result.stdout)) == (-1, True, "begun")
        assert lab.executed == [True]

    play(work)


def test_more_output_than_is_held_is_cut_off() -> None:
    async def work() -> None:
        lab = Lab(says(0, b"x" * 1000), exec_output_max=100)
        result = (await lab.commands.exec(ALICE, "main", "yes", None)).body
        assert (result.truncated, len(str(result.stdout))) == (True, 100)

    play(work)


def test_one_that_was_killed_for_memory_says_the_limit() -> None:
    async def killed(*words: object, **options: object) -> Exit:
        return Exit(137, oom_killed=True)

    async def work() -> None:
        lab = Lab(says(0))
        cast(Any, lab.executor).run = killed
        result = (await lab.commands.exec(ALICE, "main", "hog", None)).body
        assert (result.oom_killed, result.memory_limit) == (True, 64 * 1024**2)
        shell = await lab.commands.open(ALICE, "main", None)
        lab.lxd.refuse("all", Unavailable("LXD is away"))
        ended = await shell.run(Start("hog"), Collected(0))
        assert (ended.exit_code, ended.oom_killed, ended.memory_limit) == (137, True, None)

    play(work)


@pytest.mark.parametrize(
    ("member", "ins", "timeout", "error", "code"),
    [
        (ALICE, "none", None, NotFound, "no_such_pod"),
        (BOB, "main", None, NotFound, "no_such_pod"),
        (ALICE, "off", None, Conflict, "pod_not_running"),
        (ALICE, "main", 1e6, Forbidden, "timeout_too_long"),
    ],
)
def test_what_is_refused_runs_nothing(
    member: Member, ins: str, timeout: float | None, error: type[PodydError], code: str
) -> None:
    async def work() -> None:
        lab = Lab(says(0))
        with pytest.raises(error) as refused:
            await lab.commands.exec(member, ins, "true", timeout)
        assert refused.value.code == code
        assert lab.executed == []

    play(work)


@pytest.mark.parametrize("error", [NotRunning("it has stopped"), EngineRefused("it rains")])
def test_a_refusal_gives_the_slot_back(error: PodydError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EXECS_PER_MEMBER", 1)

    async def refusing(words: Sequence[str], streams: Streams) -> int:
        raise error

    async def work() -> None:
        lab = Lab(refusing)
        for _ in range(3):
            with pytest.raises(type(error)):
                await lab.commands.exec(ALICE, "main", "true", None)

    play(work)


def test_a_slot_is_held_until_the_answer_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EXECS_PER_MEMBER", 1)

    async def work() -> None:
        lab = Lab(says(0))
        answer = await lab.commands.exec(ALICE, "main", "true", None)
        with pytest.raises(TooMany) as refused:
            await lab.commands.exec(ALICE, "main", "true", None)
        assert (refused.value.code, refused.value.advice) == (
            "too_many_execs",
            "Wait until one has ended.",
        )
        answer.close()
        (await lab.commands.exec(ALICE, "main", "true", None)).close()

    play(work)


def test_a_caller_who_hangs_up_ends_the_command_and_gives_the_slot_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_EXECS_PER_MEMBER", 1)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def long(words: Sequence[str], streams: Streams) -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 0

    async def work() -> None:
        lab = Lab(long)
        for _ in range(2):
            begun.clear()
            ended.clear()
            running = asyncio.ensure_future(lab.commands.exec(ALICE, "main", "sleep 9", None))
            await begun.wait()
            running.cancel()
            await ended.wait()
            await asyncio.wait({running})
            assert running.cancelled()

    play(work)


def test_a_shell_has_a_terminal_and_its_slot_until_it_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS_PER_MEMBER", 1)
    words_seen: list[Sequence[str]] = []

    async def shell(words: Sequence[str], streams: Streams) -> int:
        words_seen.append(words)
        return 3

    async def work() -> None:
        lab = Lab(shell)
        opened = await lab.commands.open(ALICE, "main", SIZE)
        with pytest.raises(TooMany) as refused:
            await lab.commands.open(ALICE, "main", SIZE)
        assert refused.value.code == "too_many_shells"
        ended = await opened.run(Start(), Collected(0))
        assert (ended.exit_code, ended.timed_out) == (3, False)
        assert lab.executed == [], "a shell is no command that ran for so long"
        opened.close()
        opened.close()
        (await lab.commands.open(ALICE, "main", SIZE)).close()
        assert len(words_seen) == 1

    play(work)


def test_a_command_without_a_terminal_must_say_what_runs() -> None:
    async def work() -> None:
        lab = Lab(says(0))
        opened = await lab.commands.open(ALICE, "main", None)
        with pytest.raises(BadRequest, match="'cmd' is missing"):
            await opened.run(Start(), Collected(0))

    play(work)
