"""Each operation calls one method, whose types are the operation's.

What is marked `type: ignore` here must be an error: `make check` fails where mypy, which reports
every mark that is not needed, takes it for right.
"""

from __future__ import annotations

from typing import Any

import pytest

from podyd.api.application import HANDLERS
from podyd.api.binding import Call, Headed, Incoming, Outgoing, Session, bound, serves
from podyd.base.longtext import HeldAnswer
from podyd.contract.answers import Answer, Json
from podyd.contract.meta import METRICS, VERSION
from podyd.contract.operation import GET, Access, Log, Nothing, Operation, Proof
from podyd.contract.pods import (
    POD_DELETE,
    POD_EXEC,
    POD_FILE,
    POD_FILE_PUT,
    POD_INFO,
    POD_INSPECT,
    POD_LOGS,
    POD_SHELL,
    Exec,
    ExecResult,
    FileInfo,
    LogsOf,
    OneFile,
    OnePod,
    PodInfo,
    PodLog,
    PutFile,
    Shell,
)
from podyd.contract.table import OPERATIONS

NEW = Operation("/new", GET, Nothing, Json(str), "New.", access=Access.MEMBER, proof=Proof.READS)


# --- What mypy lets through ---------------------------------------------------------------------


class Right:
    """One method of each kind, so that the errors below are not everybody's."""

    @serves(VERSION)
    async def json(self, call: Call[Nothing]) -> list[int]:
        raise NotImplementedError

    @serves(POD_INFO, POD_INSPECT)
    async def headed(self, call: Call[OnePod]) -> Headed[PodInfo]:
        raise NotImplementedError

    @serves(POD_EXEC)
    async def kept(self, call: Call[Exec]) -> HeldAnswer[ExecResult]:
        raise NotImplementedError

    @serves(METRICS)
    async def text(self, call: Call[Nothing]) -> str:
        raise NotImplementedError

    @serves(POD_FILE)
    async def file(self, call: Call[OneFile]) -> HeldAnswer[FileInfo] | Outgoing:
        raise NotImplementedError

    @serves(POD_FILE_PUT)
    async def upload(self, call: Call[PutFile]) -> Incoming[Log]:
        raise NotImplementedError

    @serves(POD_SHELL)
    async def socket(self, call: Call[Shell]) -> Session:
        raise NotImplementedError


class Wrong:
    @serves(POD_EXEC)  # type: ignore[arg-type]
    async def another_request(self, call: Call[OnePod]) -> HeldAnswer[ExecResult]:
        raise NotImplementedError

    @serves(POD_DELETE)
    async def no_such_parameter(self, call: Call[OnePod]) -> Log:
        return Log(call.request.image)  # type: ignore[attr-defined]

    @serves(POD_LOGS)
    async def another_type_of_parameter(self, call: Call[LogsOf]) -> PodLog:
        lines: str = call.request.lines  # type: ignore[assignment]
        raise NotImplementedError(lines)

    @serves(POD_INFO)  # type: ignore[arg-type]
    async def another_answer(self, call: Call[OnePod]) -> ExecResult:
        raise NotImplementedError

    @serves(POD_INFO)  # type: ignore[arg-type]
    async def another_answer_with_headers(self, call: Call[OnePod]) -> Headed[Log]:
        raise NotImplementedError

    @serves(POD_INFO)  # type: ignore[arg-type]
    async def a_file_where_json_is_promised(self, call: Call[OnePod]) -> Outgoing:
        raise NotImplementedError

    @serves(METRICS)  # type: ignore[arg-type]
    async def no_text(self, call: Call[Nothing]) -> dict[str, str]:
        raise NotImplementedError

    @serves(POD_FILE_PUT)  # type: ignore[arg-type]
    async def another_answer_to_a_file(self, call: Call[PutFile]) -> Incoming[PodInfo]:
        raise NotImplementedError

    @serves(POD_SHELL)  # type: ignore[arg-type]
    async def no_socket(self, call: Call[Shell]) -> ExecResult:
        raise NotImplementedError

    @serves(POD_INFO, POD_EXEC)  # type: ignore[misc]
    async def two_that_differ(self, call: Call[Any]) -> Any:
        raise NotImplementedError


# --- What podyd does not start with -------------------------------------------------------------


def test_what_is_bound_to_nothing() -> None:
    with pytest.raises(TypeError, match=r"^bound to nothing: /help, /openapi\.json, /user/info"):
        bound(Right())


def test_what_is_bound_twice() -> None:
    with pytest.raises(TypeError, match="is bound twice"):
        bound(Right(), Right())


def test_what_is_not_in_the_table() -> None:
    class More:
        @serves(NEW)
        async def new(self, call: Call[Nothing]) -> str:
            raise NotImplementedError

    with pytest.raises(TypeError, match="not in the table: /new"):
        bound(More())


def test_each_way_to_answer_has_who_serves_it() -> None:
    assert set(HANDLERS) == set(Answer.__subclasses__())
    assert {type(operation.answer) for operation in OPERATIONS} <= set(HANDLERS)
