"""What is known of instances, while an engine's are changed, and members of a cluster go away."""

from __future__ import annotations

import asyncio

import pytest

from podyd.base.errors import EngineRefused, Missing, Unavailable
from podyd.engine.rest import ANSWER_TIMEOUT
from podyd.engine.view import LOOK_SECONDS, MANY, READ_SECONDS, WAIT_SECONDS
from tests.unit.engine.view_rig import (
    LIST,
    MARK,
    MEMBERS,
    PROJECT,
    THREE,
    Engine,
    Rig,
    heard,
    play,
    row,
    run,
)

# --- One host -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "source", "context", "asked"),
    [
        *(
            (f"instance-{what}", f"{LIST}/b", {}, [f"{LIST}/b"])
            for what in ("created", "started", "shutdown", "ready", "paused", "restored", "hatched")
        ),
        ("instance-renamed", f"{LIST}/c", {"old_name": "b"}, [LIST]),
        ("instance-snapshot-created", f"{LIST}/b/snapshots/s", {}, []),
        ("instance-snapshot-renamed", f"{LIST}/b/snapshots/s", {"old_name": "b/r"}, []),
        ("instance-backup-created", f"{LIST}/b/backups/s", {}, []),
        ("instance-file-pushed", f"{LIST}/b/files", {"path": "/x"}, []),
        ("image-created", "/1.0/images/f", {}, []),
        ("profile-updated", "/1.0/profiles/own", {}, [LIST]),
        ("project-updated", "/1.0/projects/p", {}, [LIST]),
        ("storage-volume-renamed", "/1.0/storage-pools/x/volumes/custom/y", {}, [LIST]),
        ("something-new", "/1.0/somewhere", {}, [LIST]),
    ],
)
def test_what_an_event_is_about_is_read(
    action: str, source: str, context: dict[str, str], asked: list[str]
) -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.tell(action, source, **context)
        await heard()
        assert rig.told == 1
        await rig.view.all()
        await rig.view.all()
        assert sorted(rig.engine.asked) == asked

    play(scene, "a", "b")


@pytest.mark.parametrize("what", ["exec", "console", "file-retrieved", "log-retrieved"])
def test_what_comes_with_each_command_is_nothing(what: str) -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.tell(f"instance-{what}", f"{LIST}/b")
        await heard()
        await rig.view.all()
        assert (rig.told, rig.engine.asked) == (0, [])

    play(scene, "a", "b")


def test_what_changes_comes_and_goes_is_shown() -> None:
    async def scene(rig: Rig) -> None:
        rows = rig.engine.rows
        rig.engine.set("b", 1)
        rows["new"] = row("new", 7)
        rig.engine.tell("instance-created", f"{LIST}/new")
        del rows["a"]
        rig.engine.tell("instance-deleted", f"{LIST}/a")
        await heard()
        assert await rig.marks() == {"b": "1", "c": "0", "new": "7"}
        assert LIST not in rig.engine.asked
        rows["d"] = {**rows.pop("c"), "name": "d"}
        rig.engine.tell("instance-renamed", f"{LIST}/d", old_name="c")
        rows["a"] = row("a", 9)
        rig.engine.tell("instance-created", f"{LIST}/a")
        await heard()
        assert await rig.marks() == {"a": "9", "b": "1", "d": "0", "new": "7"}

    play(scene, "a", "b", "c")


def test_what_is_renamed_is_shown_by_one_name_or_the_other() -> None:
    async def scene(rig: Rig) -> None:
        late = rig.engine.delays[f"{LIST}/a"] = asyncio.Event()
        rig.engine.set("a", 1)
        await heard()
        older = asyncio.ensure_future(rig.marks())
        await heard()
        for path in (LIST, f"{LIST}/c"):
            rig.engine.delays[path] = asyncio.Event()
        rig.engine.rows["c"] = {**rig.engine.rows.pop("b"), "name": "c"}
        rig.engine.tell("instance-renamed", f"{LIST}/c", old_name="b")
        await heard()
        newer = asyncio.ensure_future(rig.marks())
        await heard()
        late.set()
        assert await older == {"a": "1", "b": "0"}
        for delay in rig.engine.delays.values():
            delay.set()
        assert await newer == {"a": "1", "c": "0"}

    play(scene, "a", "b")


