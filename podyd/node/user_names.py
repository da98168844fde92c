"""The names of user ids, from NSS, where LDAP may be slow or hang."""

from __future__ import annotations

import asyncio
import pwd
from concurrent.futures import ThreadPoolExecutor

TIMEOUT = 1.0
MAX_KEPT = 10_000


class UserNames:
    """A cache: each id is looked up once, in a separate thread; a restart drops old names."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="usernames")
        self._asked: dict[int, asyncio.Future[str]] = {}

    async def name_of(self, uid: int) -> str:
        """The name of an account; `uid N` if there is none or the lookup takes too long."""
        if uid not in self._asked:
            if len(self._asked) >= MAX_KEPT:
                self._asked.clear()
            loop = asyncio.get_running_loop()
            self._asked[uid] = loop.run_in_executor(self._pool, _name, uid)
        done, _ = await asyncio.wait({self._asked[uid]}, timeout=TIMEOUT)
        return self._asked[uid].result() if done else f"uid {uid}"

    def close(self) -> None:
        """End the threads without waiting: one that hangs in LDAP would delay podyd's end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
