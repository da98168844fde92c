"""What podyd makes of the answers of a pod, whose root may be hostile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from podyd.base.errors import Conflict, NotFound, PodydError, TimedOut
from podyd.base.longtext import HeldAnswer
from podyd.contract.pods import FileInfo, OneFile, PutFile
from podyd.engine.streams import STDERR, STDOUT, Executor, Exit
from podyd.model.member import Member
from podyd.pods import files
from podyd.pods.files import MAX_ENTRIES, MAX_HEAD_BYTES, Outgoing, Pipe, Transfers
from podyd.pods.owned import Owned

MEMBER = cast(Member, type("Member", (), {"name": "ann"})())
POD = type("Pod", (), {"name": "ann-main", "ins": "main", "owner": "ann", "status": "running"})()
HEAD = b"41ed 4096 755 1700000000\n"
FOREVER = 10**9

Script = Callable[[Pipe], Awaitable[int]]


class Lxd:
    """Runs each script as the test's own; counts what is under way, and what is removed."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.running = 0
        self.dropped = 0

    async def run(self, name: str, words: Any, pipe: Pipe, **options: Any) -> Exit:
        self.running += 1
        try:
            return Exit(await self._script(pipe), oom_killed=False)
        finally:
            self.running -= 1

    def end(self, ending: Any) -> None:
        self.dropped += 1

    async def find_running(self, member: Member, ins: str) -> Any:
        return POD


def made(lxd: Lxd) -> Transfers:
    return Transfers(owned=cast(Owned, lxd), executor=cast(Executor, lxd))


def says(*pieces: bytes, code: int = 0, error: bytes = b"", times: int = 1) -> Script:
    async def script(pipe: Pipe) -> int:
        await pipe.output(STDERR, error)
        for _ in range(times):
            for piece in pieces:
                await pipe.output(STDOUT, piece)
        return code

    return script


async def silent(pipe: Pipe) -> int:
    await asyncio.Event().wait()
    return 0


