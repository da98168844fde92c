"""Who is on a card, and since when nobody has used it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from podyd.config.schema import IdleConfig
from podyd.gpus.activity import Activity
from podyd.gpus.attribution import GAP_SECONDS
from podyd.node.samples import Gpu, ProcessSample, Sample
from tests.unit.gpus.attributing import attribution

CARD = Gpu("GPU-1", "0000:41:00.0", "A100", utilisation=0, peak=0)
# What an idle Jupyter kernel needs in a second at most, and what one small request costs a server.
REST, REQUEST = 0.0009, 0.0025
# What a kernel of 1.2 ms costs who waits for it.
KERNEL = 0.00125


def on_it(pid: int, utilisation: int | None = 0, **more: Any) -> ProcessSample:
    """A process on the card; nothing else is seen of it."""
    return ProcessSample(pid, **{"memory_used": 0, "utilisation": utilisation, "cpu": 0.0, **more})


class Rig:
    """Samples by a clock of the test; pid 7 is pod a's, 8 the host's, 9 another project's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rest = IdleConfig().rest
        self.attribution = attribution()
        self.activity = Activity(self.attribution, rest=lambda: self.rest, clock=lambda: self.now)

    def sample(self, *holders: ProcessSample, gpu: Gpu = CARD) -> None:
        self.now += 1
        places = {7: ("podyd", "a"), 9: ("default", "a")}
        held = [replace(item, cgroup=places.get(item.pid)) for item in holders]
        shown = replace(gpu, processes=tuple(held))
        self.attribution.sampled(Sample(self.now, "535", "12.2", (shown,)))

    def idle(self, held_for: float = 1e6) -> float | None:
        return self.activity.pod_idle(CARD.pci, "a", held_for)


def test_pods_are_told_from_the_host_and_from_other_projects() -> None:
    rig = Rig()
    rig.sample(on_it(7, 1), on_it(8, 1), on_it(9, 1))
    assert rig.activity.pods(CARD.pci) == {"a", "", "default/a"}
    assert rig.activity.pids(CARD.pci, "a") == [7]


def test_idle_runs_from_the_last_use() -> None:
    rig = Rig()
    rig.sample(on_it(7, 90))
    for _ in range(5):
        rig.sample(on_it(7, 0))
    assert rig.idle() == 5
    assert rig.activity.process_idle(CARD.pci, 7) == 5
    rig.sample()
    assert rig.idle() == 6, "the process has ended, the pod still has the card"
    assert rig.idle(held_for=2) == 2
    rig.sample(on_it(7, 1))
    assert rig.idle() == 0


def test_where_processes_are_not_told_of_the_card_stands_for_them() -> None:
    rig = Rig()
    busy = replace(CARD, utilisation=50)
    rig.sample(on_it(7, None), gpu=busy)
    rig.sample(on_it(7, None), gpu=busy)
    assert rig.idle() == 0
    rig.sample(on_it(7, None), gpu=replace(CARD, utilisation=None, peak=None))
    assert rig.idle() is None, "nobody can tell"


def test_nobody_is_idle_for_a_time_that_nobody_saw() -> None:
    rig = Rig()
    rig.sample(on_it(7, 99))
    rig.now += 3000
    assert rig.idle() is None
    assert rig.activity.process_idle(CARD.pci, 7) is None
    rig.sample(on_it(7, 0))
    idle = rig.idle()
    assert idle is not None
    assert idle < GAP_SECONDS


def test_who_was_on_a_card_that_no_longer_answers_is_on_it_still() -> None:
    rig = Rig()
    rig.sample(on_it(7, 0))
    for _ in range(20):
        rig.sample(gpu=replace(CARD, problem="unknown error"))
    assert rig.activity.pids(CARD.pci, "a") == [7]
    assert rig.idle() is None


# --- The witnesses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "process"),
    [
        (CARD, on_it(7, 1)),
        pytest.param(CARD, on_it(7, seen=True), id="a millisecond, in the driver's whole buffer"),
        pytest.param(replace(CARD, peak=1), on_it(7), id="a sixth of a second, in the card's"),
        pytest.param(replace(CARD, utilisation=1, peak=None), on_it(7), id="a card without those"),
        pytest.param(replace(CARD, peak=1), on_it(7, None), id="processes are not told of"),
        pytest.param(CARD, on_it(7, memory_used=1), id="memory"),
        pytest.param(CARD, on_it(7, cpu=REQUEST), id="CPU time"),
        pytest.param(CARD, on_it(7, None, cpu=REQUEST), id="CPU time, and NVML tells nothing"),
    ],
)
def test_one_witness_is_enough(gpu: Gpu, process: ProcessSample) -> None:
    rig = Rig()
    for _ in range(5):
        rig.sample(on_it(7))
    assert rig.idle() == 4
    rig.sample(process, gpu=gpu)
    assert rig.idle() == rig.activity.process_idle(CARD.pci, 7) == 0
    for _ in range(3):
        rig.sample(replace(process, utilisation=0, seen=False, cpu=0.0))
    assert rig.idle() == 3


def test_a_notebook_that_holds_memory_and_rests_is_idle() -> None:
    rig = Rig()
    for _ in range(60):
        rig.sample(on_it(7, memory_used=2**34, cpu=REST))
    assert rig.idle() == 59


def test_how_much_rest_needs_is_as_it_is_set_now() -> None:
    rig = Rig()
    rig.sample(on_it(7, cpu=REQUEST))
    rig.rest = REQUEST
    rig.sample(on_it(7, cpu=REQUEST))
    assert rig.idle() == 1


@pytest.mark.parametrize("period", [1, 5, 30])
@pytest.mark.parametrize("cpu", [KERNEL, REQUEST])
def test_light_use_is_idle_for_no_longer_than_from_one_to_the_next(period: int, cpu: float) -> None:
    rig = Rig()
    for second in range(130):
        rig.sample(on_it(7, cpu=cpu if second % period == 0 else 0.0))
        idle = rig.idle()
        assert idle is not None
        # One kernel alone could be anything.
        assert idle < period or (cpu == KERNEL and second < period)


def test_a_little_more_than_rest_needs_is_none_if_it_is_alone() -> None:
    rig = Rig()
    for second in range(400):
        rig.sample(on_it(7, cpu=KERNEL if second % 100 == 50 else REST))
    assert rig.idle() == 399
    rig.sample(on_it(7, cpu=KERNEL))
    assert rig.idle() == 0, "it is not alone"


def test_a_card_that_is_not_seen_in_use_by_its_processes_is_by_one_of_them() -> None:
    rig = Rig()
    for _ in range(3):
        rig.sample(on_it(7), on_it(8), gpu=replace(CARD, peak=9))
    assert rig.idle() == 0
    for _ in range(3):
        rig.sample(on_it(7), on_it(8, 9), gpu=replace(CARD, peak=9))
    assert rig.idle() == 3, "the other one is seen to use it"


def test_what_is_not_known_is_no_rest() -> None:
    rig = Rig()
    for _ in range(5):
        rig.sample(on_it(7, cpu=None))
        assert rig.idle() is None
        assert rig.activity.process_idle(CARD.pci, 7) is None
    rig.sample(on_it(7, 1, cpu=None))
    assert rig.idle() == 0, "one who knows is enough"
    rig.sample(on_it(7))
    assert rig.idle() == 1