def test_whoever_changes_something_sees_it_before_it_is_told() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.rows["b"] = row("b", 1)
        rig.view.changed("b")
        assert rig.told == 1
        assert (await rig.marks())["b"] == "1"

    play(scene, "a", "b")


def test_callers_between_two_changes_share_a_question() -> None:
    async def scene(rig: Rig) -> None:
        for mark in (1, 2):
            rig.engine.rows["b"] = row("b", mark)
            rig.view.changed("b")
            answers = [asyncio.ensure_future(rig.marks()) for _ in range(20)]
            assert {(await answer)["b"] for answer in answers} == {str(mark)}
        assert rig.engine.asked == [f"{LIST}/b"] * 2

    play(scene, "a", "b")


@pytest.mark.parametrize("path", [LIST, f"{LIST}/b"])
def test_who_leaves_takes_no_answer_from_others(path: str) -> None:
    async def scene(rig: Rig) -> None:
        late = rig.engine.delays[path] = asyncio.Event()
        if path == LIST:
            rig.view.all_changed()
        else:
            rig.view.changed("b")
        first, second = (asyncio.ensure_future(rig.marks()) for _ in range(2))
        await heard()
        first.cancel()
        await asyncio.wait([first])
        late.set()
        assert await second == {"a": "0", "b": "0"}
        assert rig.engine.asked == [path]

    play(scene, "a", "b")


def test_many_are_read_at_once() -> None:
    names = [f"n{number}" for number in range(3 * MANY)]

    async def scene(rig: Rig) -> None:
        for count, asked in ((MANY, MANY), (MANY + 1, 1)):
            rig.clear()
            for name in names[:count]:
                rig.engine.set(name, count)
            await heard()
            shown = await rig.marks()
            assert len(rig.engine.asked) == asked
            assert {shown[name] for name in names[:count]} == {str(count)}

    play(scene, *names)


def test_without_events_nothing_is_kept() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.streams[-1].put_nowait(None)
        await heard()
        assert rig.told == 1
        for mark in (1, 2):
            rig.engine.rows["b"] = row("b", mark)
            assert (await rig.marks())["b"] == str(mark)
        assert rig.engine.asked == [LIST] * 2
        await asyncio.sleep(1)
        rig.engine.rows["b"] = row("b", 3)
        # As it comes back, all may have changed meanwhile.
        assert len(rig.engine.streams) == 2
        for _ in range(2):
            assert (await rig.marks())["b"] == "3"
        assert rig.engine.asked == [LIST, LIST, "/1.0", LIST]

    play(scene, "a", "b")


def test_an_older_answer_that_comes_later_is_not_taken() -> None:
    async def scene(rig: Rig) -> None:
        late = rig.engine.answering["none"] = asyncio.Event()
        rig.view.all_changed()
        older = asyncio.ensure_future(rig.view.all())
        await heard()
        rig.engine.answering["none"] = asyncio.Event()
        rig.engine.answering["none"].set()
        rig.engine.rows["b"] = row("b", 1)
        rig.view.all_changed()
        assert (await rig.marks())["b"] == "1"
        late.set()
        await older
        assert (await rig.marks())["b"] == "1"
        assert rig.engine.asked == [LIST] * 2

    play(scene, "a", "b")


def test_what_came_after_a_late_answer_stays() -> None:
    async def scene(rig: Rig) -> None:
        late = rig.engine.delays[LIST] = asyncio.Event()
        await asyncio.sleep(READ_SECONDS + 1)
        await rig.view.all()
        await heard()
        rig.engine.rows["new"] = row("new", 1)
        rig.engine.tell("instance-created", f"{LIST}/new")
        del rig.engine.rows["a"]
        rig.engine.tell("instance-deleted", f"{LIST}/a")
        await heard()
        assert await rig.marks() == {"b": "0", "new": "1"}
        late.set()
        await heard()
        assert await rig.marks() == {"b": "0", "new": "1"}
        assert rig.engine.asked.count(LIST) == 1

    play(scene, "a", "b")


