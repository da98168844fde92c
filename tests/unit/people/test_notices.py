"""Notices: who reads what, for how long, and what becomes of them while nothing can be written."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from podyd.base.errors import Unavailable
from podyd.config.schema import Quota
from podyd.model.member import Member
from podyd.model.notice import Notice
from podyd.model.pod import ACCOUNT, OWNER, Pod, owner_keys
from podyd.people.notices import MAX_CHARACTERS, MAX_HELD, Notices
from podyd.store.database import SCHEMA, Database
from podyd.store.notices import KEPT_SECONDS, MAX_PER_READER, REPEAT_SECONDS, NoticeStore
from tests.unit.accounting.test_usage import instance

ALICE = Member("alice", False, Quota(), (), 1001, 1001)
ADMIN = replace(ALICE, name="root2", is_admin=True, uid=1000)
OWN = "alice:1001"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


Play = Callable[[Notices, Clock], Coroutine[Any, Any, None]]


def play(path: Path, what: Play) -> None:
    async def whole() -> None:
        database, clock = Database(path, retry=0), Clock()
        try:
            await what(Notices(NoticeStore(database), clock), clock)
        finally:
            await database.close()

    asyncio.run(whole())


async def texts(notices: Notices, member: Member, *, since: float = 0.0) -> list[tuple[str, int]]:
    """What a member reads, with how often it was told."""
    stored = await notices.of(member, since=since, most=1000)
    return [(item.notice.text, item.notice.count) for item in stored]


# --- Who reads what -----------------------------------------------------------------------------


def test_each_reads_their_own_and_admins_the_admins_too(tmp_path: Path) -> None:
    async def use(notices: Notices, clock: Clock) -> None:
        notices.tell(OWN, "yours", pod="alice-main")
        notices.tell("root2:1000", "an admin's own")
        notices.tell(None, "the admins'")
        await notices.flush()
        assert await texts(notices, ALICE) == [("yours", 1)]
        assert await texts(notices, ADMIN) == [("an admin's own", 1), ("the admins'", 1)]
        assert await texts(notices, replace(ADMIN, is_admin=False)) == [("an admin's own", 1)]
        (item,) = await notices.of(ALICE, since=0, most=9)
        assert item.notice == Notice(OWN, "yours", "alice-main", 1, clock.now)

    play(tmp_path / "db", use)


def test_an_account_made_anew_does_not_read_the_old_ones(tmp_path: Path) -> None:
    async def use(notices: Notices, clock: Clock) -> None:
        notices.tell(OWN, "the old one's")
        notices.tell("alice", "of a pod without a uid")
        await notices.flush()
        anew = replace(ALICE, uid=1002)
        assert await texts(notices, anew) == [("of a pod without a uid", 1)]
        await notices.read(ALICE, 2)
        assert (notices.unread(ALICE), notices.unread(anew)) == (0, 1)

    play(tmp_path / "db", use)


@pytest.mark.parametrize(
    ("keys", "account"),
    [
        (owner_keys(ALICE), OWN),
        ({OWNER: "alice"}, "alice"),
        ({OWNER: "bob", ACCOUNT: OWN}, "bob"),
    ],
    ids=str,
)
def test_whose_the_notices_of_a_pod_are(keys: dict[str, str], account: str) -> None:
    plain = instance("alice-main", keys[OWNER])
    pod = Pod(keys[OWNER], "main", replace(plain, config=keys))
    assert pod.account == account
    assert pod.is_of(ALICE) == (account in (OWN, "alice"))


def test_what_is_read_is_not_new(tmp_path: Path) -> None:
    async def use(notices: Notices, clock: Clock) -> None:
        for text in "abc":
            notices.tell(OWN, text)
        notices.tell(None, "for admins")
        assert notices.unread(ALICE) == 0, "not written yet"
        await notices.flush()
        assert (notices.unread(ALICE), notices.unread(ADMIN)) == (3, 1)
        first, second, last = await notices.of(ALICE, since=0, most=9)
        await notices.read(ALICE, second.id)
        await notices.read(ALICE, first.id)
        assert (notices.unread(ALICE), notices.unread(ADMIN)) == (1, 1)
        assert [notices.is_read(ALICE, item.id) for item in (first, second, last)] == [
            True,
            True,
            False,
        ]
        # What is still to come cannot be read.
        await notices.read(ALICE, 10**9)
        assert notices.unread(ALICE) == 0
        notices.tell(OWN, "d")
        await notices.flush()
        assert notices.unread(ALICE) == 1

    play(tmp_path / "db", use)


def test_the_next_podyd_knows_what_is_read(tmp_path: Path) -> None:
    async def tell(notices: Notices, clock: Clock) -> None:
        notices.tell(OWN, "a")
        notices.tell(OWN, "b")
        await notices.flush()
        (first, _) = await notices.of(ALICE, since=0, most=9)
        await notices.read(ALICE, first.id)

    async def look(notices: Notices, clock: Clock) -> None:
        await notices.flush()
        assert notices.unread(ALICE) == 1

    play(tmp_path / "db", tell)
    play(tmp_path / "db", look)


# --- How much, and for how long -----------------------------------------------------------------


def test_the_same_within_a_minute_is_counted(tmp_path: Path) -> None:
    async def use(notices: Notices, clock: Clock) -> None:
        for _ in range(3):
            notices.tell(OWN, "same")
        await notices.flush()
        assert await texts(notices, ALICE) == [("same", 3)]
        await notices.read(ALICE, 1)
        clock.now += REPEAT_SECONDS - 1
        notices.tell(OWN, "other")
        notices.tell(OWN, "same")
        notices.tell(OWN, "same", pod="alice-b")
        notices.tell(None, "same")
        await notices.flush()
        assert await texts(notices, ALICE) == [("other", 1), ("same", 4), ("same", 1)]
        assert notices.unread(ALICE) == 3, "told again, it is new again"
        assert await texts(notices, ADMIN) == [("same", 1)]
        clock.now += REPEAT_SECONDS
        notices.tell(OWN, "same")
        await notices.flush()
        assert (await texts(notices, ALICE))[-1] == ("same", 1)

    play(tmp_path / "db", use)


def test_the_last_of_each_reader_are_kept_for_a_while(tmp_path: Path) -> None:
    async def use(notices: Notices, clock: Clock) -> None:
        notices.tell(None, "rare")
        for number in range(MAX_PER_READER + 5):
            notices.tell(OWN, f"{number}")
        await notices.flush()
        kept = await texts(notices, ALICE)
        assert len(kept) == notices.unread(ALICE) == MAX_PER_READER
        assert kept[-1] == (f"{MAX_PER_READER + 4}", 1)
        assert [(await notices.of(ALICE, since=0, most=2))[-1].notice.text] == [kept[-1][0]]
        assert await texts(notices, ADMIN) == [("rare", 1)]
        clock.now += KEPT_SECONDS - 1
        notices.tell(OWN, "late")
        await notices.flush()
        assert len(await texts(notices, ADMIN)) == 1
        clock.now += 1
        await notices.flush()
        assert await texts(notices, ADMIN) == []
        assert await texts(notices, ALICE) == [("late", 1)]
        assert notices.unread(ALICE) == 1

    play(tmp_path / "db", use)


def test_a_clock_that_is_set_back_hides_nothing_new(tmp_path: Path) -> None:
    async def use(notices: Notices, clock: Clock) -> None:
        notices.tell(OWN, "same")
        await notices.flush()
        await notices.read(ALICE, 1)
        clock.now -= 3600
        notices.tell(OWN, "same")
        await notices.flush()
        assert await texts(notices, ALICE) == [("same", 1), ("same", 1)]
        assert notices.unread(ALICE) == 1
        assert (await notices.of(ALICE, since=0, most=1))[0].notice.time == clock.now
        assert await texts(notices, ALICE, since=clock.now + 1) == [("same", 1)]

    play(tmp_path / "db", use)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("GPU 0\tis\r\n yours ", "GPU 0 is yours"),
        ("\x1b]0;x\x07\x9b2Jproc\u202eexe\0", "]0;x2Jprocexe"),
        ("half \ud800 a pair", "half  a pair"),
        ("日本語 grün 🎉", "日本語 grün 🎉"),
        ("x" * 10**6, "x" * (MAX_CHARACTERS - 1) + "…"),
        ("\0" * 10**6, ""),
    ],
    ids=range(6),
)
def test_text_is_one_line_without_what_steers_a_terminal(
    tmp_path: Path, text: str, kept: str
) -> None:
    async def use(notices: Notices, clock: Clock) -> None:
        notices.tell(OWN, text, pod=text)
        await notices.flush()
        (item,) = await notices.of(ALICE, since=0, most=9)
        assert (item.notice.text, item.notice.pod) == (kept, kept)

    play(tmp_path / "db", use)


# --- When it is written -------------------------------------------------------------------------


async def until_unread(notices: Notices, count: int) -> None:
    for _ in range(1000):
        if notices.unread(ALICE) == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{notices.unread(ALICE)} notices, and not {count}")


def test_what_is_told_is_written_at_once_and_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podyd.people.notices.RETRY_SECONDS", 0.01)

    async def use(notices: Notices, clock: Clock) -> None:
        (tmp_path / "db").mkdir()  # So that it can be no database.
        running = asyncio.ensure_future(notices.run())
        notices.tell(OWN, "a")
        await asyncio.sleep(0.05)
        assert notices.unread(ALICE) == 0
        (tmp_path / "db").rmdir()
        await until_unread(notices, 1)
        notices.tell(OWN, "b")
        await until_unread(notices, 2)
        running.cancel()

    play(tmp_path / "db", use)


# --- What cannot be written ---------------------------------------------------------------------


def test_what_a_full_disk_refuses_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def use() -> None:
        database = Database(tmp_path / "db", retry=0)
        notices = Notices(NoticeStore(database), Clock())
        notices.tell(OWN, "before")
        await notices.flush()
        # The file may not grow, until it is opened again.
        await database.run(lambda connection: connection.execute("PRAGMA max_page_count = 1"))
        for number in range(40):
            notices.tell(OWN, f"{number} {'x' * 400}")
        with pytest.raises(Unavailable):
            await notices.flush()
        notices.tell(OWN, f"0 {'x' * 400}")
        (record,) = [item for item in caplog.records if item.levelno >= logging.WARNING]
        assert "disk is full" in record.message
        await notices.flush()
        kept = await texts(notices, ALICE)
        assert [text.split()[0] for text, _ in kept] == ["before", *map(str, range(1, 40)), "0"]
        assert kept[-1][1] == 2
        await database.close()

    asyncio.run(use())


def test_while_nothing_can_be_written_little_is_held(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "db").mkdir()  # So that it can be no database.

    async def use(notices: Notices, clock: Clock) -> None:
        for number in range(MAX_HELD + 50):
            notices.tell(f"{number}", "x")
            if number == MAX_HELD // 2:
                with pytest.raises(Unavailable):
                    await notices.flush()
        (tmp_path / "db").rmdir()
        await notices.flush()
        unread = [notices.unread(replace(ALICE, name=f"{name}")) for name in range(MAX_HELD + 50)]
        assert unread == [0] * 50 + [1] * MAX_HELD

    play(tmp_path / "db", use)
    assert caplog.text.count("notices are lost") == 1


def test_the_database_of_a_podyd_without_notices(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "db") as before:
        for statement in (statement for step in SCHEMA[:3] for statement in step):
            before.execute(statement)
        before.execute("INSERT INTO cards VALUES ('0000:41:00.0', 'GPU-1')")
        before.execute("PRAGMA user_version = 3")
    before.close()

    async def use(notices: Notices, clock: Clock) -> None:
        notices.tell(OWN, "x")
        await notices.flush()
        assert await texts(notices, ALICE) == [("x", 1)]

    play(tmp_path / "db", use)
    with sqlite3.connect(tmp_path / "db") as after:
        assert after.execute("SELECT uuid FROM cards").fetchall() == [("GPU-1",)]
    after.close()
