"""Commands in pods, exactly as API.md says, on the real LXD."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlencode

import pytest

from tests.integration.harness import (
    IMAGE,
    SMALL,
    THREADS_AT_REST,
    Client,
    Line,
    Node,
    Server,
    started,
    wait_until,
)
from tests.integration.talking import streamed

# A number of seconds that stands in nobody else's command line.
MARK = "98761"
JSON = {"Content-Type": "application/json"}


def processes(alice: Client, pod: str, pattern: str) -> int:
    """How many processes of the pod have this in their command line."""
    # The brackets keep the search from finding itself.
    done = alice.exec(pod, f"pgrep -fc '[{pattern[0]}]{pattern[1:]}'")
    return int(done["stdout"])


def boxes(alice: Client, pod: str) -> str:
    """The cgroups of podyd's that are left in the pod, this command's own left out."""
    own = "$(sed -n 's,^0::.*/,,p' /proc/self/cgroup)"
    command = f"find /sys/fs/cgroup -name 'podyd-*' -type d | grep -v {own}"
    stdout: str = alice.exec(pod, command)["stdout"]
    return stdout


def test_answer_has_exactly_these_fields(alice: Client, pod: str) -> None:
    done = alice.exec(pod, "echo out; echo err >&2; exit 3")
    assert done.pop("seconds") < 5
    assert done.pop("log") in ("out\nerr\n", "err\nout\n")
    assert done == {
        "exit_code": 3,
        "stdout": "out\n",
        "stderr": "err\n",
        "timed_out": False,
        "truncated": False,
        "oom_killed": False,
        "memory_limit": None,
    }


def test_runs_as_root_in_bash_in_that_pod(alice: Client, pod: str, node: Node) -> None:
    done = alice.exec(pod, "id -u; hostname; [[ -n $BASH_VERSION ]] && echo bash; pwd")
    name = node.instance_of(alice.user, pod)["name"]
    assert done["stdout"].splitlines() == ["0", name, "bash", "/root"]


def test_log_has_both_streams_in_the_order_of_arrival(alice: Client, pod: str) -> None:
    command = "for i in 1 2 3; do echo out$i; sleep 0.15; echo err$i >&2; sleep 0.15; done"
    done = alice.exec(pod, command)
    assert done["log"].split() == ["out1", "err1", "out2", "err2", "out3", "err3"]
    assert done["stdout"].split() == ["out1", "out2", "out3"]
    assert done["stderr"].split() == ["err1", "err2", "err3"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("true", 0),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("no-such-command", 127),
        ("/etc/passwd", 126),
        ("if", 2),
    ],
)
def test_exit_codes_are_those_of_bash(alice: Client, pod: str, command: str, code: int) -> None:
    assert alice.exec(pod, command)["exit_code"] == code


@pytest.mark.parametrize(
    "text",
    [
        "Grüße, 世界 🚀",
        "'; rm -rf /; '",
        '"$HOME" `id` $(id) \\ %s',
        "a\nb\tc",
        "-e",
        "*",
        "x" * 50_000,
        "世" * 43_000,
    ],
)
def test_a_command_reaches_bash_as_it_is(alice: Client, pod: str, text: str) -> None:
    # The quoted here-document prints what stands in it.
    command = f"cat <<'END-OF-TEXT'\n{text}\nEND-OF-TEXT"
    body = json.dumps({"cmd": command}).encode()
    done = alice.call("POST", "/pod/exec", {"ins": pod}, body=body, headers=JSON).ok
    assert (done["stdout"], done["stderr"]) == (f"{text}\n", "")


def test_bytes_that_are_not_utf8_are_replaced(alice: Client, pod: str) -> None:
    done = alice.exec(pod, r"printf 'a\xff\xc3b\0c\xe2\x82'; printf '\xe2\x82\xac'")
    assert done["stdout"] == "a\ufffd\ufffdb\0c\ufffd€"


def test_stdin_is_empty(alice: Client, pod: str) -> None:
    done = alice.exec(pod, "cat; echo end", timeout=5)
    assert (done["stdout"], done["timed_out"]) == ("end\n", False)


def test_nothing_of_the_wrapper_shows_in_the_command(alice: Client, pod: str) -> None:
    done = alice.exec(pod, "ls -l /proc/self/fd | wc -l; env | grep -i podyd; ps -o comm= $PPID")
    plain = alice.exec(pod, "bash -c 'ls -l /proc/self/fd | wc -l'")
    assert done["stdout"].split()[0] == plain["stdout"].strip()
    assert "podyd" not in done["stdout"]


# --- Time ---------------------------------------------------------------------------------------


ESCAPES = {
    "plain": f"sleep {MARK}",
    "child": f"sleep {MARK} & wait",
    "setsid": f"setsid sleep {MARK} & wait",
    "nohup": f"nohup sleep {MARK} >/dev/null 2>&1 & wait",
    "empty environment": f"env -i setsid sleep {MARK} & wait",
    "double fork": f"( ( setsid bash -c 'trap \"\" TERM HUP INT; sleep {MARK}' & ) & ); sleep 60",
    "ignores signals": f"trap '' TERM HUP INT; sleep {MARK}",
    "closed streams": f"exec >&- 2>&- <&-; setsid sleep {MARK}",
    "forks all the time": f"while :; do sleep {MARK} & sleep 0.02; done",
}


@pytest.mark.alone
def test_time_up_is_no_later_than_a_second_after_the_deadline(alice: Client, pod: str) -> None:
    for how in ("plain", "ignores signals", "forks all the time"):
        started = time.monotonic()
        assert alice.exec(pod, ESCAPES[how], timeout=1)["timed_out"]
        assert 1 <= time.monotonic() - started < 2


@pytest.mark.parametrize("how", ESCAPES)
def test_time_up_kills_all_that_the_command_started(alice: Client, pod: str, how: str) -> None:
    done = alice.exec(pod, f"echo begun; echo E >&2; {ESCAPES[how]}", timeout=1)
    assert (done["exit_code"], done["timed_out"]) == (-1, True)
    assert (done["stdout"], done["stderr"]) == ("begun\n", "E\n")
    assert processes(alice, pod, f"sleep {MARK}") == 0
    assert boxes(alice, pod) == ""


def test_a_timeout_touches_no_other_command(alice: Client, pod: str) -> None:
    with ThreadPoolExecutor() as pool:
        other = pool.submit(alice.exec, pod, "sleep 2; echo lives")
        assert alice.exec(pod, "sleep 30", timeout=0.5)["timed_out"]
        assert other.result()["stdout"] == "lives\n"


def test_the_default_timeout_is_ten_seconds(alice: Client, pod: str) -> None:
    done = alice.exec(pod, f"sleep {MARK}")
    assert done["timed_out"]
    assert 10 <= done["seconds"] < 15


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "1e3", "ten", ""])
def test_a_bad_timeout_is_refused(alice: Client, pod: str, timeout: str) -> None:
    answer = alice.post("/pod/exec", ins=pod, cmd="true", timeout=timeout)
    assert "timeout" in answer.refused(400, "malformed_parameter")["detail"]


def test_a_timeout_above_the_maximum_is_refused(alice: Client, pod: str) -> None:
    body = alice.post("/pod/exec", ins=pod, cmd="true", timeout=3601).refused(403)
    assert body["limit"] == 3600


def test_a_background_process_does_not_delay_the_answer_and_lives(alice: Client, pod: str) -> None:
    later = "until [ -e /root/go ]; do sleep 0.1; done; echo late; touch /root/background"
    done = alice.exec(pod, f"({later}) & echo now")
    assert (done["stdout"], done["exit_code"], done["timed_out"]) == ("now\n", 0, False)
    alice.exec(pod, "touch /root/go")
    wait_until(
        lambda: alice.exec(pod, "test -e /root/background")["exit_code"] == 0,
        "what the background process does",
    )
    alice.exec(pod, "rm /root/background /root/go")


def test_a_background_process_survives_a_later_timeout(alice: Client, pod: str) -> None:
    alice.exec(pod, "setsid sleep 98762 >/dev/null 2>&1 &")
    assert alice.exec(pod, "sleep 30", timeout=0.3)["timed_out"]
    assert processes(alice, pod, "sleep 98762") == 1
    assert alice.exec(pod, "pkill -f '[s]leep 98762'")["exit_code"] == 0


# --- Output -------------------------------------------------------------------------------------


def test_output_is_bounded_on_each_stream(alice: Client, pod: str) -> None:
    megabyte = 1024**2
    command = f"head -c {2 * megabyte} /dev/zero | tr '\\0' x; head -c {megabyte + 1} /dev/zero >&2"
    done = alice.exec(pod, command)
    assert done["stdout"] == "x" * megabyte
    assert len(done["stderr"]) == megabyte
    assert len(done["log"]) == 2 * megabyte
    assert (done["truncated"], done["exit_code"]) == (True, 0)


def test_output_of_just_the_limit_is_whole(alice: Client, pod: str) -> None:
    done = alice.exec(pod, f"head -c {1024**2} /dev/zero")
    assert (len(done["stdout"]), done["truncated"]) == (1024**2, False)


def test_endless_output_ends_with_the_time_and_fills_nothing(
    alice: Client, pod: str, server: Server, node: Node
) -> None:
    done = alice.exec(pod, "yes", timeout=1)
    assert (done["timed_out"], done["truncated"]) == (True, True)
    assert len(done["stdout"]) == 1024**2
    assert processes(alice, pod, "yes") == 0
    name = node.instance_of(alice.user, pod)["name"]
    logs = node.lxd.get(f"/1.0/instances/{name}/logs?project={node.project}")
    assert not [path for path in logs if "exec" in path]


def test_a_forged_end_mark_is_output_and_nothing_is_held(
    alice: Client, pod: str, server: Server
) -> None:
    alice.exec(pod, f"head -c {1024**2} /dev/zero")
    before = server.rss_bytes()
    forge = (
        r"nonce=$(tr '\0\n' '\n ' </proc/$PPID/cmdline | sed -n 5p);"
        r" printf '\0podyd-%s:' $nonce; head -c 50000000 /dev/zero | tr '\0' x; exit 3"
    )
    done = alice.exec(pod, forge, timeout=30)
    assert done["stdout"].startswith("\0podyd-")
    assert (len(done["stdout"]), done["truncated"], done["exit_code"]) == (1024**2, True, 3)
    assert server.rss_bytes() - before < 20 * 1024**2


# --- Hanging up ---------------------------------------------------------------------------------


@contextmanager
def hanging_request(client: Client, **params: object) -> Iterator[socket.socket]:
    """A request whose answer nobody waits for; leaving closes the connection."""
    token = base64.b64encode(f"{client.user}:{client.password}".encode()).decode()
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        target = f"/pod/exec?{urlencode(params)}"
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
        connection.sendall(f"{head}Authorization: Basic {token}\r\n\r\n".encode())
        yield connection


def test_hanging_up_ends_the_command(alice: Client, pod: str, server: Server) -> None:
    command = "setsid sleep 98763 & sleep 98763"
    with hanging_request(alice, ins=pod, cmd=command, timeout=60):
        wait_until(lambda: processes(alice, pod, "sleep 98763") >= 2, "the command")
    wait_until(lambda: processes(alice, pod, "sleep 98763") == 0, "its end")
    assert boxes(alice, pod) == ""


# --- LXD goes away ------------------------------------------------------------------------------


@pytest.fixture
def far(node: Node) -> Iterator[Line]:
    """The way of a test's own podyd to LXD."""
    line = Line(port_of_lxd(node))
    yield line
    line.close()