def test_an_engine_that_hangs_is_waited_for_and_nothing_old_is_shown() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.pause("none")
        rig.engine.set("b", 1)
        await heard()
        with pytest.raises(Unavailable):
            await rig.view.all()
        rig.view.all_changed()
        with pytest.raises(Unavailable):
            await rig.view.all()
        rig.engine.answering["none"].set()
        assert (await rig.marks())["b"] == "1"

    play(scene, "a", "b")


def test_of_one_host_no_part_is_shown() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.ended.add("none")
        for change in (rig.view.all_changed, lambda: rig.view.changed("b")):
            change()
            with pytest.raises(Unavailable, match="a cannot be read"):
                await rig.view.all()
        rig.engine.ended.clear()
        assert await rig.marks() == {"a": "0", "b": "0"}

    play(scene, "a", "b")


def test_what_podyd_may_not_see_is_not_gone() -> None:
    async def scene(rig: Rig) -> None:
        seen, rig.engine.rows = rig.engine.rows, {}
        rig.engine.refusals[PROJECT] = Missing("Project not found")
        for name in ("a", "b"):
            rig.view.changed(name)
            with pytest.raises(Missing):
                await rig.view.all()
        rig.engine.rows = seen
        assert await rig.marks() == {"a": "0", "b": "0"}

    play(scene, "a", "b")


@pytest.mark.parametrize("refusal", [EngineRefused("It slips."), Missing("Storage pool not found")])
def test_where_one_is_not_shown_by_itself_all_are_read(refusal: EngineRefused) -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.refusals[f"{LIST}/b"] = refusal
        rig.engine.set("b", 1)
        await heard()
        assert (await rig.marks())["b"] == "1"
        rig.engine.refusals[LIST] = EngineRefused("It slips, too.")
        rig.engine.set("b", 2)
        await heard()
        with pytest.raises(EngineRefused, match="too"):
            await rig.view.all()

    play(scene, "a", "b")


def test_what_no_event_tells_is_seen_by_and_by() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.rows["b"] = row("b", 1)
        await asyncio.sleep(READ_SECONDS + 1)
        # Nobody waits for that.
        assert (await rig.marks())["b"] == "0"
        await heard()
        assert (rig.told, rig.engine.asked) == (1, [LIST])
        assert (await rig.marks())["b"] == "1"
        await asyncio.sleep(READ_SECONDS + 1)
        await rig.view.all()
        await heard()
        assert (rig.told, rig.engine.asked) == (1, [LIST] * 2)

    play(scene, "a", "b")


# --- Members of a cluster -------------------------------------------------------------------------


async def timed(rig: Rig) -> tuple[float, dict[str, str]]:
    """How long it took, too."""
    began = asyncio.get_running_loop().time()
    marks = await rig.marks()
    return asyncio.get_running_loop().time() - began, marks


def test_each_is_on_a_member() -> None:
    async def scene(rig: Rig) -> None:
        assert {item.name: item.host for item in await rig.view.all()} == {"a": "gpu1", "b": "gpu2"}

    async def alone(rig: Rig) -> None:
        assert (await rig.one("a")).host == ""

    play(scene, "a", "b", members=THREE)
    play(alone, "a")


def test_a_member_that_hangs_is_not_waited_for() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.pause("gpu3")
        rig.engine.set("c", 1)
        rig.engine.tell("profile-updated", "/1.0/profiles/own")
        await heard()
        rig.clear()
        took, marks = await timed(rig)
        assert took < WAIT_SECONDS + 0.001
        assert marks == {"a": "0", "b": "0", "c": "0"}
        for mark in ("1", "2", "3"):
            # Those of the others are as they are.
            rig.engine.set("a", int(mark))
            await heard()
            took, marks = await timed(rig)
            assert took == 0
            assert marks == {"a": mark, "b": "0", "c": "0"}
            assert sorted(path for path in rig.engine.open if path != MEMBERS) == [
                LIST,
                f"{LIST}/c",
            ]
        assert rig.engine.asked.count(LIST) == 1
        rig.told = 0
        rig.engine.find("gpu3")
        await heard()
        assert rig.told
        rig.clear()
        assert await rig.marks() == {"a": "3", "b": "0", "c": "1"}
        assert rig.engine.asked == []

    play(scene, "a", "b", "c", members=THREE)


