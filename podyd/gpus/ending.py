"""Ends processes of pods that are on cards, and stops the pods where that does not end them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from podyd.base.errors import Gone, NotRunning, PodydError
from podyd.engine.collected import Collected
from podyd.engine.streams import Executor
from podyd.gpus.access import Access
from podyd.gpus.presence import OnCard
from podyd.model.pod import Pod
from podyd.node.interface import Processes

log = logging.getLogger(__name__)

KILL_SECONDS = 5.0
# The length of a command is limited; the others are signalled after the next look.
MAX_AT_ONCE = 200

# The arguments are the signal, then the pid and the start time of each process. The name of one in
# /proc/PID/stat, in parentheses, may hold anything.
_KILL = r"""
signal=$1
shift
while [ $# -gt 1 ]; do
  if IFS= read -r line <"/proc/$1/stat"; then
    rest=${line##*) }
    set -f
    [ "$(echo $rest | cut -d ' ' -f 20)" = "$2" ] && kill -s "$signal" "$1"
  fi
  shift 2
done 2>/dev/null
"""


class Ender:
    """Signals processes, by the helper if it has listed them, else by a command in the pod."""

    def __init__(
        self,
        *,
        access: Access,
        processes: Processes,
        executor: Executor,
        stop: Callable[[str], Awaitable[None]],
    ) -> None:
        """`stop` stops an instance by force."""
        self._access = access
        self._processes = processes
        self._executor = executor
        self._stop = stop

    async def end(self, pod: Pod, on_cards: Iterable[OnCard], *, kill: bool) -> None:
        """Send SIGTERM, or SIGKILL, to processes of a pod; never fails."""
        on_cards = list(on_cards)
        known = [item for item in on_cards if item.holder is not None]
        if known:
            await self._access.end(
                lambda: {item.holder for item in self._due(known) if item.holder is not None},
                kill=kill,
            )
        others = [item for item in on_cards if item.holder is None]
        if others:
            inner = await self._processes.pids_in_pod(item.pid for item in others)
            started = {item.pid: item.started for item in self._due(others)}
            await self._signal(pod, inner, started, "KILL" if kill else "TERM")

    def _due(self, on_cards: Iterable[OnCard]) -> list[OnCard]:
        """Those on a card that their pod still may not have: it may have leased it since."""
        rights = self._access.rights
        return [
            item
            for item in on_cards
            if rights is not None and rights.forbids(item.pod, item.card, computes=item.computes)
        ]

    async def _signal(
        self,
        pod: Pod,
        inner: Mapping[int, int],
        started: Mapping[int, int | None],
        name: str,
    ) -> None:
        words = [
            str(word)
            for pid, inner_pid in sorted(inner.items())[:MAX_AT_ONCE]
            if inner_pid != 1 and started.get(pid) is not None
            for word in (inner_pid, started[pid])
        ]
        if not words:
            return
        command = ("/bin/sh", "-c", _KILL, "podyd", name, *words)
        try:
            await self._executor.run(pod.name, command, Collected(1024), timeout=KILL_SECONDS)
        except PodydError as error:
            log.warning("%s: no process could be ended: %s", pod.name, error)

    async def inits(self, on_cards: Iterable[OnCard]) -> set[int]:
        """The pids of those that are their pod's first process, which cannot be ended alone."""
        on_cards = list(on_cards)
        inits = {item.pid for item in on_cards if item.holder and item.holder.is_init}
        others = [item.pid for item in on_cards if item.holder is None]
        inner = await self._processes.pids_in_pod(others) if others else {}
        return inits | {pid for pid, inner_pid in inner.items() if inner_pid == 1}

    async def stop(self, pod: Pod) -> None:
        """Stop a pod by force; never fails."""
        log.warning("%s is stopped by force: its processes on a GPU cannot be ended", pod.name)
        try:
            await self._stop(pod.name)
        except (Gone, NotRunning):
            return
        except PodydError as error:
            log.warning("%s could not be stopped by force: %s", pod.name, error)
