"""The log of a pod: its journal while it runs, else its console or LXC's log."""

from __future__ import annotations

import re
from typing import Literal

from podyd.base.errors import Conflict, EngineRefused
from podyd.base.longtext import HeldAnswer, LongText
from podyd.contract.pods import LogsOf, PodLog
from podyd.engine.interface import Instances
from podyd.model.member import Member
from podyd.model.pod import Pod
from podyd.pods.commands import Commands
from podyd.pods.owned import Owned
from podyd.pods.power import why_not_started

# journalctl and tail in a pod are programs of its root, and may do anything.
MAX_JOURNAL_BYTES = 1_000_000
JOURNAL_SECONDS = 5
# Then podyd kills the command, should `timeout` in the pod not have done so.
RUN_SECONDS = JOURNAL_SECONDS + 3.0
# Exit codes of `timeout` for a command that it has killed; the last is busybox's.
_CUT = "124|137|143"


class Logs:
    """Reads the log of a pod from the first source that has one."""

    def __init__(self, *, instances: Instances, owned: Owned, commands: Commands) -> None:
        self._instances = instances
        self._owned = owned
        self._commands = commands

    async def last(self, member: Member, request: LogsOf) -> HeldAnswer[PodLog]:
        """The last lines of a pod's log. Raises NotFound, Conflict (it is frozen)."""
        pod = await self._owned.find(member, request.ins)
        if pod.status == "frozen":
            # Its journal cannot be read while it is frozen, and its console would mislead.
            raise Conflict(
                f"Pod {request.ins!r} is frozen, so its journal cannot be read.",
                advice="Resume it with /pod/start.",
                code="pod_not_running",
                status=pod.status,
            )
        if pod.status == "running":
            journal = await self._journal(member, request)
            if journal is not None:
                return journal
        text = _tail(await self._console(pod), request.lines)
        why = "" if pod.status == "running" else await why_not_started(self._instances, pod.name)
        if why:
            return _whole(f"{text}Its last start failed: {why}.\n", "lxc")
        return _whole(text, "console")

    async def _journal(self, member: Member, request: LogsOf) -> HeldAnswer[PodLog] | None:
        """The journal; None if the pod has none."""
        since = "" if request.since is None else f" --since=-{request.since:.0f}s"
        command = f"journalctl --quiet --no-pager --output=short-iso -n {request.lines}{since}"
        # If it is too long, its end counts, which tail also prints of a journalctl that was killed.
        done = await self._commands.run(
            member,
            request.ins,
            f"{{ timeout -s KILL {JOURNAL_SECONDS} {command} 2>/dev/null;"
            f" case $? in {_CUT}) echo cut >&2;; esac; }} | tail -c {MAX_JOURNAL_BYTES}",
            timeout=RUN_SECONDS,
            limit=MAX_JOURNAL_BYTES,
        )
        result = done.body
        is_cut = result.timed_out or "cut\n" in str(result.stderr)
        if not any(result.stdout) and not is_cut:
            done.close()
            return None
        is_full = sum(len(piece.encode()) for piece in result.stdout) >= MAX_JOURNAL_BYTES
        return HeldAnswer(PodLog(result.stdout, "journal", is_cut or is_full), done.close)

    async def _console(self, pod: Pod) -> str:
        try:
            return await self._instances.console(pod.name)
        except EngineRefused:
            return ""  # There is none.


def _whole(text: str, source: Literal["console", "lxc"]) -> HeldAnswer[PodLog]:
    return HeldAnswer(PodLog(LongText(lambda: iter([text])), source), lambda: None)


def _tail(text: str, lines: int) -> str:
    # Lines of a console end with CR LF.
    kept = re.sub(r"\r+\n", "\n", text).splitlines(keepends=True)[-lines:]
    return "".join(kept)
