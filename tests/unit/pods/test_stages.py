"""How far the creation, copy or restore of a pod is, as podyd and LXD know it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from podyd.base.errors import Missing
from podyd.config.schema import Quota
from podyd.contract.pods import Progress
from podyd.engine.images import RestImageStore
from podyd.engine.rest import RestClient
from podyd.model.member import Member
from podyd.pods.stages import Stages

ALICE, BOB = (Member(name, False, Quota(), (), 1000, 1000) for name in ("alice", "bob"))
OPERATION = "/1.0/operations/1"


class Lxd(RestClient):
    """Has one operation, with this metadata; None: it has ended."""

    def __init__(self, metadata: dict[str, Any] | None = None) -> None:
        self.metadata = metadata

    async def get(self, path: str, **query: Any) -> Any:
        if path == "/1.0":
            return {"api_extensions": []}
        assert path == OPERATION
        if self.metadata is None:
            raise Missing("Operation not found")
        return self.metadata


def stages(lxd: Lxd) -> Stages:
    return Stages(RestImageStore(lxd))


def progress(made: Stages, member: Member = ALICE, ins: str = "main") -> Progress | None:
    return asyncio.run(made.progress(member, ins))


@pytest.mark.parametrize(
    ("operation", "percent", "speed"),
    [
        # As LXD 5.0.2 writes it while it unpacks a tar archive.
        (
            {
                "metadata": {
                    "create_instance_from_image_unpack_progress": "Unpack: 43% (31.46MB/s)",
                    "progress": {
                        "percent": "43",
                        "speed": "31457280",
                        "stage": "create_instance_from_image_unpack",
                    },
                }
            },
            43,
            31457280,
        ),
        # While it unpacks a squashfs.
        ({"metadata": None}, None, None),
        (None, None, None),
    ],
)
def test_what_lxd_says_while_it_unpacks(
    operation: dict[str, Any] | None, percent: int | None, speed: int | None
) -> None:
    made = stages(Lxd(operation))
    with made.of(ALICE, "main", "unpacking") as stage:
        assert progress(made) == Progress("unpacking", None, None)
        stage.began(OPERATION)
        assert progress(made) == Progress("unpacking", percent, speed)
        assert progress(made, BOB) is progress(made, ALICE, "other") is None
        stage.go_on("starting")
        assert progress(made) == Progress("starting", None, None)
    assert progress(made) is None


def test_what_comes_second_is_not_shown() -> None:
    made = stages(Lxd())
    with made.of(ALICE, "main", "restoring"):
        with made.of(ALICE, "main", "stopping"):
            assert progress(made) == Progress("restoring", None, None)
        assert progress(made) == Progress("restoring", None, None)


def test_an_error_ends_it() -> None:
    made = stages(Lxd())
    with pytest.raises(Missing), made.of(ALICE, "main", "copying"):
        raise Missing("gone")
    assert progress(made) is None
