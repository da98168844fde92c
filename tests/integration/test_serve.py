"""`podyd serve`: starting, stopping, reloading, being killed, and what hangs beside it."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

from podyd.admin.setup import make_certificate
from tests.integration.harness import (
    DEFAULT,
    FILES_AT_REST,
    FOLLOWING,
    IMAGE,
    SMALL,
    Client,
    Line,
    Node,
    Server,
    free_port,
    merged,
    pids,
    started,
    wait_until,
)
from tests.lab import lab


def refuses_to_start(node: Node, changes: Mapping[str, Any], exit_status: int) -> str:
    """The one sentence with which `podyd serve` refuses."""
    process, log = node.launch(node.write_config(changes))
    assert process.wait(20) == exit_status
    text = log.read_text()
    assert text.startswith("podyd: "), text
    assert text.count("\n") == 1, text
    return text


# --- Starting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "exit_status", "words"),
    [
        ({"lisen": "127.0.0.1:1"}, 78, ("lisen", "did you mean 'listen'")),
        ({"pods": {"exec_timeout": "long"}}, 78, ("pods.exec_timeout", "a number of seconds")),
        ({"quota": {"default": {"max_pods": True}}}, 78, ("default.max_pods", "whole number")),
        ({"listen": "0.0.0.0:8799"}, 78, ("listen", "insecure: true")),
        ({"listen": "192.0.2.1:8799", "insecure": True}, 1, ("192.0.2.1:8799", "no address of")),
        ({"state_dir": "/nonexistent"}, 78, ("podyd setup",)),
        ({"tls": {"cert": "/nonexistent", "key": "/nonexistent"}}, 78, ("/nonexistent",)),
    ],
)
def test_what_cannot_work_is_one_sentence(
    node: Node, changes: Mapping[str, Any], exit_status: int, words: tuple[str, ...]
) -> None:
    listen = {"listen": f"127.0.0.1:{free_port()}"}
    text = refuses_to_start(node, merged(listen, changes), exit_status)
    for word in words:
        assert word in text


def test_a_port_in_use(node: Node, server: Server) -> None:
    text = refuses_to_start(node, {"listen": f"127.0.0.1:{server.port}"}, 1)
    assert f"127.0.0.1:{server.port} is taken" in text


def test_check_says_so_without_starting(node: Node) -> None:
    good, bad = node.write_config({}), node.write_config({"auth": {"x": 1}})
    assert node.command("check", "--config", str(good)).returncode == 0
    done = node.command("check", "--config", str(bad))
    assert done.returncode == 78
    assert str(bad) in done.stderr
    assert "auth.x" in done.stderr


@pytest.fixture
def line(node: Node) -> Iterator[Line]:
    """A line to LXD that a test can cut."""
    endpoint = (node.credentials / "endpoint").read_text().strip()
    line = Line(int(endpoint.rpartition(":")[2]))
    yield line
    line.close()


def through(line: Line) -> dict[str, Any]:
    return {"lxd": {"endpoint": f"https://127.0.0.1:{line.port}"}}


def test_lxd_away_at_start_is_a_503_until_it_is_there(node: Node, alice: Client) -> None:
    port = free_port()
    server = node.serve_soon({"lxd": {"endpoint": f"https://127.0.0.1:{port}"}})
    client = server.client(alice.user)
    server.wait_for_log(f"{lab.ENGINE.title} is away")
    for path in ("/pod/list", "/host/images"):
        client.get(path).refused(503, "lxd_unreachable")
    client.get("/user/info").ok
    assert server.process.poll() is None
    endpoint = (node.credentials / "endpoint").read_text().strip()
    line = Line(int(endpoint.rpartition(":")[2]), port)
    try:
        server.wait_for_log(FOLLOWING, 15)
        client.get("/pod/list").ok
    finally:
        line.close()
    assert server.stop() == 0


def test_no_image_is_an_empty_list_that_says_how_to_get_one(node: Node, alice: Client) -> None:
    server = node.serve({"images": {"offer": ["no-such-*"]}})
    client = server.client(alice.user)
    answer = client.get("/host/images")
    assert answer.ok == []
    assert "images.offer" in answer.headers["X-Podyd-Hint"]
    advice = client.post("/pod/create", ins="none", image=IMAGE).refused(403)["advice"]
    assert "images.offer" in advice
    assert "X-Podyd-Hint" not in alice.get("/host/images").headers
    assert server.stop() == 0


# --- Behind a proxy -----------------------------------------------------------------------------


def test_behind_a_proxy_the_clients_address_counts(node: Node) -> None:
    server = node.serve({"metrics": {"allow": ["198.51.100.7", "127.0.0.1"]}})

    def status(path: str, **headers: str) -> int:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status

    forwarded = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7"}
    assert status("/version", **forwarded) == 200
    server.wait_for_log("200 GET /version user=- from=127.0.0.1 ")
    rewrite(server, {"proxies": ["127.0.0.1", "::1"]})
    server.signal(signal.SIGHUP)
    server.wait_for_log("reloaded")
    assert status("/version", **forwarded) == 200
    server.wait_for_log("200 GET /version user=- from=198.51.100.7 ")
    # Who may read without a login is not for a proxy to say, nor for an account of its host.
    assert status("/metrics", **forwarded) == 401
    assert status("/metrics") == 200
    assert server.stop() == 0


# --- TLS ----------------------------------------------------------------------------------------


def version_over_tls(port: int, cert: Path) -> int:
    """The status of /version, if the server shows exactly this certificate."""
    context = ssl.create_default_context(cafile=str(cert))
    context.check_hostname = False
    connection = HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/version")
        return connection.getresponse().status


def install(node: Node, directory: Path, mode: int = 0o640) -> Mapping[str, str]:
    """A new pair of files, for podyd's account to read."""
    directory.mkdir(exist_ok=True)
    key, cert = make_certificate()
    files = {"cert": str(directory / "cert.pem"), "key": str(directory / "key.pem")}
    Path(files["cert"]).write_text(cert)
    Path(files["key"]).write_text(key)
    Path(files["key"]).chmod(mode)
    os.chown(files["key"], 0, pwd.getpwnam(node.account).pw_gid)
    return files


