"""What members have going on in pods: it ends when the login that began it no longer counts."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podyd.base.errors import PodydError
from podyd.base.tasks import came
from podyd.people.login import Login, Logins

log = logging.getLogger(__name__)

# So soon a token that has expired, or an account that an admin has locked, ends what it has going
# on; what login.py remembers of logins comes to that for what is begun afterwards.
CHECK_SECONDS = 30.0

# What an account also seems to be while the directory that it is in (SSSD, LDAP) is away: NSS says
# of all that is there that it does not know it.
_PASSING = frozenset({"unauthorized", "not_a_member"})

End = Callable[[PodydError], None]


@dataclass(frozen=True)
class _Proof:
    """How something was begun: by which login, from where."""

    login: Login
    address: str


class Sessions:
    """Shells, commands and files under way, with what each of them was begun with."""

    def __init__(self, logins: Logins) -> None:
        self._logins = logins
        self._open: defaultdict[_Proof, dict[asyncio.Task[Any], End]] = defaultdict(dict)
        # Whose tokens podyd itself has revoked.
        self._changed: set[str] = set()
        # What ended, as the last look had it, and may yet go on.
        self._doubted: set[_Proof] = set()
        self._poke = asyncio.Event()
        logins.subscribe(self._hear)

    def add(self, task: asyncio.Task[Any], login: Login, address: str, end: End) -> None:
        """Call `end` with the reason once this login no longer counts, until the task is done."""
        proof = _Proof(login, address)
        self._open[proof][task] = end

        def over(_: asyncio.Task[Any]) -> None:
            del self._open[proof][task]
            if not self._open[proof]:
                del self._open[proof]
                self._doubted.discard(proof)

        task.add_done_callback(over)

    def _hear(self, name: str, why: PodydError | None) -> None:
        if why is None:
            self._changed.add(name)
            self._poke.set()
            return
        for proof in [proof for proof in self._open if proof.login.member.name == name]:
            self._end(proof, why)

    async def run(self) -> None:
        """Look now and then, and at once when podyd has revoked a token itself; for good."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            names, self._changed = self._changed, set()
            self._poke.clear()
            # Also where somebody revokes tokens all the time.
            is_due = loop.time() >= due
            if is_due:
                due = loop.time() + CHECK_SECONDS
            found = [p for p in self._open if is_due or p.login.member.name in names]
            looks = [asyncio.ensure_future(self._check(proof)) for proof in found]
            if looks:
                # None takes long: the login service's client has a deadline.
                await asyncio.wait(looks)
            for look in looks:
                look.result()
            await came(self._poke, max(0.0, due - loop.time()))

    async def _check(self, proof: _Proof) -> None:
        why = await self._logins.ended(proof.login, proof.address)
        if why is None:
            self._doubted.discard(proof)
        elif why.code in _PASSING and proof not in self._doubted:
            if proof in self._open:
                self._doubted.add(proof)
        else:
            self._end(proof, why)

    def _end(self, proof: _Proof, why: PodydError) -> None:
        ends = list(self._open.get(proof, {}).values())
        log.info("%s: %d under way in pods end: %s", proof.login.member.name, len(ends), why.code)
        for end in ends:
            end(why)
