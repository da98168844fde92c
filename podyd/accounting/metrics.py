"""Metrics for Prometheus: counters of events, and values that are collected at each scrape."""

from __future__ import annotations

import contextlib
from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from podyd import __version__
from podyd.base.engine_words import ENGINE
from podyd.base.errors import PodydError
from podyd.base.quantities import UNLIMITED
from podyd.engine.types import PoolUse
from podyd.gpus.activity import Activity
from podyd.gpus.decisions import View
from podyd.gpus.inventory import Card, cards_in
from podyd.gpus.scheduler import Scheduler
from podyd.gpus.watch import Watch
from podyd.node.interface import Samples
from podyd.node.samples import Gpu
from podyd.pods.disks import Disks, limit_of

EXEC_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
CARD_LABELS = ("gpu", "uuid")
POD_LABELS = (*CARD_LABELS, "pod", "owner")


class Metrics:
    """All of podyd's metrics; `text` is the answer of /metrics."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        disks: Disks,
        samples: Samples,
        activity: Activity,
        watch: Watch,
    ) -> None:
        self._scheduler = scheduler
        self._disks = disks
        self._samples = samples
        self._activity = activity
        self._watch = watch
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "podyd_requests",
            "Requests by route, method and status.",
            ("path", "method", "status"),
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "podyd_request_seconds",
            "How long requests took, by route.",
            ("path",),
            registry=self._registry,
        )
        self._exec_seconds = Histogram(
            "podyd_exec_seconds",
            "How long commands in pods ran, by how they ended.",
            ("outcome",),
            buckets=EXEC_BUCKETS,
            registry=self._registry,
        )

    def request(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request; `path` is that of its route, "" if there is none."""
        self._requests.labels(path, method, str(status)).inc()
        self._request_seconds.labels(path).observe(seconds)

    def executed(self, seconds: float, *, timed_out: bool) -> None:
        """Count a command."""
        self._exec_seconds.labels("timed_out" if timed_out else "ended").observe(seconds)

    async def text(self) -> str:
        """All metrics in Prometheus' text format, also while the engine or NVML does not answer."""
        try:
            view = await self._scheduler.view()
        except PodydError:
            view = None
        pools = await self._pools(view)
        now = CollectorRegistry()
        # It need not be a Collector: before 0.15 there is no such class.
        now.register(_Now([*self._health(view), *self._of(view), *_of_pools(pools)]))  # type: ignore[arg-type]
        return (generate_latest(self._registry) + generate_latest(now)).decode()

    async def _pools(self, view: View | None) -> list[PoolUse]:
        if view is not None:
            of_pods = [pod.instance.devices for pod in view.pods]
            of_profiles = [profile.devices for profile in view.profiles.values()]
            with contextlib.suppress(PodydError):
                return await self._disks.pools([*of_pods, *of_profiles])
        return []

    def _health(self, view: View | None) -> Iterator[Metric]:
        info = GaugeMetricFamily("podyd_info", "podyd's version.", labels=("version",))
        info.add_metric((__version__,), 1)
        yield info
        yield GaugeMetricFamily(
            "podyd_lxd_up", f"Whether {ENGINE} answers.", value=view is not None
        )
        sample = self._samples.current
        up = sample is not None and self._samples.problem is None
        yield GaugeMetricFamily("podyd_nvml_up", "Whether NVML answers.", value=up)
        if sample is not None:
            yield GaugeMetricFamily(
                "podyd_nvml_sample_age_seconds", "The age of NVML's last sample.", value=sample.age
            )

        intruders = CounterMetricFamily(
            "podyd_gpu_intruders",
            "Processes on GPUs that their pods did not have: seen there, and gone after a signal.",
            labels=("what",),
        )
        intruders.add_metric(("seen",), self._watch.seen)
        intruders.add_metric(("ended",), self._watch.ended)
        yield intruders

    def _of(self, view: View | None) -> Iterator[Metric]:
        if view is None:
            return
        pods = GaugeMetricFamily("podyd_pods", "Pods by their status.", labels=("status",))
        for status, count in Tally(pod.status for pod in view.pods).items():
            pods.add_metric((status,), count)
        yield pods
        yield GaugeMetricFamily(
            "podyd_gpu_queue_length", "Pods in the queue for GPUs.", value=len(view.queue)
        )
        yield from self._of_disks(view)
        yield from self._of_holders(view)
        sample = self._samples.current
        if sample is not None:
            figures = {gpu.pci: gpu for gpu in sample.gpus}
            known = [(card, figures[card.pci]) for card in view.cards if card.pci in figures]
            yield from _of_cards(known)
            yield from self._of_use(view, known)

    def _of_disks(self, view: View) -> Iterator[Metric]:
        limit = GaugeMetricFamily(
            "podyd_pod_disk_limit_bytes",
            "How large the disk of a pod may become, where that is limited.",
            labels=("pod", "owner"),
        )
        used = GaugeMetricFamily(
            "podyd_pod_disk_used_bytes",
            f"Bytes used on it, as {ENGINE} reports; on btrfs without data shared with others.",
            labels=("pod", "owner"),
        )
        for pod in view.pods:
            labels = (pod.name, pod.owner)
            limit_bytes, used_bytes = limit_of(pod.instance), self._disks.last_used(pod)
            if limit_bytes != UNLIMITED:
                limit.add_metric(labels, limit_bytes)
            if used_bytes is not None:
                used.add_metric(labels, used_bytes)
        yield from (limit, used)

    def _of_holders(self, view: View) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            "podyd_gpu_held",
            "1 for each pod that has a GPU; exclusive if it is leased.",
            labels=(*POD_LABELS, "exclusive"),
        )
        until = GaugeMetricFamily(
            "podyd_gpu_lease_end_timestamp_seconds", "When leases end.", labels=POD_LABELS
        )
        for pod in view.pods:
            for card in cards_in(pod.instance.devices, view.cards):
                labels = (*_card(card), pod.name, pod.owner)
                lease = view.lease_of(pod, card)
                held.add_metric((*labels, str(lease is not None).lower()), 1)
                if lease is not None:
                    until.add_metric(labels, lease.until.timestamp())
        yield from (held, until)

    def _of_use(self, view: View, known: list[tuple[Card, Gpu]]) -> Iterator[Metric]:
        """Metrics of each pod's processes on each card; the host's have no pod and no owner."""
        owners = {pod.name: pod.owner for pod in view.pods}
        families = {
            name: GaugeMetricFamily(f"podyd_gpu_pod_{name}", text, labels=POD_LABELS)
            for name, text in (
                ("processes", "Processes of a pod on a GPU."),
                ("memory_bytes", "GPU memory that the processes of a pod use."),
                ("utilisation_ratio", "How much of a GPU the processes of a pod use."),
            )
        }
        for card, gpu in known:
            processes = {process.pid: process for process in gpu.processes}
            for pod in sorted(self._activity.pods(card.pci)):
                on_it = [
                    processes[pid] for pid in self._activity.pids(card.pci, pod) if pid in processes
                ]
                labels = (*_card(card), pod, owners.get(pod, ""))
                families["processes"].add_metric(labels, len(on_it))
                memory = [item.memory_used for item in on_it if item.memory_used is not None]
                used = [item.utilisation for item in on_it if item.utilisation is not None]
                if memory:
                    families["memory_bytes"].add_metric(labels, sum(memory))
                if used:
                    families["utilisation_ratio"].add_metric(labels, sum(used) / 100)
        yield from families.values()


