"""What counts as one who tries passwords."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

import pytest

from podyd.base.errors import Unauthorized
from podyd.node.sockdiag import SocketAddress
from podyd.people.origins import Origins, Source
from tests.unit.node.fake import FakeSockets

ENDS = SocketAddress("192.0.2.7", 40000), SocketAddress("192.0.2.1", 8799)


def origin(source: Source, sockets: FakeSockets) -> Hashable:
    return asyncio.run(Origins(sockets).of(source))


def owned(uid: int | None) -> FakeSockets:
    """Sockets of which the account has the peer's end; None is another host's."""
    sockets = FakeSockets()
    if uid is not None:
        sockets.owners[ENDS] = uid
    return sockets


def failing(error: OSError) -> FakeSockets:
    sockets = FakeSockets()
    sockets.fails = error
    return sockets


@pytest.mark.parametrize(
    ("uid", "is_forwarded", "expected"),
    [
        (None, False, ("address", "192.0.2.7")),
        (None, True, ("address", "192.0.2.7")),
        (1001, False, ("uid", 1001)),
        # It says that it passes on what another host sent.
        (1001, True, ("uid", 1001)),
        (0, False, ("uid", 0)),
        (33, True, ("address", "192.0.2.7")),
    ],
)
def test_who_counts(uid: int | None, is_forwarded: bool, expected: Hashable) -> None:
    assert origin(Source("192.0.2.7", ENDS, is_forwarded), owned(uid)) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [("2001:db8::7", "2001:db8::/64"), ("::ffff:192.0.2.7", "192.0.2.7"), ("?", "?")],
)
def test_a_network_of_ipv6_is_one(address: str, expected: str) -> None:
    assert origin(Source(address, ENDS), owned(None)) == ("address", expected)


def test_a_kernel_that_does_not_tell() -> None:
    assert origin(Source("127.0.0.1", ENDS), failing(PermissionError())) == ("address", "127.0.0.1")


def test_who_has_hung_up_is_nobody() -> None:
    with pytest.raises(Unauthorized):
        origin(Source("127.0.0.1", ENDS), failing(ConnectionResetError()))
    with pytest.raises(Unauthorized):
        origin(Source("127.0.0.1", None), owned(0))