def test_of_a_member_that_is_away_all_is_as_last_known() -> None:
    async def scene(rig: Rig) -> None:
        before = await rig.one("c")
        rig.engine.pause("gpu3")
        await asyncio.sleep(ANSWER_TIMEOUT)
        assert (rig.told, await rig.one("c")) == (0, before)
        rig.engine.lose("gpu3")
        await asyncio.sleep(LOOK_SECONDS)
        assert rig.told
        await rig.view.all()
        gone = await rig.one("c")
        assert (gone.config, gone.status, gone.profiles) == ({MARK: "0"}, "running", ("own",))
        assert (gone.is_reachable, gone.host) == (False, "gpu3")
        assert (await rig.one("a")).is_reachable
        # It is counted as away and nothing is asked of it.
        rig.clear()
        await asyncio.sleep(5 * LOOK_SECONDS)
        await rig.view.all()
        assert set(rig.engine.asked) == {MEMBERS}
        rig.engine.rows["c"] = row("c", 5, host="gpu3")
        rig.engine.find("gpu3")
        await asyncio.sleep(LOOK_SECONDS)
        assert (await rig.one("c")).config == {MARK: "5"}
        assert (await rig.one("c")).is_reachable

    play(scene, "a", "b", "c", members=THREE)


def test_of_what_never_was_known_the_name_is() -> None:
    async def work() -> None:
        rig = Rig(Engine("a", members=THREE))
        rig.engine.rows["a"] = row("a", host="gpu3")
        rig.engine.lose("gpu3")
        async with rig.following():
            unknown = await rig.one("a")
            assert (unknown.host, unknown.is_reachable, unknown.status) == ("gpu3", False, "error")
            assert (unknown.config, unknown.devices, unknown.uuid) == ({}, {}, "")
            rig.engine.find("gpu3")
            await asyncio.sleep(2 * LOOK_SECONDS)
            assert (await rig.one("a")).config == {MARK: "0"}

    run(work())


def test_an_engine_that_ends_and_comes_back_at_once_is_asked_again() -> None:
    """Before its cluster counts it as away."""

    async def scene(rig: Rig) -> None:
        rig.engine.ended.add("gpu3")
        rig.engine.set("c", 1)
        await heard()
        gone = await rig.one("c")
        assert (gone.config, gone.is_reachable) == ({MARK: "0"}, False)
        rig.engine.ended.clear()
        await asyncio.sleep(LOOK_SECONDS)
        back = await rig.one("c")
        assert (back.config, back.is_reachable) == ({MARK: "1"}, True)
        rig.clear()
        await asyncio.sleep(3 * LOOK_SECONDS)
        assert set(rig.engine.asked) == {MEMBERS}

    play(scene, "a", "b", "c", members=THREE)


def test_what_is_asked_of_one_that_was_cut_off_is_not_waited_for() -> None:
    """A connection that was cut may take longer to end than its member to come back."""

    async def scene(rig: Rig) -> None:
        stuck = rig.engine.answering["gpu3"]
        stuck.clear()
        rig.engine.tell("profile-updated", "/1.0/profiles/own")
        await heard()
        await rig.view.all()
        rig.engine.members["gpu3"] = "Offline"
        await asyncio.sleep(LOOK_SECONDS)
        rig.engine.answering["gpu3"] = asyncio.Event()
        rig.engine.answering["gpu3"].set()
        rig.engine.rows["c"] = row("c", 1, host="gpu3")
        await rig.view.all()
        assert not (await rig.one("c")).is_reachable
        rig.engine.members["gpu3"] = "Online"
        await asyncio.sleep(LOOK_SECONDS)
        assert not stuck.is_set()
        assert (await rig.one("c")).config == {MARK: "1"}

    play(scene, "a", "b", "c", members=THREE)


