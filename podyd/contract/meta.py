"""Calls about podyd and its API itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from podyd.contract.answers import Json, PlainText
from podyd.contract.kinds import Text, param
from podyd.contract.operation import GET, Access, Nothing, Operation, Proof


@dataclass(frozen=True)
class HelpOf:
    path: str | None = param(
        Text(200), "a path, or a prefix that ends in '/'; without it, all", default=None
    )


@dataclass(frozen=True)
class HelpParam:
    name: str
    optional: bool
    help: str


@dataclass(frozen=True)
class HelpEntry:
    """A call of the API. `methods` has the one method that a client should use; `websocket`: the
    call is a WebSocket, whose protocol is in /openapi.json."""

    path: str
    methods: list[str]
    params: list[HelpParam]
    help: str
    websocket: bool


HELP = Operation(
    "/help",
    GET,
    HelpOf,
    Json(list[HelpEntry]),
    "The calls of this API and their parameters.",
    access=Access.MEMBER,
    proof=Proof.READS,
    takes_turns=False,
)
VERSION = Operation(
    "/version",
    GET,
    Nothing,
    Json(list[int]),
    "The version of podyd, as numbers: major, minor, patch.",
    access=Access.OPEN,
    proof=Proof.READS,
    takes_turns=False,
)
OPENAPI = Operation(
    "/openapi.json",
    GET,
    Nothing,
    Json(dict[str, Any]),
    "This API as an OpenAPI 3.1 document.",
    access=Access.MEMBER,
    proof=Proof.READS,
    takes_turns=False,
)
METRICS = Operation(
    "/metrics",
    GET,
    Nothing,
    PlainText("text/plain; version=0.0.4; charset=utf-8"),
    "Metrics in Prometheus' text format; for admins and the addresses of metrics.allow.",
    access=Access.SCRAPER,
    proof=Proof.READS,
)