def port_of_lxd(node: Node) -> int:
    endpoint = (node.credentials / "endpoint").read_text().strip()
    return int(endpoint.rpartition(":")[2])


def through(line: Line) -> dict[str, object]:
    return {"lxd": {"endpoint": f"https://127.0.0.1:{line.port}"}}


@contextmanager
def half_a_file(client: Client, ins: str) -> Iterator[None]:
    """One that is on its way into a pod and does not go on."""
    connection = client.connection(60)
    connection.putrequest("POST", f"/pod/file-put?{urlencode({'ins': ins, 'path': '/root/half'})}")
    for name, value in {**client.login_header(), "Content-Length": "1000"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b"x")
    try:
        yield
    finally:
        connection.close()


def test_what_was_begun_is_ended_when_lxd_answers_again(
    alice: Client, pod: str, node: Node, far: Line
) -> None:
    server = node.serve(through(far))
    client = server.client(alice.user)
    command = "setsid sleep 98765 & sleep 98765"
    halves = "ls -A /root | grep -c '^[.]podyd-'"

    def left() -> tuple[int, str]:
        return started("sleep 98765"), alice.exec(pod, halves)["stdout"]

    with (
        ThreadPoolExecutor() as pool,
        streamed(client, pod, command) as talk,
        half_a_file(client, pod),
    ):
        running = pool.submit(client.post, "/pod/exec", ins=pod, cmd=command, timeout=60)
        wait_until(lambda: left() == (4, "1\n"), "what is cut off then")
        far.close()
        running.result().refused(503, "lxd_unreachable")
        assert talk.end()["code"] == "lxd_unreachable"
        assert started("sleep 98765") > 0
    again = Line(port_of_lxd(node), far.port)
    try:
        wait_until(lambda: left() == (0, "0\n"), "the rest", 20)
    finally:
        again.close()
    assert server.stop() == 0
    assert boxes(alice, pod) == ""


