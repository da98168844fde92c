"""How far an image is that is being made of a pod."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from podyd.commits import Commits
from podyd.config import Quota
from podyd.errors import Missing, NotFound
from podyd.images import Images
from podyd.lxd.client import LxdClient
from podyd.pods import Pods
from podyd.spec import Progress
from podyd.tasks import Tasks
from podyd.users import Member

MEMBER, OTHER = (Member(name, False, Quota(), (), 1000, 1000) for name in ("alice", "bob"))
NOTHING = Progress(None, None, None)


class Lxd(LxdClient):
    """Has one operation, with this metadata; None: it has ended."""

    def __init__(self, metadata: dict[str, Any] | None) -> None:
        self.metadata = metadata

    async def get(self, path: str, **query: Any) -> Any:
        assert path == "/1.0/operations/1"
        if self.metadata is None:
            raise Missing("Image not found")
        return self.metadata


class Found(Pods):
    """Each member has a pod `main` and a pod `other`."""

    def __init__(self) -> None:
        pass

    async def find(self, member: Member, ins: str) -> Any:
        if ins not in ("main", "other"):
            raise NotFound("none", code="no_such_pod")


def commits(metadata: dict[str, Any] | None) -> Commits:
    client = Lxd(metadata)
    return Commits(
        client=client, images=cast(Images, SimpleNamespace()), pods=Found(), tasks=Tasks()
    )


@pytest.mark.parametrize(
    ("operation", "progress"),
    [
        # As LXD 5.0.2 writes it.
        (
            {"metadata": {"progress": {"percent": "43", "speed": "31457280", "stage": "x"}}},
            Progress("packing", 43, 31457280),
        ),
        ({"metadata": {"progress": {"processed": "9"}}}, Progress("packing", None, None)),
        ({"metadata": {"fingerprint": "f"}}, Progress("packing", None, None)),
        ({"metadata": None}, Progress("packing", None, None)),
        (None, Progress("packing", None, None)),
    ],
)
def test_what_lxd_says_of_an_image(operation: dict[str, Any] | None, progress: Progress) -> None:
    made = commits(operation)
    assert asyncio.run(made.progress(MEMBER, "main")) == NOTHING
    with made._alone(MEMBER, "main") as under_way:
        assert asyncio.run(made.progress(MEMBER, "main")) == Progress("copying", None, None)
        under_way.packs("/1.0/operations/1")
        assert asyncio.run(made.progress(MEMBER, "main")) == progress
        assert asyncio.run(made.progress(MEMBER, "other")) == NOTHING
        assert asyncio.run(made.progress(OTHER, "main")) == NOTHING
        with pytest.raises(NotFound):
            asyncio.run(made.progress(MEMBER, "none"))
    assert asyncio.run(made.progress(MEMBER, "main")) == NOTHING
