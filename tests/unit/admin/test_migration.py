"""The plan of a migration, and its steps, each of which may be the last one before it is called
again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from podyd.admin.migration.limits import Project, listed
from podyd.admin.migration.mark import AUTOSTART, KEY, mark_of, new_mark
from podyd.admin.migration.move import Move, go_back, remove_originals
from podyd.admin.migration.plan import Plan, Room, Stock, plan, profile_notes
from podyd.admin.migration.translation import Translation, with_cards
from podyd.base.errors import SetupError
from podyd.engine.moving import Limit, MovedImage, Offer, Original, Volume
from podyd.engine.types import Devices, Keys, Profile
from podyd.model.pod import MADE_AS, OWNER, PROJECT
from tests.unit.engine.test_gpu_devices import CARDS

GIB = 1024**3
TRANSLATION = Translation(frozenset({"lxdbr0"}), "incusbr0", "pool2")
PLAIN = Stock()
PROJECT_THERE = Project("podyd")
ROOT = {"root": {"type": "disk", "path": "/", "pool": "default"}}


class KilledError(BaseException):
    """The process is gone: nobody catches it."""


@dataclass
class Fate:
    """Counts the points at which the process can be killed, and kills it at one of them."""

    at: int = 0
    count: int = 0

    def pass_on(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise KilledError

    @contextmanager
    def change(self) -> Iterator[None]:
        self.pass_on()
        yield
        self.pass_on()


def original(name: str, **changes: object) -> Original:
    config = {"volatile.uuid": f"uuid-{name}", OWNER: "alice", "limits.cpu": "2"}
    made = Original(
        name=name,
        is_container=True,
        is_ephemeral=False,
        status="stopped",
        has_run=True,
        architecture="x86_64",
        description="",
        config=config,
        devices={},
        expanded_devices=ROOT,
        profiles=("podyd-base",),
        snapshots=(),
        used_bytes=GIB,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@dataclass
class FakeEngine:
    """Instances and images, without disks; an instance's only file is its own name."""

    fate: Fate
    there: dict[str, Original] = field(default_factory=dict)
    stored: dict[str, MovedImage] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    starts: list[str] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)
    is_idle: bool = False

    def have(self, *originals: Original) -> FakeEngine:
        for item in originals:
            self.there[item.name] = item
            self.files[item.name] = item.name
        return self

    def originals(self) -> list[Original]:
        return list(self.there.values())

    def original(self, name: str) -> Original | None:
        return self.there.get(name)

    def moved_images(self) -> list[MovedImage]:
        return list(self.stored.values())

    def set_keys(self, name: str, keys: Keys) -> None:
        with self.fate.change():
            merged = {**self.there[name].config, **keys}
            config = {key: value for key, value in merged.items() if value is not None}
            self.there[name] = replace(self.there[name], config=config)

    def stop(self, name: str) -> None:
        with self.fate.change():
            self.there[name] = replace(self.there[name], status="stopped")

    def start(self, name: str) -> None:
        if name in self.refuses:
            raise SetupError(f"{name} does not start.")
        with self.fate.change():
            self.there[name] = replace(self.there[name], status="running")
            self.starts.append(name)

    def delete(self, name: str) -> None:
        with self.fate.change():
            if name in self.there:
                assert self.there[name].status == "stopped"
                del self.there[name]

    def offer(self, name: str) -> Offer:
        assert self.there[name].status == "stopped", "its files would change meanwhile"
        return Offer(self.files[name], "", "", {})

    def offer_image(self, fingerprint: str) -> Offer:
        return Offer("", "", "", {})

    def fetch(self, name: str, like: Original, offer: Offer) -> None:
        assert name not in self.there
        with self.fate.change():
            made = replace(like, status="stopped", devices={**like.devices, **ROOT})
            self.there[name] = replace(made, snapshots=())
            self.files[name] = ""
            self.fate.pass_on()
            self.there[name] = made
            self.files[name] = offer.address

    def finish(self, name: str, like: Original, keys: Keys) -> None:
        self.there[name] = replace(self.there[name], devices=like.devices)
        self.set_keys(name, keys)

    def fetch_image(self, image: MovedImage, offer: Offer) -> None:
        with self.fate.change():
            self.stored[image.fingerprint] = replace(image, aliases=())

    def name_image(self, alias: str, fingerprint: str) -> None:
        with self.fate.change():
            assert not any(alias in image.aliases for image in self.stored.values())
            image = self.stored[fingerprint]
            self.stored[fingerprint] = replace(image, aliases=(*image.aliases, alias))

    def wait_until_idle(self) -> None:
        self.is_idle = True


