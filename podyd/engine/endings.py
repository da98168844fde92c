"""Clean-up in instances: commands to kill and partial files to remove, also after the engine was
away.

A clean-up that fails because the engine does not answer or podyd stops is stored in a file and
retried, by the next podyd too. A crash of the whole machine ends the commands themselves, so the
files are not synced to the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from podyd.base.engine_words import ENGINE
from podyd.base.errors import Missing, NotRunning, PodydError, Unavailable
from podyd.base.tasks import came, together
from podyd.engine.bound import bound, uuid_of
from podyd.engine.rest import RestClient, instance_path
from podyd.engine.streams import Ending

log = logging.getLogger(__name__)

RUN_SECONDS = 30.0
# Between two tries, at first and at most.
AGAIN_SECONDS = (1.0, 60.0)
# A clean-up is dropped after so long, or after so many tries that the engine has run without
# success.
KEPT_SECONDS = 86400.0
MAX_TRIES = 20
MAX_DUE = 1000
WIDTH = 8
# For one instance, before others are served: its root can make each try take RUN_SECONDS.
ROUND_SECONDS = 60.0


@dataclass(frozen=True)
class _Due:
    ending: Ending
    since: float
    tries: int = 0


class Endings:
    """Runs the clean-ups; those that are due are stored in `directory`."""

    def __init__(self, client: RestClient, directory: Path) -> None:
        self._client = client
        self._directory = directory
        self._due: dict[Ending, _Due] = {}
        self._came = asyncio.Event()
        for path in sorted(directory.glob("*.json")):
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text())
            fields = stored["ending"]
            instance = bound(fields["instance"], stored.get("uuid", ""))
            ending = Ending(**{**fields, "words": tuple(fields["words"]), "instance": instance})
            self._due[ending] = _Due(ending, float(stored["since"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read and is dropped: %s", path, error)
            path.unlink(missing_ok=True)

    async def do(self, ending: Ending) -> None:
        """Run it now; if that fails, `run` retries it."""
        is_done = False
        try:
            is_done = await self._try(_Due(ending, time.time()))
        except Unavailable as error:
            log.warning("%s: a clean-up waits for %s: %s", ending.instance, ENGINE, error)
        finally:  # Also when podyd stops meanwhile.
            if not is_done:
                self._keep(_Due(ending, time.time()))

    async def run(self) -> None:
        """Retry what is due, until cancelled."""
        shortest, longest = AGAIN_SECONDS
        wait = shortest
        while True:
            await came(self._came, wait if self._due else None)
            wait = min(wait * 2, longest)
            if self._came.is_set():
                self._came.clear()
                wait = shortest
                await asyncio.sleep(wait)
            await self._round()

    async def _round(self) -> None:
        """Try all that is due, in order within each instance, until the engine does not answer."""
        width = asyncio.Semaphore(WIDTH)

        async def all_in(dues: Iterable[_Due]) -> None:
            async with width:
                end = time.monotonic() + ROUND_SECONDS
                for number, due in enumerate(dues):
                    if number and time.monotonic() > end:
                        return
                    if await self._try(due):
                        self._drop(due)
                    else:
                        self._keep(replace(due, tries=due.tries + 1))
                        # The others of its instance are tried first next time.
                        self._due[due.ending] = self._due.pop(due.ending)

        by_instance: dict[str, list[_Due]] = {}
        for due in list(self._due.values()):
            if time.time() - due.since > KEPT_SECONDS or due.tries > MAX_TRIES:
                log.warning("%s: a clean-up is abandoned", due.ending.instance)
                self._drop(due)
            else:
                by_instance.setdefault(due.ending.instance, []).append(due)
        with contextlib.suppress(Unavailable):
            await together(*(all_in(dues) for dues in by_instance.values()))

    async def _try(self, due: _Due) -> bool:
        """Run it; returns whether it is done or no longer needed. Raises Unavailable."""
        ending = due.ending
        try:
            if await quietly(self._client, ending.instance, ending.words) == 0:
                return True
            problem = "it could not be ended as a whole"
        except Missing:
            return True
        except NotRunning as error:
            # The commands of a stopped pod have ended; those of a frozen one have not.
            if error.fields.get("status") != "frozen" and not ending.outlives_stop:
                return True
            problem = str(error)
        except Unavailable:
            raise
        except PodydError as error:
            problem = str(error)
        level = logging.INFO if due.tries else logging.WARNING
        log.log(level, "%s: a clean-up is retried: %s", ending.instance, problem)
        return False

    def _keep(self, due: _Due) -> None:
        is_new = due.ending not in self._due
        self._due[due.ending] = replace(due, since=self._due.get(due.ending, due).since)
        if not is_new:
            return
        if len(self._due) > MAX_DUE:
            ((greedy, _),) = Counter(item.instance for item in self._due).most_common(1)
            self._drop(next(item for item in self._due.values() if item.ending.instance == greedy))
        self._came.set()
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            new = self._path(due.ending).with_suffix(".new")
            uuid = uuid_of(due.ending.instance)
            new.write_text(json.dumps({**asdict(due), "uuid": uuid}))
            new.rename(self._path(due.ending))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._directory, error)

    def _drop(self, due: _Due) -> None:
        self._due.pop(due.ending, None)  # It may have been dropped meanwhile.
        self._path(due.ending).unlink(missing_ok=True)

    def _path(self, ending: Ending) -> Path:
        name = hashlib.sha256(json.dumps(asdict(ending)).encode()).hexdigest()[:32]
        return self._directory / f"{name}.json"


async def quietly(client: RestClient, instance: str, words: Sequence[str]) -> int:
    """Run a command without output; returns its exit status."""
    body = {"command": list(words), "wait-for-websocket": False, "interactive": False}
    path = instance_path(instance, "exec")
    metadata = await client.change("POST", path, body, timeout=RUN_SECONDS)
    return int(metadata["metadata"]["return"])