def test_whose_a_name_is_now_is_not_guessed() -> None:
    """A request is meant for one instance, and another may have its name by now."""

    async def scene(rig: Rig) -> None:
        rig.engine.pause("gpu3")
        rig.engine.tell("instance-deleted", f"{LIST}/c")
        rig.engine.tell("instance-created", f"{LIST}/c")
        rig.engine.tell("profile-updated", "/1.0/profiles/own")
        await heard()
        for _ in range(2):
            with pytest.raises(Unavailable, match="c cannot be read"):
                await rig.view.one("c")
            there = await rig.view.one("a")
            assert there is not None
            assert there.host == "gpu1"
            assert await rig.view.one("none") is None
        rig.engine.find("gpu3")
        await heard()
        assert await rig.view.one("c") is not None

    async def again(rig: Rig) -> None:
        """What has happened without events is not known."""
        rig.engine.pause("gpu3")
        rig.engine.streams[-1].put_nowait(None)
        for seconds in (0.01, 1, ANSWER_TIMEOUT):
            await asyncio.sleep(seconds)
            with pytest.raises(Unavailable):
                await rig.view.all()

    async def late(rig: Rig) -> None:
        """Nor what has been asked before."""
        stuck = rig.engine.answering["gpu3"] = asyncio.Event()
        rig.engine.streams[-1].put_nowait(None)
        await heard()
        older = asyncio.ensure_future(rig.view.all())
        await asyncio.sleep(2 * WAIT_SECONDS)
        rig.engine.rows["c"] = row("c", 1, host="gpu3")
        rig.engine.answering["gpu3"] = asyncio.Event()
        rig.engine.find("gpu3")
        assert await timed(rig) == (0, {"a": "0", "b": "0", "c": "1"})
        assert not older.done()
        stuck.set()
        await older

    for each in (scene, again, late):
        play(each, "a", "b", "c", members=THREE)


def test_nothing_is_read_after_the_end() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.pause("none")
        rig.view.changed("a")
        asking = asyncio.ensure_future(rig.view.all())
        await heard()
        assert rig.engine.open
        rig.view.close()
        await asyncio.wait([asking])
        assert not rig.engine.open

    play(scene, "a", "b")


def test_who_is_trusted_no_more_is_told_so_by_what_is_asked() -> None:
    async def scene(rig: Rig) -> None:
        rig.engine.is_trusting = False
        rig.engine.refusals[LIST] = EngineRefused("not authorized")
        rig.engine.streams[-1].put_nowait(None)
        await asyncio.sleep(LOOK_SECONDS)
        with pytest.raises(EngineRefused, match="not authorized"):
            await rig.view.all()

    play(scene, "a", "b")


def test_many_that_hang_are_not_asked_for_at_once() -> None:
    names = [f"n{number}" for number in range(3 * MANY)]
    last = names[-MANY:]

    async def scene(rig: Rig) -> None:
        rig.engine.pause("gpu3")
        for name in names:
            rig.engine.set(name, 1)
        await heard()
        for _ in range(3):
            await rig.view.all()
            assert {*rig.engine.open} - {MEMBERS} == {LIST, *(f"{LIST}/{name}" for name in last)}

    play(scene, *names, members=("gpu3",) * len(names))


def test_a_cluster_that_has_not_been_seen_is_waited_for() -> None:
    async def work() -> None:
        rig = Rig(Engine("a", members=THREE))
        rig.engine.rows["a"] = row("a", host="gpu3")
        rig.engine.pause("gpu3")
        asyncio.get_running_loop().call_later(7, rig.engine.find, "gpu3")
        async with rig.following():
            assert asyncio.get_running_loop().time() >= 7
            assert await rig.marks() == {"a": "0"}

    run(work())