PODS = (
    original("stopped"),
    original("running", status="running", snapshots=("a", "b")),
    original("frozen", status="frozen"),
    original("boots", status="running", config={"volatile.uuid": "uuid-boots", OWNER: "bob"}),
    original("admins", config={"volatile.uuid": "uuid-admins", AUTOSTART: "true"}),
)
IMAGE = MovedImage("f" * 64, ("debian12", "cuda"), {}, GIB)


class Two:
    """Two engines, one with a lab, and `podyd migrate` between them."""

    def __init__(self, *pods: Original) -> None:
        self.fate = Fate()
        self.old = FakeEngine(self.fate).have(*(pods or PODS))
        self.old.stored = {IMAGE.fingerprint: IMAGE}
        self.new = FakeEngine(self.fate)
        self.is_podyd_running = False

    def check(self) -> None:
        if self.is_podyd_running:
            raise SetupError("podyd is running.")

    def plan(
        self,
        room: Room | None = None,
        stock: Stock = PLAIN,
        project: Project = PROJECT_THERE,
    ) -> Plan:
        return plan(
            self.old.originals(),
            self.new.originals(),
            self.old.moved_images(),
            self.new.moved_images(),
            project=project,
            is_offered=lambda alias: alias != "secret",
            names=("LXD", "Incus"),
            room=room,
            stock=stock,
        )

    def migrate(self, before: Plan | None = None) -> list[str]:
        move = Move(self.old, self.new, TRANSLATION, lambda text: None, self.check)
        before = before or self.plan()
        assert not before.refusals
        move.images(before.images)
        move.pods(before)
        return move.start(self.plan().to_start)

    def killed(self, at: int) -> bool:
        """Whether it is killed at this point; there are so many."""
        self.fate.at, self.fate.count = at, 0
        try:
            self.migrate()
        except KilledError:
            return True
        finally:
            self.fate.at = 0
        return False

    def check_safe(self) -> None:
        """Nothing is lost, and nobody sees a pod twice."""
        assert list(self.old.there) == [pod.name for pod in PODS]
        for pod in PODS:
            kept = self.old.there[pod.name]
            assert self.old.files[pod.name] == pod.name
            assert kept.snapshots == pod.snapshots
            copy = self.new.there.get(pod.name)
            owned = [item for item in (kept, copy) if item and OWNER in item.config]
            assert len(owned) <= 1
            if copy is not None and KEY not in copy.config:
                assert (copy.snapshots, self.new.files[pod.name]) == (pod.snapshots, pod.name)
                assert kept.status == "stopped"
                assert kept.config[AUTOSTART] == "false"

    def check_moved(self) -> None:
        """All is in the new engine, as it was."""
        self.check_safe()
        assert list(self.new.there) == [pod.name for pod in PODS]
        for pod in PODS:
            copy = self.new.there[pod.name]
            assert (copy.config, copy.devices) == (pod.config, pod.devices)
            assert (copy.status == "running") == (pod.status != "stopped")
        assert self.new.stored == {IMAGE.fingerprint: IMAGE}
        after = self.plan()
        assert not (after.to_copy or after.to_start or after.images or after.refusals)


def test_pods_are_moved_with_all_that_they_have() -> None:
    two = Two()
    assert two.migrate() == []
    two.check_moved()
    assert two.new.starts == ["running", "frozen", "boots"]


def test_killed_anywhere_it_goes_on() -> None:
    points = 0
    while True:
        two = Two()
        if not two.killed(points + 1):
            break
        points += 1
        two.check_safe()
        two.migrate()
        two.check_moved()
    assert points > 50, "else it was no test"


@pytest.mark.parametrize("seed", range(20))
def test_killed_again_and_again_it_comes_to_its_end(seed: int) -> None:
    dice = random.Random(seed)
    two = Two()
    while two.killed(dice.randrange(4, 40)):
        two.check_safe()
    two.check_moved()


def test_a_pod_that_somebody_has_started_meanwhile_is_stopped_again() -> None:
    two = Two()
    assert two.killed(12)
    for name, item in two.old.there.items():
        if KEY in item.config and name not in two.new.there:
            two.old.there[name] = replace(item, status="running")
    two.migrate()
    assert not two.plan().to_copy


