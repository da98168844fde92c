"""The accounts of this host as NSS lists them, which takes long where there are many.

The list is cached, and concurrent callers share one enumeration: any member may ask, at any rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from podyd.auth.client import Account
from podyd.base.tasks import seen

# A list is cached for so long; an account that logs in meanwhile is updated in it.
SECONDS = 60.0


class AccountList:
    """A cache of what `ask` lists, by name; `clock` returns monotonic seconds."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[list[Account]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._accounts: Mapping[str, Account] = {}
        self._until = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._seen: dict[str, Account] = {}

    async def all(self) -> Mapping[str, Account]:
        """The accounts; the same object as long as nothing changes. Raises what `ask` does."""
        if self._clock() >= self._until:
            if self._asking is None:
                self._seen = {}
                self._asking = asyncio.ensure_future(self._list())
                self._asking.add_done_callback(self._listed)
            # A caller that is cancelled must not cancel it for the others.
            await asyncio.shield(self._asking)
        return self._accounts

    async def _list(self) -> None:
        self._accounts = {account.name: account for account in await self._ask()} | self._seen
        self._until = self._clock() + SECONDS

    def _listed(self, done: asyncio.Task[None]) -> None:
        self._asking = None
        seen(done)

    def saw(self, account: Account) -> None:
        """Update an account that has logged in: it may be new, or be in other groups by now."""
        self._seen[account.name] = account
        if self._accounts.get(account.name) != account:
            self._accounts = {**self._accounts, account.name: account}
