"""Attribution in which each cgroup bears its instance's own name."""

from __future__ import annotations

from podyd.gpus.attribution import Attribution
from tests.unit.node.fake import FakeSamples


def attribution(samples: FakeSamples | None = None) -> Attribution:
    """For podyd's project `podyd`."""
    return Attribution(samples or FakeSamples(), project="podyd", instance_of=lambda cgroup: cgroup)