def test_a_pod_that_was_started_after_the_plan_is_stopped_and_started_again() -> None:
    two = Two()
    before = two.plan()
    two.old.there["stopped"] = replace(two.old.there["stopped"], status="running")
    assert two.migrate(before) == []
    two.check_safe()
    assert two.new.starts == ["stopped", "running", "frozen", "boots"]


def test_a_pod_that_does_not_stay_stopped_is_not_copied() -> None:
    two = Two()
    two.old.stop = lambda name: None  # type: ignore[method-assign]
    with pytest.raises(SetupError, match="running is not stopped"):
        two.migrate()
    assert list(two.new.there) == ["stopped"]


def test_a_pod_that_is_started_while_it_is_copied_is_not_of_use() -> None:
    two = Two()
    fetch = two.new.fetch

    def slow(name: str, like: Original, offer: Offer) -> None:
        fetch(name, like, offer)
        two.old.there[name] = replace(two.old.there[name], status="running")

    two.new.fetch = slow  # type: ignore[method-assign]
    with pytest.raises(SetupError, match="stopped is not stopped"):
        two.migrate()
    assert KEY in two.new.there["stopped"].config
    two.new.fetch = fetch  # type: ignore[method-assign]
    two.migrate()
    two.check_moved()


def test_what_runs_in_the_old_engine_is_not_started_in_the_new_one() -> None:
    two = Two()
    two.new.refuses = {"running"}
    two.migrate()
    two.new.refuses = set()
    two.old.there["running"] = replace(two.old.there["running"], status="running")
    (sentence,) = two.migrate()
    assert "running is not stopped" in sentence
    assert two.new.there["running"].status == "stopped"


def test_before_each_pod_it_asks_whether_podyd_runs() -> None:
    two = Two()
    fetch = two.new.fetch

    def meanwhile(name: str, like: Original, offer: Offer) -> None:
        fetch(name, like, offer)
        two.is_podyd_running = True

    two.new.fetch = meanwhile  # type: ignore[method-assign]
    with pytest.raises(SetupError, match="podyd is running"):
        two.migrate()
    assert [name for name, item in two.old.there.items() if KEY in item.config] == ["stopped"]


def test_a_copy_that_differs_is_made_anew() -> None:
    two = Two()
    fetch = two.new.fetch

    def lossy(name: str, like: Original, offer: Offer) -> None:
        fetch(name, like, offer)
        two.new.there[name] = replace(two.new.there[name], snapshots=())

    two.new.fetch = lossy  # type: ignore[method-assign]
    with pytest.raises(SetupError, match="The copy of running differs from it: its snapshots"):
        two.migrate()
    two.check_safe()
    two.new.fetch = fetch  # type: ignore[method-assign]
    two.migrate()
    two.check_moved()


def test_what_does_not_start_is_told_and_tried_again() -> None:
    two = Two()
    two.new.refuses = {"running"}
    assert two.migrate() == ["running does not start."]
    assert [pod.name for pod in two.plan().to_start] == ["running"]
    two.new.refuses = set()
    assert two.migrate() == []
    two.check_moved()


def test_in_the_end_the_originals_go() -> None:
    two = Two()
    two.migrate()
    remove_originals(two.old, two.plan().pods, lambda text: None)
    assert two.old.there == {}
    assert len(two.new.there) == len(PODS)


def test_an_original_whose_copy_is_not_known_to_be_whole_stays() -> None:
    two = Two()
    two.killed(25)
    moved = [pod.name for pod in two.plan().pods if pod.copied and pod.is_moved]
    assert 0 < len(moved) < len(PODS)
    remove_originals(two.old, two.plan().pods, lambda text: None)
    assert set(two.old.there) == {pod.name for pod in PODS}.difference(moved)


@pytest.mark.parametrize("at", [0, 10, 20, 30, 40, 50])
def test_one_can_go_back_also_when_that_is_killed(at: int) -> None:
    for point in range(1, 60):
        two = Two()
        if not two.killed(at):
            two.fate.at = 0
        two.fate.at, two.fate.count = point, 0
        try:
            go_back(two.old, two.new, lambda text: None)
        except KilledError:
            two.fate.at = 0
            go_back(two.old, two.new, lambda text: None)
        two.fate.at = 0
        assert two.new.there == {}
        for pod in PODS:
            item = two.old.there[pod.name]
            assert item.config == pod.config
            assert (item.status == "stopped") == (pod.status == "stopped")


