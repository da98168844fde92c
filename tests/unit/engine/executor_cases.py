"""What holds of every Executor: the real one runs these in test_executor.py of the integration."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from podyd.base.errors import Gone, NotRunning
from podyd.engine.collected import Collected
from podyd.engine.streams import STDOUT, Ending, Executor, Signal, Streams, Wish, bash, no_wish

SECONDS = 30.0


@dataclass(frozen=True)
class World:
    """An executor; an instance of each kind; and a directory in which commands may write.

    Within `soon`, in seconds, a command has begun for certain.
    """

    executor: Executor
    running: str
    stopped: str
    gone: str
    scratch: str
    soon: float

    async def run(self, command: str, streams: Streams, timeout: float = SECONDS) -> int | None:
        end = await self.executor.run(self.running, bash(command), streams, timeout=timeout)
        assert not end.oom_killed
        return end.code

    async def said(self, command: str) -> str:
        output = Collected(1000)
        assert await self.run(command, output) == 0, str(output.stderr)
        return str(output.stdout)

    async def until(self, command: str) -> None:
        """Until a command succeeds."""
        end = asyncio.get_running_loop().time() + SECONDS
        while await self.run(command, Collected(0)) != 0:
            assert asyncio.get_running_loop().time() < end, command

    def file(self) -> str:
        return f"{self.scratch}/{secrets.token_hex(4)}"


class Talk:
    """Streams whose input is given beforehand, and who may wish something at the first output."""

    def __init__(self, *input: bytes, wish: Wish | None = None) -> None:
        self._input = list(input)
        self._wish = wish
        self.came = asyncio.Event()
        self.output_bytes = b""

    async def input(self) -> bytes | None:
        return self._input.pop(0) if self._input else None

    async def output(self, stream: int, data: bytes) -> None:
        if data and stream == STDOUT:
            self.output_bytes += data
            self.came.set()

    async def wish(self) -> Wish:
        await self.came.wait()
        wish, self._wish = self._wish, None
        return wish or await no_wish()


Case = Callable[[World], Awaitable[None]]


async def the_exit_code_is_told(world: World) -> None:
    assert [await world.run(f"exit {code}", Collected(0)) for code in (0, 7, 255)] == [0, 7, 255]


async def one_that_a_signal_kills_has_a_code_too(world: World) -> None:
    assert await world.run("kill -9 $$", Collected(0)) == 128 + 9


async def words_are_taken_as_they_are(world: World) -> None:
    output = Collected(100)
    words = ("/bin/echo", "a  b", "$HOME", "'", "")
    end = await world.executor.run(world.running, words, output, timeout=SECONDS)
    assert (end.code, str(output.stdout)) == (0, "a  b $HOME ' \n")


async def both_streams_are_told_apart(world: World) -> None:
    output = Collected(100)
    assert await world.run("echo out; echo err >&2", output) == 0
    assert (str(output.stdout), str(output.stderr)) == ("out\n", "err\n")


async def all_output_is_there_at_the_end(world: World) -> None:
    output = Collected(2**20)
    assert await world.run("head -c 700000 /dev/zero; head -c 700000 /dev/zero >&2", output) == 0
    assert len(str(output.stdout)) == len(str(output.stderr)) == 700_000


async def what_goes_on_in_the_background_is_not_waited_for(world: World) -> None:
    pid = await world.said("sleep 1000 & echo $!")
    await world.run(f"kill {pid}", Collected(0))


async def input_comes_in_order_and_has_an_end(world: World) -> None:
    talk = Talk(b"one ", b"\0", b"two")
    assert await world.run("cat; echo .", talk) == 0
    assert talk.output_bytes == b"one \0two.\n"


async def who_reads_no_input_ends_all_the_same(world: World) -> None:
    assert await world.run("exit 3", Talk(*[bytes(65536)] * 20)) == 3


async def a_signal_reaches_the_command(world: World) -> None:
    talk = Talk(wish=Signal("USR1"))
    command = "trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done"
    assert await world.run(command, talk) == 5


async def when_time_is_up_all_of_it_is_killed(world: World) -> None:
    output = Collected(100)
    command = "echo $$; sleep 1000 & echo $!; wait"
    assert await world.run(command, output, timeout=world.soon) is None
    first, second = str(output.stdout).split()
    await world.until(f"! kill -0 {first} && ! kill -0 {second}")


async def one_whose_caller_goes_is_killed(world: World) -> None:
    talk, is_dead = Talk(), asyncio.Event()

    async def then() -> None:
        is_dead.set()

    running = asyncio.ensure_future(
        world.executor.run(
            world.running, bash("echo $$; sleep 1000"), talk, timeout=None, then=then
        )
    )
    await asyncio.wait_for(talk.came.wait(), SECONDS)
    assert not is_dead.is_set()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(is_dead.wait(), SECONDS)
    assert await world.run(f"kill -0 {talk.output_bytes.decode()}", Collected(0)) != 0


async def who_ends_in_time_has_nothing_after(world: World) -> None:
    async def then() -> None:
        raise AssertionError("it was not cut off")

    end = await world.executor.run(
        world.running, bash("true"), Collected(0), timeout=SECONDS, then=then
    )
    assert end.code == 0


async def a_stream_that_fails_ends_the_command(world: World) -> None:
    class Failing(Talk):
        async def output(self, stream: int, data: bytes) -> None:
            await super().output(stream, data)
            if self.output_bytes:
                raise ZeroDivisionError

    talk = Failing()
    with pytest.raises(ZeroDivisionError):
        await world.run("echo $$; sleep 1000", talk)
    await world.until(f"! kill -0 {talk.output_bytes.decode()}")


async def what_is_to_be_ended_is(world: World) -> None:
    file = world.file()
    world.executor.end(Ending(world.running, ("/bin/sh", "-c", f"echo ended >{file}")))
    await world.until(f"grep ended {file}")
    await world.said(f"rm {file}")


async def what_does_not_run_is_told_so(world: World) -> None:
    with pytest.raises(NotRunning):
        await world.executor.run(world.stopped, bash("true"), Collected(0), timeout=SECONDS)


async def what_is_not_there_is_told_so(world: World) -> None:
    with pytest.raises(Gone):
        await world.executor.run(world.gone, bash("true"), Collected(0), timeout=SECONDS)


CASES: tuple[Case, ...] = (
    the_exit_code_is_told,
    one_that_a_signal_kills_has_a_code_too,
    words_are_taken_as_they_are,
    both_streams_are_told_apart,
    all_output_is_there_at_the_end,
    what_goes_on_in_the_background_is_not_waited_for,
    input_comes_in_order_and_has_an_end,
    who_reads_no_input_ends_all_the_same,
    a_signal_reaches_the_command,
    when_time_is_up_all_of_it_is_killed,
    one_whose_caller_goes_is_killed,
    who_ends_in_time_has_nothing_after,
    a_stream_that_fails_ends_the_command,
    what_is_to_be_ended_is,
    what_does_not_run_is_told_so,
    what_is_not_there_is_told_so,
)