def over_tls(node: Node, files: Mapping[str, str], look_seconds: float) -> Server:
    """A podyd that looks for new files so often."""
    port = free_port()
    config = node.write_config({"listen": f"127.0.0.1:{port}", "tls": files})
    process, log = node.launch(config, constants={"podyd.api.tls.LOOK_SECONDS": look_seconds})
    server = Server(process, port, config, log)
    server.wait_for_log(f"serves https://127.0.0.1:{port}")
    assert version_over_tls(port, Path(files["cert"])) == 200
    return server


def test_a_certificate_is_renewed_while_it_serves(node: Node) -> None:
    first = node.directory / "tls-1"
    server = over_tls(node, install(node, first), 1.0)
    install(node, first)
    server.wait_for_log("the certificate is read")
    assert version_over_tls(server.port, first / "cert.pem") == 200
    assert server.stop() == 0


def test_a_reload_reads_the_certificate_at_once(node: Node) -> None:
    """From wherever the file says now."""
    second = node.directory / "tls-2"
    server = over_tls(node, install(node, node.directory / "tls-1"), 3600.0)
    rewrite(server, {"tls": install(node, second)})
    server.signal(signal.SIGHUP)
    server.wait_for_log(f"the certificate is read from {second}")
    assert version_over_tls(server.port, second / "cert.pem") == 200
    assert "next restart" not in server.log_text()
    rewrite(server, {"tls": {"cert": "/nonexistent"}})
    server.signal(signal.SIGHUP)
    server.wait_for_log("the old certificate stays in use: The TLS certificate /nonexistent")
    assert version_over_tls(server.port, second / "cert.pem") == 200
    assert server.stop() == 0


def test_a_key_that_podyd_may_not_read(node: Node) -> None:
    files = install(node, node.directory / "tls-root", mode=0o600)
    text = refuses_to_start(node, {"listen": f"127.0.0.1:{free_port()}", "tls": files}, 78)
    copy = "/etc/podyd/tls/key.pem"
    assert f"install -m 640 -g {node.account} {files['key']} {copy}' and name {copy}" in text


