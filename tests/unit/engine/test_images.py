"""How far an image is, of engines that tell it in different places."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from podyd.engine import images
from podyd.engine.images import RestImageStore
from podyd.engine.types import PackProgress

ID = "6916c8a6-9b7d-4abd-90b3-aedfec7ec7da"
PROGRESS = {"stage": "create_image_from_container_pack", "percent": "42", "speed": "1000"}


class Stream:
    """A websocket with these messages, after which nothing comes."""

    def __init__(self, *messages: Any) -> None:
        self._messages = list(messages)
        self.is_closed = False

    async def read_message(self) -> str:
        if not self._messages:
            await asyncio.Event().wait()
        return json.dumps(self._messages.pop(0))

    def close(self) -> None:
        self.is_closed = True


class Client:
    def __init__(self, metadata: Mapping[str, Any], stream: Stream | None) -> None:
        self._metadata, self._stream = metadata, stream

    async def get(self, path: str) -> Any:
        if path == "/1.0":
            return {"api_extensions": ["projects", *(["bulk_operations"] if self._stream else [])]}
        assert path == f"/1.0/operations/{ID}"
        return {"id": ID, "status_code": 103, "metadata": self._metadata}

    async def websocket(self, path: str, **query: Any) -> Stream:
        assert (path, query) == ("/1.0/events", {"type": "operation"})
        assert self._stream is not None
        return self._stream


def event(operation: str, metadata: Mapping[str, Any] | None) -> Any:
    return {"type": "operation", "metadata": {"id": operation, "metadata": metadata}}


def asked(metadata: Mapping[str, Any], stream: Stream | None) -> PackProgress:
    client: Any = Client(metadata, stream)
    return asyncio.run(RestImageStore(client).progress(f"/1.0/operations/{ID}"))


def test_the_operation_has_it() -> None:
    assert asked({"progress": PROGRESS}, None) == PackProgress(42, 1000)
    assert asked({}, None) == PackProgress()


def test_events_alone_have_it() -> None:
    """LXD from 6.8 on: lxd/operations.go operationGet, lxd/operations/operations.go; tags lxd-6.8
    and lxd-6.9."""
    stream = Stream(
        event("another", {"progress": {"percent": "1"}}),
        event(ID, None),
        event(ID, {"entity_url": "/1.0/projects/podyd", "progress": PROGRESS}),
    )
    assert asked({"entity_url": "/1.0/projects/podyd"}, stream) == PackProgress(42, 1000)
    assert stream.is_closed


def test_events_have_it_not_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "TOLD_SECONDS", 0.05)
    stream = Stream(event(ID, {}))
    assert asked({}, stream) == PackProgress()
    assert stream.is_closed