async def settled() -> None:
    """Until what was ended has ended."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=5)


def fetched(script: Script, format: Any = None) -> FileInfo:
    """What is answered of a directory, or of whatever the pod says that it is."""
    lxd = Lxd(script)

    async def play() -> FileInfo:
        try:
            answer = await made(lxd).fetch(MEMBER, OneFile("main", "/x", format))
            assert isinstance(answer, HeldAnswer), answer
            answer.close()
            return answer.body
        finally:
            await settled()

    try:
        return asyncio.run(play())
    finally:
        assert lxd.running == 0


def test_a_directory_is_listed_whatever_its_names_are() -> None:
    entries = b"81a4 5 4755 -1 ./b\nc/\na1ff 4 777 1700000000 ./\xff/\n1234 0 0 0 ./a b/\n"
    listing = fetched(says(HEAD[:5], HEAD[5:] + entries[:9], entries[9:]))
    assert (listing.type, listing.mode, listing.modified) == (
        "directory",
        "0755",
        "2023-11-14T22:13:20Z",
    )
    assert listing.entries is not None
    shown = [(item.name, item.type, item.mode, item.modified) for item in listing.entries]
    assert shown == [
        ("a b", "pipe", "0000", "1970-01-01T00:00:00Z"),
        ("b\nc", "file", "4755", "1969-12-31T23:59:59Z"),
        ("\ufffd", "link", "0777", "2023-11-14T22:13:20Z"),
    ]


@pytest.mark.parametrize("when", ["300000000000", "-300000000000", "-40000000000", "9" * 18])
def test_a_time_that_no_calendar_has_is_null(when: str) -> None:
    line = f"41ed 1 755 {when}".encode()
    listing = fetched(says(line + b"\n" + line + b" ./x/\n"))
    assert listing.modified is None
    assert listing.entries is not None
    assert listing.entries[0].modified is None


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"\n",
        b"x" * MAX_HEAD_BYTES,
        b"41ed 1 755 inf\n",
        b"41ed 1 755 3e11\n",
        b"41ed x 755 1\n",
        b"41ed 1 999 1\n",
        b"41ed 1 755 " + b"9" * 5000 + b"\n",
        b"81a4 5 64\r 1\n",
        b"\xff1ed 5 755 1\n",
        HEAD + b"garbage",
        HEAD + b"41ed 1 755 1 ./a\n",
        HEAD + b"41ed 1 755 1 /etc/x/\n",
        HEAD + b"41ed 1 755 1 ./" + b"x" * 256 + b"/\n",
        HEAD + b"/\n" * 10,
    ],
)
def test_what_makes_no_sense_is_said_to_be_so(output: bytes) -> None:
    with pytest.raises(Conflict) as caught:
        fetched(says(output))
    assert caught.value.code == "pod_answer_unusable"


def test_nothing_at_the_path_is_said_so() -> None:
    with pytest.raises(NotFound):
        fetched(says(code=20))


def test_the_program_that_is_missing_is_named() -> None:
    with pytest.raises(Conflict, match="has no 'find'") as caught:
        fetched(says(HEAD, code=26, error=b"find\n"))
    assert caught.value.fields == {"program": "find"}
    with pytest.raises(Conflict, match="has no 'a program'"):
        fetched(says(code=26, error=b"\x1b[31m\n"))


@pytest.mark.parametrize("format", [None, "stat", "tar"])
def test_an_endless_head_is_not_read(format: str | None) -> None:
    with pytest.raises(Conflict):
        fetched(says(b"x" * 100, times=FOREVER), format)


@pytest.mark.parametrize("name", [b"x", b"x" * 255])
def test_an_endless_list_is_cut(name: bytes) -> None:
    entry = b"81a4 5 644 1 ./" + name + b"/\n"
    rest = says(entry * 100, times=FOREVER)

    async def script(pipe: Pipe) -> int:
        await pipe.output(STDOUT, HEAD)
        return await rest(pipe)

    listing = fetched(script)
    assert listing.truncated
    assert listing.entries is not None
    assert 7000 < len(listing.entries) <= MAX_ENTRIES


@pytest.mark.parametrize("begins", [b"", HEAD])
def test_a_silent_pod_has_no_answer_and_no_place(
    monkeypatch: pytest.MonkeyPatch, begins: bytes
) -> None:
    monkeypatch.setattr(files, "ANSWER_SECONDS", 0.05)

    async def script(pipe: Pipe) -> int:
        await pipe.output(STDOUT, begins)
        return await silent(pipe)

    with pytest.raises(TimedOut) as caught:
        fetched(script)
    assert caught.value.code == "pod_is_silent"


@pytest.mark.parametrize("who", ["pod", "caller"])
@pytest.mark.parametrize("way", ["out", "in"])
def test_who_is_silent_in_the_middle_ends_it(
    monkeypatch: pytest.MonkeyPatch, who: str, way: str
) -> None:
    monkeypatch.setattr(files, f"{who.upper()}_SECONDS", 0.05)
    monkeypatch.setattr(files, "WATCH_SECONDS", 0.01)

    async def script(pipe: Pipe) -> int:
        if way == "out":
            await pipe.output(STDOUT, b"81a4 99 644 1\n")
            for _ in range(9 if who == "caller" else 1):
                await pipe.output(STDOUT, b"x")
        else:
            await pipe.input()
            # Complaints are no progress.
            for _ in range(FOREVER):
                await pipe.output(STDERR, b"x")
                await asyncio.sleep(0.001)
        return await silent(pipe)

    async def caller(data: bytes = b"") -> Any:
        if who == "caller":
            await asyncio.Event().wait()
        return b"x"

    lxd = Lxd(script)

    async def play() -> None:
        mover = made(lxd)
        if way == "in":
            await (await mover.put(MEMBER, PutFile("main", "/x"))).run(caller)
            return
        answer = await mover.fetch(MEMBER, OneFile("main", "/x"))
        assert isinstance(answer, Outgoing)
        try:
            await answer.run(caller)
        finally:
            answer.close()
            await settled()

    with pytest.raises(PodydError) as caught:
        asyncio.run(play())
    assert caught.value.code == f"{who}_is_silent"
    assert (lxd.running, lxd.dropped) == (0, int(way == "in"))