def test_one_can_go_back_though_a_pod_does_not_start() -> None:
    two = Two()
    two.migrate()
    two.old.refuses = {"running"}
    assert go_back(two.old, two.new, lambda text: None) == ["running does not start."]
    assert (two.old.is_idle, two.new.is_idle) == (True, True)
    assert two.new.there == {}
    assert {name: item.config for name, item in two.old.there.items()} == {
        pod.name: pod.config for pod in PODS
    }
    assert two.old.starts == ["frozen", "boots"]


# --- The plan -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"is_container": False}, "p is a virtual machine"),
        ({"is_ephemeral": True}, "p is ephemeral"),
        ({"status": "error"}, "p is in an error state"),
        ({"config": {}}, "p is being created"),
        (
            {"expanded_devices": {"d": {"type": "disk", "pool": "x", "path": "/d", "source": "v"}}},
            "p has the storage volume v as d",
        ),
        (
            {
                "snapshots": ("a", "b"),
                "snapshot_configs": {"a": {"limits.cpu": "1"}, "b": {"security.devlxd": "false"}},
            },
            "p's snapshot b has the key security.devlxd, and Incus takes it in no snapshot: delete"
            " the snapshot ('lxc delete p/b --project podyd')",
        ),
        ({"config": {KEY: "{}", "volatile.uuid": "u"}}, "is not one of podyd's"),
        ({"config": {KEY: "no", "volatile.uuid": "u"}}, "is not one of podyd's"),
    ],
)
def test_what_cannot_be_moved_is_told_before_anything_is(
    changes: Mapping[str, object], sentence: str
) -> None:
    (refusal,) = Two(original("p", **changes)).plan().refusals
    assert sentence in refusal


def test_a_name_that_the_new_engine_has_is_told() -> None:
    two = Two()
    two.new.have(original("running", config={"volatile.uuid": "another"}))
    (refusal,) = two.plan().refusals
    assert "Incus has another instance of the name running" in refusal


def test_a_copy_that_is_gone_is_not_taken_for_one_that_never_was() -> None:
    two = Two()
    two.migrate()
    del two.new.there["running"]
    (refusal,) = two.plan().refusals
    assert "running has been moved to Incus, which has it no more" in refusal
    assert "podyd migrate --back" in refusal


def limited(key: str, value: str, **rest: Any) -> Project:
    """The new engine's project with a limit, which it has taken from the old one's or has aside."""
    limit = Limit(key, value, rest.pop("held", key), rest.pop("command", "incus"))
    return Project("podyd", [limit], pools=["pool2", "slow"], pool="pool2", **rest)


@pytest.mark.parametrize("key", ["limits.containers", "limits.instances"])
def test_more_pods_than_the_new_project_may_have_are_told(key: str) -> None:
    two = Two()
    two.new.have(original("other"), original("machine", is_container=False))
    count = len(PODS) + (1 if key == "limits.containers" else 2)
    assert two.plan(project=limited(key, str(count))).refusals == []
    for held, command in ((key, "lxc"), (f"user.podyd.migration.{key}", "incus")):
        project = limited(key, str(count - 1), held=held, command=command)
        (refusal,) = two.plan(project=project).refusals
        assert refusal == (
            f"Project podyd in Incus may have {count - 1} {key[7:]}, and would have {count}: raise"
            f" that first ('{command} project set podyd {held}={count}'), or delete some."
        )
    two.migrate()
    # Nothing is to be copied, so nothing is in the way.
    assert two.plan(project=limited(key, "1")).refusals == []


BASE = Profile(
    "base",
    config={"limits.cpu": "1", "limits.processes": "200", "limits.memory": "1GiB"},
    devices={"root": {**ROOT["root"], "pool": "pool2", "size": "10GiB"}},
)
LARGE = Profile("large", config={"limits.memory": "2GiB"})
VOLUME = Volume("data", "pool2", "15GiB")


