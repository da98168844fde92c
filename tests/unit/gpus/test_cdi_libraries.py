"""The driver's libraries in a pod whose cards change while it runs, by a model of LXD's mounts.

The model is of LXD's source, main of August 2026: lxd/device/gpu_cdi.go (startCDIDevices mounts
what no other device has mounted, stopCDIDevices unmounts what its device has), and the order of
devicesUpdate in lxd/instance/drivers/driver_common.go. It was not tried on such an LXD.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from podyd.engine.gpu_devices import EVERY_CARD
from podyd.engine.types import Devices, Profile, devices_of
from podyd.gpus.inventory import Card, cards_in, with_cards

CARDS = tuple(
    Card(number, f"0000:{number}1:00.0", f"GPU-{number}", by_cdi=True) for number in range(3)
)
PROFILES = [Profile("p", devices={"gpus": {"type": "gpu", "id": EVERY_CARD}})]
CHOICES = [
    None,
    *(chosen for size in range(4) for chosen in itertools.combinations(CARDS, size)),
]
Choice = tuple[Card, ...] | None


class RunningPod:
    """An instance that runs, whose devices are changed."""

    def __init__(self) -> None:
        self.own: Devices = {}
        self.covers: frozenset[str] = frozenset()
        # The device that has the libraries mounted.
        self.libraries: str | None = None
        for name in sorted(self.devices):
            self._start(name)

    @property
    def devices(self) -> dict[str, Mapping[str, str]]:
        return {**devices_of(PROFILES), **self.own}

    def choose(self, choice: Choice) -> None:
        before = self.devices
        self.own, self.covers = with_cards(PROFILES, self.own, self.covers, choice)
        after = self.devices
        for name in sorted(before, reverse=True):
            if before[name] != after.get(name) and self.libraries == name:
                self.libraries = None
        for name in sorted(after):
            if after[name] != before.get(name):
                self._start(name)

    def _start(self, name: str) -> None:
        if self.devices[name]["type"] == "gpu" and self.libraries is None:
            self.libraries = name


@pytest.mark.parametrize("first", CHOICES, ids=str)
def test_who_has_a_card_has_the_libraries(first: Choice) -> None:
    for second, third in itertools.product(CHOICES, repeat=2):
        pod = RunningPod()
        for choice in (first, second, third):
            pod.choose(choice)
            wanted = CARDS if choice is None else choice
            assert cards_in(pod.devices, CARDS) == set(wanted)
            assert (pod.libraries is not None) is bool(wanted), (first, second, third)
