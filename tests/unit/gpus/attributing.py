"""Attribution in which each cgroup bears its instance's own name."""

from __future__ import annotations

from podyd.gpus.attribution import Attribution
from podyd.node.telemetry import Telemetry


def attribution(telemetry: Telemetry | None = None) -> Attribution:
    """For podyd's project `podyd`."""
    return Attribution(telemetry or Telemetry(), project="podyd", instance_of=lambda cgroup: cgroup)
