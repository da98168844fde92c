"""What is shown of pods, cards and people, on a host that a test makes up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from podyd.board.board import ADMINS, ALL, GUESTS, MEMBERS, Audience, Board, audiences_of
from podyd.board.sources import Sources, Values
from podyd.board.works import Works
from podyd.config.schema import Quota
from podyd.contract.events import AdminNow, MeNow
from podyd.contract.host import NOT_FOR_ALL
from podyd.engine.interface import Pools
from podyd.engine.types import Instance, PoolUse, State
from podyd.gpus.inventory import Inventory
from podyd.gpus.report import Report
from podyd.model.member import Member
from podyd.model.pod import ACCOUNT, INS, OWNER
from podyd.network.locations import Locations
from podyd.network.ports import Ports
from podyd.node.cgroups import Cgroups
from podyd.node.pod_loads import PodLoad
from podyd.node.procs import Process
from podyd.node.samples import Gpu, ProcessSample, Sample
from podyd.people.notices import Notices
from podyd.pods.disks import Disks
from podyd.pods.info import Info
from podyd.pods.loads import Loads
from podyd.pods.owned import Owned
from podyd.store.database import Database
from podyd.store.notices import NoticeStore
from tests.unit.engine.fake_executor import FakeExecutor
from tests.unit.gpus.test_scheduler import CARDS, Remembering, instance
from tests.unit.gpus.watching import World

ALICE = Member("alice", False, Quota(), (), 1001, 1001)
ADMIN = replace(ALICE, name="root2", is_admin=True, uid=1000)
GIB = 1024**3


def of_alice(name: str, **config: str) -> Instance:
    keys = {OWNER: "alice", ACCOUNT: "alice:1001", INS: name.removeprefix("alice-"), **config}
    return instance(name, None, **keys)


class CountingPools:
    """Counts how often it is asked for the kind of a pool."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self.asked = 0

    async def driver(self, name: str) -> str:
        self.asked += 1
        return await self._pools.driver(name)

    async def use(self, name: str) -> PoolUse:
        return await self._pools.use(name)


class Shown(World):
    """A world with all that is shown of it; `sees` is what a viewer sees of these values."""

    def build(self, path: Path) -> Sources:
        engine = self.lxd.engine
        inventory = Inventory(engine.server, self.node.samples, Remembering())
        self.cgroups = Cgroups(
            "podyd",
            instances=engine.instances.all,
            first_process=engine.instances.first_process,
            cgroup_of=self.node.processes.cgroup_of,
        )
        self.pools = CountingPools(engine.pools)
        self.works = Works()
        self.database = Database(path / "db")
        disks = Disks(
            instances=engine.instances,
            profiles=engine.profiles,
            pools=self.pools,
            executor=FakeExecutor({}, self._run),
        )
        ports = Ports(
            locations=Locations(engine.instances, self.node.neighbours),
            instances=engine.instances,
            sockets=self.node.sockets,
            relays=self.node.relays,
            settings=self.settings,
        )
        self.info = Info(
            owned=Owned(engine.instances),
            instances=engine.instances,
            inventory=inventory,
            ports=ports,
            disks=disks,
        )
        return Sources(
            server=engine.server,
            node=self.node,
            scheduler=self.scheduler,
            report=Report(
                server=engine.server,
                node=self.node,
                activity=self.activity,
                attribution=self.attribution,
                scheduler=self.scheduler,
                watch=self.watch,
            ),
            info=self.info,
            works=self.works,
            notices=Notices(NoticeStore(self.database)),
            login_changes=len,
            news=self._news,
            loads=lambda: Loads(cgroups=self.cgroups, counters=self.node.loads),
        )

    async def _news(self) -> AdminNow:
        return AdminNow(3, None)

    async def runs(self, name: str, pid: int) -> None:
        """The cgroup of a pod's first process is known."""
        self.lxd.states[name] = State(pid)
        self.node.processes.cgroups[pid] = "podyd", name
        self.cgroups.changed()
        following = asyncio.ensure_future(self.cgroups.follow())
        for _ in range(20):
            await asyncio.sleep(0)
        following.cancel()


