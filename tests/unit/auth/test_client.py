"""Who is served first at the helper, and that nobody can keep it from others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from podyd.auth import client as module
from podyd.auth.client import MAX_OF_ONE, MAX_UNDER_WAY, MAX_WAITING, AuthClient
from podyd.base.errors import BadRequest, Unavailable

ACCOUNT = {"name": "alice", "uid": 1000, "gid": 1000, "groups": []}
SECONDS = 0.01


class SlowHelper:
    """Takes its time for each answer, and counts them by operation."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.at_once: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.is_busy = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        op = json.loads(await reader.readline())["op"]
        self.at_once[op] = self.at_once.get(op, 0) + 1
        self.most[op] = max(self.most.get(op, 0), self.at_once[op])
        await asyncio.sleep(SECONDS)
        self.at_once[op] -= 1
        self.answered.append(op)
        if len(self.answered) > 20:
            self.is_busy.set()
        body: dict[str, object] = {"error": "weak", "reason": "too short"}
        if op == "accounts":
            body = {"ok": True, "accounts": [ACCOUNT]}
        if op == "login":
            body = {"ok": True, "account": ACCOUNT}
        writer.write(json.dumps(body).encode() + b"\n")
        writer.close()


@contextlib.asynccontextmanager
async def helper(path: Path) -> AsyncIterator[tuple[SlowHelper, AuthClient]]:
    slow = SlowHelper()
    async with await asyncio.start_unix_server(slow.answer, path):
        yield slow, AuthClient(str(path))


async def list_accounts(auth: AuthClient) -> None:
    await auth.accounts()


async def fail_to_change(auth: AuthClient) -> None:
    with contextlib.suppress(BadRequest):
        await auth.change_password("mallory", "old", "weak")


async def log_in_again(auth: AuthClient) -> None:
    await auth.login("mallory", "right", "192.0.2.7", key="mallory", known=True)


@pytest.mark.parametrize("call", [list_accounts, fail_to_change, log_in_again])
def test_a_flood_of_one_member_keeps_no_stranger_waiting(
    tmp_path: Path, call: Callable[[AuthClient], Awaitable[None]]
) -> None:
    async def play() -> None:
        async with helper(tmp_path / "sock") as (slow, auth):
            ended = asyncio.Event()

            async def go_on() -> None:
                while not ended.is_set():
                    await call(auth)

            flood = [asyncio.ensure_future(go_on()) for _ in range(100)]
            await slow.is_busy.wait()
            before = len(slow.answered)
            login = auth.login("stranger", "right", "192.0.2.8", key="elsewhere", known=False)
            await asyncio.wait_for(login, 5)
            # Of the flood, only what was under way went before.
            assert len(slow.answered) - before < 5 * MAX_OF_ONE
            ended.set()
            await asyncio.gather(*flood)
            for op, most in slow.most.items():
                assert most <= (1 if op == "accounts" else MAX_OF_ONE + 1)

    asyncio.run(play())


def test_who_waits_too_long_for_a_turn_is_told_when_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More members than may wait log in at once, while PAM answers nobody."""
    monkeypatch.setattr(module, "TIMEOUT", 0.5)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def log_in(auth: AuthClient, number: int) -> tuple[str, str]:
        with pytest.raises(Unavailable) as caught:
            await auth.login("m", "right", "192.0.2.7", key=number, known=False)
        return caught.value.code, caught.value.headers()["Retry-After"]

    async def play() -> None:
        path = tmp_path / "sock"
        async with await asyncio.start_unix_server(hang, path):
            auth = AuthClient(str(path))
            number = MAX_UNDER_WAY + MAX_WAITING + 10
            got = await asyncio.gather(*(log_in(auth, one) for one in range(number)))
            codes = [code for code, _ in got]
            # Some more have their turn in the last moment.
            assert MAX_UNDER_WAY <= codes.count("pam_timeout") < number / 2
            assert {*codes} == {"pam_timeout", "pam_busy"}
            assert all(5 <= int(seconds) <= 15 for _, seconds in got)

    assert MAX_WAITING >= 1000, "a whole lab, that comes back to its pages at the same moment"
    asyncio.run(play())
