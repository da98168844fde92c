"""CPU and GPU seconds of real processes in real pods."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.harness import (
    IMAGE,
    Client,
    Node,
    Server,
    process_in,
    wait_until,
)
from tests.lab.nvml import FakeDriver, FakeNvml, FakeProcess

INTERVAL = 1
JOB_SECONDS = 8
# A job is seen with the first sample after its begin, and last with the last one before its end.
SAMPLE_SECONDS = 1.1


@dataclass
class Lab:
    """A node that counts for this file alone: other podyds would count the same pods."""

    node: Node
    driver: FakeDriver
    user: str
    other: str
    server: Server

    @property
    def client(self) -> Client:
        return self.server.client(self.user)

    def start(self) -> None:
        self.server = _serve(self.node, self.driver)

    def stat(self, kind: str, **params: object) -> Mapping[str, float]:
        """As somebody else sees it."""
        answer: Mapping[str, float] = (
            self.server.client(self.other).get(f"/stat/{kind}time", **params).ok
        )
        return answer

    def text(self, path: str) -> str:
        """An answer that is no JSON."""
        client = self.client
        connection = client.connection(30)
        connection.request("GET", path, headers=client.login_header())
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        assert (response.status, response.headers["Content-Type"]) == (
            200,
            "text/csv; charset=utf-8",
        )
        return body

    def seconds(self, kind: str) -> float:
        return self.stat(kind, user=self.user)[self.user]


def _serve(node: Node, driver: FakeDriver) -> Server:
    return node.serve({"usage": {"interval": INTERVAL}}, environment=driver.environment)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    node = Node()
    try:
        node.start_helper()
        driver = FakeDriver(node.directory / "nvidia")
        users = node.accounts.user(), node.accounts.user()
        lab = Lab(node, driver, *users, _serve(node, driver))
        lab.client.post("/pod/create", ins="main", image=IMAGE).ok
        yield lab
    finally:
        node.close()


@contextlib.contextmanager
def holding_both(lab: Lab) -> Iterator[None]:
    """A sleeping process in the pod on both cards."""
    with process_in(lab.client, "main") as running:
        held = FakeProcess(running.pid)
        try:
            lab.driver.write(FakeNvml().holding(0, held).holding(1, held))
            yield
        finally:
            lab.driver.write(FakeNvml())


def settled(lab: Lab) -> float:
    """GPU seconds once no sample adds to them any more."""
    client = lab.client
    wait_until(lambda: not any(client.get("/host/gpu-ps").ok.values()), "the cards to be free")
    return lab.seconds("gpu")


def burn(lab: Lab) -> None:
    """A second of CPU, however long others let it take."""
    done = lab.client.exec("main", "(ulimit -t 1; while :; do :; done)", timeout=60)
    assert done["exit_code"] == 128 + signal.SIGKILL


def cpu_used(lab: Lab) -> float:
    """What LXD says of the pod."""
    name = lab.node.instance_of(lab.user, "main")["name"]
    state = lab.node.lxd.get(f"/1.0/instances/{name}/state?project={lab.node.project}")
    return float(state["cpu"]["usage"]) / 1e9


@pytest.mark.controllers("cpu")
def test_cpu_seconds_are_those_of_lxd(lab: Lab) -> None:
    before = cpu_used(lab)
    burn(lab)
    used = cpu_used(lab)
    assert used - before > 0.9
    wait_until(lambda: lab.seconds("cpu") >= used, "all of it to be counted")
    assert lab.seconds("cpu") == pytest.approx(cpu_used(lab), abs=0.5)
    assert set(lab.stat("cpu")) == {lab.user}
    assert lab.stat("cpu", user=lab.other) == {lab.other: 0.0}
    assert lab.stat("cpu", user=f"{lab.other},{lab.user}", t="1h").keys() == {lab.other, lab.user}


def test_gpu_seconds_of_a_known_job_on_two_cards(lab: Lab) -> None:
    before = settled(lab)
    with holding_both(lab):
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() >= begun + JOB_SECONDS, "the job", JOB_SECONDS + 1)
        held = time.monotonic() - begun
    counted = settled(lab) - before
    assert counted == pytest.approx(2 * held, rel=0.05, abs=2 * SAMPLE_SECONDS)
    assert lab.stat("gpu", t="1d").keys() == {lab.user}
    (mine,) = lab.client.get("/stat/gpu-hours").ok
    assert (mine["user"], mine["leased_hours"]) == (lab.user, 0)
    assert mine["hours"] == pytest.approx(lab.seconds("gpu") / 3600, abs=0.002)
    table = lab.text("/stat/gpu-hours?format=csv")
    assert table == f"user,hours,leased_hours\r\n{lab.user},{mine['hours']},0.0\r\n"
    assert lab.client.get("/stat/gpu-hours", month="2020-02").ok == []
    short = lab.stat("gpu", user=lab.user, t=4)[lab.user]
    assert 0 < short <= 2 * 4
    assert short < counted


def test_two_processes_on_one_card_count_once(lab: Lab) -> None:
    before = settled(lab)
    with process_in(lab.client, "main") as one, process_in(lab.client, "main") as two:
        both = FakeProcess(one.pid), FakeProcess(two.pid)
        try:
            begun = time.monotonic()
            lab.driver.write(FakeNvml().holding(1, *both))
            wait_until(lambda: lab.seconds("gpu") > before + 3, "some seconds")
        finally:
            lab.driver.write(FakeNvml())
        held = time.monotonic() - begun
    assert settled(lab) - before == pytest.approx(held, abs=SAMPLE_SECONDS)


@pytest.mark.controllers("cpu")
def test_killed_and_started_again_it_keeps_the_sums(lab: Lab) -> None:
    burn(lab)
    before = settled(lab)
    with holding_both(lab):
        wait_until(lambda: lab.seconds("gpu") > before + 4, "some seconds")
        gpu, cpu = lab.seconds("gpu"), lab.seconds("cpu")
        lab.server.process.send_signal(signal.SIGKILL)
        lab.server.process.wait()
        lab.start()
        assert lab.seconds("gpu") >= gpu
        assert lab.seconds("cpu") >= cpu
        wait_until(lambda: lab.seconds("gpu") > gpu + 2, "it to go on counting")
    wait_until(lambda: lab.seconds("cpu") > cpu, "the CPU time meanwhile")
    assert lab.seconds("cpu") == pytest.approx(cpu_used(lab), abs=0.5), "and none of it twice"


def test_stopped_it_writes_what_it_has(lab: Lab) -> None:
    with holding_both(lab):
        wait_until(lambda: lab.seconds("gpu") > 0, "a second")
        gpu = lab.seconds("gpu")
        assert lab.server.stop() == 0
        assert "Traceback" not in lab.server.log_text()
        data = Path(lab.node.base["state_dir"]) / "data"
        assert [path.name for path in data.iterdir()] == ["podyd.db"], "nothing is left to recover"
        lab.start()
        assert lab.seconds("gpu") >= gpu


def test_a_damaged_database_is_one_sentence_and_a_503(lab: Lab) -> None:
    assert lab.server.stop() == 0
    path = Path(lab.node.base["state_dir"]) / "data" / "podyd.db"
    kept = path.read_bytes()
    path.write_bytes(b"nonsense" * 1000)
    lab.start()
    body = lab.client.get("/stat/gputime").refused(503, "database_failed")
    assert "is damaged" in body["detail"]
    assert lab.client.get("/pod/list").ok == ["main"]
    errors = [line for line in lab.server.log_text().splitlines() if " ERROR " in line]
    assert len(errors) == 1
    assert str(path) in errors[0]
    assert lab.server.stop() == 0
    path.write_bytes(kept)
    lab.start()
    assert lab.seconds("gpu") > 0


@pytest.mark.parametrize("params", [{"t": "1m"}, {"t": "0"}, {"user": "a,,b"}, {"user": "a, b"}])
def test_what_is_malformed_is_named(lab: Lab, params: Mapping[str, str]) -> None:
    body = lab.client.get("/stat/cputime", **params).refused(400, "malformed_parameter")
    assert body["parameter"] in params