def together(key: str, value: str, *volumes: Volume, **of_one: str) -> Plan:
    """A pod that the new project has, one that is to come, with these settings, and one of which
    it has a part."""
    of_part = {KEY: str(new_mark({}, runs=False).keys()[KEY]), "limits.memory": "3GiB"}
    part = original("part", profiles=("base",), config={"volatile.uuid": "p"} | of_part)
    root = {"root": {**ROOT["root"], "size": "25GiB"}}
    coming = original("coming", profiles=("base",), config=of_one, devices=root)
    two = Two(replace(coming, config={"volatile.uuid": "c", **of_one}), part)
    two.new.have(original("there", profiles=("base", "large"), config={"limits.cpu": "4"}), part)
    profiles = {profile.name: profile for profile in (BASE, LARGE)}
    return two.plan(project=limited(key, value, profiles=profiles, volumes=volumes))


@pytest.mark.parametrize(
    ("key", "enough", "too_low", "needed"),
    [
        ("limits.cpu", "6", "5", "6"),
        ("limits.processes", "600", "599", "600"),
        ("limits.memory", "6GiB", "6291455KiB", "6GiB"),
        ("limits.memory", "6442450944", "6GB", "6GiB"),
        ("limits.disk", "60GiB", "60GB", "60GiB"),
        ("limits.disk.pool.pool2", "60GiB", "59GiB", "60GiB"),
    ],
)
def test_more_than_pods_may_have_in_all_is_told(
    key: str, enough: str, too_low: str, needed: str
) -> None:
    assert together(key, enough, VOLUME).refusals == []
    (refusal,) = together(key, too_low, VOLUME).refusals
    assert refusal == (
        f"Project podyd in Incus may have {too_low} by {key}, and its pods would have {needed}"
        f" together: raise that first ('incus project set podyd {key}={needed}'), or lower theirs."
    )


def test_of_one_pool_what_is_there_counts() -> None:
    elsewhere = Volume("far", "slow", "99GiB")
    assert together("limits.disk.pool.pool2", "60GiB", VOLUME, elsewhere).refusals == []
    assert "159GiB" in together("limits.disk", "60GiB", VOLUME, elsewhere).refusals[0]
    (refusal,) = together("limits.disk.pool.other", "60GiB").refusals
    assert "Incus has no storage pool other" in refusal
    assert "'incus project unset podyd limits.disk.pool.other'" in refusal


@pytest.mark.parametrize(
    ("key", "value"), [("limits.cpu", "0-3"), ("limits.cpu", "0,2"), ("limits.memory", "50%")]
)
def test_what_is_no_number_cannot_be_counted(key: str, value: str) -> None:
    (refusal,) = together(key, "999", **{key: value}).refusals
    assert f"counts a plain {'number' if key == 'limits.cpu' else 'size'} of each pod" in refusal
    assert "these have none: coming. Give each one" in refusal
    assert f"'incus project unset podyd {key}'" in refusal


def test_pods_and_volumes_without_what_is_counted_are_told() -> None:
    two = Two()
    (refusal,) = two.plan(project=limited("limits.memory", "1TiB")).refusals
    assert f"these have none: {listed(pod.name for pod in PODS)}." in refusal
    (refusal,) = together("limits.disk", "1TiB", Volume("data", "pool2", "")).refusals
    assert "each pod's root disk, and these have none: volume data." in refusal


@pytest.mark.parametrize("key", ["limits.instances", "limits.memory"])
def test_a_limit_that_is_aside_and_no_number_is_told(key: str) -> None:
    """Only the engine's own keys are looked at when they are set."""
    (refusal,) = together(key, "NUMBER").refusals
    assert "may have NUMBER" in refusal


APART = Room(pool_bytes=20 * GIB, disk_bytes=5 * GIB, together=False)
TOGETHER = replace(APART, together=True)