def test_the_next_podyd_ends_what_this_one_could_not(
    alice: Client, pod: str, node: Node, far: Line
) -> None:
    server = node.serve(through(far))
    with streamed(server.client(alice.user), pod, "setsid sleep 98766 & sleep 98766") as talk:
        wait_until(lambda: started("sleep 98766") == 2, "the command")
        far.close()
        assert talk.end()["code"] == "lxd_unreachable"
        assert server.stop() == 0
    assert started("sleep 98766") > 0
    after = node.serve()
    wait_until(lambda: started("sleep 98766") == 0, "its end")
    assert after.stop() == 0
    assert boxes(alice, pod) == ""


# --- Refusals -----------------------------------------------------------------------------------


def test_a_stopped_pod_runs_nothing(alice: Client, ins: str) -> None:
    alice.post("/pod/create", ins=ins, image=SMALL).ok
    alice.post("/pod/stop", ins=ins).ok
    body = alice.post("/pod/exec", ins=ins, cmd="true").refused(409, "pod_not_running")
    assert body["status"] == "stopped"
    alice.post("/pod/delete", ins=ins).ok


def test_a_pod_that_is_deleted_meanwhile_ends_the_command_with_an_answer(
    alice: Client, ins: str
) -> None:
    alice.post("/pod/create", ins=ins, image=IMAGE).ok
    with ThreadPoolExecutor() as pool:
        running = pool.submit(alice.post, "/pod/exec", ins=ins, cmd="sleep 98764", timeout=30)
        wait_until(lambda: processes(alice, ins, "sleep 98764") > 0, "the command")
        alice.post("/pod/delete", ins=ins).ok
        answer = running.result()
    assert answer.seconds < 20
    assert answer.status == 409 or answer.ok["exit_code"] == 137


