"""Commands and shells over WebSockets, on the real LXD."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import websocket

from tests.integration.harness import SMALL, Client, Node, Server, run, started, wait_until
from tests.integration.talking import CONTROL, END, Talk, connect, ended, shell, streamed
from tests.integration.test_exec import boxes, processes

MEGABYTE = 1024**2
REASONABLE_GROWTH = 12 * MEGABYTE


def refused(client: Client, path: str, **params: object) -> int:
    """The status that podyd refuses a WebSocket with."""
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        connect(client, path, **params)
    status: int = caught.value.status_code
    return status


# --- Streamed commands --------------------------------------------------------------------------


def test_both_streams_and_the_exit_status(alice: Client, pod: str) -> None:
    with streamed(alice, pod, "echo out; echo err >&2; exit 3") as talk:
        assert talk.end() == ended(3)
        assert (talk.out, talk.err) == (b"out\n", b"err\n")


def test_output_comes_as_it_is_written(alice: Client, pod: str) -> None:
    with streamed(alice, pod, "echo now; read -r x; echo $x") as talk:
        talk.wait_for(b"now\n")
        talk.type(b"later\n")
        assert talk.end()["exit_code"] == 0
        assert talk.out == b"now\nlater\n"


def test_output_that_could_begin_the_mark_of_the_end_comes_too(alice: Client, pod: str) -> None:
    for text in ("\\0", "a\\0pod", "\\0\\0podyd-"):
        sent = text.replace("\\0", "\0").encode()
        with streamed(alice, pod, f"printf '{text}'; read -r x; printf '{text}'") as talk:
            talk.wait_for(sent)
            talk.type(b"\n")
            assert talk.end()["exit_code"] == 0
            assert talk.out == sent * 2


def test_bytes_pass_as_they_are_and_stdin_has_an_end(alice: Client, pod: str) -> None:
    data = bytes(range(256)) * 100
    with streamed(alice, pod, "cat") as talk:
        talk.type(data)
        talk.control(eof=True)
        assert talk.end()["exit_code"] == 0
        assert talk.out == data


def test_a_command_stands_in_no_url(alice: Client, pod: str) -> None:
    assert refused(alice, "/pod/exec-stream", ins=pod, cmd="true") == 400


def test_time_up_kills_all_of_a_streamed_command(alice: Client, pod: str) -> None:
    with streamed(alice, pod, "setsid sleep 97001 & echo begun; wait", timeout=2) as talk:
        assert talk.end() == ended(-1, timed_out=True)
        assert talk.out == b"begun\n"
    assert started("sleep 97001") == 0
    assert boxes(alice, pod) == ""


def test_what_is_left_in_the_background_lives(alice: Client, pod: str) -> None:
    with streamed(alice, pod, "sleep 97002 & echo now") as talk:
        assert talk.end()["exit_code"] == 0
    assert started("sleep 97002") == 1
    alice.exec(pod, "pkill -f '[s]leep 97002'")


def test_a_signal_reaches_all_of_a_command(alice: Client, pod: str) -> None:
    with streamed(alice, pod, "echo begun; sleep 97003; echo not so") as talk:
        talk.wait_for(b"begun")
        talk.control(signal="INT")
        assert talk.end() == ended(130)
        assert talk.out == b"begun\n"
    assert started("sleep 97003") == 0


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_caller_who_vanishes_ends_what_they_started(alice: Client, pod: str, how: str) -> None:
    with streamed(alice, pod, "setsid sleep 97004 & nohup sleep 97004 & sleep 97004") as talk:
        wait_until(lambda: started("sleep 97004") == 3, "the command")
        if how == "reset":
            talk.reset()
        else:
            talk.connection.close()
    wait_until(lambda: started("sleep 97004") == 0, "its end")
    wait_until(lambda: boxes(alice, pod) == "", "the end of its cgroup")


@pytest.mark.parametrize("window", [None, 256 * 1024])
def test_a_flood_waits_for_a_slow_reader(
    alice: Client, pod: str, server: Server, window: int | None
) -> None:
    """100 MB, to one who takes a little now and then, by either way of holding podyd back."""
    size = 100 * MEGABYTE
    before = peak = server.rss_bytes()
    agreed = {} if window is None else {"window": window}
    with streamed(alice, pod, f"head -c {size} /dev/zero; echo end >&2", **agreed) as talk:
        got, told, pauses = 0, 0, 0
        while got < size:
            if got >= pauses * MEGABYTE and pauses < 4:
                pauses += 1
                time.sleep(0.5)
                peak = max(peak, server.rss_bytes())
            talk.step()
            got, talk.out = got + len(talk.out), b""
            if window and got - told >= window // 4:
                talk.control(taken=got)
                told = got
        assert talk.end()["exit_code"] == 0
        assert (got, talk.err) == (size, b"end\n")
    assert peak - before < REASONABLE_GROWTH


def test_input_that_is_not_read_is_held_within_a_window(alice: Client, pod: str) -> None:
    with streamed(alice, pod, "sleep 60") as talk:
        talk.step()
        window = talk.controls[0]["window"]
        with contextlib.suppress(OSError, websocket.WebSocketException):
            for _ in range(100):
                talk.type(b"x" * (window // 4))
        assert talk.end()["code"] == "malformed_message"


def test_much_input_passes_as_it_is_taken(alice: Client, pod: str, server: Server) -> None:
    size = 20 * MEGABYTE
    before = server.rss_bytes()
    with streamed(alice, pod, "sleep 0.5; wc -c") as talk:
        talk.step()
        window, sent = talk.controls[0]["window"], 0
        while sent < size:
            taken = talk.controls[-1].get("taken", 0)
            if room := min(window - (sent - taken), size - sent, 65536):
                talk.type(b"x" * room)
                sent += room
            else:
                assert talk.step() == CONTROL
        talk.control(eof=True)
        assert talk.end()["exit_code"] == 0
        assert talk.out.strip() == str(size).encode()
    assert server.rss_bytes() - before < REASONABLE_GROWTH


def test_a_signal_passes_input_that_nobody_reads(alice: Client, pod: str) -> None:
    with streamed(alice, pod, "echo begun; sleep 97005") as talk:
        talk.wait_for(b"begun")
        for _ in range(3):
            talk.type(b"x" * 65536)
        talk.control(signal="INT")
        assert talk.end() == ended(130)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x09x",
        b"\x04{",
        b"\x04[]",
        b'\x04{"signal": "NONE"}',
        b'\x04{"resize": {"rows": -1}}',
    ],
)
def test_a_message_that_is_none(alice: Client, pod: str, frame: bytes) -> None:
    with streamed(alice, pod, "sleep 97006") as talk:
        wait_until(lambda: started("sleep 97006") == 1, "the command")
        talk.connection.send_binary(frame)
        assert talk.end()["code"] == "malformed_message"
    wait_until(lambda: started("sleep 97006") == 0, "its end")


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ({}, "missing_parameter"),
        ({"cmd": ""}, "malformed_parameter"),
        ({"cmd": "true", "no": 1}, "unknown_parameter"),
        ({"cmd": "true", "timeout": -1}, "malformed_parameter"),
    ],
)
def test_a_beginning_that_is_none(
    alice: Client, pod: str, start: dict[str, Any], code: str
) -> None:
    connection = connect(alice, "/pod/exec-stream", ins=pod)
    connection.send_binary(b"\4" + json.dumps(start).encode())
    while (frame := connection.recv())[0] != END:
        pass
    assert json.loads(frame[1:])["code"] == code
    connection.close()


def test_a_wrong_beginning_that_comes_with_the_handshake(alice: Client, pod: str) -> None:
    head = {
        "Host": "localhost",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **alice.login_header(),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    request = f"GET /pod/exec-stream?ins={pod} HTTP/1.1\r\n{lines}\r\n".encode()
    # Three bytes, masked with zeros: the channel and what is no JSON.
    frame = b"\x82\x83\0\0\0\0\4{x"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", alice.port), timeout=10) as connection:
            connection.sendall(request + frame)
            came = b""
            while b"malformed" not in came:
                data = connection.recv(65536)
                assert data, came
                came += data


def test_a_pod_that_stops_meanwhile(alice: Client, ins: str) -> None:
    alice.post("/pod/create", ins=ins, image=SMALL).ok
    with streamed(alice, ins, "echo begun; sleep 97007") as talk:
        talk.wait_for(b"begun")
        alice.post("/pod/delete", ins=ins).ok
        end = talk.end()
        assert end["exit_code"] == 137 or end["code"] == "exec_cut_off"


# --- Shells -------------------------------------------------------------------------------------


def test_a_login_shell_at_a_terminal(alice: Client, pod: str) -> None:
    with shell(alice, pod, rows=33, cols=101, term="xterm") as talk:
        talk.type(b"shopt -q login_shell && tty && stty size && id -un && echo $TERM; pwd\n")
        talk.wait_for(b"/root\r\n")
        for text in (b"/dev/pts/", b"33 101\r\n", b"root\r\n", b"xterm\r\n"):
            assert text in talk.out
        talk.control(resize={"rows": 50, "cols": 120})
        talk.type(b"sleep 0.2; stty size\n")
        talk.wait_for(b"50 120\r\n")
        talk.type(b"exit 7\n")
        assert talk.end() == ended(7)
    assert boxes(alice, pod) == ""


def test_ctrl_c_at_a_terminal(alice: Client, pod: str) -> None:
    with shell(alice, pod) as talk:
        talk.type(b"echo be''gun; sleep 97010\n")
        talk.wait_for(b"begun")
        wait_until(lambda: started("sleep 97010") == 1, "the command")
        talk.type(b"\3")
        # Until bash shows its prompt, the terminal would keep no Ctrl-D for it.
        talk.type(b"echo status=$?; PS1='at''last> '\n")
        talk.wait_for(b"status=130")
        talk.wait_for(b"atlast> ")
        talk.type(b"\4")
        assert talk.end() == ended(0)


def test_ctrl_c_ends_a_command_at_a_terminal(alice: Client, pod: str) -> None:
    with shell(alice, pod, cmd="echo begun; sleep 97011; echo not so") as talk:
        talk.wait_for(b"begun")
        wait_until(lambda: started("sleep 97011") == 1, "the command")
        talk.type(b"\3")
        assert talk.end() == ended(130)
        assert b"not so" not in talk.out


def test_a_full_screen_program(alice: Client, pod: str) -> None:
    with shell(alice, pod, cmd="top -d 1") as talk:
        talk.wait_for(b"load average")
        talk.type(b"q")
        assert talk.end()["exit_code"] == 0


def test_a_job_outlives_a_shell_that_was_left(alice: Client, pod: str) -> None:
    with shell(alice, pod) as talk:
        talk.type(b"nohup sleep 97012 >/dev/null 2>&1 &\n")
        wait_until(lambda: started("sleep 97012") == 1, "the job")
        talk.type(b"exit\n")
        assert talk.end()["exit_code"] == 0
    assert started("sleep 97012") == 1
    alice.exec(pod, "pkill -f '[s]leep 97012'")


def test_a_shell_whose_caller_vanishes_leaves_nothing(alice: Client, pod: str) -> None:
    with shell(alice, pod) as talk:
        talk.type(b"setsid sleep 97013 &\nsleep 97013\n")
        wait_until(lambda: started("sleep 97013") == 2, "the commands")
        talk.reset()
    wait_until(lambda: started("sleep 97013") == 0, "their end")
    wait_until(lambda: boxes(alice, pod) == "", "the end of its cgroup")


# --- Who may ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/pod/exec-stream", "/pod/shell"])
def test_refusals_are_those_of_every_call(
    alice: Client, bob: Client, pod: str, server: Server, path: str
) -> None:
    assert refused(server.client(), path, ins=pod) == 401
    assert refused(server.client(alice.user, "wrong"), path, ins=pod) == 401
    assert refused(bob, path, ins=pod) == 404
    assert refused(alice, path) == 400
    assert refused(alice, path, ins=pod, no=1) == 400
    body = alice.get(path, ins=pod).refused(426, "upgrade_required")
    assert "pody shell" in body["advice"]
    alice.post(path, ins=pod).refused(405)
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        websocket.create_connection(
            f"ws://127.0.0.1:{alice.port}{path}?ins={pod}",
            header=[f"{name}: {value}" for name, value in alice.login_header().items()],
            origin="https://evil.example",
            http_no_proxy=["127.0.0.1"],
        )
    assert caught.value.status_code == 403


def test_a_stopped_pod_has_no_shell(node: Node, alice: Client, ins: str) -> None:
    alice.post("/pod/create", ins=ins, image=SMALL).ok
    node.lxc("stop", "--force", node.instance_of(alice.user, ins)["name"])
    assert refused(alice, "/pod/shell", ins=ins) == 409
    alice.post("/pod/delete", ins=ins).ok


def test_a_member_has_so_many_shells(new_user: Callable[[], Client], ins: str) -> None:
    member = new_user()
    member.post("/pod/create", ins=ins, image=SMALL).ok
    open_ones = [connect(member, "/pod/shell", ins=ins) for _ in range(20)]
    assert refused(member, "/pod/shell", ins=ins) == 429
    open_ones.pop().close()

    def one_more() -> bool:
        with contextlib.suppress(websocket.WebSocketBadStatusException):
            open_ones.append(connect(member, "/pod/shell", ins=ins))
        return len(open_ones) == 20

    wait_until(one_more, "a place")
    for open_one in open_ones:
        open_one.close()
    member.post("/pod/delete", ins=ins).ok


def test_help_and_the_document_know_websockets(alice: Client) -> None:
    (entry,) = alice.get("/help", path="/pod/shell").ok
    assert (entry["methods"], entry["websocket"]) == (["GET"], True)
    assert not alice.get("/help", path="/pod/exec").ok[0]["websocket"]
    described = alice.get("/openapi.json").ok["paths"]["/pod/shell"]["get"]
    assert "0 stdin" in described["description"]
    assert "cmd" in described["x-websocket"]["first"]["properties"]


def test_one_line_in_the_log_at_the_end_and_no_command(
    alice: Client, pod: str, server: Server
) -> None:
    with streamed(alice, pod, ": sEcret-9; sleep 0.3") as talk:
        talk.step()
        before = server.log_text().count("GET /pod/exec-stream")
        assert talk.end()["exit_code"] == 0
    wait_until(
        lambda: server.log_text().count("GET /pod/exec-stream") == before + 1, "the line in the log"
    )
    line = [line for line in server.log_text().splitlines() if "/pod/exec-stream" in line][-1]
    assert f"101 GET /pod/exec-stream user={alice.user}" in line
    assert "sEcret-9" not in server.log_text()


# --- The end of a login -------------------------------------------------------------------------


def test_what_is_open_ends_with_its_login(node: Node, ins: str) -> None:
    group = node.accounts.group()
    user = node.accounts.user("", "-G", group)
    server = node.serve(
        {"auth": {"member_groups": [group]}}, constants={"podyd.people.sessions.CHECK_SECONDS": 0.3}
    )
    client = server.client(user)
    client.post("/pod/create", ins=ins, image=SMALL).ok
    made = client.post("/user/token", name="x").ok
    with_token = server.client(user, made["token"])

    def ended(talk: Talk, code: str) -> None:
        # Else it is waited for without end: podyd's pings go on.
        server.wait_for_log(f"sessions in pods end: {code}")
        ended = talk.end()
        assert (ended["exit_code"], ended["code"]) == (-1, code)

    with shell(with_token, ins) as by_token, shell(client, ins) as by_password:
        by_token.type(b"sleep 97030\n")
        wait_until(lambda: started("sleep 97030") == 1, "the command")
        client.post("/user/token-revoke", id=made["id"]).ok
        ended(by_token, "token_refused")
        wait_until(lambda: started("sleep 97030") == 0, "the command to be killed")
        by_password.type(b"echo go''es on\n")
        by_password.wait_for(b"goes on")
        with ThreadPoolExecutor() as pool:
            running = pool.submit(client.post, "/pod/exec", ins=ins, cmd="sleep 97031", timeout=60)
            wait_until(lambda: started("sleep 97031") == 1, "the command")
            run("usermod", "-L", user)
            ended(by_password, "account_refused")
            running.result().refused(403, "account_refused")
    run("usermod", "-U", user)
    with shell(client, ins) as again:
        run("gpasswd", "-d", user, group)
        ended(again, "not_a_member")
    run("gpasswd", "-a", user, group)
    with shell(client, ins) as again, streamed(client, ins, "sleep 97032") as command:
        run("chpasswd", stdin=f"{user}:Next-Horse-8\n")
        ended(again, "password_changed")
        ended(command, "password_changed")
    assert "sleep 97030" not in server.log_text()
    server.client(user, "Next-Horse-8").post("/pod/delete", ins=ins).ok
    assert server.stop() == 0


# --- The end of podyd ---------------------------------------------------------------------------


def test_podyd_stops_and_says_why(node: Node, alice: Client, pod: str) -> None:
    server = node.serve()
    client = server.client(alice.user)
    with shell(client, pod) as idle, streamed(client, pod, "sleep 1; echo done") as short:
        idle.type(b"sleep 97020\n")
        wait_until(lambda: started("sleep 97020") == 1, "the command")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert idle.end()["code"] == "shutting_down"
        assert "restarting" in idle.end()["detail"]
        assert short.end() == ended(0)
        server.process.wait(20)
        assert time.monotonic() - began < 8
    assert server.process.returncode == 0
    assert started("sleep 97020") == 0
    assert "Traceback" not in server.log_text()


def test_shells_leave_nothing(alice: Client, pod: str, server: Server, node: Node) -> None:
    def one() -> None:
        with shell(alice, pod) as talk:
            talk.type(b"exit\n")
            talk.end()

    def is_at_it() -> bool:
        return any(operation["status"] == "Running" for operation in node.operations())

    one()
    wait_until(lambda: not is_at_it(), "LXD's operation to end")
    files, threads = server.files(), server.threads()
    for _ in range(10):
        one()
    wait_until(lambda: not is_at_it(), "LXD's operations to end")
    wait_until(lambda: server.files() <= files, "podyd's sockets to close")
    assert server.threads() <= threads
    assert processes(alice, pod, "bash -l") == 0
