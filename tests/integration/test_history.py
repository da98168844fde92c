"""Curves of simulated cards and of real pods."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.integration.harness import Client, Node, controllers, wait_until
from tests.lab.nvml import FakeDriver, FakeNvml

GIB = 1024**3
MIB = 1024**2


def newest(values: Sequence[float | None]) -> float | None:
    """The last value that is known."""
    return next((value for value in reversed(values) if value is not None), None)


@pytest.mark.usefixtures("lab_cards")
def test_what_cards_and_pods_do(
    node: Node, nvml: FakeDriver, alice: Client, bob: Client, pod: str
) -> None:
    nvml.write(FakeNvml().with_gpu(1, utilisation=40, memory_used=3 * GIB))
    server = node.serve(
        environment=nvml.environment,
        constants={"podyd.accounting.history.WRITE_SECONDS": 0.2},
    )
    client = server.client(alice.user)

    def card(figure: str, span: str = "hour") -> float | None:
        return newest(client.get("/gpu/history", span=span).ok["gpus"]["1"][figure])

    # Another podyd of this machine may write of the same minute into the same database.
    figures = (40, 3 * GIB)
    wait_until(lambda: (card("utilisation"), card("memory_used")) == figures, "what the card does")
    assert client.get("/gpu/history").ok == client.get("/gpu/history", span="hour").ok

    def used(figure: str) -> float:
        return newest(client.get("/pod/history", ins=pod).ok[figure]) or 0.0

    client.exec(pod, "timeout 1 sh -c 'while :; do :; done'")
    wait_until(lambda: used("cpu") > 0, "the CPU time")
    assert used("cpu") < 3
    # Of pods without a cgroup for it, the kernel does not tell.
    memory = used("memory_used")
    assert MIB < memory < 2 * GIB if "memory" in controllers() else not memory
    found = client.get("/pod/history", ins=pod, span="year").ok
    assert (found["step"], len(found["cpu"]), len(found["memory_used"])) == (86400, 366, 366)

    server.client(bob.user).get("/pod/history", ins=pod).refused(404, "no_such_pod")
    client.get("/gpu/history", span="decade").refused(400, "malformed_parameter")
    assert server.stop() == 0


@pytest.mark.usefixtures("lab_cards")
def test_the_wall_and_the_hours_of_a_lease(
    node: Node, nvml: FakeDriver, alice: Client, pod: str
) -> None:
    nvml.write(FakeNvml().with_gpu(0, utilisation=93, memory_used=3 * GIB, temperature=61))
    server = node.serve(
        {"web": {"status_allow": ["127.0.0.1"]}},
        environment=nvml.environment,
        constants={"podyd.accounting.leased.COUNT_SECONDS": 0.5},
    )
    member = server.client(alice.user)

    def wall(client: Client) -> str:
        connection = client.connection(30)
        connection.request("GET", "/status.txt", headers=client.login_header())
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        assert (response.status, response.headers.get_content_type()) == (200, "text/plain"), text
        return text

    def leased() -> float:
        hours = member.get("/stat/gpu-hours").ok
        return next((item["leased_hours"] for item in hours if item["user"] == alice.user), 0)

    before = leased()
    member.post("/gpu/lease", ins=pod, gpus="0,", hours=1).ok
    try:
        shown = next(line for line in wall(server.client()).splitlines() if line[:3] == "  0")
        figures = shown[shown.index("93") :].split()
        assert figures[:5] == ["93", "%", "3.0/80G", "61", "C"]
        assert node.instance_of(alice.user, pod)["name"].startswith(figures[5].rstrip("…"))
        assert "Nobody waits for a GPU." in wall(member)
        wait_until(lambda: leased() > before, "the lease to be counted")
    finally:
        member.post("/gpu/release", ins=pod).ok
    assert server.stop() == 0
    assert "GPU" in wall(alice), "members see it always"
    Client(alice.port).get("/status.txt").refused(401)
