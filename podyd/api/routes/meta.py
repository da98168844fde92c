"""About podyd and its API itself."""

from __future__ import annotations

import difflib
from typing import Any

from podyd import VERSION as PODYD_VERSION
from podyd.accounting.metrics import Metrics
from podyd.api.binding import Call, serves
from podyd.base.errors import NotFound
from podyd.contract import openapi
from podyd.contract.answers import Events, WebSocket
from podyd.contract.meta import HELP, METRICS, OPENAPI, VERSION, HelpEntry, HelpOf, HelpParam
from podyd.contract.operation import AnyOperation, Nothing
from podyd.contract.table import OPERATIONS


class MetaRoutes:
    def __init__(self, *, metrics: Metrics) -> None:
        self._metrics = metrics
        self._openapi = openapi.document()

    @serves(HELP)
    async def help(self, call: Call[HelpOf]) -> list[HelpEntry]:
        path = "/" + (call.request.path or "/").lstrip("/")
        if path.endswith("/"):
            operations = [item for item in OPERATIONS if item.path.startswith(path)]
        else:
            operations = [item for item in OPERATIONS if item.path == path]
        if not operations:
            raise NotFound(
                f"There is no route {path[:100]!r}.",
                advice=suggestion(path),
                code="no_such_route",
            )
        return [_help_entry(item) for item in operations]

    @serves(VERSION)
    async def version(self, call: Call[Nothing]) -> list[int]:
        return list(PODYD_VERSION)

    @serves(OPENAPI)
    async def openapi_document(self, call: Call[Nothing]) -> dict[str, Any]:
        return self._openapi

    @serves(METRICS)
    async def metrics_text(self, call: Call[Nothing]) -> str:
        return await self._metrics.text()


def suggestion(path: str) -> str:
    """What to try instead of a route that is not there."""
    near = difflib.get_close_matches(path, [item.path for item in OPERATIONS], n=1)
    return f"Did you mean {near[0]}?" if near else "See /help."


def _help_entry(operation: AnyOperation) -> HelpEntry:
    return HelpEntry(
        path=operation.path,
        methods=[operation.advised],
        params=[HelpParam(item.name, item.optional, item.help) for item in operation.params],
        help=operation.summary,
        websocket=isinstance(operation.answer, (Events, WebSocket)),
    )
