"""What listens in a pod, as the kernel has it in /proc of the pod's first process.

Everybody may read that, so podyd need not enter the pod, nor run anything in it.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from podyd.base.errors import Unavailable
from podyd.contract.pods import ListeningPort
from podyd.engine.interface import Instances
from podyd.model.pod import Pod
from podyd.network.ports import Ports
from podyd.node.cgroups import Cgroups
from podyd.node.procs import InstanceCgroup, Reader, cgroup_of
from podyd.pods.lifecycle import not_running

# The kernel lists what listens first; a pod can have any number of connections after that.
MAX_BYTES = 256 * 1024
TIMEOUT = 5.0
LISTEN = "0A"  # TCP_LISTEN of the kernel's net/tcp_states.h


class Listeners:
    """Reads them with patience: for a pod with many connections the kernel takes long.

    So the `reader` is one that nobody else waits for.
    """

    def __init__(
        self,
        *,
        project: str,
        instances: Instances,
        ports: Ports,
        cgroups: Cgroups,
        reader: Reader,
    ) -> None:
        self._project = project
        self._instances = instances
        self._cgroups = cgroups
        self._ports = ports
        self._reader = reader

    async def of(self, pod: Pod) -> list[ListeningPort]:
        """What listens in a running pod, by port. Raises Conflict if it does not run."""
        if pod.status not in ("running", "frozen"):
            raise not_running(pod.ins, pod.status)
        pid = await self._instances.first_process(pod.name)
        found = await self._read(pid, (self._project, pod.name))
        outside = {inner: host for host, inner in (await self._ports.of(pod)).items()}
        return [
            ListeningPort(port, address, "tcp", outside.get(port))
            for port, address in sorted(found)
        ]

    async def _read(self, pid: int, whose: InstanceCgroup) -> set[tuple[int, str]]:
        def read(pid: int) -> set[tuple[int, str]] | OSError:
            try:
                return listening(pid, whose, self._cgroups.instance_of)
            except OSError as error:
                return error

        asked = await self._reader.ask("sockets", read, [pid], TIMEOUT)
        found = asked.get(pid, TimeoutError())
        if isinstance(found, OSError):
            raise Unavailable(
                "The kernel does not show what listens in the pod; tell your admin if it stays so"
                f" ({type(found).__name__}).",
                code="listeners_unknown",
            ) from found
        return found


def listening(
    pid: int,
    whose: tuple[str, str],
    named: Callable[[InstanceCgroup | None], InstanceCgroup | None] = lambda cgroup: cgroup,
    proc: Path = Path("/proc"),
) -> set[tuple[int, str]]:
    """Port and address of what listens where this process is.

    Raises OSError, also where it is no longer of the instance that it was of.
    """
    texts = [_head(proc / str(pid) / "net" / name) for name in ("tcp", "tcp6")]
    # Its number may be another's by now.
    if named(cgroup_of(pid, proc)) != whose:
        raise ProcessLookupError(f"process {pid} has ended")
    return {found for text in texts for found in parse(text)}


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode("ascii", errors="replace")
    except FileNotFoundError:
        if path.name == "tcp6":  # A kernel without IPv6.
            return ""
        raise


def parse(text: str) -> Iterator[tuple[int, str]]:
    """Port and address of each line of /proc/net/tcp or tcp6 (proc(5)) that listens."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == LISTEN:
            address, _, port = fields[1].partition(":")
            yield int(port, 16), _address(address)


def _address(digits: str) -> str:
    """As people write it; the kernel prints words of 32 bits in the machine's own order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    order = "<" if sys.byteorder == "little" else ">"
    return str(ipaddress.ip_address(struct.pack(f"{order}{len(words)}I", *words)))
