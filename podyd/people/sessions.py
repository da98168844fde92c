"""Sessions in pods and pages that stay open, which end when the login that they were started with
is no longer valid."""

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

# Within so long an expired token or a locked account ends its sessions; new sessions may also be
# started while login.py has the login in its cache.
CHECK_SECONDS = 30.0

# Errors that also occur while the account's directory service (SSSD, LDAP) is unreachable, as NSS
# then reports its accounts as unknown: they must be seen twice.
_TRANSIENT = frozenset({"unauthorized", "not_a_member", "not_an_admin"})

End = Callable[[PodydError], None]


@dataclass(frozen=True)
class _Proof:
    """What a session was started with: the login, and the client's address."""

    login: Login
    address: str


class Sessions:
    """Shells, commands and file transfers under way, by the login that each was started with."""

    def __init__(self, logins: Logins) -> None:
        self._logins = logins
        self._open: defaultdict[_Proof, dict[asyncio.Task[Any], End]] = defaultdict(dict)
        # Users of whom podyd has revoked tokens.
        self._changed: set[str] = set()
        # Those with a transient error at the last check.
        self._doubted: set[_Proof] = set()
        self._poke = asyncio.Event()
        logins.subscribe(self._hear)

    def add(self, task: asyncio.Task[Any], login: Login, address: str, end: End) -> None:
        """Call `end` with the reason if this login becomes invalid before the task is done."""
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
        """Check every `CHECK_SECONDS`, and at once when podyd has revoked a token; until
        cancelled."""
        loop = asyncio.get_running_loop()
        next_check = loop.time()
        while True:
            names, self._changed = self._changed, set()
            self._poke.clear()
            # Tokens that are revoked all the time must not defer it.
            is_due = loop.time() >= next_check
            if is_due:
                next_check = loop.time() + CHECK_SECONDS
            proofs = [p for p in self._open if is_due or p.login.member.name in names]
            checks = [asyncio.ensure_future(self._check(proof)) for proof in proofs]
            if checks:
                # None takes long: the login service's client has a deadline.
                await asyncio.wait(checks)
            for check in checks:
                check.result()
            await came(self._poke, max(0.0, next_check - loop.time()))

    async def _check(self, proof: _Proof) -> None:
        why = await self._logins.ended(proof.login, proof.address)
        if why is None:
            self._doubted.discard(proof)
        elif why.code in _TRANSIENT and proof not in self._doubted:
            if proof in self._open:
                self._doubted.add(proof)
        else:
            self._end(proof, why)

    def _end(self, proof: _Proof, why: PodydError) -> None:
        ends = list(self._open.get(proof, {}).values())
        log.info("%s: %d sessions in pods end: %s", proof.login.member.name, len(ends), why.code)
        for end in ends:
            end(why)
