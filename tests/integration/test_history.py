"""Curves of simulated cards and of real pods."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.integration.harness import Client, Node, wait_until
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
    nvml.write(FakeNvml().with_gpu(1, utilisation=40, memory_used=3 * GIB, temperature=None))
    server = node.serve(
        environment=nvml.environment,
        constants={"podyd.accounting.history.WRITE_SECONDS": 0.2},
    )
    client = server.client(alice.user)

    def card(figure: str, span: str = "hour") -> float | None:
        return newest(client.get("/gpu/history", span=span).ok["gpus"]["1"][figure])

    wait_until(lambda: card("utilisation") == 40, "what the card does")
    assert (card("memory_used"), card("temperature")) == (3 * GIB, None)
    assert client.get("/gpu/history").ok == client.get("/gpu/history", span="hour").ok

    def used(figure: str) -> float:
        return newest(client.get("/pod/history", ins=pod).ok[figure]) or 0.0

    client.exec(pod, "timeout 1 sh -c 'while :; do :; done'")
    wait_until(lambda: used("cpu") > 0, "the CPU time")
    assert used("cpu") < 3
    assert MIB < used("memory_used") < 2 * GIB
    found = client.get("/pod/history", ins=pod, span="year").ok
    assert (found["step"], len(found["cpu"]), len(found["memory_used"])) == (86400, 366, 366)

    server.client(bob.user).get("/pod/history", ins=pod).refused(404, "no_such_pod")
    client.get("/gpu/history", span="decade").refused(400, "malformed_parameter")
    assert server.stop() == 0
