"""A test that LXD or the kernel has spoiled runs once more; any other failure is one.

Two faults that are not podyd's spoil a test now and then, on the versions that it is tested with:

- LXD closes a file descriptor twice while it starts an instance (canonical/lxd#15955), which may
  meanwhile be that of a file which it needs for another one;
- the kernel loses count of what is used in a btrfs pool, and then no limit of a disk holds there.

Neither is guessed from how a test failed. Whoever has it says so, LXD in its log and the kernel in
its own, and only a test that failed while one of these sentences came is spoiled. This is a plugin
of pytest's: `-p tests.slips` ends with the exit status SPOILED where all failures of a run are of
that kind, and names each test and sentence; a second run with `--spoiled` has just these tests,
and there nothing is forgiven.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.lab import lab

# EX_TEMPFAIL: above pytest's own.
SPOILED = 75
KERNEL_LOG = Path("/dev/kmsg")
# The longest record of the kernel's log (CONSOLE_EXT_LOG_MAX) is as long.
RECORD_BYTES = 8192
# What LXD and the kernel say of a test that has just failed may still be on its way.
SETTLE_SECONDS = 1.0
# Between two tries to reach an LXD that is not there, or not yet.
RETRY_SECONDS = 0.2
# A packer's error, of a whole image, has the names of all files.
SHOWN_CHARACTERS = 400

_PROPERTY = "spoiled by"
_CACHED = "podyd/spoiled"


@dataclass(frozen=True)
class Fault:
    """What spoils a test, and the sentences by which it is known; see podyd/engine/refusals.py."""

    what: str
    sentences: re.Pattern[str]


IN_LXD = Fault(
    "LXD closes a descriptor twice (canonical/lxd#15955)",
    re.compile(
        r"bad file descriptor|failed to change ownership of: /"
        r"|saving config file for the container failed",
        re.IGNORECASE,
    ),
)
IN_KERNEL = Fault(
    "the kernel has lost count of a btrfs pool",
    re.compile(r"BTRFS .*\bqgroup marked inconsistent"),
)


@dataclass(frozen=True)
class Sentence:
    """One line of a log, and whose it is: an LXD project or a pool; "" where it does not say."""

    text: str
    owner: str = ""


# The projects and pools that the tests of this process have made, and what was said of any.
_ours: set[str] = set()
_heard: list[str] = []
_is_judging = threading.Event()


def hear(fault: Fault, said: Sentence) -> None:
    """Keep a sentence if it tells of the fault, and not of another worker's project or pool."""
    is_others = said.owner.startswith(lab.TEST_PREFIX) and said.owner not in _ours
    if not is_others and (found := fault.sentences.search(said.text)):
        begin = max(0, found.start() - SHOWN_CHARACTERS // 2)
        excerpt = said.text[begin : found.end() + SHOWN_CHARACTERS // 2]
        _heard.append(f"{fault.what}: {' '.join(excerpt.split())}")


def claim(name: str) -> None:
    """Say that a project or pool is that of the tests of this process."""
    _ours.add(name)


# --- LXD's log ----------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(path: Callable[[], Path]) -> Iterator[None]:
    """Hear what an LXD says meanwhile; `path` is its socket, whenever it is there.

    Nobody listens where the plugin is not loaded.
    """
    if not _is_judging.is_set():
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_listen, args=(path, over), name="LXD's log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _listen(path: Callable[[], Path], over: threading.Event) -> None:
    while not over.wait(RETRY_SECONDS):
        with contextlib.suppress(OSError, websocket.WebSocketException):
            for said in lxd_log(path(), over):
                hear(IN_LXD, said)


def lxd_log(path: Path, over: threading.Event) -> Generator[Sentence, None, None]:
    """What LXD logs from now on, debug too: only there it says why an operation has failed, and
    by default not in its file (5.0.2).

    Ends with LXD. Raises OSError or WebSocketException where it is not there, or goes suddenly.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(line):
        line.settimeout(lab.CALL_TIMEOUT)
        line.connect(str(path))
        url = "ws://lxd/1.0/events?type=logging&all-projects=true"
        events = websocket.create_connection(url, socket=line)
        line.settimeout(RETRY_SECONDS)
        while not over.is_set():
            with contextlib.suppress(websocket.WebSocketTimeoutException):
                if not (event := events.recv()):
                    return
                yield sentence_of(json.loads(event))


def sentence_of(event: Any) -> Sentence:
    """An event of LXD's of the type logging."""
    answer = event["metadata"]
    context = answer.get("context") or {}
    reply = [answer["message"], context.get("description"), context.get("instance")]
    text = ", ".join(filter(None, reply))
    error = f": {context['err']}" if "err" in context else ""
    return Sentence(f"{event['timestamp']} {text}{error}", context.get("project") or "")


# --- The kernel's log ---------------------------------------------------------------------------


class KernelLog:
    """What the kernel has logged since it was last asked; nothing where one may not read it."""

    def __init__(self, path: Path = KERNEL_LOG) -> None:
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._file, 0, os.SEEK_END)

    def new(self) -> Iterator[Sentence]:
        while self._file >= 0:
            try:
                record = os.read(self._file, RECORD_BYTES)
            except BrokenPipeError:  # Some have been overwritten.
                continue
            except OSError:  # EAGAIN: there are no more.
                return
            if not record:
                return
            text = record.decode(errors="replace").partition(";")[2].partition("\n")[0]
            yield Sentence(text, pool_of(text))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)


