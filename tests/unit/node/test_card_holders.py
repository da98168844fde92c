"""Who has a card open. /dev/null is the card; what takes a pod and a right of root's is in the
integration tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podyd.node import card_holders
from podyd.node.card_access import Holder
from podyd.node.card_holders import Holders, look, members_of, payload_of, started
from podyd.node.card_rules import Numbers
from podyd.node.line_client import MAX_ANSWER_BYTES
from podyd.node.payloads import Hierarchy, Payload, hierarchies

CARD = frozenset({(1, 3)})
ROOT = Path("/cgroups")
V1, V2 = Hierarchy(ROOT, "devices"), Hierarchy(ROOT, "")
Begin = Callable[[str], int]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Makes a process that has closed what it was given, runs this, and waits."""
    processes = []

    def begin(code: str) -> int:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import os, signal, socket, threading\nos.close(0)\n{code}\n"
                "print('ready', flush=True)\nwhile True: signal.pause()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process.pid

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


OPEN = "kept = os.open('/dev/null', os.O_RDWR)"
PASSING = (
    f"{OPEN}\nnear, far = socket.socketpair()\n"
    "socket.send_fds(near, [b'x'], [kept]); os.close(kept)"
)


def test_a_descriptor(begin: Begin) -> None:
    holder, other = begin(OPEN), begin("kept = os.open('/dev/zero', os.O_RDWR)")
    assert look(holder, CARD).open == CARD
    assert look(holder, CARD).started == started(holder)
    assert look(other, CARD).open == frozenset()


def test_a_descriptor_of_a_thread_alone(begin: Begin) -> None:
    pid = begin(
        "import ctypes\nopened = threading.Event()\n"
        "def run():\n"
        f"    ctypes.CDLL(None).unshare(0x400); {OPEN}; opened.set(); threading.Event().wait()\n"
        "threading.Thread(target=run).start(); opened.wait()"
    )
    assert look(pid, CARD).open == CARD


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what is mapped")
def test_a_mapping(begin: Begin) -> None:
    pid = begin(
        "import ctypes\nkept = os.open('/dev/zero', os.O_RDWR)\n"
        "call = ctypes.CDLL(None).mmap; call.restype = ctypes.c_void_p\n"
        "call(None, ctypes.c_size_t(4096), 1, 2, kept, ctypes.c_long(0)); os.close(kept)"
    )
    zero = frozenset({(1, 5)})
    assert (look(pid, zero).open, look(pid, zero).mapped) == (frozenset(), zero)
    assert look(pid, zero, at_mappings=False).mapped == frozenset()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what is mapped")
def test_what_a_process_has_much_of_takes_little_memory_and_hides_nothing(begin: Begin) -> None:
    """A card behind 40 MiB of other mappings, beside as many descriptors as one may have."""
    pid = begin(
        "import ctypes, itertools, mmap, resource, shutil, tempfile\n"
        "limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "call = ctypes.CDLL(None).mmap; call.restype = ctypes.c_void_p\n"
        "call.argtypes = [ctypes.c_size_t, ctypes.c_size_t] + [ctypes.c_int] * 3"
        " + [ctypes.c_long]\n"
        "high = 0x700000000000\n"
        "card = os.open('/dev/zero', os.O_RDWR)\n"
        "call(high + (1 << 30), 4096, 1, 0x12, card, 0); os.close(card)\n"
        "top = tempfile.mkdtemp(); os.chdir(top)\n"
        "for _ in range(15): os.mkdir('d' * 250); os.chdir('d' * 250)\n"
        "file = os.open('f', os.O_RDWR | os.O_CREAT); os.ftruncate(file, 4096)\n"
        "for number in range(11000):\n"
        "    assert call(high + 8192 * number, 4096, 1, 0x12, file, 0) == high + 8192 * number\n"
        "os.chdir('/'); shutil.rmtree(top)\n"
        "for number in range(1000, min(limit, 200000)): os.dup2(file, number)"
    )
    zero = frozenset({(1, 5)})
    tracemalloc.start()
    try:
        assert look(pid, zero).mapped == zero
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024**2
    finally:
        tracemalloc.stop()


def test_a_descriptor_on_its_way_is_looked_for_only_where_it_may_be(begin: Begin) -> None:
    pid = begin(PASSING)
    assert look(pid, CARD).open == frozenset()
    assert look(pid, CARD).hiding == frozenset()
    assert len(look(pid, CARD, may_hide=True).hiding) == 1
    idle = begin("near, far = socket.socketpair()")
    assert look(idle, CARD, may_hide=True).hiding == frozenset()


def test_a_process_that_has_ended() -> None:
    with pytest.raises(OSError):
        look(2**22 + 1, CARD)


# --- All processes of a pod ---------------------------------------------------------------------


