"""/metrics: what Prometheus is told, and who may ask."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.harness import Client, Node, Server, process_in, wait_until
from tests.lab.lab import DEFAULT_CARDS
from tests.lab.nvml import FakeDriver, FakeNvml, FakeProcess

GIB = 1024**3
Labels = frozenset[tuple[str, str]]


def scrape(client: Client, status: int = 200) -> Mapping[tuple[str, Labels], float]:
    """Every figure, as Prometheus' own parser reads it."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    connection.request("GET", "/metrics", headers=client.login_header())
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.status == status, text
    if status != 200:
        return {}
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def figure(figures: Mapping[tuple[str, Labels], float], name: str, **labels: str) -> float | None:
    return figures.get((name, frozenset(labels.items())))


@pytest.mark.usefixtures("lab_cards")
def test_cards_pods_requests_and_commands(
    node: Node, gpu_server: Server, nvml: FakeDriver, admin: Client, alice: Client, pod: str
) -> None:
    boss, member = gpu_server.client(admin.user), gpu_server.client(alice.user)
    name = node.instance_of(alice.user, pod)["name"]
    card = {"gpu": "1", "uuid": DEFAULT_CARDS[1].uuid}
    owned = {**card, "pod": name, "owner": alice.user}
    with process_in(alice, pod) as running:
        state = FakeNvml().with_gpu(1, utilisation=40, memory_used=3 * GIB, temperature=None)
        process = FakeProcess(running.pid, memory=2 * GIB, utilisation=30)
        nvml.write(state.holding(1, process))
        wait_until(
            lambda: figure(scrape(boss), "podyd_gpu_pod_processes", **owned) == 1, "the process"
        )
        member.exec(pod, "true")
        member.exec(pod, "sleep 9", timeout=0.2)
        member.get("/pod/info", ins="none").refused(404)
        metrics = scrape(boss)
    assert figure(metrics, "podyd_gpu_pod_memory_bytes", **owned) == 2 * GIB
    assert figure(metrics, "podyd_gpu_pod_utilisation_ratio", **owned) == 0.3
    assert figure(metrics, "podyd_gpu_utilisation_ratio", **card) == 0.4
    assert figure(metrics, "podyd_gpu_memory_used_bytes", **card) == 3 * GIB
    assert figure(metrics, "podyd_gpu_memory_bytes", **card) == 80 * GIB
    assert figure(metrics, "podyd_gpu_temperature_celsius", **card) is None, "not supported is no 0"
    assert figure(metrics, "podyd_gpu_held", **owned, exclusive="false") == 1
    assert figure(metrics, "podyd_gpu_queue_length") == 0
    assert figure(metrics, "podyd_gpu_intruders_total", what="seen") is not None
    assert (figure(metrics, "podyd_lxd_up"), figure(metrics, "podyd_nvml_up")) == (1, 1)
    assert (figure(metrics, "podyd_nvml_sample_age_seconds") or 99) < 5
    assert (figure(metrics, "podyd_pods", status="running") or 0) >= 1
    for outcome in ("ended", "timed_out"):
        assert (figure(metrics, "podyd_exec_seconds_count", outcome=outcome) or 0) >= 1
    refused = {"path": "/pod/info", "method": "GET", "status": "404"}
    assert (figure(metrics, "podyd_requests_total", **refused) or 0) >= 1
    assert (figure(metrics, "podyd_request_seconds_count", path="/pod/exec") or 0) >= 2


@pytest.mark.usefixtures("lab_cards")
def test_a_lease_and_the_line(
    node: Node, gpu_server: Server, admin: Client, alice: Client, pod: str
) -> None:
    boss, member = gpu_server.client(admin.user), gpu_server.client(alice.user)
    lease = member.post("/gpu/lease", ins=pod, gpus="0,", hours=1).ok["leases"][0]
    metrics = scrape(boss)
    owned = {
        "gpu": "0",
        "uuid": lease["uuid"],
        "pod": node.instance_of(alice.user, pod)["name"],
        "owner": alice.user,
    }
    assert figure(metrics, "podyd_gpu_held", **owned, exclusive="true") == 1
    assert figure(metrics, "podyd_gpu_lease_end_timestamp_seconds", **owned)
    member.post("/gpu/release", ins=pod).ok
    assert figure(scrape(boss), "podyd_gpu_held", **owned, exclusive="true") is None


def test_it_is_for_admins_and_listed_addresses(node: Node, server: Server, alice: Client) -> None:
    scrape(server.client(), 401)
    scrape(alice, 403)
    open_to = node.serve({"metrics": {"allow": ["192.0.2.0/24", "127.0.0.1"]}})
    assert figure(scrape(open_to.client()), "podyd_lxd_up") == 1
    open_to.client().get("/pod/list").refused(401)
    assert open_to.stop() == 0


def test_invented_methods_are_one_and_reach_no_log(server: Server, admin: Client) -> None:
    # A newer Tornado itself refuses a method with such characters.
    invented = [(f"X{number}", {405}) for number in range(5)]
    invented += [(f"X{number}\x1b[31m", {400, 405}) for number in range(5)]
    for method, statuses in invented:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(f"{method} /version HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert int(connection.recv(65536).split()[1]) in statuses
    methods = {dict(labels).get("method") for name, labels in scrape(admin) if "requests" in name}
    assert "other" in methods
    assert not {method for method in methods if method and method.startswith("X")}
    assert "\x1b" not in server.log_text()


def test_it_answers_without_nvml(server: Server, admin: Client) -> None:
    metrics = scrape(admin)
    assert (figure(metrics, "podyd_lxd_up"), figure(metrics, "podyd_nvml_up")) == (1, 0)
    assert figure(metrics, "podyd_nvml_sample_age_seconds") is None
