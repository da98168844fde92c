"""Has the kernel refuse cards to pods: in the `devices` hierarchy of cgroup v1 where it is mounted,
else by a BPF program at the pod's cgroup of v2."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from podyd.node import bpf
from podyd.node.card_access import Enforcement
from podyd.node.card_rules import Kept, Numbers, Table, card_numbers, lines, permitted, program
from podyd.node.inotify import Inotify
from podyd.node.payloads import Hierarchy, Payload, below, hierarchies, is_place, payload_at, places

# In this order; a test has others.
WAYS = "cgroup1 bpf"
PROGRAM_NAME = "podyd_cards"
# Of a pod's own cgroups, in which something is allowed again.
MAX_BELOW = 10_000


class Way(Protocol):
    """How devices are refused to the processes of a cgroup, and of all below it."""

    name: str

    def check(self) -> None:
        """Raises OSError if the kernel does not know this way, or refuses it."""

    def refuse(self, payload: Payload, refused: Numbers, cards: Numbers) -> None:
        """Refuse these of all `cards`, and no others. Raises OSError."""


class Cgroup1:
    """Writes only changes, since the kernel does not list what is refused."""

    name = "cgroup1"

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._root = hierarchy.root
        self._refused: dict[int, Numbers] = {}

    def check(self) -> None:
        with (self._root / "devices.deny").open("wb"):
            pass

    def refuse(self, payload: Payload, refused: Numbers, cards: Numbers) -> None:
        before = self._refused.get(payload.inode)
        more = refused if before is None else refused - before
        fewer = (cards if before is None else before) - refused
        _write(payload.path / "devices.deny", lines(more))
        # The kernel passes a refusal on to the cgroups below, but not a permission.
        for path in _with_all_below(payload.path) if fewer else ():
            with contextlib.suppress(FileNotFoundError):  # One of the pod's own, just removed.
                # An instance with a list of permitted devices must not get more than these.
                if (path / "devices.list").read_bytes().startswith(b"a "):
                    _write(path / "devices.allow", lines(fewer))
        self._refused[payload.inode] = refused


def _write(path: Path, wanted: Sequence[bytes]) -> None:
    if not wanted:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for line in wanted:
            os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _with_all_below(top: Path) -> Iterator[Path]:
    left = deque([top])
    for _ in range(MAX_BELOW):
        if not left:
            return
        path = left.popleft()
        yield path
        left.extend(below(path)[: MAX_BELOW - len(left)])


class Bpf:
    """A program at each cgroup. The kernel runs all programs of a cgroup, and the new one is
    attached before the old one is detached."""

    name = "bpf"

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._root = hierarchy.root

    def check(self) -> None:
        with bpf.loaded(program(frozenset()), PROGRAM_NAME), _directory(self._root) as cgroup:
            bpf.attached(cgroup)

    def refuse(self, payload: Payload, refused: Numbers, cards: Numbers) -> None:
        with contextlib.ExitStack() as held:
            wanted = held.enter_context(bpf.loaded(program(refused), PROGRAM_NAME))
            _, tag = bpf.name_and_tag(wanted)
            cgroup = held.enter_context(_directory(payload.path))
            others, is_there = [], False
            for identity in bpf.attached(cgroup):
                try:
                    old = held.enter_context(bpf.opened(identity))
                except FileNotFoundError:  # Its owner, such as liblxc, has just replaced it.
                    continue
                name, old_tag = bpf.name_and_tag(old)
                if name != PROGRAM_NAME:
                    continue
                if old_tag == tag and not is_there:
                    is_there = True
                else:
                    others.append(old)
            if not is_there:
                bpf.attach(cgroup, wanted)
            for old in others:
                bpf.detach(cgroup, old)


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


_KINDS: dict[str, tuple[str, Callable[[Hierarchy], Way]]] = {
    Cgroup1.name: ("devices", Cgroup1),
    Bpf.name: ("", Bpf),
}


class Enforcer:
    """Refuses to the pods of one project the cards that the table does not permit them: at once to
    those that run, and to others when their cgroup is made, which is before their first process.

    Nothing is refused before the first table. `kept` is what an earlier helper has stored.
    """

    def __init__(self, project: str, kept: Kept) -> None:
        self._project = project
        self._table = kept.table
        self._cards: Numbers = frozenset()
        self._way: Way | None = None
        self._problem = ""
        self._has_failed = False
        self._payloads: dict[Path, Payload] = {}
        self._had = dict(kept.had)
        mounted = hierarchies(Path("/proc/self/mountinfo").read_text())
        self.hierarchy = next(iter(mounted.values()), None)
        self._choose(mounted)
        self.inotify = Inotify()
        self._look_for_payloads()
        # They may have started without a helper, and have opened any card.
        for payload in self._payloads.values():
            self._had.setdefault(payload.inode, None)

    def _choose(self, mounted: dict[str, Hierarchy]) -> None:
        problems = ["no cgroup hierarchy for devices is mounted"] if not mounted else []
        for name in WAYS.split():
            controller, kind = _KINDS[name]
            if controller not in mounted:
                continue
            way = kind(mounted[controller])
            try:
                way.check()
            except OSError as error:
                problems.append(f"{name}: {error.strerror}")
            else:
                self._way, self.hierarchy = way, mounted[controller]
                return
        self._problem = "; ".join(problems)

    @property
    def cards(self) -> Numbers:
        return self._cards

    @property
    def payloads(self) -> dict[Path, Payload]:
        """The pods' cgroups by their directories."""
        return self._payloads

    def withdrawn(self, payload: Payload) -> Numbers:
        """The cards that a pod's processes may have opened before and may not open now."""
        if self._table is None:
            return frozenset()
        had = self._had.get(payload.inode)
        return (self._cards if had is None else had) - permitted(self._table, payload.cgroup)

    @property
    def kept(self) -> Kept:
        """What the next helper needs to know."""
        return Kept(self._table, self._had, self._project)

    def had_none(self, payload: Payload) -> bool:
        """Whether a pod's processes could never open a card."""
        return self._table is not None and self._had.get(payload.inode) == frozenset()

    def permit(self, table: Table) -> Enforcement:
        """Enforce another table."""
        self._table = table
        return self.enforce()

    def enforce(self) -> Enforcement:
        """Look for all pods and cards; refuse to each pod the cards that it may not open."""
        self._look_for_payloads()
        self._cards = card_numbers()
        self._has_failed = False
        problems = dict.fromkeys(map(self._apply, self._payloads.values()))
        problem = self._problem or "; ".join(filter(None, problems))
        return Enforcement(self._way.name if self._way and not problem else "", problem)

    def look_again(self) -> Enforcement | None:
        """The same, if there are other cards, such as after the driver was loaded, or a pod that
        inotify has not reported, or if the kernel has returned an error."""
        self._look_for_payloads()
        is_new = any(payload.inode not in self._had for payload in self._payloads.values())
        is_due = is_new or self._has_failed or card_numbers() != self._cards
        return self.enforce() if is_due else None

    def _apply(self, payload: Payload) -> str:
        """The kernel's error; "" if there is none."""
        if self._table is None or self._way is None:
            self._had[payload.inode] = None
            return ""
        allowed = permitted(self._table, payload.cgroup) & self._cards
        had = self._had.setdefault(payload.inode, frozenset())
        self._had[payload.inode] = None if had is None else had | allowed
        try:
            self._way.refuse(payload, self._cards - allowed, self._cards)
        except FileNotFoundError:  # The pod has stopped.
            pass
        except OSError as error:
            self._has_failed = True
            return f"{self._way.name}: {error.strerror}"
        return ""

    def _look_for_payloads(self) -> None:
        self._payloads = self._watched_payloads(self.hierarchy.root) if self.hierarchy else {}
        inodes = {payload.inode for payload in self._payloads.values()}
        self._had = {inode: had for inode, had in self._had.items() if inode in inodes}

    def _watched_payloads(self, top: Path) -> dict[Path, Payload]:
        """The pods' cgroups below `top`; inotify reports those that are made later."""
        payloads: dict[Path, Payload] = {}
        for place in places(top):
            with contextlib.suppress(OSError):  # It is gone, or there are too many to watch.
                self.inotify.watch(place)
            for path in below(place):
                payload = payload_at(path, self._project)
                if payload is not None:
                    payloads[path] = payload
        return payloads

    def heard(self) -> str:
        """Apply the rules to the cgroups that were made since; returns the kernel's errors."""
        made = self.inotify.made()
        if made is None:
            return self.enforce().problem
        payloads: dict[Path, Payload] = {}
        for path in made:
            if self.hierarchy and path.parent != self.hierarchy.root and not is_place(path.parent):
                continue  # Its owner has been changed since.
            payload = payload_at(path, self._project)
            if payload is not None:
                payloads[path] = payload
            elif is_place(path):
                payloads |= self._watched_payloads(path)
        self._payloads |= payloads
        problems = [self._apply(payload) for payload in payloads.values()]
        return "; ".join(dict.fromkeys(filter(None, problems)))