def pool_of(text: str, block: Path = Path("/sys/class/block")) -> str:
    """The name of the pool of LXD's that a line of the kernel's is about, by its loop device."""
    match = re.search(r"\(device (loop\d+)", text)
    if match is None:
        return ""
    try:
        return Path((block / match[1] / "loop/backing_file").read_text().strip()).stem
    except OSError:  # It has gone.
        return ""


# --- The plugin ---------------------------------------------------------------------------------


class Judge:
    """Looks at each failure where it happens: in the worker, if there are some."""

    def __init__(self) -> None:
        self._kernel = KernelLog()
        self._begin = 0
        # An exception of a fixture comes once more in each test that wants the same fixture.
        self._spoilt: list[tuple[BaseException, str]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self._listen_to_kernel()
        self._begin = len(_heard)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed and call.excinfo is not None:
            error = call.excinfo.value
            if why := self._why(error):
                self._spoilt.append((error, why))
                report.user_properties.append((_PROPERTY, why))
        return report

    def _why(self, error: BaseException) -> str:
        for known, why in self._spoilt:
            if known is error:
                return why
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            self._listen_to_kernel()
            if len(_heard) > self._begin:
                return _heard[self._begin]
            if time.monotonic() > end:
                return ""
            time.sleep(0.02)

    def _listen_to_kernel(self) -> None:
        for said in self._kernel.new():
            hear(IN_KERNEL, said)

    def pytest_unconfigure(self) -> None:
        self._kernel.close()


class Verdict:
    """Gathers what was spoiled, and says whether that was all; in the process that was called."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._is_second = bool(config.getoption("spoiled"))
        self._spoiled: dict[str, str] = {}
        self._failed = 0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._failed += report.failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        why = next((str(what) for key, what in report.user_properties if key == _PROPERTY), "")
        if why:
            self._spoiled[report.nodeid] = why
        else:
            self._failed += 1

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if not self._is_second:
            return
        cache = self._config.cache
        wanted = set(cache.get(_CACHED, []) if cache else [])
        items[:] = [item for item in items if item.nodeid in wanted]
        if missing := wanted - {item.nodeid for item in items}:
            raise pytest.UsageError(f"spoiled, and not found again: {', '.join(sorted(missing))}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        is_all = bool(self._spoiled) and not self._failed
        if exitstatus == pytest.ExitCode.TESTS_FAILED and is_all and not self._is_second:
            cache = self._config.cache
            assert cache is not None
            cache.set(_CACHED, sorted(self._spoiled))
            session.exitstatus = SPOILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._spoiled:
            terminalreporter.section("spoiled by what is not podyd's")
        for test, why in self._spoiled.items():
            terminalreporter.line(f"{test}\n    {why}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--spoiled",
        action="store_true",
        help=f"run what was spoiled in the last run, which ended with {SPOILED}",
    )


def pytest_configure(config: pytest.Config) -> None:
    _is_judging.set()
    config.pluginmanager.register(Judge(), "slips-judge")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Verdict(config), "slips-verdict")
