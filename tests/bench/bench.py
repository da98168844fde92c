"""Measures podyd beside LXD's own API, in turns, and prints a table with ratios.

What runs beside podyd speaks LXD's API with podyd's own client library and certificate, so that
the difference is what podyd adds: HTTP, the login, finding the pod, and killing on a timeout.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import filecmp
import http.client
import itertools
import json
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from podyd.engine.rest import Credentials, RestClient
from tests.integration.browser import Browser, Tab
from tests.integration.harness import DIALECT, IMAGE, SMALL, Client, Line, Node, Server, wait_until
from tests.integration.talking import connect
from tests.integration.test_cards import MOUNTED, NUMBER, Helper, cgroup
from tests.integration.test_client import as_user
from tests.lab.nvml import GPUS, FakeDriver, FakeNvml, FakeProcess

AT_ONCE = 16
PODS = 20
ROUNDS = 10
EXECS_PER_ROUND = 20
CREATES = 8
WRK_SECONDS = 5
REQUESTS = 2000
MIB = 1024**2
GPU_PROCESSES = 200
# A pod's port that pours as much into each connection.
POUR, POURED = 7, 512 * MIB
FILE_ROUNDS, FILE_BYTES = 3, 256 * MIB
# What floods a terminal, for so long before Ctrl-C.
FLOODS = {"yes": "yes", "long lines": "yes $(head -c 2000 /dev/zero | tr '\\0' x)"}
FLOOD_SECONDS, FLOOD_ROUNDS = 1.5, 8
PASTED = MIB
# Resolves once the last line that a terminal shows is this.
_LAST_LINE = """(pattern) => new Promise((resolve, reject) => {
  const began = performance.now();
  const look = () => {
    const rows = document.querySelectorAll("[role=tabpanel]:not([hidden]) .xterm-rows > div");
    const lines = [...rows].map((row) => row.textContent.replaceAll("\\u00a0", " ").trimEnd());
    const last = lines.filter(Boolean).at(-1) ?? "";
    if (new RegExp(pattern).test(last)) resolve();
    else if (performance.now() - began > 60000) reject(new Error(`${pattern}: ${last}`));
    else setTimeout(look, 5);
  };
  look();
})"""
# How often a change is made that a page is to show, and how often that page sleeps, for longer than
# podyd is ever silent.
CHANGES, SLEEPS, SLEEP_SECONDS = 10, 5, 8
# Resolves once a part of the page has a text, and the page says of itself that it is live.
_SHOWN = """([selector, name, text]) => new Promise((resolve, reject) => {
  const began = performance.now();
  const look = () => {
    const all = document.documentElement.classList.contains("stale")
      ? [] : [...document.querySelectorAll(selector)];
    const shown = (item) => (item.ariaLabel ?? item.textContent).includes(name)
      && item.innerText.replace(/\\s+/g, " ").includes(text);
    if (all.some(shown)) resolve();
    else if (performance.now() - began > 60000) reject(new Error(`${name}: no ${text}`));
    else setTimeout(look, 5);
  };
  look();
})"""
# Open pages, and the pods that they show; some of these run.
PAGES, PAGE_PODS, PAGE_RUNNING, PAGE_PROCESSES, PAGE_SECONDS = 200, 200, 20, 32, 10


@dataclass(frozen=True)
class Row:
    """One line of the table; a ratio is podyd's figure by the one beside it."""

    what: str
    unit: str
    podyd: float
    beside: float | None = None
    beside_what: str = ""
    at_most: float | None = None
    at_least: float | None = None
    goal_is_ratio: bool = False

    @property
    def ratio(self) -> float | None:
        return None if self.beside is None else self.podyd / self.beside

    @property
    def goal(self) -> str:
        sign, bound = ("≤", self.at_most) if self.at_most is not None else ("≥", self.at_least)
        if bound is None:
            return ""
        return f"{sign} {bound:g} x" if self.goal_is_ratio else f"{sign} {bound:g} {self.unit}"

    @property
    def reached(self) -> bool:
        figure = self.ratio if self.goal_is_ratio else self.podyd
        assert figure is not None
        return (self.at_most is None or figure <= self.at_most) and (
            self.at_least is None or figure >= self.at_least
        )


# --- What runs beside podyd ---------------------------------------------------------------------


