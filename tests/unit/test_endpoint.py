"""What a crash tells, and whom."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from podyd.api.endpoint import Bound, Call, Endpoint, Requests
from podyd.authclient import AuthClient
from podyd.config import Config
from podyd.settings import Settings
from podyd.spec import Access, HelpOf, Operation, Proof
from podyd.store import Database, TokenStore
from podyd.tokens import Tokens
from podyd.users import Users

CRASHING = Operation(
    "/crash", ("GET",), HelpOf, str, "Crashes.", proof=Proof.READS, access=Access.OPEN
)


async def fetch(bound: Bound, query: str) -> HTTPResponse:
    """The answer of a server that has this one operation."""
    settings = Settings(Config())
    tokens = Tokens(TokenStore(Database(Path("/nonexistent"))), settings)
    users = Users(AuthClient("/nonexistent"), tokens, settings)
    parts = {
        "operation": CRASHING,
        "bound": bound,
        "users": users,
        "requests": Requests(),
        "address_of": lambda request: request.remote_ip,
    }
    server = HTTPServer(
        Application([(CRASHING.path, Endpoint, parts)], log_function=lambda _: None)
    )
    sock, port = bind_unused_port()
    server.add_socket(sock)
    client = AsyncHTTPClient(force_instance=True)
    try:
        return await client.fetch(f"http://127.0.0.1:{port}/crash?{query}", raise_error=False)
    finally:
        client.close()
        server.stop()
        await server.close_all_connections()


def test_a_crash_says_where_and_shows_nothing_that_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def crash(call: Call) -> str:
        return {}[call.request.path]

    with caplog.at_level(logging.DEBUG):
        response = asyncio.run(fetch(crash, "path=sEcret-1"))
    assert response.code == 500
    assert json.loads(response.body)["code"] == "internal_error"
    assert "/crash crashed: KeyError" in caplog.text
    assert "in crash" in caplog.text, "the traceback"
    assert "sEcret-1" not in caplog.text
    assert b"sEcret-1" not in response.body