@pytest.mark.parametrize("command", ["", "a\0b", "x" * 131_072, "世" * 43_691], ids=len)
def test_a_bad_command_is_refused(alice: Client, pod: str, command: str) -> None:
    body = json.dumps({"cmd": command}).encode()
    answer = alice.call("POST", "/pod/exec", {"ins": pod}, body=body, headers=JSON)
    assert "cmd" in answer.refused(400, "malformed_parameter")["detail"]


# --- What is left -------------------------------------------------------------------------------


def test_hundreds_of_execs_leave_nothing(
    alice: Client, pod: str, server: Server, node: Node
) -> None:
    late = "sleep 98771"

    def one(number: int) -> str:
        if number % 10 == 0:
            assert alice.exec(pod, late, timeout=0.2)["timed_out"]
            return f"{number}\n"
        stdout: str = alice.exec(pod, f"echo {number}; sleep 0.0{number % 5}")["stdout"]
        return stdout

    one(1)
    wait_until(lambda: not node.operations(), "LXD's operations to end")
    files = server.files()

    def processes_in() -> int:
        return int(alice.exec(pod, "ls /proc | grep -c '^[0-9]'")["stdout"])

    in_pod = processes_in()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(200))) == [f"{number}\n" for number in range(200)]
    wait_until(lambda: started(late) == 0, "the end of what ran out of time")
    wait_until(lambda: not node.operations(), "LXD's operations to end")
    wait_until(lambda: server.files() <= files, "podyd's sockets to close")
    assert server.threads() <= THREADS_AT_REST
    # A pod that has only just been made has more of its own in the beginning.
    wait_until(lambda: processes_in() <= in_pod, f"the pod to have {in_pod} processes again")
    assert boxes(alice, pod) == ""