# --- Nothing blocks -----------------------------------------------------------------------------


def slowest(client: Client, path: str, times: int = 30) -> float:
    """The longest of some answers, in seconds."""
    answers = [client.get(path) for _ in range(times)]
    assert {answer.status for answer in answers} == {200}
    return max(answer.seconds for answer in answers)


@pytest.mark.alone
def test_running_commands_slow_nobody(alice: Client, bob: Client, pod: str) -> None:
    bob.get("/user/info").ok
    cmd = "sleep 98770"
    with ThreadPoolExecutor(20) as pool:
        running = [pool.submit(alice.exec, pod, cmd, timeout=60) for _ in range(20)]
        wait_until(lambda: started(cmd) == 20, "all to run")
        assert slowest(bob, "/version") < 0.25
        assert slowest(bob, "/user/info") < 0.25
        assert slowest(bob, "/pod/list") < 0.25
        assert not any(future.done() for future in running), "they did run meanwhile"
        for pid in pids(cmd):
            os.kill(pid, signal.SIGTERM)
        assert [future.result()["exit_code"] for future in running] == [143] * 20


@pytest.mark.alone
def test_a_hanging_lxd_slows_nobody_and_is_a_503(
    node: Node, line: Line, alice: Client, pod: str
) -> None:
    # As usual they are 15 s, and 5 s after which LXD is asked once more.
    client_of = "podyd.engine.rest."
    constants = {f"{client_of}ANSWER_TIMEOUT": 5.0, f"{client_of}FIRST_TIMEOUT": 2.0}
    server = node.serve(through(line), constants=constants)
    client = server.client(alice.user)
    assert pod in client.get("/pod/list").ok
    line.hang()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.get, "/host/images") for _ in range(8)]
        assert slowest(client, "/version") < 0.25
        assert slowest(client, "/user/info") < 0.25
        answers = [future.result() for future in waiting]
    for answer in answers:
        answer.refused(503, "lxd_unreachable")
        assert answer.seconds < 20
    line.pass_on()
    wait_until(lambda: client.get("/host/images").status == 200, "LXD to be back")
    assert pod in client.get("/pod/list").ok
    assert server.stop() == 0


def test_a_lost_event_stream_shows_nothing_old(
    node: Node, line: Line, alice: Client, ins: str
) -> None:
    server = node.serve(through(line))
    client = server.client(alice.user)
    client.get("/pod/list").ok
    line.cut()
    alice.post("/pod/create", ins=ins, image=SMALL).ok
    assert ins in client.get("/pod/list").ok
    alice.post("/pod/delete", ins=ins).ok
    # LXD's word of it may come a moment after it is done.
    wait_until(lambda: ins not in client.get("/pod/list").ok, "the end of the pod")
    assert server.stop() == 0


# --- Stopping -----------------------------------------------------------------------------------


def test_sigterm_finishes_what_is_under_way(node: Node, alice: Client, pod: str) -> None:
    server = node.serve()
    client = server.client(alice.user)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(client.exec, pod, "sleep 3.21; echo whole", timeout=30)
        wait_until(lambda: started("sleep 3.21") == 1, "it to run")
        server.signal(signal.SIGTERM)
        assert running.result()["stdout"] == "whole\n"
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.log_text()


def test_sigterm_waits_ten_seconds_at_most_and_leaves_no_command(
    node: Node, alice: Client, pod: str
) -> None:
    server = node.serve()
    client = server.client(alice.user)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(
            client.post, "/pod/exec", ins=pod, cmd="setsid sleep 98772", timeout=60
        )
        wait_until(lambda: started("sleep 98772") == 1, "it to run")
        begun = time.monotonic()
        server.signal(signal.SIGTERM)
        running.result().refused(503, "shutting_down")
        assert server.process.wait(40) == 0
        assert 9 < time.monotonic() - begun < 30
    assert started("sleep 98772") == 0
    assert "Traceback" not in server.log_text()


@pytest.mark.alone
def test_an_idle_one_stops_at_once(node: Node) -> None:
    server = node.serve()
    with socket.create_connection(("127.0.0.1", server.port)):
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 3