class Beside:
    """LXD's own API, over TLS with podyd's certificate."""

    def __init__(self, node: Node) -> None:
        credentials = Credentials.below(node.base["state_dir"], DIALECT)
        self._client = RestClient(
            credentials.endpoint.read_text().strip(), node.project, credentials
        )

    async def exec_true(self, instance: str) -> None:
        """`true`, with separate streams over websockets, and its exit code."""
        operation = await self._client.start(
            f"/1.0/instances/{instance}/exec",
            {"command": ["true"], "wait-for-websocket": True, "interactive": False},
        )
        path = f"/1.0/operations/{operation['id']}"
        fds = operation["metadata"]["fds"]
        control = await self._client.websocket(f"{path}/websocket", secret=fds["control"])
        stdin, *outputs = await asyncio.gather(
            *(self._client.websocket(f"{path}/websocket", secret=fds[fd]) for fd in "012")
        )
        for output in outputs:
            # An empty text message is LXD's sign for the end of a stream.
            while await output.read_message():
                pass
        waited = await self._client.get(f"{path}/wait")
        assert waited["metadata"]["return"] == 0, waited
        for item in (control, stdin, *outputs):
            item.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP on LXD's unix socket, as `lxc` speaks it."""

    def __init__(self, path: str) -> None:
        super().__init__("lxd")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


# --- How it is measured -------------------------------------------------------------------------


class Caller:
    """One kept connection to podyd."""

    def __init__(self, client: Client) -> None:
        self._headers = client.login_header()
        self._connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)

    def __call__(self, method: str, target: str) -> Any:
        self._connection.request(method, target, headers=self._headers)
        response = self._connection.getresponse()
        body = json.loads(response.read())
        assert response.status == 200, body
        return body

    def close(self) -> None:
        self._connection.close()

    def exec_true(self, ins: str) -> None:
        body = self("POST", f"/pod/exec?ins={ins}&cmd=true")
        assert body["exit_code"] == 0, body


def timed(call: Callable[..., object], *arguments: object) -> float:
    """How long a call takes, in ms."""
    began = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - began) * 1000


