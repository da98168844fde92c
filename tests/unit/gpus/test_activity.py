"""Who is on a card, and since when nobody has used it."""

from __future__ import annotations

from dataclasses import replace

from podyd.gpus.activity import Activity
from podyd.gpus.attribution import GAP_SECONDS
from podyd.node.samples import Gpu, ProcessSample, Sample
from tests.unit.gpus.attributing import attribution

CARD = Gpu("GPU-1", "0000:41:00.0", "A100", utilisation=50)


class Rig:
    """Samples by a clock of the test; pid 7 is pod a's, 8 the host's, 9 another project's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.attribution = attribution()
        self.activity = Activity(self.attribution, clock=lambda: self.now)

    def sample(self, *holders: ProcessSample, gpu: Gpu = CARD) -> None:
        self.now += 1
        places = {7: ("podyd", "a"), 9: ("default", "a")}
        held = [replace(item, cgroup=places.get(item.pid)) for item in holders]
        found = replace(gpu, processes=tuple(held))
        self.attribution.sampled(Sample(self.now, "535", "12.2", (found,)))

    def idle(self, held_for: float = 1e6) -> float | None:
        return self.activity.pod_idle(CARD.pci, "a", held_for)


def test_pods_are_told_from_the_host_and_from_other_projects() -> None:
    rig = Rig()
    rig.sample(ProcessSample(7, 0, 1), ProcessSample(8, 0, 1), ProcessSample(9, 0, 1))
    assert rig.activity.pods(CARD.pci) == {"a", "", "default/a"}
    assert rig.activity.pids(CARD.pci, "a") == [7]


def test_idle_runs_from_the_last_use() -> None:
    rig = Rig()
    rig.sample(ProcessSample(7, 0, 90))
    for _ in range(5):
        rig.sample(ProcessSample(7, 0, 0))
    assert rig.idle() == 5
    assert rig.activity.process_idle(CARD.pci, 7) == 5
    rig.sample()
    assert rig.idle() == 6, "the process has ended, the pod still has the card"
    assert rig.idle(held_for=2) == 2
    rig.sample(ProcessSample(7, 0, 1))
    assert rig.idle() == 0


def test_where_processes_are_not_told_of_the_card_stands_for_them() -> None:
    rig = Rig()
    rig.sample(ProcessSample(7, 0, None))
    rig.sample(ProcessSample(7, 0, None))
    assert rig.idle() == 0
    rig.sample(ProcessSample(7, 0, None), gpu=replace(CARD, utilisation=None))
    assert rig.idle() is None, "nobody can tell"


def test_nobody_is_idle_for_a_time_that_nobody_saw() -> None:
    rig = Rig()
    rig.sample(ProcessSample(7, 0, 99))
    rig.now += 3000
    assert rig.idle() is None
    assert rig.activity.process_idle(CARD.pci, 7) is None
    rig.sample(ProcessSample(7, 0, 0))
    idle = rig.idle()
    assert idle is not None
    assert idle < GAP_SECONDS


def test_who_was_on_a_card_that_no_longer_answers_is_on_it_still() -> None:
    rig = Rig()
    rig.sample(ProcessSample(7, 0, 0))
    for _ in range(20):
        rig.sample(gpu=replace(CARD, problem="unknown error"))
    assert rig.activity.pids(CARD.pci, "a") == [7]
    assert rig.idle() is None