def sees(values: Values, member: Member | None) -> dict[str, Any]:
    audiences: frozenset[Audience] = audiences_of(member)
    return {key: value for (audience, key), value in values.items() if audience in audiences}


Work = Callable[[Shown, Sources], Coroutine[Any, Any, None]]
Play = Callable[..., None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Play:
    def whole(work: Work, *instances: Instance) -> None:
        async def run() -> None:
            world = Shown(monkeypatch, *instances)
            async with world.podyd():
                sources = world.build(tmp_path)
                try:
                    await work(world, sources)
                finally:
                    await world.database.close()

        asyncio.run(run())

    return whole


def test_pods_are_for_their_owners_and_for_admins(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        values = sources.pods(await sources.picture())
        mine = sees(values, ALICE)
        assert mine.keys() == {"queue", "pod/alice-main"}
        shown = mine["pod/alice-main"]
        info = vars(await world.info.of(ALICE, "main"))
        ours = vars(shown)
        assert ours == {key: info[key] for key in ours}
        assert info.keys() - ours.keys() == {"addresses", "uptime"}
        assert shown.started == "2026-11-24T00:00:00Z"
        assert (shown.gpu_ids, shown.port_mapping) == ([0, 1], ["20001:22"])
        assert sees(values, ADMIN).keys() == {"queue", "pod/alice-main", "pod/bobs"}
        assert sees(values, None).keys() == {"queue"}
        assert sees(values, replace(ALICE, uid=2001)).keys() == {"queue"}, "a later account"

    play(work, of_alice("alice-main", **{"user.podyd.ports": "20001:22"}), instance("bobs"))


def test_a_pools_kind_is_not_asked_for_again_and_again(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        world.lxd.pools[""] = world.lxd.pools["default"]
        for _ in range(3):
            await sources.picture()
        assert world.pools.asked == 1

    play(work, of_alice("a"), of_alice("b"))


def test_a_page_that_stays_open_is_no_use_of_a_card_or_a_pod(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        world.compute("alice-main", 11, 0)
        await world.runs("alice-main", 11)
        world.node.loads.known[11] = PodLoad(("podyd", "alice-main"), 1.0, GIB)

        async def watch(seconds: int, cpu: float = 0.0) -> float | None:
            """Look each second, as for pages; for how long the card is idle then."""
            process = ProcessSample(11, GIB, 0, ("podyd", "alice-main"), cpu=cpu)
            gpu = Gpu(CARDS[0].uuid, CARDS[0].pci, "A100", utilisation=0, processes=(process,))
            for _ in range(seconds):
                world.seconds += 1
                world.node.samples.sampled(Sample(world.seconds, "535", "12.2", (gpu,)))
                picture = await sources.picture()
                values = {**sources.pods(picture), **await sources.cards(picture)}
                values |= await sources.loads(picture)
            seen = sees(values, ALICE)
            idle: float | None = seen["use/0"].idle
            return idle if seen.keys() > {"pod/alice-main"} else None

        assert await watch(3, cpu=1.0) == 0
        assert await watch(100) == 100
        assert world.ran == [], "nothing is run in a pod for it"

    play(work, of_alice("alice-main"))


def test_who_sees_which_command(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        world.compute("alice-main", 11, 0)
        world.on_nvml[12] = "", CARDS[0]
        world.node.processes.known[12] = Process(1001, "python secret", 1e9, 1)
        world.node.accounts.names[1001] = "alice"
        world.sample()
        values = await sources.cards(await sources.picture())

        def commands(member: Member | None) -> dict[int, str]:
            return {row.pid: row.cmd for row in sees(values, member)["use/0"].processes}

        assert commands(ADMIN) == {11: "train", 12: "python secret"}
        assert commands(ALICE) == {11: "train", 12: "alice"}
        assert commands(None) == {11: "", 12: ""}
        card = sees(values, None)["gpu/0"]
        assert (card.index, card.uuid, [held.pod for held in card.pods]) == (
            0,
            "GPU-0",
            ["alice-main"],
        )
        assert {audience for audience, _ in values} == {ALL, ADMINS, MEMBERS, GUESTS}

    play(work, of_alice("alice-main"))


def test_a_pod_cannot_make_what_all_are_sent_long(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        for pid in range(11, 111):
            world.compute("alice-main", pid, 0)
            world.node.processes.known[pid] = Process(0, "\x1b[2J" + "\x01" * 4000, 1e9, 1, 7)
        world.sample()
        board = Board()
        board.put("cards", await sources.cards(await sources.picture()))
        (shown,) = board.whole(audiences_of(ADMIN))
        assert 64 * 200 < len(shown["use/0"] or "") < 64 * 400
        (row, *_) = sees(await sources.cards(await sources.picture()), ALICE)["use/0"].processes
        assert row.cmd == "?[2J" + "?" * 196

    play(work, of_alice("alice-main"))


def test_cards_are_shown_though_nvml_fails(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        world.node.samples.failed("NVML hangs")
        world.node.samples.is_old = True
        found = sees(await sources.cards(await sources.picture()), ALICE)
        assert found["gpu/1"].problem == "NVML hangs"
        assert found["use/1"].processes == []
        assert found["use/1"].utilisation is None

    play(work, of_alice("alice-main"))


def test_what_a_pod_uses_is_shown_from_the_second_reading_on(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        await world.runs("alice-main", 77)
        world.node.loads.known[77] = PodLoad(("podyd", "alice-main"), 1.0, GIB)
        picture = await sources.picture()
        assert await sources.loads(picture) == {}
        values = await sources.loads(picture)
        load = sees(values, ALICE)["load/alice-main"]
        assert (load.memory_used, load.cpu) == (GIB, 0.0)
        assert sees(values, replace(ALICE, name="bob", uid=7)) == {}
        sources.forget()
        assert await sources.loads(picture) == {}

    play(work, of_alice("alice-main"))


def test_what_is_being_done_is_shown_to_the_pods_owner(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        picture = await sources.picture()
        bob = replace(ALICE, name="bob", uid=1002)
        # A pod that is being made, one that an admin changes, and one that another member names.
        with (
            world.works.on("alice-new", "/pod/create", ALICE),
            world.works.on("alice-main", "/admin/release", ADMIN),
            world.works.on("alice-other", "/pod/start", bob),
        ):
            values = sources.works(picture)
            assert sees(values, ALICE).keys() == {"work/alice-new", "work/alice-main"}
            assert sees(values, ADMIN).keys() == {
                f"work/alice-{name}" for name in ("new", "main", "other")
            }
            assert sees(values, bob).keys() == {"work/alice-other"}
            shown = sees(values, ALICE)["work/alice-main"]
            assert (shown.operation, shown.user) == ("/admin/release", "root2")
            assert sees(sources.works(None), ALICE).keys() == {"work/alice-new"}
        assert sources.works(picture) == {}

    play(work, of_alice("alice-main"), of_alice("alice-other"))


def test_each_sees_who_they_are(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        values = sources.people({ALICE, ADMIN})
        me = sees(values, ALICE)["me"]
        assert me == MeNow("alice", False, 0, 5)
        assert sees(values, ADMIN)["me"].is_admin is True
        assert sees(values, None) == {}

    play(work)


def test_only_admins_see_what_is_new_for_them(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        values = await sources.admin()
        assert sees(values, ADMIN) == {"admin": AdminNow(3, None)}
        assert sees(values, ALICE) == sees(values, None) == {}

    play(work)


def test_the_host(play: Play) -> None:
    async def work(world: Shown, sources: Sources) -> None:
        host = sees(sources.host(await sources.picture(), None), None)["host"]
        assert (host.engine, host.lxd) == ("lxd", "5.0.2")
        assert (host.name, host.kernel, host.nvidia_driver, host.cuda) == (
            world.node.facts.name,
            world.node.facts.kernel,
            "535",
            "12.2",
        )
        assert (host.problem, host.ends_sharers) == (None, True)
        for viewer, problem in (
            (ALICE, "open /x: LXD is away."),
            (ADMIN, "open /x: LXD is away."),
            (None, NOT_FOR_ALL),
        ):
            host = sees(sources.host(None, "open /x: LXD is away."), viewer)["host"]
            assert (host.problem, host.ends_sharers) == (problem, None)

    play(work)