class Proc:
    """A /proc in which processes of this machine are in pods."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.payloads: dict[Path, Payload] = {}

    def put(self, pid: int, cgroup: str) -> None:
        directory = self.path / str(pid)
        directory.mkdir()
        for name in ("task", "stat", "status", "map_files"):
            (directory / name).symlink_to(f"/proc/{pid}/{name}")
        (directory / "cgroup").write_text(f"0::/lxc.payload.podyd_{cgroup}/init.scope\n")
        payload = ROOT / f"lxc.payload.podyd_{cgroup}"
        self.payloads[payload] = Payload(payload, len(self.payloads), cgroup)

    def hang(self, pid: int) -> None:
        """Whoever sees that it has the card waits for ever."""
        (self.path / str(pid) / "status").unlink()
        os.mkfifo(self.path / str(pid) / "status")


class Watch:
    """Asks again and again; `lost` are the cgroups that have lost the card."""

    def __init__(
        self, proc: Proc, *lost: str, had: bool = True, lost_numbers: Numbers = CARD
    ) -> None:
        self._proc = proc
        self._lost = lost
        self._lost_numbers = lost_numbers
        self._had = had
        self.holders = Holders(proc.path, patience=0.2, hidden_seconds=0.0)

    def _withdrawn(self, payload: Payload) -> Numbers:
        return self._lost_numbers if payload.cgroup in self._lost else frozenset()

    async def look(self, times: int = 1) -> list[Holder]:
        holders = []
        for _ in range(times):
            holders = await self.holders.holders(
                V2, self._proc.payloads, CARD, self._withdrawn, lambda _: not self._had
            )
        return holders

    async def is_still(self, pid: int, begun: int) -> bool:
        return await self.holders.is_still((pid, begun), V2, frozenset(self._proc.payloads), CARD)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_holders_are_told_with_their_pod(begin: Begin, proc: Proc) -> None:
    one, two = begin(OPEN), begin("")
    proc.put(one, "alice-main")
    proc.put(two, "bob")
    holders = asyncio.run(Watch(proc).look())
    assert holders == [Holder("alice-main", one, started(one), frozenset({"1:3"}))]


def test_a_pod_that_never_had_a_card_is_looked_at_now_and_then(begin: Begin, proc: Proc) -> None:
    pid = begin("signal.signal(signal.SIGUSR1, lambda *_: os.open('/dev/null', 0))")
    proc.put(pid, "alice")

    async def run() -> int:
        watch = Watch(proc, had=False)
        assert not await watch.look()
        os.kill(pid, 10)
        for looks in range(1, 50):
            if await watch.look():
                return looks
            await asyncio.sleep(0.01)
        raise AssertionError("it was not seen")

    assert asyncio.run(run())


def test_what_may_be_hidden_counts_after_some_looks_where_a_card_was_lost(
    begin: Begin, proc: Proc
) -> None:
    lost, kept = begin(PASSING), begin(PASSING)
    proc.put(lost, "lost")
    proc.put(kept, "kept")

    async def run() -> None:
        watch = Watch(proc, "lost")
        assert not await watch.look(2)
        assert not await watch.is_still(lost, started(lost))
        (holder,) = await watch.look()
        assert (holder.cgroup, holder.pid, *holder.numbers) == ("lost", lost, "1:3")
        assert await watch.is_still(lost, started(lost))
        assert not await watch.is_still(kept, started(kept))

    asyncio.run(run())


def test_who_may_have_one_card_has_no_others_because_something_is_on_its_way(
    begin: Begin, proc: Proc
) -> None:
    """Such as a job whose workers send it memory, on the card that its pod still has."""
    proc.put(pid := begin(f"{PASSING}\nkept = os.open('/dev/null', os.O_RDWR)"), "alice")

    async def run() -> list[Holder]:
        return await Watch(proc, "alice", lost_numbers=frozenset({(1, 5)})).look(4)

    (holder,) = asyncio.run(run())
    assert (holder.pid, holder.numbers, holder.dormant) == (pid, frozenset({"1:3"}), False)


def test_an_answer_has_room_for_all_that_is_told(
    begin: Begin, proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was there before the helper may hide any card: 254 for each of its processes."""
    cards = CARD | {(195, minor) for minor in range(254)}
    monkeypatch.setattr(card_holders, "MAX_HOLDER_NUMBERS", 600)
    for _ in range(4):
        proc.put(begin(PASSING), "bad")
    proc.put(plain := begin(OPEN), "bad")

    async def run() -> list[Holder]:
        watch = Watch(proc, "bad", lost_numbers=cards)
        return await watch.look(3)

    holders = asyncio.run(run())
    assert sum(len(item.numbers) for item in holders) <= 600
    assert len(holders) == 3
    assert plain in {item.pid for item in holders}, "what is seen comes first"


def test_the_longest_answer_is_read() -> None:
    number, rest = len('"4095:1048575", '), 200
    longest = card_holders.MAX_HOLDER_NUMBERS * number + card_holders.MAX_HOLDERS * rest
    assert longest < MAX_ANSWER_BYTES


