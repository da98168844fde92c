"""Which instance each process on a card belongs to: one rule, applied once to each sample.

/host/gpu-ps, idle times, usage, metrics and the scheduler all use it.
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
class Origin:
    """The instance that a process runs in, by the engine's names; "" for one of the host.

    `is_pod` if that is of podyd's own project: an instance of another one may be named like a pod.
    """

    project: str = ""
    instance: str = ""
    is_pod: bool = False

    @property
    def name(self) -> str:
        """The engine's name of a pod; `<project>/<name>` for another project's instance, which is
        no valid name of a pod; "" for the host."""
        return self.instance if self.is_pod else f"{self.project}/{self.instance}".strip("/")


HOST = Origin()


@dataclass(frozen=True)
class Attributed:
    """A sample, and the instance of each process in it, by pid."""

    sample: Sample
    origins: Mapping[int, Origin]


Subscriber = Callable[[Attributed], None]


class Attribution:
    """Attributes the processes of each sample of `samples` to instances.

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
        """The last attributed sample; None if it is too old."""
        latest, sample = self._latest, self._samples.current
        return latest if latest is not None and latest.sample is sample else None

    def sampled(self, sample: Sample) -> None:
        """Attribute a sample, and call the subscribers with it."""
        before = self._latest
        if before is None or sample.taken - before.sample.taken > GAP_SECONDS:
            self._cgroups = {}
        # A pid of the sample before is the same process; its cgroup is kept, as it cannot be read
        # once the process is ending.
        self._cgroups = {
            process.pid: self._cgroups.get(process.pid) or process.cgroup
            for gpu in sample.gpus
            for process in gpu.processes
        }
        origins = {pid: self._origin(cgroup) for pid, cgroup in self._cgroups.items()}
        self._latest = Attributed(sample, origins)
        for subscriber in self._subscribers:
            subscriber(self._latest)

    def _origin(self, cgroup: InstanceCgroup | None) -> Origin:
        instance = self._instance_of(cgroup)
        return HOST if instance is None else Origin(*instance, is_pod=instance[0] == self._project)
