"""The database: its thread, its file, and what happens if that cannot be used."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from podyd.base.errors import Unavailable
from podyd.store.database import MAX_WAITING, SCHEMA, Database
from podyd.store.usage import Bucket, UsageStore

BUCKET = Bucket("gpu", 10, 1_000_000, "alice")
Play = Callable[[Database], Coroutine[Any, Any, None]]


def play(path: Path, what: Play) -> None:
    """Use a database at a path and close it."""

    async def whole() -> None:
        database = Database(path, retry=0)
        try:
            await what(database)
        finally:
            await database.close()

    asyncio.run(whole())


async def add_one(database: Database) -> None:
    await UsageStore(database).add({BUCKET: 1.0})


async def total(database: Database) -> float:
    answer = await UsageStore(database).totals("gpu", 0, 2_000_000)
    return answer.get("alice", 0.0)


def test_what_is_written_is_there_the_next_time(tmp_path: Path) -> None:
    async def read(database: Database) -> None:
        assert await total(database) == 2

    for what in (add_one, add_one, read):
        play(tmp_path / "db", what)
    assert (tmp_path / "db").stat().st_mode & 0o777 == 0o600


def test_a_transaction_is_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO usage VALUES ('gpu', 10, 1000010, 'alice', 5)")
        raise KeyError("a mistake")

    async def both(database: Database) -> None:
        await add_one(database)
        with pytest.raises(KeyError):
            await database.run(half)
        assert await total(database) == 1

    play(tmp_path / "db", both)


def test_a_slow_disk_blocks_nobody_else_and_the_line_is_bounded(tmp_path: Path) -> None:
    async def slow(database: Database) -> None:
        go = threading.Event()
        stuck = [asyncio.ensure_future(database.run(lambda _: go.wait(10)))]
        stuck += [asyncio.ensure_future(database.run(bool)) for _ in range(MAX_WAITING - 1)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as caught:
            await database.run(bool)
        assert caught.value.code == "database_busy"
        go.set()
        assert all(await asyncio.gather(*stuck)), "nobody had to wait for the loop"
        assert await database.run(bool)

    play(tmp_path / "db", slow)


def test_what_was_begun_is_done_when_its_caller_is_gone(tmp_path: Path) -> None:
    async def cancelled(database: Database) -> None:
        go = threading.Event()
        first = asyncio.ensure_future(database.run(lambda _: go.wait(10)))
        writing = asyncio.ensure_future(add_one(database))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        writing.cancel()
        go.set()
        assert await first
        assert await total(database) == 1
        assert writing.cancelled()

    play(tmp_path / "db", cancelled)


# --- A file that cannot be used -----------------------------------------------------------------


def nonsense(path: Path) -> None:
    path.write_bytes(b"no database at all\n" * 1000)


def torn(path: Path) -> None:
    """Pages overwritten in the middle, as a failing disk leaves them."""

    async def fill(database: Database) -> None:
        many = {Bucket("gpu", 10, number * 10, "alice"): 1.0 for number in range(20_000)}
        await UsageStore(database).add(many)

    play(path, fill)
    with path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(b"\xff" * 4096 * 20)


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(SCHEMA) + 1}")
    connection.close()


def foreign(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nonsense, "is damaged"),
        (torn, "is damaged"),
        (newer, f"schema {len(SCHEMA) + 1}, this one knows {len(SCHEMA)}"),
        (foreign, "run 'podyd setup'"),
    ],
)
def test_a_bad_file_is_one_sentence_and_is_looked_at_again(
    tmp_path: Path, spoil: Callable[[Path], None], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "db"
    spoil(path)

    async def use(database: Database) -> None:
        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                await add_one(database)
            assert words in caught.value.detail
            assert (caught.value.status, caught.value.code) == (503, "database_failed")
        (record,) = caplog.records
        assert words in record.message
        assert str(path) in record.message
        path.rename(tmp_path / "away")
        await add_one(database)
        assert await total(database) == 1

    with caplog.at_level(logging.INFO):
        play(path, use)
    assert "works again" in caplog.text


def test_without_its_directory_it_says_what_to_type(tmp_path: Path) -> None:
    async def use(database: Database) -> None:
        with pytest.raises(Unavailable, match=r"No such file or directory.*'podyd setup'"):
            await add_one(database)

    play(tmp_path / "nowhere" / "db", use)


def test_a_bad_file_is_not_read_at_each_call(tmp_path: Path) -> None:
    nonsense(tmp_path / "db")

    async def use() -> None:
        database = Database(tmp_path / "db", retry=60)
        with pytest.raises(Unavailable, match="is damaged"):
            await add_one(database)
        (tmp_path / "db").unlink()
        with pytest.raises(Unavailable, match="is damaged"):
            await add_one(database)
        await database.close()

    asyncio.run(use())