def rewrite(server: Server, change: Mapping[str, Any]) -> None:
    data = yaml.safe_load(server.config.read_text())
    server.config.write_text(yaml.safe_dump(merged(data, change)))


def test_sighup_rereads_and_keeps_the_old_one_if_the_new_is_wrong(
    node: Node, alice: Client
) -> None:
    server = node.serve({"quota": {"default": {"max_pods": 3}}})
    client = server.client(alice.user)
    assert client.get("/user/info").ok["quota"]["max_pods"] == 3
    rewrite(server, {"quota": {"default": {"max_pods": 7}}})
    server.signal(signal.SIGHUP)
    wait_until(lambda: client.get("/user/info").ok["quota"]["max_pods"] == 7, "the new quota")
    rewrite(server, {"quota": {"default": {"max_pods": "many"}}})
    server.signal(signal.SIGHUP)
    server.wait_for_log("quota.default.max_pods")
    assert client.get("/user/info").ok["quota"]["max_pods"] == 7
    assert server.stop() == 0


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.5, 0.9])
def test_killed_in_the_middle_of_a_create(
    node: Node, alice: Client, ins: str, delay: float
) -> None:
    server = node.serve()
    user = node.accounts.user()
    client = server.client(user)
    client.get("/pod/list").ok
    with ThreadPoolExecutor() as pool:
        lost = pool.submit(client.post, "/pod/create", ins=ins, image=IMAGE)
        time.sleep(delay)
        server.process.kill()
        # On a quick machine the last one comes when all is done.
        with contextlib.suppress(OSError):
            lost.result().ok
    server.process.wait()

    again = node.serve()
    client = again.client(user)

    def settled() -> bool:
        """Nothing half-made is left: the pod is whole, or not there."""
        left_over = [
            item
            for item in node.instances().values()
            if item["config"].get("user.podyd.owner") == user
        ]
        return not node.operations() and (
            not left_over or client.get("/pod/info", ins=ins).status == 200
        )

    wait_until(settled, "the half-made pod to go", 90)
    if ins in client.get("/pod/list").ok:
        client.post("/pod/delete", ins=ins).ok
    assert client.post("/pod/create", ins=ins, image=SMALL).ok["status"] == "running"
    client.post("/pod/delete", ins=ins).ok
    assert again.stop() == 0


def test_a_project_that_podyd_may_not_see_is_not_one_without_pods() -> None:
    """Incus 7 lists nothing then; a podyd of its own, for others must not see it so."""
    node = Node()
    try:
        node.start_helper()
        server = node.serve()
        client = server.client(node.accounts.user())
        name = client.post("/pod/create", ins="main", image=SMALL).ok["name"]
        trusted = node.lxd.get("/1.0/certificates?recursion=1")
        found = next(item for item in trusted if item["name"] == node.project)
        url = f"/1.0/certificates/{found['fingerprint']}"
        kept = {key: found[key] for key in ("type", "name", "certificate", "restricted")}
        node.lxd.change("PUT", url, {**kept, "projects": [DEFAULT]})
        # Of which podyd is told by the stream that it has still open.
        node.lxc("config", "set", name, "user.x=1")
        wait_until(lambda: client.get("/pod/list").status != 200, "the refusal")
        client.get("/pod/info", ins="main").refused(502, "lxd_error")
        node.lxd.change("PUT", url, {**kept, "projects": [node.project]})
        wait_until(lambda: client.get("/pod/list").body == ["main"], "the pod")
        client.post("/pod/delete", ins="main").ok
        wait_until(lambda: client.get("/pod/list").body == [], "the pod to go")
        assert server.stop() == 0
    finally:
        node.close()


def test_the_tests_notice_what_podyd_keeps(server: Server) -> None:
    with contextlib.ExitStack() as connections:
        for _ in range(FILES_AT_REST):
            connections.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        wait_until(lambda: server.files() > FILES_AT_REST, "podyd to take them")
        with pytest.raises(AssertionError, match="to let go"):
            server.check_settled(limit=0.1)
    server.check_settled()
