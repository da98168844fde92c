"""Whose each process on a card is: told once for each sample, and by one rule.

Whoever shows, counts or decides by pods asks here: /host/gpu-ps, idle times, usage and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from podyd.node.interface import Samples
from podyd.node.procs import InstanceCgroup
from podyd.node.samples import Sample

# Samples come every second; between two that are further apart, anything may have happened.
GAP_SECONDS = 10.0


@dataclass(frozen=True)
class Whose:
    """The instance that a process is in, as LXD has it; "" for one of the host.

    `is_pod` if that is of podyd's own project: an instance of another one may be named like a pod.
    """

    project: str = ""
    instance: str = ""
    is_pod: bool = False

    @property
    def name(self) -> str:
        """LXD's name of a pod; `<project>/<name>` of another project's instance, which no pod is
        called; "" on the host."""
        return self.instance if self.is_pod else f"{self.project}/{self.instance}".strip("/")


HOST = Whose()


@dataclass(frozen=True)
class Attributed:
    """A sample, and whose each process in it is, by pid."""

    sample: Sample
    whose: Mapping[int, Whose]


Subscriber = Callable[[Attributed], None]


class Attribution:
    """Says of each sample of `samples` whose the processes are.

    `project` is podyd's, and `instance_of` as in Cgroups.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        project: str,
        instance_of: Callable[[InstanceCgroup | None], tuple[str, str] | None],
    ) -> None:
        self._samples = samples
        self._project = project
        self._instance_of = instance_of
        self._latest: Attributed | None = None
        self._cgroups: dict[int, InstanceCgroup | None] = {}
        self._subscribers: list[Subscriber] = []
        samples.subscribe(self.sampled)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with every sample from now on."""
        self._subscribers.append(subscriber)

    @property
    def current(self) -> Attributed | None:
        """The last one, unless it is too old to say who is on a card now."""
        latest, sample = self._latest, self._samples.current
        return latest if latest is not None and latest.sample is sample else None

    def sampled(self, sample: Sample) -> None:
        """Take a sample, and hand it on."""
        before = self._latest
        if before is None or sample.taken - before.sample.taken > GAP_SECONDS:
            self._cgroups = {}
        # A pid that was there a second ago is the same process; of one that ends meanwhile the
        # cgroup can no longer be read.
        self._cgroups = {
            process.pid: self._cgroups.get(process.pid) or process.cgroup
            for gpu in sample.gpus
            for process in gpu.processes
        }
        whose = {pid: self._whose(cgroup) for pid, cgroup in self._cgroups.items()}
        self._latest = Attributed(sample, whose)
        for subscriber in self._subscribers:
            subscriber(self._latest)

    def _whose(self, cgroup: InstanceCgroup | None) -> Whose:
        found = self._instance_of(cgroup)
        return HOST if found is None else Whose(*found, is_pod=found[0] == self._project)
