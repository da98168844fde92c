"""What the engine is at: its operations that have not ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from podyd.engine.rest import RestClient
from podyd.engine.types import EngineOperation

# As the engine sorts them; the others have ended, and are forgotten some seconds later.
_UNDER_WAY = ("pending", "running", "cancelling")


class RestOperations:
    """Asks the engine each time."""

    def __init__(self, client: RestClient) -> None:
        self._client = client

    async def under_way(self) -> list[EngineOperation]:
        """The project's tasks that have not ended; commands that somebody talks to are none."""
        operations = await self._client.get("/1.0/operations", recursion=1) or {}
        return [
            EngineOperation(item["id"], frozenset(_instances(item)))
            for status in _UNDER_WAY
            for item in operations.get(status, ())
            if item["class"] == "task"
        ]


def _instances(operation: Mapping[str, Any]) -> Iterator[str]:
    """The names of an operation's instances: in its resources, and from LXD 6.8 on, where these
    are empty, in its metadata (`entity_url`, set in lxd/operations/operations.go)."""
    paths = [*(operation["resources"] or {}).get("instances", ())]
    paths.append((operation["metadata"] or {}).get("entity_url", ""))
    for path in paths:
        match urlsplit(path).path.split("/"):
            case ["", _, "instances", name, *_]:
                yield unquote(name)
