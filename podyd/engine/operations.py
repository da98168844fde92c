"""What LXD is at: its operations that have not ended."""

from __future__ import annotations

from urllib.parse import urlsplit

from podyd.engine.rest import RestClient
from podyd.engine.types import EngineOperation

# As LXD sorts them; the others have ended, and are forgotten some seconds later.
_UNDER_WAY = ("pending", "running", "cancelling")


class RestOperations:
    """Asks LXD each time."""

    def __init__(self, client: RestClient) -> None:
        self._client = client

    async def under_way(self) -> list[EngineOperation]:
        """The project's tasks that have not ended; commands that somebody talks to are none."""
        operations = await self._client.get("/1.0/operations", recursion=1) or {}
        return [
            EngineOperation(
                item["id"],
                frozenset(
                    urlsplit(path).path.split("/")[3]
                    for path in (item["resources"] or {}).get("instances", ())
                ),
            )
            for status in _UNDER_WAY
            for item in operations.get(status, ())
            if item["class"] == "task"
        ]
