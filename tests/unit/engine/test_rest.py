"""Questions to an LXD that leaves some of them unanswered."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from podyd.api.tls import load
from podyd.base.errors import (
    DiskFull,
    EngineRefused,
    Gone,
    Missing,
    Slipped,
    TimedOut,
    Unavailable,
)
from podyd.engine import rest
from podyd.engine.bound import bound, meant_for
from podyd.engine.dialect import LXD
from podyd.engine.rest import Credentials, RestClient, instance_path
from tests.unit.api.test_tls import make

Behaviour = Callable[[RequestHandler], Awaitable[None]]


async def hang(handler: RequestHandler) -> None:
    await handler.settings["over"].wait()


async def hang_up(handler: RequestHandler) -> None:
    handler.detach().close()


async def fail(handler: RequestHandler) -> None:
    handler.set_status(500)
    handler.write({"type": "error", "error": "bad file descriptor", "error_code": 500})


async def refuse(handler: RequestHandler) -> None:
    handler.set_status(404)
    handler.write({"type": "error", "error": "not found", "error_code": 404})


async def answer(handler: RequestHandler) -> None:
    handler.write({"type": "sync", "metadata": "all is well"})


async def begin(handler: RequestHandler) -> None:
    handler.write({"type": "async", "operation": "/1.0/operations/1", "metadata": {}})


async def fail_later(handler: RequestHandler) -> None:
    failed = {"status_code": 400, "err": "readdirent /x: bad file descriptor"}
    handler.write({"type": "sync", "metadata": failed})


async def be_full(handler: RequestHandler) -> None:
    failed = {"status_code": 400, "err": "open backup.yaml: disk quota exceeded"}
    handler.write({"type": "sync", "metadata": failed})


def later(error: str, code: int, status: int) -> list[Behaviour]:
    """As LXD 5.21 and 6.x answer a wait for an operation that has failed, and one that goes on for
    longer: an error after a header of 200 (lxd/operations.go operationWaitGet and
    lxd/response/response.go errorResponse.Render, tags lxd-5.21.7, lxd-6.9); and then what the
    operation is."""

    async def wait(handler: RequestHandler) -> None:
        handler.write({"type": "error", "error": error, "error_code": code, "metadata": None})

    async def look(handler: RequestHandler) -> None:
        known = {"status_code": status, "err": error if status >= 400 else "", "err_code": code}
        handler.write({"type": "sync", "status_code": 200, "metadata": known})

    return [begin, wait, look]


Call = Callable[[RestClient], Awaitable[Any]]


def get(lxd: RestClient) -> Awaitable[Any]:
    return lxd.get("/1.0")


def ask(directory: Path, behaviours: list[Behaviour], call: Call = get) -> Any:
    """What podyd's client makes of an LXD that behaves so, request by request; all of them come."""
    left = iter(behaviours)
    handling: set[asyncio.Task[Any] | None] = set()

    class Handler(RequestHandler):
        async def prepare(self) -> None:
            handling.add(asyncio.current_task())
            await next(left)(self)
            if not self._finished and self.request.connection is not None:
                await self.finish()

    async def main() -> Any:
        files = make(directory, "lxd")
        for name in ("client.crt", "server.crt"):
            shutil.copy(files.cert, directory / name)
        shutil.copy(files.key, directory / "client.key")
        listener, port = bind_unused_port()
        over = asyncio.Event()
        served = HTTPServer(Application([(".*", Handler)], over=over), ssl_options=load(files))
        served.add_socket(listener)
        lxd = RestClient(f"https://127.0.0.1:{port}", "p", Credentials(directory, LXD))
        try:
            return await call(lxd)
        finally:
            lxd.close()
            served.stop()
            over.set()
            await asyncio.wait(filter(None, handling))
            await served.close_all_connections()

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "FIRST_TIMEOUT", 0.3)
    monkeypatch.setattr(rest, "ANSWER_TIMEOUT", 1.0)


@pytest.mark.parametrize("first", [hang, hang_up, fail])
def test_a_question_is_asked_again(tmp_path: Path, first: Behaviour) -> None:
    assert ask(tmp_path, [first, answer]) == "all is well"


