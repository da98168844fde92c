"""The last known PCI address of each GPU."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from podyd.store.database import Database


class CardStore:
    """The table `cards`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known(self) -> Mapping[str, str]:
        """The stored UUIDs by PCI address."""

        def work(connection: sqlite3.Connection) -> dict[str, str]:
            return dict(connection.execute("SELECT pci, uuid FROM cards"))

        return await self._database.run(work)

    async def remember(self, cards: Mapping[str, str]) -> None:
        """Replace the stored UUIDs, by PCI address."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM cards")
            connection.executemany("INSERT INTO cards (pci, uuid) VALUES (?, ?)", cards.items())

        await self._database.run(work)
