"""What a pod says of itself: its journal while it runs, else its console and LXC's log."""

from __future__ import annotations

import re

from podyd.errors import LxdRefused, PodydError
from podyd.lxd.client import LxdClient, instance_path
from podyd.pod import Pod
from podyd.pods import Pods, why_not_started
from podyd.spec import LogsOf, PodLog
from podyd.users import Member

MAX_JOURNAL_BYTES = 1_000_000


class PodLogs:
    """Looks where something is to be found."""

    def __init__(self, *, client: LxdClient, pods: Pods) -> None:
        self._client = client
        self._pods = pods

    async def last(self, member: Member, request: LogsOf) -> PodLog:
        """The last lines of a pod's log. Raises NotFound."""
        pod = await self._pods.find(member, request.ins)
        if pod.status == "running":
            journal = await self._journal(member, request)
            if journal is not None:
                return PodLog(journal, "journal")
        said = _tail(await self._console(pod), request.lines)
        why = "" if pod.status == "running" else await self._why_not_started(pod)
        if why:
            return PodLog(f"{said}Its last start failed: {why}.\n", "lxc")
        return PodLog(said, "console")

    async def _journal(self, member: Member, request: LogsOf) -> str | None:
        """None where the pod has no journal."""
        since = "" if request.since is None else f" --since=-{request.since:.0f}s"
        command = f"journalctl --quiet --no-pager --output=short-iso -n {request.lines}{since}"
        # Of what is too much, the last counts.
        done = await self._pods.exec(
            member, request.ins, f"{command} | tail -c {MAX_JOURNAL_BYTES}", None
        )
        return done.stdout or None

    async def _console(self, pod: Pod) -> str:
        try:
            return await self._client.text(instance_path(pod.name, "console"))
        except LxdRefused:
            return ""  # It has none, or none any more.

    async def _why_not_started(self, pod: Pod) -> str:
        try:
            return why_not_started(
                await self._client.text(instance_path(pod.name, "logs", "lxc.log"))
            )
        except PodydError:
            return ""


def _tail(text: str, lines: int) -> str:
    # A console's lines end as a terminal's do.
    found = re.sub(r"\r+\n", "\n", text).splitlines(keepends=True)[-lines:]
    return "".join(found)
