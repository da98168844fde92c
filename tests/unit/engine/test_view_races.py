"""Random changes of instances, known late or at once, while callers ask at any moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest

from podyd.engine.rest import ANSWER_TIMEOUT
from podyd.engine.view import LOOK_SECONDS, WAIT_SECONDS
from tests.unit.engine.view_rig import LIST, MARK, THREE, Rig, heard, play, row


class Play:
    """Random changes, whose events come late, and callers at any moment.

    Whoever asks must see each change that was known before, or a later one.
    """

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.numbers = iter(range(1, 10**6))
        # The last change that must be seen: a mark, or 0 for none of that name.
        self.floor: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        # When a member has last begun or ceased to answer.
        self.turned: dict[str, float] = {}
        self.works: set[asyncio.Task[None]] = set()
        rig.engine.slowness = 0.1

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return self.rig.engine.rows

    def is_there(self, host: str) -> bool:
        engine = self.rig.engine
        is_away = host in engine.ended or engine.members.get(host) == "Offline"
        return engine.answering[host].is_set() and not is_away

    def step(self) -> None:
        engine, pick = self.rig.engine, self.random.choice
        name, other = pick("abcdefgh"), pick("abcdefgh")
        what = pick([*["set", "ask"] * 3, "make", "delete", "rename", "profile", "host", "lose"])
        hosts = [host for host in engine.answering if host in engine.members] or ["none"]
        there = name in self.rows and self.is_there(self.rows[name]["location"])
        if what == "ask":
            self.spawn(self.ask())
        elif what == "set" and there:
            self.rows[name] = row(name, next(self.numbers), host=self.rows[name]["location"])
            self.happened("instance-updated", name)
        elif what == "make" and name not in self.rows:
            host = pick(hosts)
            if self.is_there(host):
                self.rows[name] = row(name, next(self.numbers), host=host)
                self.happened("instance-created", name)
        elif what == "delete" and there:
            del self.rows[name]
            self.ended[name] = next(self.numbers)
            self.happened("instance-deleted", name)
        elif what == "rename" and there and other not in self.rows:
            old = self.rows.pop(name)
            self.ended[name] = next(self.numbers)
            self.rows[other] = row(other, next(self.numbers), host=old["location"])
            self.happened("instance-renamed", other, old_name=name)
        elif what == "profile" and not engine.members:
            for item in self.rows:
                self.rows[item] = row(item, next(self.numbers))
            self.happened("profile-updated", *self.rows)
        elif what == "lose" and not engine.members:
            # What is told until the next connection is lost.
            engine.streams[-1].put_nowait(None)
        elif what == "host" and engine.members:
            host = pick(hosts[1:])
            pick([engine.pause, engine.lose, engine.end, engine.find, engine.find])(host)
            self.turned[host] = asyncio.get_running_loop().time()

    def now(self, name: str) -> int:
        """The number of the last change of a name."""
        if name in self.rows:
            return int(self.rows[name]["config"][MARK])
        return self.ended.get(name, 0)

    def happened(self, action: str, *names: str, **context: str) -> None:
        """Whoever did it knows it at once, or it is told some time later."""
        path = "/1.0/profiles/own" if action.startswith("profile") else f"{LIST}/{names[0]}"
        about = {*names, *context.values()}
        numbers = {name: self.now(name) for name in about}
        if self.random.random() < 0.3 and not action.startswith("profile"):
            self.rig.view.changed(*about)
            self.known(numbers)
        self.spawn(self.late(numbers, action, path, **context))

    async def late(self, numbers: dict[str, int], action: str, path: str, **context: str) -> None:
        await asyncio.sleep(self.random.choice([0, 0, 0.1, 1]))
        self.rig.engine.tell(action, path, **context)
        await asyncio.sleep(0.01)
        self.known(numbers)

    def known(self, numbers: Mapping[str, int]) -> None:
        for name, number in numbers.items():
            self.floor[name] = max(self.floor.get(name, 0), number)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.works.add(task)

    async def ask(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        floor = {
            name: number
            for name, number in self.floor.items()
            if self.is_where_it_answers(name, began)
        }
        shown = {item.name: item for item in await self.rig.view.all()}
        assert loop.time() - began < WAIT_SECONDS + 0.001
        assert all(MARK in item.config or not item.is_reachable for item in shown.values())
        for name, number in floor.items():
            if not self.is_where_it_answers(name, began):
                continue
            if name in shown:
                # It may have been away meanwhile.
                assert not shown[name].is_reachable or int(shown[name].config[MARK]) >= number
            else:
                assert self.ended.get(name, 0) >= number

    def is_where_it_answers(self, name: str, since: float) -> bool:
        host = self.rows[name]["location"] if name in self.rows else "none"
        # What was asked before it came back is answered soon.
        return self.is_there(host) and self.turned.get(host, -1.0) < since - 1

    async def play(self) -> None:
        for _ in range(250):
            self.step()
            await asyncio.sleep(self.random.choice([0, 0, 0, 0.01, 0.1, 1]))
        for member in self.rig.engine.members:
            self.rig.engine.find(member)
        await asyncio.gather(*self.works)
        await asyncio.sleep(ANSWER_TIMEOUT + 2 * LOOK_SECONDS)
        await self.rig.view.all()
        await heard()
        self.rig.clear()
        marks = {name: item["config"][MARK] for name, item in self.rows.items()}
        assert await self.rig.marks() == dict(sorted(marks.items()))
        assert all(item.is_reachable for item in await self.rig.view.all())
        assert LIST not in self.rig.engine.asked


@pytest.mark.parametrize("members", [(), THREE])
@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_shown_as_it_was_before_what_is_known(
    seed: int, members: tuple[str, ...]
) -> None:
    play(lambda rig: Play(rig, seed).play(), "a", "b", "c", members=members, seed=seed)
