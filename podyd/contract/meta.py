"""Calls about podyd and its API itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from podyd.contract.kinds import Text, param
from podyd.contract.operation import GET, Access, Nothing, Operation, Proof


@dataclass(frozen=True)
class HelpOf:
    path: str | None = param(Text(200), "a route, or a prefix that ends in '/'", default=None)


@dataclass(frozen=True)
class HelpParam:
    name: str
    optional: bool
    help: str


@dataclass(frozen=True)
class HelpEntry:
    path: str
    methods: list[str]
    params: list[HelpParam]
    help: str
    websocket: bool


HELP = Operation(
    "/help", GET, HelpOf, list[HelpEntry], "The routes and their parameters.", proof=Proof.READS
)
VERSION = Operation(
    "/version", GET, Nothing, list[int], "podyd's version.", access=Access.OPEN, proof=Proof.READS
)
OPENAPI = Operation(
    "/openapi.json", GET, Nothing, dict[str, Any], "This API as OpenAPI 3.1.", proof=Proof.READS
)
METRICS = Operation(
    "/metrics",
    GET,
    Nothing,
    str,
    "podyd's figures for Prometheus.",
    access=Access.SCRAPER,
    media="text/plain; version=0.0.4; charset=utf-8",
    proof=Proof.READS,
)
