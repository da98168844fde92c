"""What podyd says where there is no image that a member could take."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from podyd.base.errors import Forbidden, NotFound
from podyd.config.current import Settings
from podyd.config.schema import Config, ImagesConfig, Quota
from podyd.model.member import Member
from podyd.model.pod import owner_keys
from podyd.pods.catalogue import Catalogue
from tests.unit.engine.fake import IMAGE, FakeEngine

MEMBER = Member("alice", False, Quota(), (), 1000, 1000)


def images(
    *names: str, offer: str = "*", properties: Mapping[str, str] = MappingProxyType({})
) -> Catalogue:
    """Of these names."""
    lxd = FakeEngine()
    lxd.images = {
        name: replace(IMAGE, fingerprint=name, aliases=(name,), properties=properties)
        for name in names
    }
    return Catalogue(lxd.engine.images, Settings(Config(images=ImagesConfig(offer=(offer,)))))


def test_no_image_at_all() -> None:
    hint = asyncio.run(images().hint())
    assert "podyd image build" in hint
    assert "lxc image copy" in hint
    assert hint.isascii(), "it is an HTTP header"
    with pytest.raises(
        NotFound, match=r"no image .debian12.. LXD has no image: .*podyd image build"
    ):
        asyncio.run(images().offered(MEMBER, "debian12"))


def test_none_is_offered() -> None:
    output = images("debian12", offer="lab-*")
    assert "images.offer" in asyncio.run(output.hint())
    with pytest.raises(Forbidden, match=r"images\.offer"):
        asyncio.run(output.offered(MEMBER, "debian12"))


def test_another_name_is_offered() -> None:
    output = images("debian12")
    assert asyncio.run(output.hint()) == ""
    with pytest.raises(NotFound, match="See /host/images"):
        asyncio.run(output.offered(MEMBER, "debian13"))


def test_an_image_of_an_earlier_account_of_the_name() -> None:
    output = images("alice-x", properties=owner_keys(MEMBER))
    new = replace(MEMBER, uid=1001)
    assert asyncio.run(output.names(MEMBER)) == ["alice-x"]
    assert asyncio.run(output.names(new)) == []
    for refused in (output.offered(new, "alice-x"), output.delete(new, "alice-x")):
        with pytest.raises(NotFound):
            asyncio.run(refused)
