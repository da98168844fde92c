"""An engine for a view of its instances, which are changed, and members of a cluster that go away.

Time passes as soon as all wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

from podyd.base.errors import EngineRefused, Gone, Unavailable
from podyd.engine.rest import ANSWER_TIMEOUT, RestClient
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.types import Instance, named
from podyd.engine.view import InstanceView

LIST, MEMBERS, PROJECT = "/1.0/instances", "/1.0/cluster/members", "/1.0/projects/p"
TIME = "2026-01-01T00:00:00Z"
MARK = "user.mark"
THREE = ("gpu1", "gpu2", "gpu3")
# No settings are kept of restores.
NOWHERE = Path("/nonexistent")


class _Selector(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing will ever happen"
        self.now += timeout
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._timer = _Selector()
        super().__init__(self._timer)

    def time(self) -> float:
        return self._timer.now


def run(work: Coroutine[Any, Any, None]) -> None:
    loop = _Loop()
    try:
        loop.run_until_complete(asyncio.wait_for(work, 10_000))
    finally:
        loop.close()


def row(name: str, mark: int = 0, *, host: str = "none", more: str = "") -> dict[str, Any]:
    """The engine's JSON of an instance; `more` is what a profile gives it."""
    config = {MARK: str(mark)}
    return {
        "name": name,
        "status": "Running",
        "created_at": TIME,
        "last_used_at": TIME,
        "location": host,
        "config": config,
        "expanded_config": {**config, "user.more": more},
        "profiles": ["own"],
        "devices": {},
        "expanded_devices": {},
    }


def of_absent(item: Mapping[str, Any]) -> dict[str, Any]:
    """As the engine shows one whose member does not answer."""
    known = {"name": item["name"], "location": item["location"], "status": "Error"}
    zero = "0001-01-01T00:00:00Z"
    return {**dict.fromkeys(item), **known, "created_at": zero, "last_used_at": zero}


class Engine:
    """A server, or some that are `members`; an answer is of any moment since the question."""

    project = "p"

    def __init__(self, *names: str, members: tuple[str, ...] = (), seed: int = 0) -> None:
        self.random = random.Random(seed)
        # Seconds that a part of an answer may take.
        self.slowness = 0.0
        self.rows = {name: row(name) for name in names}
        self.is_trusting = True
        self.members = dict.fromkeys(members, "Online")
        # Those whose engine does not run, of which the others do not know yet.
        self.ended: set[str] = set()
        # Set while they answer.
        self.answering = {member: asyncio.Event() for member in (*members, "none")}
        for event in self.answering.values():
            event.set()
        self.asked: list[str] = []
        self.open: list[str] = []
        # By path, what an answer of now waits for on its way.
        self.delays: dict[str, asyncio.Event] = {}
        # By path, what is refused.
        self.refusals: dict[str, Exception] = {}
        self.streams: list[asyncio.Queue[str | None]] = []

    async def get(self, path: str, **query: Any) -> Any:
        self.asked.append(path)
        self.open.append(path)
        try:
            await self.turns()
            answer = await asyncio.wait_for(self._answer(path), ANSWER_TIMEOUT)
            if path in self.delays:
                await self.delays[path].wait()
            await self.turns()
            return answer
        except asyncio.TimeoutError:
            raise Unavailable("It hangs.") from None
        finally:
            self.open.remove(path)

    async def turns(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(self.random.choice([0, self.slowness]))

    async def _answer(self, path: str) -> Any:
        if path in self.refusals:
            raise self.refusals[path]
        if path == "/1.0":
            shown = {"environment": {"server_clustered": bool(self.members)}}
            return shown if self.is_trusting else {"auth": "untrusted"}
        if path == MEMBERS:
            return [{"server_name": name, "status": to} for name, to in self.members.items()]
        if path == PROJECT:
            return {}
        if path == LIST:
            for member in self.answering:
                await self._member(member)
            return [self._shown(item) for item in self.rows.values()]
        name = path.removeprefix(f"{LIST}/")
        if name in self.rows:
            await self._member(self.rows[name]["location"])
        if name not in self.rows:
            raise Gone("Instance not found")
        if self._is_away(self.rows[name]):
            raise EngineRefused("The member is away")
        return self.rows[name]

    async def _member(self, member: str) -> None:
        if self.members.get(member) != "Offline":
            await self.answering[member].wait()

    def _is_away(self, item: Mapping[str, Any]) -> bool:
        host = item["location"]
        return host in self.ended or self.members.get(host) == "Offline"

    def _shown(self, item: dict[str, Any]) -> dict[str, Any]:
        return of_absent(item) if self._is_away(item) else item

    async def websocket(self, path: str, **query: Any) -> Stream:
        self.streams.append(asyncio.Queue())
        return Stream(self.streams[-1])

    def tell(self, action: str, source: str, **context: str) -> None:
        """Of what has happened."""
        about = {"action": action, "source": f"{source}?project=p", "context": context or None}
        self.streams[-1].put_nowait(json.dumps({"type": "lifecycle", "metadata": about}))

    def set(self, name: str, mark: int) -> None:
        """A change that is told."""
        self.rows[name] = {**self.rows[name], "config": {MARK: str(mark)}}
        self.tell("instance-updated", f"{LIST}/{name}")

    def pause(self, member: str) -> None:
        self.answering[member].clear()

    def lose(self, member: str) -> None:
        """It does not answer, and the engine counts it as away."""
        self.members[member] = "Offline"
        self.answering[member].set()

    def end(self, member: str) -> None:
        """Nobody answers for it."""
        self.ended.add(member)
        self.answering[member].set()

    def find(self, member: str) -> None:
        self.members[member] = "Online"
        self.ended.discard(member)
        self.answering[member].set()


class Stream:
    def __init__(self, messages: asyncio.Queue[str | None]) -> None:
        self._messages = messages

    async def read_message(self) -> str | None:
        return await self._messages.get()

    def close(self) -> None: ...


class Rig:
    """An engine, and what is known of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.guard = RestoreGuard(NOWHERE)
        self.view = InstanceView(cast(RestClient, engine), self.guard)
        self.told = 0
        self.view.subscribe(self._hear)

    def _hear(self) -> None:
        self.told += 1

    async def marks(self) -> dict[str, str]:
        return {item.name: item.config.get(MARK, "") for item in await self.view.all()}

    async def one(self, name: str) -> Instance:
        found = named(await self.view.all(), name)
        assert found is not None
        return found

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """While events are heard; all has been read, and nobody has asked for anything since."""
        connected = asyncio.Event()

        async def connect() -> None:
            connected.set()

        watching = asyncio.ensure_future(self.view.watch(connect))
        try:
            await connected.wait()
            await self.view.all()
            self.clear()
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            self.view.close()
            self.guard.close()

    def clear(self) -> None:
        self.engine.asked.clear()
        self.told = 0


Scene = Callable[[Rig], Awaitable[None]]


def play(scene: Scene, *names: str, members: tuple[str, ...] = (), seed: int = 0) -> None:
    """Play a scene with an engine that is followed; instances are on the members in turn."""

    async def work() -> None:
        rig = Rig(Engine(*names, members=members, seed=seed))
        for name, member in zip(names, members, strict=False):
            rig.engine.rows[name] = row(name, host=member)
        async with rig.following():
            await scene(rig)

    run(work())


async def heard() -> None:
    """What has been told has been heard."""
    await asyncio.sleep(0.01)
