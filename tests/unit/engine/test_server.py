"""What LXD's JSON of its host comes to."""

from __future__ import annotations

from typing import Any

import pytest

from podyd.engine.server import card_of
from podyd.engine.types import PciCard


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
