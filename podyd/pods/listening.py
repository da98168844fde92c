"""What listens in a pod, and which port of the host leads there."""

from __future__ import annotations

from collections.abc import Iterable

from podyd.base.errors import Unavailable
from podyd.contract.pods import ListeningPort
from podyd.engine.interface import Instances
from podyd.model.pod import Pod
from podyd.network.ports import Ports
from podyd.node.cgroups import Cgroups
from podyd.node.interface import Sockets
from podyd.node.pod_sockets import ListeningSocket
from podyd.pods.owned import not_running


class Listening:
    """Asks the kernel, by the pod's first process."""

    def __init__(
        self,
        *,
        project: str,
        instances: Instances,
        ports: Ports,
        cgroups: Cgroups,
        sockets: Sockets,
    ) -> None:
        self._project = project
        self._instances = instances
        self._cgroups = cgroups
        self._ports = ports
        self._sockets = sockets

    async def of(self, pod: Pod) -> list[ListeningPort]:
        """What listens in a running pod, by port. Raises Conflict if it does not run."""
        if pod.status not in ("running", "frozen"):
            raise not_running(pod.ins, pod.status)
        pid = await self._instances.first_process(pod.name)
        sockets = await self._read(pid, (self._project, pod.name))
        outside = {inner: host for host, inner in (await self._ports.of(pod)).items()}
        return [
            ListeningPort(port, address, "tcp", outside.get(port))
            for port, address in sorted(sockets)
        ]

    async def _read(self, pid: int, instance: tuple[str, str]) -> Iterable[ListeningSocket]:
        try:
            sockets = await self._sockets.pod_sockets(pid)
            # Its number may be another's by now.
            if self._cgroups.instance_of(sockets.cgroup) != instance:
                raise ProcessLookupError(f"process {pid} has ended")
        except OSError as error:
            raise Unavailable(
                f"The kernel does not show what listens in the pod ({type(error).__name__}).",
                advice="Tell your admin if it stays so.",
                code="listeners_unknown",
            ) from error
        return sockets.listening