def test_too_little_room_is_told() -> None:
    assert Two().plan(APART).refusals == []
    # Five pods of 1 GiB, one with two snapshots.
    for room in (TOGETHER, replace(APART, pool_bytes=5 * GIB)):
        (refusal,) = Two().plan(room).refusals
        assert "pool has 5.0 GiB free, and the copies need up to 7.0 GiB" in refusal
    # They fit, and the image does not beside them.
    (refusal,) = Two().plan(replace(TOGETHER, disk_bytes=8 * GIB)).refusals
    assert "images has 8.0 GiB free, and images and copies need 8.0 GiB" in refusal
    (refusal,) = Two().plan(replace(APART, disk_bytes=GIB // 2)).refusals
    assert "images has 512 MiB free, and images need 1.0 GiB" in refusal


def test_it_says_what_will_happen() -> None:
    lines = list(Two().plan(APART).lines("LXD", "Incus"))
    assert "  running: stopped, copied and started (1.0 GiB, 2 snapshots)" in lines
    assert "  stopped: copied (1.0 GiB)" in lines
    assert "  image debian12, cuda: copied" in lines
    (summary,) = [line for line in lines if "are to be copied" in line]
    assert summary.startswith("5 of 5 pods are to be copied, 3 to be started again; Incus needs at")
    assert "most 7.0 GiB of 20.0 GiB that are free and 1.0 GiB for images" in summary
    assert "it takes about 2 minutes" in summary


def test_an_image_that_is_there_needs_no_room() -> None:
    two = Two()
    two.new.stored = {IMAGE.fingerprint: replace(IMAGE, aliases=("cuda",))}
    plan = two.plan(replace(APART, disk_bytes=0))
    assert plan.refusals == []
    text = "\n".join(plan.lines("LXD", "Incus"))
    assert "  image debian12, cuda: named" in text
    assert "for images" not in text


def test_where_a_pool_says_nothing_of_its_pods_there_is_no_bound() -> None:
    made_of = {"volatile.uuid": "u", "volatile.base_image": IMAGE.fingerprint}
    two = Two(original("p"), original("in a directory", used_bytes=0, config=made_of))
    lines = "\n".join(two.plan(APART).lines("LXD", "Incus"))
    assert "in a directory: copied (size unknown)" in lines
    # Its image is the least that it has.
    assert "Incus needs more than 2.0 GiB of 20.0 GiB" in lines


def test_where_pods_share_an_image_their_copies_do_not() -> None:
    made_of = {"volatile.uuid": "u", "volatile.base_image": IMAGE.fingerprint}
    two = Two(*(original(name, config=made_of, snapshots=("a",)) for name in "pq"))
    whole = two.plan(APART, Stock(used_bytes=3 * GIB))
    assert "needs at most 3.0 GiB of" in "\n".join(whole.lines("LXD", "Incus"))
    thin = two.plan(APART, Stock(used_bytes=3 * GIB, shares=True))
    assert "needs more than 5.0 GiB of" in "\n".join(thin.lines("LXD", "Incus"))
    (refusal,) = two.plan(replace(APART, pool_bytes=GIB), thin.stock).refusals
    assert "the copies need more than 5.0 GiB" in refusal


def test_what_is_half_made_stays() -> None:
    half = original("half", has_run=False, config={"volatile.uuid": "u", MADE_AS: "half"})
    assert Two(original("podyd-commit-1"), half).plan().pods == []
    # As one that podyd was killed over just when it had started it.
    two = Two(replace(half, has_run=True))
    two.migrate()
    assert two.new.there["half"].config == {"volatile.uuid": "u"}


def test_images_are_those_that_members_may_use() -> None:
    two = Two()
    of = {
        "admins": MovedImage("a", ("a",), {}, 1),
        "members": MovedImage("b", (), {PROJECT: "podyd"}, 1),
        "of another podyd": MovedImage("c", ("c",), {PROJECT: "other"}, 1),
        "not offered": MovedImage("d", ("secret",), {}, 1),
        "without a name": MovedImage("e", (), {}, 1),
    }
    two.old.stored = {image.fingerprint: image for image in of.values()}
    assert two.plan().images == [of["admins"], of["members"]]


def test_a_name_that_another_image_has_stays_so() -> None:
    two = Two()
    two.new.stored = {"x": MovedImage("x", ("cuda",), {}, 1)}
    assert two.plan().notes == ["The name cuda is another image's in Incus, and stays so."]
    two.migrate()
    assert two.new.stored[IMAGE.fingerprint].aliases == ("debian12",)


def test_profiles_that_differ_are_told() -> None:
    of_lxd = [
        Profile("podyd-base", "", {"limits.cpu": "9", "security.devlxd": "false"}),
        Profile("podyd-gpu", "words alone", {"nvidia.runtime": "true"}),
        Profile("labs"),
    ]
    wanted = [*map(TRANSLATION.profile, of_lxd)]
    there = [
        Profile("podyd-base", "", {"limits.cpu": "2"}),
        Profile("podyd-gpu", "", {"nvidia.runtime": "true"}),
        Profile("of Incus alone"),
    ]
    (note,) = profile_notes(wanted, there, names=("LXD", "Incus"), stay=False)
    assert note == "Profile podyd-base is another one in Incus, and becomes as LXD has it."
    (note,) = profile_notes(wanted, there, names=("LXD", "Incus"), stay=True)
    assert note == (
        "Profile podyd-base is another one in Incus, and stays so, as Incus has pods already: what"
        " LXD's has besides, edit into it."
    )
    assert not [*profile_notes(wanted, wanted, names=("LXD", "Incus"), stay=True)]


# --- Words --------------------------------------------------------------------------------------


def test_what_names_the_old_engines_things_names_the_new_ones() -> None:
    devices: Devices = {
        "root": {"type": "disk", "path": "/", "pool": "default", "size": "1GiB"},
        "eth0": {"type": "nic", "nictype": "bridged", "parent": "lxdbr0"},
        "eth1": {"type": "nic", "nictype": "bridged", "parent": "br-lab"},
        "home": {"type": "disk", "path": "/workspace", "source": "/data/alice"},
    }
    config = {"security.devlxd": "false", "security.devlxd.images": "true", "limits.cpu": "1"}
    profile = TRANSLATION.profile(Profile("p", "", config, devices))
    assert profile.config == {
        "security.guestapi": "false",
        "security.guestapi.images": "true",
        "limits.cpu": "1",
    }
    assert profile.devices == {
        **devices,
        "root": {**devices["root"], "pool": "pool2"},
        "eth0": {**devices["eth0"], "parent": "incusbr0"},
    }
    moved = TRANSLATION.original(original("p", config=config, devices=devices))
    assert (moved.config, moved.devices) == (profile.config, profile.devices)


BY_CDI = {"type": "gpu", "gputype": "physical", "id": "nvidia.com/gpu=all"}
DRIVER = {"nvidia.runtime": "true", "nvidia.driver.capabilities": "all"}


def test_cards_by_cdi_ids_are_given_by_address() -> None:
    """As podyd gives them to an LXD without nvidia.runtime (podyd/engine/gpu_devices.py)."""
    gpu = Profile("podyd-gpu", "", {}, {"gpus": BY_CDI})
    to = with_cards(TRANSLATION, [gpu, Profile("podyd-base")], CARDS)
    moved = to.profile(gpu)
    assert moved.config == DRIVER
    assert moved.devices == {"gpus": {"type": "gpu", "gputype": "physical"}}
    leased = {"gpus": {"type": "none"}, "card": {**BY_CDI, "id": "nvidia.com/gpu=GPU-b"}}
    one = {"type": "gpu", "gputype": "physical", "pci": "0000:4a:00.0"}
    config = {"limits.cpu": "2"}
    # Its profile brings the driver; and where none does, its device did.
    for profiles, more in ((("podyd-base", "podyd-gpu"), {}), (("podyd-base",), DRIVER)):
        pod = to.original(original("p", config=config, devices=leased, profiles=profiles))
        assert pod.devices == {"gpus": {"type": "none"}, "card": one}
        assert pod.config == config | more


def test_a_card_that_nobody_knows_is_told_with_the_pod() -> None:
    to = with_cards(TRANSLATION, [], CARDS)
    unknown = {"card": {**BY_CDI, "id": "nvidia.com/gpu=GPU-x"}}
    with pytest.raises(SetupError, match="p's device card: No address is known"):
        to.original(original("p", devices=unknown))
    with pytest.raises(SetupError, match="Profile labs's device card: No address"):
        to.profile(Profile("labs", "", {}, unknown))


def test_cdi_ids_stay_where_the_new_engine_wants_them() -> None:
    moved = TRANSLATION.original(original("p", devices={"card": BY_CDI}))
    assert moved.devices == {"card": BY_CDI}
    assert "nvidia.runtime" not in moved.config


def test_a_mark_brings_back_what_it_hides() -> None:
    for config in ({OWNER: "alice"}, {AUTOSTART: "true"}):
        mark = new_mark(config, runs=True)
        marked = {**config, **mark.keys()}
        assert marked[OWNER] is None
        assert marked[AUTOSTART] == "false"
        text = {key: value for key, value in marked.items() if value is not None}
        assert mark_of("p", text) == mark
        merged = {**text, **mark.undone()}
        assert {key: value for key, value in merged.items() if value is not None} == config