class OpenPages:
    """Pages that stay open, and read what podyd tells them."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = clients
        self._bytes = [0] * len(clients)
        self._is_over = threading.Event()

    def __enter__(self) -> OpenPages:
        self._connections = [connect(client, "/events") for client in self._clients]
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._reading.join()
        for connection in self._connections:
            connection.shutdown()

    def _read(self) -> None:
        """Without a look into the messages: the bench is not to be what takes the time."""
        numbers = {item.sock.fileno(): n for n, item in enumerate(self._connections)}
        poll = select.poll()
        for descriptor in numbers:
            poll.register(descriptor, select.POLLIN)
        said = time.monotonic()
        while not self._is_over.is_set():
            for descriptor, _ in poll.poll(500):
                number = numbers[descriptor]
                count = len(self._connections[number].sock.recv(MIB))
                self._bytes[number] += count
                if not count:  # podyd has closed it, which `check` finds.
                    self._bytes[number] = 0
                    poll.unregister(descriptor)
            if time.monotonic() - said > 15:
                said = time.monotonic()
                for item in self._connections:
                    item.pong(b"")  # As an answer to podyd's pings.

    def check(self) -> None:
        """Each is still open, and has been told something."""
        assert all(count > 1000 for count in self._bytes), self._bytes


@dataclass(frozen=True)
class Load:
    """What wrk measured."""

    per_second: float
    p50_ms: float


def wrk(client: Client, path: str, connections: int) -> Load:
    header = client.login_header()["Authorization"]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{WRK_SECONDS}s", "--latency"]
    target = f"http://127.0.0.1:{client.port}{path}"
    # The header is that of an account which the bench has made and removes.
    done = subprocess.run(
        [*command, "-H", f"Authorization: {header}", target],
        text=True,
        capture_output=True,
        check=True,
    )
    assert "Non-2xx" not in done.stdout, done.stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    p50 = re.search(r"50%\s+([\d.]+)(us|ms|s)", done.stdout)
    assert rate is not None, done.stdout
    assert p50 is not None, done.stdout
    return Load(float(rate[1]), float(p50[1]) * {"us": 0.001, "ms": 1, "s": 1000}[p50[2]])


# --- The rows -----------------------------------------------------------------------------------


class Bench:
    """One podyd with one member, beside its LXD."""

    def __init__(self, node: Node, server: Server) -> None:
        self.node = node
        self.server = server
        self.client = server.client(node.accounts.user())
        self.pod = self.client.post("/pod/create", ins="bench", image=IMAGE).ok
        self.instance = node.instance_of(self.client.user, "bench")["name"]

    def rows(self) -> Iterator[Row]:
        yield self.memory_at_rest()
        yield self.memory_of_ports()
        yield from self.execs()
        yield from self.creates()
        yield from self.cards()
        yield from self.lists()
        yield from self.user_info()
        yield self.gpu_ps()
        yield self.port()
        yield from self.files()
        yield from self.pages()
        yield from self.latency()
        yield from self.terminal()
        yield self.memory_growth()

    def execs(self) -> Iterator[Row]:
        alone, beside, rates, rates_beside = asyncio.run(self._execs())
        what = "LXD's own exec"
        yield Row(
            "exec true, alone, p50",
            "ms",
            statistics.median(alone),
            statistics.median(beside),
            what,
            at_most=1.3,
            goal_is_ratio=True,
        )
        yield Row(
            f"exec true, {AT_ONCE} at once",
            "/s",
            statistics.median(rates),
            statistics.median(rates_beside),
            what,
            at_least=0.8,
            goal_is_ratio=True,
        )

    async def _execs(self) -> tuple[list[float], list[float], list[float], list[float]]:
        loop = asyncio.get_running_loop()
        lxd = Beside(self.node)
        callers = [Caller(self.client) for _ in range(AT_ONCE)]
        alone: list[float] = []
        beside: list[float] = []
        rates: list[float] = []
        rates_beside: list[float] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for number in range(-1, ROUNDS):
                for _ in range(EXECS_PER_ROUND):
                    alone.append(timed(callers[0].exec_true, "bench"))
                    began = time.perf_counter()
                    await lxd.exec_true(self.instance)
                    beside.append((time.perf_counter() - began) * 1000)
                began = time.perf_counter()
                calls = [loop.run_in_executor(pool, self._some_execs, caller) for caller in callers]
                await asyncio.gather(*calls)
                rates.append(AT_ONCE * 4 / (time.perf_counter() - began))
                began = time.perf_counter()
                await asyncio.gather(*(self._some_beside(lxd) for _ in callers))
                rates_beside.append(AT_ONCE * 4 / (time.perf_counter() - began))
                if number < 0:  # Everything is warm from here on.
                    for figures in (alone, beside, rates, rates_beside):
                        figures.clear()
        return alone, beside, rates, rates_beside

    @staticmethod
    def _some_execs(caller: Caller) -> None:
        for _ in range(4):
            caller.exec_true("bench")

    async def _some_beside(self, lxd: Beside) -> None:
        for _ in range(4):
            await lxd.exec_true(self.instance)

    def creates(self) -> Iterator[Row]:
        call = Caller(self.client)
        profiles = [word for name in self.pod["profiles"] for word in ("-p", name)]
        figures: dict[str, list[float]] = {"create": [], "launch": [], "delete": [], "rm": []}
        for number in range(CREATES):
            name = f"beside{number}"
            target = f"/pod/create?ins=made&image={IMAGE}"
            figures["create"].append(timed(call, "POST", target))
            figures["launch"].append(timed(self.node.lxc, "launch", IMAGE, name, *profiles))
            figures["delete"].append(timed(call, "POST", "/pod/delete?ins=made"))
            figures["rm"].append(timed(self.node.lxc, "delete", "-f", name))
        p50 = {name: statistics.median(values) / 1000 for name, values in figures.items()}
        yield Row(
            "create, p50",
            "s",
            p50["create"],
            p50["launch"],
            "lxc launch",
            at_most=1.2,
            goal_is_ratio=True,
        )
        yield Row(
            "delete, p50",
            "s",
            p50["delete"],
            p50["rm"],
            "lxc delete -f",
            at_most=1.2,
            goal_is_ratio=True,
        )

    def cards(self) -> Iterator[Row]:
        """What it costs a pod's start that the kernel refuses it cards, and how long it takes to
        refuse other ones to all pods."""
        process = self.node.start_cards()
        helper = Helper(self.node.cards_socket)
        way = helper.permit({})["way"]
        self.node.lxc("init", SMALL, "carded", "-p", "podyd-base")
        took = []
        for _ in range(ROUNDS):
            # A start with and one without differ by more than this on their own.
            before = _cpu_ms(process.pid)
            self.node.lxc("start", "carded")
            took.append(_cpu_ms(process.pid) - before)
            self.node.lxc("stop", "-f", "carded")
        self.node.lxc("delete", "carded")
        what = f"rules for cards at a start ({way}), CPU"
        yield Row(what, "ms", statistics.median(took), at_most=20)
        with ExitStack() as held:
            names = [f"p{number}" for number in range(PODS)]
            for name in names:
                for hierarchy in MOUNTED.values():
                    held.enter_context(
                        cgroup(hierarchy.root / f"lxc.payload.{self.node.project}_{name}")
                    )
            tables = [{name: [NUMBER] for name in names}, {}] * ROUNDS
            took = [timed(helper.permit, table) for table in tables]
            seen = [timed(helper.holders) for _ in tables]
        helper.close()
        yield Row(f"other rules for {PODS} pods, p50", "ms", statistics.median(took))
        yield Row("who has a card open, p50", "ms", statistics.median(seen))

    def lists(self) -> Iterator[Row]:
        with self._many_pods():
            names = self.client.get("/pod/list").ok
            assert len(names) == PODS, names
            alone = wrk(self.client, "/pod/list", 1)
            loaded = wrk(self.client, "/pod/list", AT_ONCE)
            target = f"/1.0/instances?recursion=1&project={self.node.project}"
            beside, rate_beside = self._unix_get(target)
        what = "LXD's own list"
        yield Row(
            f"/pod/list, {PODS} pods, alone, p50", "ms", alone.p50_ms, beside, what, at_most=3
        )
        yield Row(
            f"/pod/list, {AT_ONCE} connections",
            "/s",
            loaded.per_second,
            rate_beside,
            what,
            at_least=500,
        )

    @contextmanager
    def _many_pods(self) -> Iterator[None]:
        """Pods that an admin has made with `lxc` for the member; one is there already."""
        names = [f"listed{number}" for number in range(PODS - 1)]
        owner = f"user.podyd.owner={self.client.user}"
        for name in names:
            self.node.lxc("init", IMAGE, name, "-p", "podyd-base", "-c", owner)
        try:
            yield
        finally:
            self.node.lxc("delete", *names)

    def _unix_get(self, target: str) -> tuple[float, float]:
        """Alone: the median in ms. At once: how many a second."""
        path = self.node.lab_state.socket

        def get(connection: UnixConnection) -> None:
            connection.request("GET", target)
            response = connection.getresponse()
            assert response.status == 200
            response.read()

        one = UnixConnection(path)
        alone = statistics.median(timed(get, one) for _ in range(50))
        with ThreadPoolExecutor(AT_ONCE) as pool:

            def some() -> None:
                connection = UnixConnection(path)
                for _ in range(10):
                    get(connection)

            took = timed(lambda: [*pool.map(lambda _: some(), range(AT_ONCE))])
        return alone, AT_ONCE * 10 / took * 1000

    def user_info(self) -> Iterator[Row]:
        alone = wrk(self.client, "/user/info", 1)
        loaded = wrk(self.client, "/user/info", AT_ONCE)
        yield Row("/user/info, alone, p50", "ms", alone.p50_ms, at_most=2)
        yield Row(f"/user/info, {AT_ONCE} connections", "/s", loaded.per_second, at_least=1000)

    def gpu_ps(self) -> Row:
        """Real processes of this host, as a stand-in NVML shows them; see tests/lab/nvml.py."""
        driver = FakeDriver(self.node.directory / "nvidia")
        sleeping = [subprocess.Popen(["sleep", "600"]) for _ in range(GPU_PROCESSES)]
        try:
            pids = [process.pid for process in sleeping]
            driver.write(_at_work(0, pids))
            server = self.node.serve(environment=driver.environment)
            call = Caller(server.client(self.client.user))

            def listed() -> int:
                return sum(map(len, call("GET", "/host/gpu-ps").values()))

            wait_until(lambda: listed() == GPU_PROCESSES, "all processes")
            ps = ["ps", "-o", "pid,etimes,rss,args", "-p", ",".join(map(str, pids))]
            took, beside = [], []
            for _ in range(30):
                took.append(timed(listed))
                beside.append(timed(lambda: subprocess.run(ps, capture_output=True, check=True)))
            assert server.stop() == 0
        finally:
            for process in sleeping:
                process.kill()
                process.wait()
        return Row(
            f"/host/gpu-ps, {GPU_PROCESSES} processes, {len(GPUS)} cards, p50",
            "ms",
            statistics.median(took),
            statistics.median(beside),
            "ps of them",
            at_most=20,
        )

    def pages(self) -> Iterator[Row]:
        """What podyd does for pages that stay open, and what a command takes beside them."""
        with ExitStack() as held:
            held.enter_context(self._pods_of_pages())
            server = held.enter_context(self._busy_cards())
            call = Caller(server.client(self.client.user))
            cards = len(call("GET", "/host/gpus"))
            users = [self.client.user, self.node.accounts.user("", "-G", "sudo")]
            users += [self.node.accounts.user() for _ in range(2)]
            clients = [server.client(users[number % len(users)]) for number in range(PAGES)]
            for _ in range(EXECS_PER_ROUND):
                call.exec_true("bench")
            alone, beside, cpu, memory = [], [], [], []
            for _ in range(3):
                memory_before = _rss(server.process.pid)
                cpu_before = _share_of_core(server.process.pid, PAGE_SECONDS)
                alone += [timed(call.exec_true, "bench") for _ in range(EXECS_PER_ROUND)]
                with OpenPages(clients) as pages:
                    cpu.append(_share_of_core(server.process.pid, PAGE_SECONDS) - cpu_before)
                    beside += [timed(call.exec_true, "bench") for _ in range(EXECS_PER_ROUND)]
                    memory.append(_rss(server.process.pid) - memory_before)
                    pages.check()
            call.close()
        what = f"{PAGES} open pages, {PAGE_PODS} pods, {cards} cards"
        yield Row(f"{what}: CPU", "%", statistics.median(cpu), at_most=10)
        # What was allocated once is kept, so only the first time shows it.
        yield Row(f"{what}: memory", "MiB", memory[0], at_most=40)
        yield Row(
            "exec true beside them, p50",
            "ms",
            statistics.median(beside),
            statistics.median(alone),
            "none open",
            at_most=1.1,
            goal_is_ratio=True,
        )

    @contextmanager
    def _pods_of_pages(self) -> Iterator[None]:
        """The member's pods, with the one that is there; most are empty and stopped."""
        names = [f"paged{number}" for number in range(PAGE_PODS - 1)]
        running, stopped = names[:PAGE_RUNNING], names[PAGE_RUNNING:]
        owner = f"user.podyd.owner={self.client.user}"
        try:
            with ThreadPoolExecutor(4) as pool:
                launch = partial(self.node.lxc, "launch", SMALL)
                list(pool.map(lambda name: launch(name, "-p", "podyd-base", "-c", owner), running))
                make = partial(self.node.lxc, "init", "--empty", "-p", "podyd-base", "-c", owner)
                list(pool.map(make, stopped))
            yield
        finally:
            self.node.lxc("delete", "-f", *names, check=False)

    @contextmanager
    def _busy_cards(self) -> Iterator[Server]:
        """A podyd on a machine whose cards are at work, all of which LXD has to know."""
        driver = FakeDriver(self.node.directory / "nvidia")
        sleeping = [subprocess.Popen(["sleep", "3600"]) for _ in range(PAGE_PROCESSES)]
        try:
            with _changing(driver, [item.pid for item in sleeping]):
                server = self.node.serve(environment=driver.environment)
                yield server
                assert server.stop() == 0
        finally:
            for process in sleeping:
                process.kill()
                process.wait()

    def latency(self) -> Iterator[Row]:
        """How long until the page in a real browser shows what has changed."""
        driver = FakeDriver(self.node.directory / "nvidia")
        driver.write(FakeNvml())
        server = self.node.serve(environment=driver.environment)
        browser = Browser()
        line = Line(server.port)
        try:
            with browser.tab(line.port) as tab, tab.forgives("WebSocket"):
                tab.enter(self.client.user)
                tab.is_live()
                tab.go("/cards")
                yield from _latencies(
                    "a card's use is on the page",
                    [self._use(tab, driver, number) for number in range(CHANGES)],
                    1.5,
                )
                tab.go("/pods")
                yield from _latencies(
                    "a change by lxc is on the page",
                    [self._change(tab, number) for number in range(CHANGES)],
                    1.5,
                )
                yield from _latencies(
                    "a page that slept is right again",
                    [self._sleep(tab, line) for _ in range(SLEEPS)],
                    2,
                )
                yield from _latencies(
                    "the same, once its network is there",
                    # At other moments between two of the page's tries.
                    [self._sleep(tab, line, 3.1 + 0.3 * number) for number in range(SLEEPS)],
                    2,
                )
        finally:
            line.close()
            browser.close()
        assert server.stop() == 0

    def _change(self, tab: Tab, number: int) -> float:
        """Seconds from the call of lxc, which is among them, until a pod's state is shown."""
        state = "running" if number % 2 else "frozen"
        time.sleep(number / CHANGES)  # At other moments between two looks of podyd's.
        began = time.perf_counter()
        self._make(state)
        tab.page.evaluate(_SHOWN, ["tr", "bench", state])
        return time.perf_counter() - began

    def _make(self, state: str) -> None:
        self.node.lxc("pause" if state == "frozen" else "start", self.instance)

    def _sleep(self, tab: Tab, line: Line, later: float = 0) -> float:
        """Seconds from when the page runs again, or its network does so much later, until what has
        changed meanwhile is shown."""
        with tab.stopped():
            line.lose()
            self._make("frozen")
            time.sleep(SLEEP_SECONDS)
            if not later:
                line.pass_on()
        began = time.perf_counter()
        if later:
            time.sleep(later)
            began = time.perf_counter()
            line.pass_on()
        tab.page.evaluate(_SHOWN, ["tr", "bench", "frozen"])
        took = time.perf_counter() - began
        self._change(tab, 1)
        return took

    @staticmethod
    def _use(tab: Tab, driver: FakeDriver, number: int) -> float:
        """Seconds from when NVML says it."""
        percent = 50 + number
        time.sleep(number / CHANGES)
        began = time.perf_counter()
        driver.write(FakeNvml().with_gpu(0, utilisation=percent))
        tab.page.evaluate(_SHOWN, ["article", "GPU 0", f"{percent} %"])
        return time.perf_counter() - began

    def terminal(self) -> Iterator[Row]:
        """The page's terminal in a real browser: how long after Ctrl-C the prompt is there, and
        how long a paste takes beside the same bytes by `lxc exec`."""
        self.client.post("/pod/create", ins="plain", image=IMAGE).ok
        self.client.exec("plain", "rm $(command -v tmux)")
        browser = Browser()
        try:
            with browser.tab(
                self.server.port, permissions=["clipboard-read", "clipboard-write"]
            ) as tab:
                tab.enter(self.client.user)
                for ins, how in (("bench", "tmux"), ("plain", "no tmux")):
                    tab.go(f"/pods/{ins}/terminal")
                    self._prompt(tab)
                    for name, command in FLOODS.items():
                        took = [self._interrupt(tab, command) for _ in range(FLOOD_ROUNDS)]
                        what = f"Ctrl-C while it floods ({name}, {how})"
                        yield Row(f"{what}, p50", "s", statistics.median(took))
                        yield Row(f"{what}, worst", "s", max(took), at_most=1)
                    beside = self._lxc_input(ins)
                    yield Row(
                        f"a paste of 1 MiB ({how})",
                        "s",
                        self._paste(tab),
                        beside,
                        "lxc exec",
                        at_most=15,
                    )
        finally:
            browser.close()
            self.client.post("/pod/delete", ins="plain").ok

    @staticmethod
    def _prompt(tab: Tab) -> None:
        tab.page.evaluate(_LAST_LINE, r"root@\S+:~#$")

    def _interrupt(self, tab: Tab, command: str) -> float:
        """Seconds from the key to the prompt on the screen."""
        tab.page.keyboard.type(f"clear; {command}\n")
        tab.page.wait_for_timeout(FLOOD_SECONDS * 1000)
        began = time.perf_counter()
        tab.page.keyboard.press("Control+c")
        self._prompt(tab)
        return time.perf_counter() - began

    @staticmethod
    def _paste(tab: Tab) -> float:
        """Seconds until a program that reads keys has all of it."""
        text = "0123456\n" * (PASTED // 8)
        tab.page.evaluate("text => navigator.clipboard.writeText(text)", text)
        tab.page.keyboard.type(
            f"stty raw -echo; echo read''y; head -c {PASTED} >/dev/null; stty sane; echo who''le\n"
        )
        tab.page.evaluate(_LAST_LINE, "ready$")
        began = time.perf_counter()
        tab.page.keyboard.press("Control+Shift+v")
        tab.page.evaluate(_LAST_LINE, r"whole|root@\S+:~#$")
        return time.perf_counter() - began

    def _lxc_input(self, ins: str) -> float:
        """Seconds for as many bytes into a program without a terminal."""
        name = self.node.instance_of(self.client.user, ins)["name"]
        began = time.perf_counter()
        subprocess.run(
            [
                "lxc",
                "exec",
                name,
                "--project",
                self.node.project,
                "--",
                "sh",
                "-c",
                "cat >/dev/null",
            ],
            env={**self.node.environment, "HOME": str(self.node.directory)},
            input=bytes(PASTED),
            check=True,
        )
        return time.perf_counter() - began

    def port(self) -> Row:
        """Bytes out of a pod, through its port of the host and from its own address."""
        pour = f"systemd-socket-activate -a --inetd -l {POUR} head -c {POURED} /dev/zero"
        # Its systemd, and its address, may still be on their way.
        run = f"systemd-run {pour}"
        wait_until(lambda: self.client.exec("bench", run)["exit_code"] == 0, "systemd")
        wait_until(lambda: bool(self._addresses()), "an address")
        info = self.client.post("/pod/port", ins="bench", port=POUR).ok
        mapping = next(item for item in info["port_mapping"] if item.endswith(f":{POUR}"))
        near = "127.0.0.1", int(mapping.partition(":")[0])
        far = self._addresses()[0], POUR
        wait_until(lambda: _can_connect(near) and _can_connect(far), "the port")
        through, beside = [], []
        for _ in range(5):
            through.append(POURED / MIB / timed(_read_all, near) * 1000)
            beside.append(POURED / MIB / timed(_read_all, far) * 1000)
        return Row(
            "a port of the host, from a pod",
            "MiB/s",
            statistics.median(through),
            statistics.median(beside),
            "the pod's address",
            at_least=0.4,
            goal_is_ratio=True,
        )

    def _addresses(self) -> list[str]:
        found: list[str] = self.client.get("/pod/info", ins="bench").ok["addresses"]
        return found

    def memory_at_rest(self) -> Row:
        helper = _rss(self.node.helper.pid)
        return Row("memory at rest", "MiB", (_rss(self.server.process.pid) + helper), at_most=80)

    def memory_of_ports(self) -> Row:
        return Row("memory of podyd ports", "MiB", _rss(self.node.relay.pid), at_most=16)

    def files(self) -> Iterator[Row]:
        """A file into a pod and out of it, and how much podyd grows by it."""
        here, there = self.node.directory / "file", self.node.directory / "fetched"
        with here.open("wb") as file:
            for _ in range(FILE_BYTES // MIB):
                file.write(os.urandom(MIB))
        target = f"{self.instance}/root/beside"
        figures: dict[str, list[float]] = {"put": [], "push": [], "get": [], "pull": []}
        pody = as_user(self.client)

        def cp(source: str, target: str) -> None:
            pody("cp", source, target).ok

        before = _rss(self.server.process.pid)
        for _ in range(FILE_ROUNDS):
            figures["put"].append(timed(cp, str(here), "bench:/root/file"))
            figures["push"].append(timed(self.node.lxc, "file", "push", str(here), target))
            figures["get"].append(timed(cp, "bench:/root/file", str(there)))
            assert filecmp.cmp(here, there, shallow=False)
            figures["pull"].append(timed(self.node.lxc, "file", "pull", target, str(there)))
        growth = _rss(self.server.process.pid) - before
        rate = {
            name: FILE_BYTES / MIB / statistics.median(values) * 1000
            for name, values in figures.items()
        }
        for what, own, other in (("into", "put", "push"), ("out of", "get", "pull")):
            yield Row(
                f"pody cp {what} a pod, {FILE_BYTES // MIB} MiB",
                "MiB/s",
                rate[own],
                rate[other],
                f"lxc file {other}",
                at_least=0.5,
                goal_is_ratio=True,
            )
        yield Row("memory growth by files", "MiB", growth, at_most=20)

    def memory_growth(self) -> Row:
        """In a podyd of its own, because the other one has served all of the above.

        A first burst of commands comes before: what it allocates once and keeps is no growth.
        """
        server = self.node.serve()
        client = server.client(self.client.user)
        call = Caller(client)
        paths = itertools.cycle(["/user/info", "/pod/list", "/pod/info?ins=bench", "/host/images"])
        for _ in range(50):
            call("GET", next(paths))
        self._burst(client)
        before = _rss(server.process.pid)
        for _ in range(REQUESTS):
            call("GET", next(paths))
        self._burst(client)
        growth = _rss(server.process.pid) - before
        assert server.stop() == 0
        what = f"memory growth, {REQUESTS} requests, 2nd {AT_ONCE} x yes"
        # Kept outputs of one burst would be 16 MiB.
        return Row(what, "MiB", growth, at_most=10)

    @staticmethod
    def _burst(client: Client) -> None:
        """Commands at once whose output is more than is kept of it."""
        target = "/pod/exec?ins=bench&cmd=yes&timeout=3"
        callers = [Caller(client) for _ in range(AT_ONCE)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = pool.map(lambda caller: caller("POST", target), callers)
            assert all(answer["timed_out"] and answer["truncated"] for answer in answers)


@contextmanager
def _changing(driver: FakeDriver, pids: Sequence[int]) -> Iterator[None]:
    """Meanwhile what each card says of its use is another thing each second."""
    is_over = threading.Event()

    def change() -> None:
        for turn in itertools.count(1):
            if is_over.wait(1):
                return
            driver.write(_at_work(turn, pids))

    driver.write(_at_work(0, pids))
    changing = threading.Thread(target=change)
    changing.start()
    try:
        yield
    finally:
        is_over.set()
        changing.join()


def _at_work(turn: int, pids: Sequence[int]) -> FakeNvml:
    """The driver of a machine where these processes, shared out among the cards, use them."""
    cards = (
        dataclasses.replace(
            card,
            utilisation=(turn * 7 + number) % 100,
            temperature=40 + turn % 20,
            power=100.0 + turn % 150,
            memory_used=(number + 1) * 1024 * MIB + turn % 50 * MIB,
            processes=tuple(
                FakeProcess(pid, utilisation=turn % 50) for pid in pids[number :: len(GPUS)]
            ),
        )
        for number, card in enumerate(GPUS)
    )
    return FakeNvml(gpus=tuple(cards))


def _latencies(what: str, took: Sequence[float], at_most: float) -> Iterator[Row]:
    yield Row(f"{what}, p50", "s", statistics.median(took))
    yield Row(f"{what}, worst", "s", max(took), at_most=at_most)


def _can_connect(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, 5) as item:
            return bool(item.recv(1))
    except OSError:
        return False


def _read_all(address: tuple[str, int]) -> None:
    room = bytearray(MIB)
    count = 0
    with socket.create_connection(address, 60) as item:
        while part := item.recv_into(room):
            count += part
    assert count == POURED, count


def _cpu_ms(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def _share_of_core(pid: int, seconds: float) -> float:
    """How much of a core a process uses with all its threads, in percent."""

    def used() -> float:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    return (used() - before) / (time.monotonic() - began) * 100


def _rss(pid: int) -> float:
    """Resident memory in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024 / MIB


# --- The table ----------------------------------------------------------------------------------

FORMAT = "{:46} {:>11} {:>11} {:>7}  {:10} {:4} {}"


def line(row: Row) -> str:
    beside = "" if row.beside is None else f"{row.beside:.2f} {row.unit}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = "" if not row.goal else "yes" if row.reached else "no"
    podyd = f"{row.podyd:.2f} {row.unit}"
    return FORMAT.format(row.what, podyd, beside, ratio, row.goal, met, row.beside_what).rstrip()


def main() -> int:
    """Exit status 1 if a goal is missed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    options.add_argument("--only", default="", help="a method of Bench, such as execs")
    chosen = options.parse_args()
    node = Node()
    reached = True
    try:
        node.start_helper()
        node.start_relay()
        bench = Bench(node, node.serve())
        found = getattr(bench, chosen.only)() if chosen.only else bench.rows()
        if not chosen.json:
            print(FORMAT.format("", "podyd", "beside it", "ratio", "goal", "met", "what is beside"))
        for row in [found] if isinstance(found, Row) else found:
            reached &= row.reached
            print(json.dumps(asdict(row)) if chosen.json else line(row), flush=True)
    finally:
        node.close()
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