def _of_pools(pools: list[PoolUse]) -> Iterator[Metric]:
    total = GaugeMetricFamily("podyd_pool_bytes", "The size of a storage pool.", labels=("pool",))
    used = GaugeMetricFamily("podyd_pool_used_bytes", "How much of it is used.", labels=("pool",))
    for pool in pools:
        total.add_metric((pool.name,), pool.total)
        used.add_metric((pool.name,), pool.used)
    yield from (total, used)


def _of_cards(known: list[tuple[Card, Gpu]]) -> Iterator[Metric]:
    def family(name: str, help: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"podyd_gpu_{name}", help, labels=CARD_LABELS)

    figures = (
        (family("memory_bytes", "The memory of a GPU."), lambda gpu: gpu.memory_total),
        (family("memory_used_bytes", "How much of it is used."), lambda gpu: gpu.memory_used),
        (
            family("utilisation_ratio", "How busy a GPU is."),
            lambda gpu: None if gpu.utilisation is None else gpu.utilisation / 100,
        ),
        (family("temperature_celsius", "How hot a GPU is."), lambda gpu: gpu.temperature),
        (family("power_watts", "What a GPU draws."), lambda gpu: gpu.power),
        (family("power_limit_watts", "What a GPU may draw."), lambda gpu: gpu.power_limit),
        (family("up", "Whether a GPU answers."), lambda gpu: float(gpu.problem is None)),
    )
    for metric, figure in figures:
        for card, gpu in known:
            value = figure(gpu)
            # What a card does not support is left out, as 0 would be a value.
            if value is not None:
                metric.add_metric(_card(card), value)
        yield metric


def _card(card: Card) -> tuple[str, str]:
    return str(card.index), card.uuid


class _Now:
    """Metrics that were collected already, as a collector for a registry."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
