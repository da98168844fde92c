"""What LXD's JSON of its host comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tornado.web import RequestHandler

from podyd.engine.rest import RestClient
from podyd.engine.server import RestServer, card_of
from podyd.engine.types import PciCard
from tests.unit.engine.recorded import EXTENSIONS, WANTS_CDI
from tests.unit.engine.test_rest import ask


@pytest.mark.parametrize(
    ("data", "card"),
    [
        (
            {
                "pci_address": "0000:41:00.0",
                "vendor_id": "10de",
                "product": "GA100 [A100]",
                "nvidia": {"uuid": "GPU-a", "model": "NVIDIA A100"},
            },
            PciCard("0000:41:00.0", "10de", "GPU-a", "NVIDIA A100"),
        ),
        (
            {"pci_address": "0000:41:00.0", "vendor_id": "10de", "product": "GA100 [A100]"},
            PciCard("0000:41:00.0", "10de", "", "GA100 [A100]"),
        ),
        # A screen at USB, as of many a server's management: LXD leaves out what it has not.
        ({"driver": "udl", "usb_address": "1:4", "numa_node": 0}, PciCard("", "")),
    ],
)
def test_what_lxd_leaves_out_of_a_card(data: dict[str, Any], card: PciCard) -> None:
    assert card_of(data) == card


@pytest.mark.parametrize("tag", EXTENSIONS)
def test_how_cards_are_given_is_asked_of_the_server(tmp_path: Path, tag: str) -> None:
    card = {"pci_address": "0000:41:00.0", "vendor_id": "10de"}
    answers = {
        "/1.0": {"api_extensions": sorted(EXTENSIONS[tag]), "auth": "trusted"},
        "/1.0/resources": {"gpu": {"cards": [card]}},
    }

    async def answer(handler: RequestHandler) -> None:
        handler.write({"type": "sync", "metadata": answers[handler.request.path]})

    def cards(lxd: RestClient) -> Any:
        return RestServer(lxd).cards()

    (found,) = ask(tmp_path, [answer, answer], cards)
    assert found == PciCard("0000:41:00.0", "10de", by_cdi=WANTS_CDI[tag])
