"""The accounts of this host as NSS lists them, which takes long where there are many.

They are listed now and then, and once for all who ask: any member may ask, at any rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from podyd.auth.client import Account
from podyd.base.tasks import seen

# For so long a list is taken for true; but who logs in meanwhile is in it as they are then.
SECONDS = 60.0


class AccountList:
    """What `ask` lists, by name; `clock` gives seconds that never go back."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[list[Account]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._found: Mapping[str, Account] = {}
        self._until = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._came: dict[str, Account] = {}

    async def all(self) -> Mapping[str, Account]:
        """Another object where anything in it is different. Raises what `ask` does."""
        if self._clock() >= self._until:
            if self._asking is None:
                self._came = {}
                self._asking = asyncio.ensure_future(self._list())
                self._asking.add_done_callback(self._listed)
            # Who hangs up takes nothing from the others.
            await asyncio.shield(self._asking)
        return self._found

    async def _list(self) -> None:
        self._found = {account.name: account for account in await self._ask()} | self._came
        self._until = self._clock() + SECONDS

    def _listed(self, done: asyncio.Task[None]) -> None:
        self._asking = None
        seen(done)

    def saw(self, account: Account) -> None:
        """Somebody has logged in: they may be new, or in other groups than the list has them."""
        self._came[account.name] = account
        if self._found.get(account.name) != account:
            self._found = {**self._found, account.name: account}
