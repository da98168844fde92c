"""What LXD is at: its operations that have not ended."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from podyd.engine.rest import LxdClient

# As LXD sorts them; the others have ended, and are forgotten some seconds later.
_UNDER_WAY = ("pending", "running", "cancelling")


async def under_way(client: LxdClient) -> Mapping[str, frozenset[str]]:
    """The project's tasks that have not ended, by id: the instances that LXD names for each.

    Commands that somebody talks to are none. LXD names no instance for an image that it makes.
    """
    found = await client.get("/1.0/operations", recursion=1)
    return {
        item["id"]: frozenset(
            urlsplit(path).path.split("/")[3]
            for path in (item["resources"] or {}).get("instances", ())
        )
        for status in _UNDER_WAY
        for item in found.get(status, ())
        if item["class"] == "task"
    }