def test_a_process_that_hangs_keeps_nobody_and_hides_nothing(begin: Begin, proc: Proc) -> None:
    hanging, holder = begin(OPEN), begin(OPEN)
    proc.put(hanging, "bad")
    proc.put(holder, "good")
    proc.hang(hanging)

    async def run() -> None:
        watch = Watch(proc, "bad")
        assert [item.pid for item in await watch.look(2)] == [holder]
        assert {item.pid for item in await watch.look()} == {hanging, holder}
        assert await watch.is_still(hanging, started(hanging))
        # It ends, and so does the thread that waits.
        os.close(os.open(proc.path / str(hanging) / "status", os.O_WRONLY))

    asyncio.run(run())


def test_who_hangs_keeps_nobody_from_seeing_those_who_lost_a_card(
    begin: Begin, proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods that have lost none, and whose processes hang, take half of the threads at most."""
    monkeypatch.setattr("podyd.node.procs.LIMIT_SECONDS", 0.1)
    for module in ("procs", "card_holders"):
        monkeypatch.setattr(f"podyd.node.{module}.MAX_STUCK", 2, raising=False)
    hanging = [begin(OPEN), begin(OPEN)]
    for pid in hanging:
        proc.put(pid, f"idle-{pid}")
        proc.hang(pid)

    async def run() -> None:
        watch = Watch(proc, "bad")
        await watch.look(4)
        proc.put(holder := begin(OPEN), "bad")
        assert [item.pid for item in await watch.look()] == [holder]
        for pid in watch.holders._reader.hanging("cards"):
            os.close(os.open(proc.path / str(pid) / "status", os.O_WRONLY))

    asyncio.run(run())


def test_only_a_pods_process_with_a_card_is_still_there(begin: Begin, proc: Proc) -> None:
    holder, idle, host = begin(OPEN), begin(""), begin(OPEN)
    proc.put(holder, "alice")
    proc.put(idle, "alice-2")

    async def run() -> None:
        watch = Watch(proc)
        assert await watch.is_still(holder, started(holder))
        assert not await watch.is_still(holder, started(holder) + 1)
        assert not await watch.is_still(idle, started(idle))
        assert not await watch.is_still(host, started(host))

    asyncio.run(run())


# --- Cgroups ------------------------------------------------------------------------------------

PAYLOADS = frozenset({ROOT / "lxc.payload.podyd_alice", ROOT / "lab/lxc.payload.podyd_bob"})


@pytest.mark.parametrize(
    ("text", "hierarchy", "payload"),
    [
        ("0::/lxc.payload.podyd_alice", V2, "lxc.payload.podyd_alice"),
        ("0::/lab/lxc.payload.podyd_bob/a/b", V2, "lab/lxc.payload.podyd_bob"),
        ("0::/lxc.payload.podyd_alice/lxc.payload.podyd_bob", V2, "lxc.payload.podyd_alice"),
        ("0::/user.slice/lxc.payload.podyd_alice", V2, None),
        ("0::/lxc.payload.podyd_alice-1", V2, None),
        ("3:cpu:/lxc.payload.podyd_alice\n0::/", V2, None),
        ("3:devices:/lxc.payload.podyd_alice\n0::/", V1, "lxc.payload.podyd_alice"),
        ("0::/lxc.payload.podyd_alice", V1, None),
        ("0::/", V2, None),
    ],
)
def test_the_pod_of_a_process(
    tmp_path: Path, text: str, hierarchy: Hierarchy, payload: str | None
) -> None:
    (tmp_path / "7/task/7").mkdir(parents=True)
    (tmp_path / "7/cgroup").write_text(f"{text}\n")
    expected = None if payload is None else ROOT / payload
    assert payload_of(7, hierarchy, PAYLOADS, tmp_path) == expected
    assert members_of(hierarchy, PAYLOADS, tmp_path) == ({expected: [7]} if expected else {})


def test_a_first_thread_that_ended_before_others_is_where_they_are(tmp_path: Path) -> None:
    for thread, cgroup in (("7", "/"), ("8", "/lxc.payload.podyd_alice")):
        (tmp_path / "7/task" / thread).mkdir(parents=True)
        (tmp_path / "7/task" / thread / "cgroup").write_text(f"4:devices:{cgroup}\n")
    (tmp_path / "7/cgroup").write_text("4:devices:/\n")
    if (tmp_path / "7/task").stat().st_nlink < 4:
        pytest.skip("this file system does not count directories")
    assert payload_of(7, V1, PAYLOADS, tmp_path) == ROOT / "lxc.payload.podyd_alice"


def test_the_hierarchies_of_a_host() -> None:
    text = (
        "25 1 0:22 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n"
        "26 1 0:23 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n"
        "27 1 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "28 1 0:25 / /proc rw - proc proc rw\n"
    )
    assert hierarchies(text) == {
        "devices": Hierarchy(Path("/sys/fs/cgroup/devices"), "devices"),
        "": Hierarchy(Path("/sys/fs/cgroup/unified"), ""),
    }
