"""Which instances an engine's operations are about."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from podyd.engine.operations import RestOperations
from podyd.engine.types import EngineOperation

URL = "/1.0/instances/alice-main?project=podyd"


class Client:
    """Answers with operations that run."""

    def __init__(self, *operations: dict[str, Any]) -> None:
        self._operations = list(operations)

    async def get(self, path: str, **query: Any) -> Any:
        assert path == "/1.0/operations"
        return {"running": self._operations}


@pytest.mark.parametrize(
    "about",
    [
        # LXD 5.0.2, Incus.
        {"resources": {"instances": [URL]}, "metadata": None},
        # lxd/instance_state.go, tags lxd-5.21.7 and lxd-6.7 (there with both).
        {"resources": {"instances": [URL], "containers": [URL]}, "metadata": {}},
        {"resources": {"instance": [URL]}, "metadata": {"entity_url": URL}},
        # lxd/instance_state.go and lxd/operations/operations.go, tags lxd-6.8 and lxd-6.9.
        {"resources": {}, "metadata": {"entity_url": URL}},
    ],
)
def test_which_instance_it_is_about(about: dict[str, Any]) -> None:
    one = {"id": "1", "class": "task", **about}
    other = {"id": "2", "class": "websocket", **about}
    client: Any = Client(one, other)
    operations = asyncio.run(RestOperations(client).under_way())
    assert operations == [EngineOperation("1", frozenset({"alice-main"}))]


def test_an_image_that_is_made_is_about_none() -> None:
    """lxd/images.go imagesPost, tag lxd-6.9."""
    urls = ("/1.0/projects/podyd", "/1.0/images/abc?project=podyd")
    made = [
        {"id": url, "class": "task", "resources": {}, "metadata": {"entity_url": url}}
        for url in urls
    ]
    client: Any = Client(*made)
    operations = asyncio.run(RestOperations(client).under_way())
    assert [item.instances for item in operations] == [frozenset(), frozenset()]
