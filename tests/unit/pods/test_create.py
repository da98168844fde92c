"""A pod is made as a whole or not at all, whatever the engine refuses, and whenever."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from podyd.base.errors import (
    Busy,
    Conflict,
    DiskFull,
    EngineRefused,
    Forbidden,
    NameTaken,
    PodydError,
    Slipped,
    TimedOut,
    Unavailable,
)
from podyd.base.tasks import Tasks
from podyd.config.current import Settings
from podyd.config.schema import Config, ImagesConfig, Quota
from podyd.engine.types import PciCard
from podyd.gpus.access import Access
from podyd.gpus.activity import Activity
from podyd.gpus.decisions import WISH
from podyd.gpus.inventory import Inventory
from podyd.gpus.scheduler import Scheduler
from podyd.model.gpu import CardChoice
from podyd.model.member import Member
from podyd.model.pod import MADE_AS, OWNER
from podyd.network.locations import Locations
from podyd.network.ports import Ports
from podyd.node.samples import Gpu, Sample
from podyd.pods import half_made
from podyd.pods.catalogue import Catalogue
from podyd.pods.disks import Disks
from podyd.pods.half_made import HalfMade
from podyd.pods.info import Info
from podyd.pods.kernel_limits import KernelLimits
from podyd.pods.lifecycle import Lifecycle
from podyd.pods.mounts import Mounts
from podyd.pods.owned import Owned
from podyd.pods.planner import Planner
from podyd.pods.power import Power
from podyd.pods.stages import Stages
from tests.unit.engine.fake import PROFILE, FakeEngine, When
from tests.unit.engine.fake_executor import FakeExecutor
from tests.unit.gpus.attributing import attribution
from tests.unit.gpus.test_scheduler import Remembering, tell_nobody
from tests.unit.node.fake import FakeNode

ALICE = Member("alice", False, Quota(max_pods=2), (PROFILE.name,), 1000, 1000)
SLIP = Slipped("readdirent /var/lib/lxd/x: bad file descriptor")
ERRORS = (
    EngineRefused("It rains"),
    SLIP,
    TimedOut("LXD has not finished"),
    Unavailable("LXD cannot be reached"),
    Busy("busy running a start", operation="start"),
    DiskFull("no space left on device"),
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_made, "REMOVE_SECONDS", 0.001)
    monkeypatch.setattr(half_made, "REMOVE_SECONDS_MAX", 0.002)


@asynccontextmanager
async def podyd(lxd: FakeEngine, node: FakeNode | None = None) -> AsyncIterator[Lifecycle]:
    """Makes pods on this engine, on a host without cards if no other is given; in the end nothing
    goes on."""
    engine, tasks = lxd.engine, Tasks()
    if node is None:
        node = FakeNode()
        node.samples.failed("no driver", absent=True)
    settings = Settings(Config(images=ImagesConfig(offer=("*",))))
    inventory = Inventory(engine.server, node.samples, Remembering())
    ports = Ports(
        locations=Locations(engine.instances, node.neighbours),
        instances=engine.instances,
        sockets=node.sockets,
        relays=node.relays,
        settings=settings,
    )
    instances = engine.instances
    owned = Owned(instances)
    half_made = HalfMade(instances=instances, files=engine.files, tasks=tasks)
    mounts = Mounts(
        server=engine.server, instances=instances, directories=node.directories, settings=settings
    )
    disks = Disks(
        instances=instances,
        profiles=engine.profiles,
        pools=engine.pools,
        executor=FakeExecutor({}),
    )
    planner = Planner(
        instances=instances,
        scheduler=Scheduler(
            instances=instances,
            profiles=engine.profiles,
            inventory=inventory,
            samples=node.samples,
            activity=Activity(attribution(node.samples)),
            access=Access(node.card_accesses, aliases=dict),
            notify=tell_nobody,
            settings=settings,
        ),
        ports=ports,
        mounts=mounts,
        disks=disks,
        half_made=half_made,
    )
    yield Lifecycle(
        owned=owned,
        instances=instances,
        snapshots=engine.snapshots,
        files=engine.files,
        images=Catalogue(engine.images, settings),
        planner=planner,
        disks=disks,
        power=Power(
            owned=owned,
            instances=instances,
            disks=disks,
            mounts=mounts,
            kernel=KernelLimits(instances=instances, processes=node.processes),
        ),
        half_made=half_made,
        info=Info(owned=owned, instances=instances, inventory=inventory, ports=ports, disks=disks),
        stages=Stages(engine.images),
    )
    await tasks.finish(5)


def play(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


def whole(lxd: FakeEngine, name: str) -> bool:
    """Whether a pod runs and is not marked as half-made."""
    made = lxd.instance(name)
    assert made.config[OWNER] == "alice"
    return made.status == "running" and MADE_AS not in made.config


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", ["create", "start", "remove_key", "state"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_is_refused_once_leaves_a_whole_pod_or_none(
    error: PodydError, call: str, when: When
) -> None:
    async def make() -> None:
        lxd = FakeEngine()
        lxd.refuse(call, error, when=when)
        async with podyd(lxd) as pods:
            try:
                made = await pods.create(ALICE, "main", "small", None, None)
                assert whole(lxd, made.name)
            except PodydError:
                # The pod itself is there where only how it is could not be seen.
                assert call == "state" or lxd.stored == {}
            lxd.stored.clear()
            # And nothing is held for it.
            again = await pods.create(ALICE, "main", "small", None, None)
            assert whole(lxd, again.name)

    play(make)


def test_cards_and_profiles_are_asked_for_once() -> None:
    async def make() -> None:
        lxd = FakeEngine()
        async with podyd(lxd) as pods:
            await pods.create(ALICE, "main", "small", None, None)
        calls = Counter(call for call, _ in lxd.asked)
        assert (calls["profiles"], calls["cards"], calls["create"]) == (1, 1, 1)

    play(make)


def test_cards_of_a_pod_made_before_the_first_sample_are_those_of_the_sample() -> None:
    async def make() -> None:
        lxd, node = FakeEngine(PROFILE), FakeNode()
        # LXD lacks nvidia-container-cli, and NVML has the other order.
        addresses = ("0000:01:00.0", "0000:41:00.0")
        lxd.cards = tuple(PciCard(address, "10de") for address in addresses)
        gpus = [Gpu(f"GPU-{address[5:7]}", address, "A100") for address in addresses]
        sample = Sample(0.0, "535", "12.2", tuple(reversed(gpus)))
        async with podyd(lxd, node) as pods:
            asyncio.get_running_loop().call_later(0.05, node.samples.sampled, sample)
            made = await pods.create(ALICE, "main", "small", CardChoice(named=("0",)), None)
        assert lxd.instance(made.name).config[WISH] == "GPU-41"

    play(make)


def test_what_lxd_slips_over_is_made_once_more() -> None:
    async def make() -> None:
        lxd = FakeEngine()
        lxd.refuse("start", SLIP)
        async with podyd(lxd) as pods:
            made = await pods.create(ALICE, "main", "small", None, None)
        assert [call for call, _ in lxd.done] == [
            *("create", "delete"),
            *("create", "start", "remove_key"),
        ]
        assert whole(lxd, made.name)

    play(make)


def test_what_lxd_does_not_finish_in_time_is_removed_and_said_to_be() -> None:
    async def make() -> None:
        lxd = FakeEngine()
        late = TimedOut("LXD has not finished within 125 s and continues.", advice="Ask later.")
        lxd.refuse("start", late)
        async with podyd(lxd) as pods:
            with pytest.raises(TimedOut, match="podyd removes it") as raised:
                await pods.create(ALICE, "main", "small", None, None)
        assert raised.value.code == "lxd_timed_out"
        assert raised.value.advice.startswith("Try again")
        assert lxd.stored == {}

    play(make)


def test_what_cannot_be_removed_yet_goes_later() -> None:
    async def make() -> None:
        lxd = FakeEngine()
        lxd.refuse("start", EngineRefused("It rains"))
        lxd.refuse("delete", Busy("busy running a create", operation="create"), times=5)
        async with podyd(lxd) as pods:
            with pytest.raises(PodydError, match="It rains"):
                await pods.create(ALICE, "main", "small", None, None)
        assert lxd.stored == {}
        assert lxd.refused.count(("delete", "alice-main")) == 5

    play(make)


def test_a_name_that_an_admin_has_just_taken_is_not_removed() -> None:
    async def make() -> None:
        lxd = FakeEngine()
        lxd.refuse("create", NameTaken('This "instances" entry already exists'), when="after")
        async with podyd(lxd) as pods:
            with pytest.raises(Conflict, match="at this moment"):
                await pods.create(ALICE, "main", "small", None, None)
        assert set(lxd.stored) == {"alice-main"}

    play(make)


def test_two_at_once_do_not_both_have_the_last_place() -> None:
    async def make() -> None:
        lxd = FakeEngine()
        async with podyd(lxd) as pods:
            work = (pods.create(ALICE, ins, "small", None, None) for ins in ("a", "b", "c", "a"))
            results = await asyncio.gather(*work, return_exceptions=True)
        refused = {type(error) for error in results if isinstance(error, PodydError)}
        assert refused == {Forbidden, Conflict}
        assert all(whole(lxd, name) for name in lxd.stored)
        assert len(lxd.stored) == 2

    play(make)


def test_a_copy_has_none_of_what_makes_its_source_itself() -> None:
    async def make() -> None:
        lxd = FakeEngine()
        async with podyd(lxd) as pods:
            source = await pods.create(ALICE, "main", "small", None, None)
            identity = ("/etc/ssh/ssh_host_rsa_key", "/etc/hostname")
            files = lxd.stored[source.name].files
            files.update({"/etc/ssh": "directory", "/etc/hosts": "file", "/root/mine": "file"})
            files.update(dict.fromkeys(identity, "file"))
            copy = await pods.copy(ALICE, "main", "second", None, None, None)
        made = lxd.stored[copy.name]
        assert whole(lxd, copy.name)
        assert not set(identity) & set(made.files)
        assert {"/root/mine", "/etc/hosts", "/etc/machine-id"} <= set(made.files)
        assert made.config["user.podyd.ins"] == "second"

    play(make)


@pytest.mark.parametrize("kind", ["pipe", "symlink", "directory"])
def test_a_copy_has_no_hosts_that_the_engine_cannot_write(kind: str) -> None:
    async def make() -> None:
        lxd = FakeEngine()
        async with podyd(lxd) as pods:
            source = await pods.create(ALICE, "main", "small", None, None)
            lxd.stored[source.name].files["/etc/hosts"] = kind
            copy = await pods.copy(ALICE, "main", "second", None, None, None)
        assert whole(lxd, copy.name)
        assert "/etc/hosts" not in lxd.stored[copy.name].files

    play(make)