@pytest.mark.parametrize(
    ("behaviour", "error"), [(hang, Unavailable), (hang_up, Unavailable), (fail, EngineRefused)]
)
def test_it_is_asked_twice_at_most(
    tmp_path: Path, behaviour: Behaviour, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(tmp_path, [behaviour, behaviour, answer])


def test_what_takes_lxd_long_is_waited_for(tmp_path: Path) -> None:
    is_asked_again = asyncio.Event()

    async def think(handler: RequestHandler) -> None:
        await is_asked_again.wait()
        await answer(handler)

    async def hang_too(handler: RequestHandler) -> None:
        is_asked_again.set()
        await hang(handler)

    assert ask(tmp_path, [think, hang_too]) == "all is well"


def test_a_no_is_an_answer(tmp_path: Path) -> None:
    with pytest.raises(EngineRefused):
        ask(tmp_path, [refuse, answer])


def changing(method: str, **options: Any) -> Call:
    return lambda lxd: lxd.change(method, "/1.0", **options)


@pytest.mark.parametrize(
    "slip",
    [
        [fail],
        [begin, fail_later],
        [begin, fail, refuse],
        later("/x: bad file descriptor", 500, 400),
    ],
)
@pytest.mark.parametrize(
    "call",
    [changing("PUT"), changing("PATCH"), changing("DELETE"), changing("POST", is_repeatable=True)],
)
def test_what_lxd_slips_over_is_asked_for_once_more(
    tmp_path: Path, slip: list[Behaviour], call: Call
) -> None:
    assert ask(tmp_path, [*slip, answer], call) == "all is well"
    with pytest.raises(Slipped):
        ask(tmp_path, [*slip, *slip, answer], call)


@pytest.mark.parametrize("slip", [[hang], [hang_up], [fail], [begin, fail_later]])
def test_what_would_be_another_thing_is_asked_for_once(
    tmp_path: Path, slip: list[Behaviour]
) -> None:
    with pytest.raises((Unavailable, EngineRefused)):
        ask(tmp_path, [*slip, answer], changing("POST"))


@pytest.mark.parametrize("no", [[hang], [hang_up], [refuse], [begin, be_full]])
def test_whatever_else_goes_wrong_is_asked_for_once(tmp_path: Path, no: list[Behaviour]) -> None:
    with pytest.raises((Unavailable, EngineRefused)):
        ask(tmp_path, [*no, answer], changing("PUT"))


@pytest.mark.parametrize(
    "call",
    [
        lambda lxd: lxd.file("DELETE", "a", "/f"),
        lambda lxd: lxd.file("HEAD", "a", "/f"),
        lambda lxd: lxd.tagged("/1.0/instances/a"),
        lambda lxd: lxd.text("/1.0/instances/a/logs/lxc.log"),
    ],
)
def test_files_and_what_is_to_be_changed_are_asked_for_once_more(
    tmp_path: Path, call: Call
) -> None:
    ask(tmp_path, [fail, answer], call)
    with pytest.raises(EngineRefused):
        ask(tmp_path, [fail, fail, answer], call)
    with pytest.raises(EngineRefused):
        ask(tmp_path, [refuse, answer], call)


def test_what_lxd_5_21_says_of_an_operation_that_failed(tmp_path: Path) -> None:
    call = changing("POST")
    with pytest.raises(Missing, match="No such thing"):
        ask(tmp_path, later("No such thing", 404, 400), call)
    with pytest.raises(DiskFull):
        ask(tmp_path, later("Failed: disk quota exceeded", 500, 400), call)


def test_what_lxd_5_21_says_of_an_operation_that_goes_on(tmp_path: Path) -> None:
    with pytest.raises(TimedOut, match="continues"):
        ask(tmp_path, later("context deadline exceeded", 500, 103), changing("POST"))


def test_an_operation_of_another_member_is_waited_for(tmp_path: Path) -> None:
    """Its project is told with it."""
    begun: list[str] = []

    async def begin_there(handler: RequestHandler) -> None:
        handler.write({"type": "async", "operation": "/1.0/operations/1?project=p"})

    async def end(handler: RequestHandler) -> None:
        asked = handler.request.path, handler.get_arguments("project")
        assert asked == ("/1.0/operations/1/wait", ["p"])
        handler.write({"type": "sync", "metadata": {"status_code": 200}})

    call = changing("POST", began=begun.append)
    assert ask(tmp_path, [begin_there, end], call) == {"status_code": 200}
    assert begun == ["/1.0/operations/1"]


def test_what_is_meant_for_one_instance_reaches_no_other_of_its_name(tmp_path: Path) -> None:
    """Nothing is sent at all: there is no server."""

    async def main() -> None:
        files = make(tmp_path, "lxd")
        for name in ("client.crt", "server.crt"):
            shutil.copy(files.cert, tmp_path / name)
        shutil.copy(files.key, tmp_path / "client.key")
        lxd = RestClient("https://127.0.0.1:1", "p", Credentials(tmp_path, LXD))
        there = {"a": "new"}

        async def is_there(name: str, uuid: str) -> bool:
            return there.get(name) == uuid

        lxd.is_there = is_there
        old, gone, new = bound("a", "old"), bound("b", "old"), bound("a", "new")
        try:
            for name in (old, gone):
                path = instance_path(name, "state")
                for call in (
                    lxd.get(path),
                    lxd.tagged(path),
                    lxd.text(path),
                    lxd.change("PUT", path, {}),
                    lxd.start(path, {}),
                    lxd.file("GET", name, "/etc/shadow"),
                    lxd.check(name),
                    lxd.change("POST", "/1.0/instances", {"source": {"source": name}}),
                    lxd.check(meant_for(name, f"{name}/snapshot")),
                ):
                    with pytest.raises(Gone):
                        await call
            for name in (new, "a"):
                await lxd.check(name)
                with pytest.raises(Unavailable):
                    await lxd.change("PUT", instance_path(name), {})
        finally:
            lxd.close()

    asyncio.run(main())
