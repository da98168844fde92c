"""Writes a line to all terminals of a pod."""

from __future__ import annotations

import logging
import shlex

from podyd.base.errors import PodydError
from podyd.engine.collected import Collected
from podyd.engine.streams import Executor, bash
from podyd.model.pod import Pod

log = logging.getLogger(__name__)

TELL_SECONDS = 5.0
MAX_CHARACTERS = 500

# A terminal that is stopped with Ctrl-S blocks the write, which must not delay the others.
_TELL = """
for terminal in /dev/pts/[0-9]*; do
  timeout 1 sh -c 'printf "\\r\\n%s\\r\\n" "$1" >"$2"' tell {text} "$terminal" &
done
wait
"""


class Terminals:
    """Writes to the terminals of pods."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def tell(self, pod: Pod, text: str) -> None:
        """Write a line to every terminal of a pod, if it runs; never fails, and takes
        `TELL_SECONDS` at most."""
        if pod.status != "running":
            return
        try:
            await self._executor.run(
                pod.name,
                bash(_TELL.format(text=shlex.quote(f"podyd: {_harmless(text)}"))),
                Collected(1024),
                timeout=TELL_SECONDS,
            )
        except PodydError as error:
            log.warning("%s: its terminals could not be written to: %s", pod.name, error)


def _harmless(text: str) -> str:
    """The first `MAX_CHARACTERS` of a text, without control characters."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:MAX_CHARACTERS])
