"""The client of `podyd cards`, the root process that has the kernel enforce which cards pods may
open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from podyd.base.errors import Unavailable
from podyd.node.line_client import LineClient, connected

# So many processes are ended by one request.
MAX_ENDED = 1000
# So many characters of an error that it answers with are shown.
MAX_PROBLEM = 200
# By the name of a pod's cgroup, without `lxc.payload.` and project: the numbers of the character
# devices that its processes may open, as `major:minor`.
Permissions = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Enforcement:
    """How the kernel enforces it: `bpf` or `cgroup1`; "" if it cannot, for the reason in
    `problem`."""

    way: str
    problem: str = ""


@dataclass(frozen=True)
class Holder:
    """A process of a pod that has cards open.

    `cgroup` is the pod's, as in Permissions; `numbers` are those of the devices. `started` is field
    22 of proc_pid_stat(5), in clock ticks: with the pid, it identifies a process. `is_init` if it
    is the pod's first process, which cannot be ended alone. `dormant` if it has none of them open
    itself, but descriptors are queued in its sockets, which may be of these.
    """

    cgroup: str
    pid: int
    started: int
    numbers: frozenset[str]
    is_init: bool = False
    dormant: bool = False


class CardAccessClient:
    """A connection to the helper."""

    def __init__(self, lines: LineClient) -> None:
        self._lines = lines

    @property
    def gone(self) -> asyncio.Future[Any]:
        """Done once the helper has ended; the rules that it set stay."""
        return self._lines.gone

    async def _ask(self, request: Any) -> Any:
        """The answer to a request. Raises Unavailable, also if that is an error."""
        answer = await self._lines.ask(request)
        with self._lines.understood():
            problem = answer.get("error")
        if problem is not None:
            raise Unavailable(
                f"'podyd cards' refuses a request: {str(problem)[:MAX_PROBLEM]}.",
                code="cards_unreachable",
            )
        return answer

    async def permit(self, permissions: Permissions) -> Enforcement:
        """Let the kernel refuse to each pod all NVIDIA cards but these. Raises Unavailable."""
        table = {cgroup: sorted(numbers) for cgroup, numbers in permissions.items()}
        answer = await self._ask({"permit": table})
        with self._lines.understood():
            return Enforcement(str(answer["way"]), str(answer["problem"]))

    async def holders(self) -> tuple[Holder, ...]:
        """The processes of pods that have a card open. Raises Unavailable."""
        answer = await self._ask({"holders": None})
        with self._lines.understood():
            return tuple(
                Holder(**{**item, "numbers": frozenset(item["numbers"])})
                for item in answer["holders"]
            )

    async def end(self, holders: Iterable[Holder], *, kill: bool) -> None:
        """Send SIGTERM, or SIGKILL, to those of these processes that still have a card open.
        Raises Unavailable."""
        processes = [{"pid": holder.pid, "started": holder.started} for holder in holders]
        for begin in range(0, len(processes), MAX_ENDED):
            await self._ask({"end": processes[begin : begin + MAX_ENDED], "kill": kill})


@contextlib.asynccontextmanager
async def card_access_at(path: str) -> AsyncIterator[CardAccessClient]:
    """The helper behind the unix socket at `path`. Raises Unavailable."""
    async with connected(path, _away) as lines:
        yield CardAccessClient(lines)


def _away(why: str) -> Unavailable:
    return Unavailable(f"'podyd cards' does not answer ({why})", code="cards_unreachable")
