"""What a crash tells, and whom."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from podyd.api import handler
from podyd.api.application import HANDLERS
from podyd.api.binding import Bound, Call, Text
from podyd.api.under_way import MAX_OF_ONE, Requests
from podyd.auth.client import AuthClient
from podyd.base.errors import TooMany
from podyd.base.longtext import HeldAnswer, LongText
from podyd.config.current import Settings
from podyd.config.loader import parse
from podyd.config.schema import Config, Quota
from podyd.contract.answers import Json, JsonOrText
from podyd.contract.gpus import POD_GPUS
from podyd.contract.meta import HelpOf
from podyd.contract.operation import GET, Access, AnyOperation, Operation, Proof
from podyd.contract.pods import POD_EXEC, POD_INFO
from podyd.contract.users import USER_INFO
from podyd.model.member import Member
from podyd.people.login import Logins
from podyd.people.notices import Notices
from podyd.people.origins import Origins
from podyd.people.sessions import Sessions
from podyd.people.tokens import Tokens
from podyd.people.web_sessions import WebSessions
from podyd.store.database import Database
from podyd.store.notices import NoticeStore
from podyd.store.tokens import TokenStore
from podyd.store.web_sessions import WebSessionStore
from tests.unit.node.fake import FakeSockets

CRASHING = Operation(
    "/crash", GET, HelpOf, Json(str), "Crashes.", access=Access.OPEN, proof=Proof.READS
)


@contextlib.asynccontextmanager
async def serving(
    bound: Bound,
    operation: AnyOperation = CRASHING,
    config: Config | None = None,
    directory: Path = Path("/nonexistent"),
) -> AsyncIterator[int]:
    """The port of a server that has this one operation."""
    settings = Settings(config or Config())
    database = Database(directory / "db")
    tokens = Tokens(TokenStore(database), settings)
    web_sessions = WebSessions(WebSessionStore(database), settings)
    auth, origins = AuthClient("/nonexistent"), Origins(FakeSockets())
    logins = Logins(auth, origins, tokens, web_sessions, settings)
    parts = {
        "operation": operation,
        "bound": bound,
        "logins": logins,
        "requests": Requests(),
        "sessions": Sessions(logins),
        "notices": Notices(NoticeStore(database)),
        "address_of": lambda request: request.remote_ip,
        "is_encrypted": lambda request: False,
    }
    route = (operation.path, HANDLERS[type(operation.answer)], parts)
    server = HTTPServer(Application([route], log_function=lambda _: None))
    sock, port = bind_unused_port()
    server.add_socket(sock)
    try:
        yield port
    finally:
        server.stop()
        await server.close_all_connections()
        await database.close()
        await server.close_all_connections()


async def fetch(bound: Bound, query: str) -> HTTPResponse:
    """The answer of a server that has this one operation."""
    async with serving(bound) as port:
        client = AsyncHTTPClient(force_instance=True)
        try:
            return await client.fetch(f"http://127.0.0.1:{port}/crash?{query}", raise_error=False)
        finally:
            client.close()


def test_a_crash_says_where_and_shows_nothing_that_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def crash(call: Call[HelpOf]) -> str:
        nothing: dict[str | None, str] = {}
        return nothing[call.request.path]

    with caplog.at_level(logging.DEBUG):
        response = asyncio.run(fetch(crash, "path=sEcret-1"))
    assert response.code == 500
    assert json.loads(response.body)["code"] == "internal_error"
    assert "/crash crashed: KeyError" in caplog.text
    assert "in crash" in caplog.text, "the traceback"
    assert "sEcret-1" not in caplog.text
    assert b"sEcret-1" not in response.body


@dataclass(frozen=True)
class Long:
    """An answer of any length."""

    text: LongText


@pytest.mark.parametrize("count", [1, 100])
def test_a_long_answer_is_sent_in_pieces_and_then_closed(count: int) -> None:
    closed: list[bool] = []

    async def answer(call: Call[HelpOf]) -> HeldAnswer[Long]:
        text = LongText(lambda: iter(['"\x01€' * 5000] * count))
        return HeldAnswer(Long(text), lambda: closed.append(True))

    response = asyncio.run(fetch(answer, ""))
    assert json.loads(response.body) == {"text": '"\x01€' * 5000 * count}
    assert ("Content-Length" in response.headers) == (count == 1)
    assert closed == [True]


@pytest.mark.parametrize("leaves", [True, False])
def test_who_does_not_take_a_long_answer_does_not_keep_it(
    monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(handler, "TAKE_SECONDS", 60 if leaves else 0.1)

    async def talk() -> None:
        closed = asyncio.Event()
        made = 0

        def endless() -> Iterator[str]:
            nonlocal made
            while True:
                made += 1
                yield "x" * 60_000

        async def answer(call: Call[HelpOf]) -> HeldAnswer[Long]:
            return HeldAnswer(Long(LongText(endless)), closed.set)

        async with serving(answer) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /crash HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readexactly(1000)
            if leaves:
                writer.close()
            await asyncio.wait_for(closed.wait(), 10)
            writer.close()
        assert made < 1000, "what is made is taken first"

    asyncio.run(talk())


def test_text_in_place_of_json_where_that_is_asked_for() -> None:
    operation = Operation(
        "/crash",
        GET,
        HelpOf,
        JsonOrText(list[int], "text/csv"),
        "A table.",
        access=Access.OPEN,
        proof=Proof.READS,
    )

    async def answer(call: Call[HelpOf]) -> list[int] | Text:
        return Text("1,2\r\n") if call.request.path == "csv" else [1, 2]

    async def ask(query: str) -> HTTPResponse:
        async with serving(answer, operation) as port:
            client = AsyncHTTPClient(force_instance=True)
            try:
                return await client.fetch(f"http://127.0.0.1:{port}/crash{query}")
            finally:
                client.close()

    shown = [asyncio.run(ask(query)) for query in ("", "?path=csv")]
    assert [item.body for item in shown] == [b"[1, 2]", b"1,2\r\n"]
    assert [item.headers["Content-Type"] for item in shown] == ["application/json", "text/csv"]


# --- Who sees the cards without a login --------------------------------------------------------

# Of a login on the page that has ended.
SECRET = "podydweb_" + "x" * 43
COOKIE = {"Cookie": f"podyd={SECRET}", "Host": "lab"}
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize(
    ("web", "headers", "status"),
    [
        ("{status_allow: [127.0.0.1]}", {}, 200),
        ("{status_allow: [10.0.0.0/8]}", {}, 401),
        ("{status_allow: [127.0.0.1]}", {"X-Forwarded-For": "127.0.0.1"}, 401),
        ("{status_allow: [127.0.0.1]}", {"Authorization": "Bearer x"}, 401),
        ("{status_allow: [127.0.0.1]}", {**COOKIE, **OWN_PAGE}, 200),
        ("{status_allow: [127.0.0.1]}", COOKIE, 200),
        ("{status_allow: [10.0.0.0/8]}", {**COOKIE, **OWN_PAGE}, 401),
        ("{status_allow: [10.0.0.0/8]}", COOKIE, 403),
        ("true", {}, 401),
        ("false", {}, 401),
    ],
)
def test_the_status_is_for_members_and_for_addresses_that_are_named(
    tmp_path: Path, web: str, headers: dict[str, str], status: int
) -> None:
    async def answer(call: Call[HelpOf]) -> str:
        assert call.login is None
        return "cards"

    async def ask() -> HTTPResponse:
        operation = dataclasses.replace(CRASHING, access=Access.STATUS)
        async with serving(answer, operation, parse(f"web: {web}"), tmp_path) as port:
            client = AsyncHTTPClient(force_instance=True)
            url = f"http://127.0.0.1:{port}/crash"
            try:
                return await client.fetch(url, headers=headers, raise_error=False)
            finally:
                client.close()

    assert asyncio.run(ask()).code == status


# --- How much one member may have under way -----------------------------------------------------


def member(name: str) -> Member:
    return Member(name, False, Quota(), (), 1000, 1000)


def test_what_one_member_has_under_way_holds_up_nobody_else() -> None:
    async def play() -> None:
        requests, go, begun = Requests(), asyncio.Event(), list[str]()

        async def call(name: str, operation: AnyOperation) -> None:
            async with requests.turn(member(name), operation):
                begun.append(name)
                await go.wait()

        flood = [asyncio.ensure_future(call("mallory", POD_INFO)) for _ in range(50)]
        await asyncio.sleep(0.01)
        assert begun == ["mallory"] * MAX_OF_ONE
        # What the same member changes has turns of its own, as what only looks is often asked.
        others = [
            asyncio.ensure_future(call("mallory", POD_GPUS)),
            asyncio.ensure_future(call("alice", POD_INFO)),
            asyncio.ensure_future(call("mallory", POD_EXEC)),
            asyncio.ensure_future(call("mallory", USER_INFO)),
        ]
        await asyncio.sleep(0.01)
        assert begun[MAX_OF_ONE:] == ["mallory", "alice", "mallory", "mallory"]
        go.set()
        await asyncio.gather(*flood, *others)
        assert begun.count("mallory") == 53, "nobody is refused who waits"

    asyncio.run(play())


def test_who_has_too_many_in_line_alone_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podyd.api.under_way.MAX_WAITING", 20)

    async def play() -> None:
        requests, go = Requests(), asyncio.Event()

        async def call(name: str) -> None:
            async with requests.turn(member(name), POD_GPUS):
                await go.wait()

        flood = [asyncio.ensure_future(call("mallory")) for _ in range(100)]
        await asyncio.sleep(0.01)
        others = [asyncio.ensure_future(call(f"user{number % 3}")) for number in range(24)]
        await asyncio.sleep(0.01)
        go.set()
        await asyncio.gather(*others)
        results = await asyncio.gather(*flood, return_exceptions=True)
        refused = [answer for answer in results if isinstance(answer, TooMany)]
        assert len(refused) == 100 - MAX_OF_ONE - 20
        assert {answer.retry_after for answer in refused} == {1}

    asyncio.run(play())
