"""What `pody` makes of its words, and how it shows answers."""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import podyd.client
from podyd.client import kept, main, show
from podyd.client.base import Base
from podyd.client.daily import _cards, how_far
from podyd.client.disk import cancel
from podyd.client.failure import Refused, Usage
from podyd.client.kept import Kept
from podyd.client.login import with_token
from podyd.client.logs import Lines
from podyd.client.server import Answer, Server
from podyd.client.stream import STDERR, STDOUT
from podyd.client.words import split

SOURCES = sorted(Path(podyd.client.__file__).parent.glob("*.py"))


# --- What it imports ----------------------------------------------------------------------------


def imports(source: Path, *, at_once: bool = False) -> set[str]:
    """What a module imports; `at_once`: when it is imported itself."""
    modules: set[str] = set()
    tree = ast.parse(source.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: a relative import"
            module = node.module or ""
            whole = module in ("podyd", "podyd.client")
            modules |= {f"{module}.{alias.name}" for alias in node.names} if whole else {module}
    return modules


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_client_needs_little_but_python(source: Path) -> None:
    # It runs on members' own machines, where neither the service nor its libraries are.
    libraries = {"argcomplete", "websocket"} - imports(source, at_once=True)
    for name in imports(source):
        own = name == "podyd.__version__" or name.startswith("podyd.client.")
        top = name.partition(".")[0]
        assert own or top in sys.stdlib_module_names or name in libraries, name


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_client_runs_on_macos_and_windows(source: Path) -> None:
    assert not imports(source, at_once=True) & {
        "pwd",
        "grp",
        "termios",
        "tty",
        "pty",
        "fcntl",
        "resource",
    }


# --- GPUs ---------------------------------------------------------------------------------------


def test_who_is_on_a_gpu_that_is_not_theirs_is_marked() -> None:
    left = {"pod": "b", "attached": False, "exclusive": False}
    # It has leased the card, and gets it once b is off it.
    lessee = {"pod": "c", "attached": False, "exclusive": True}
    pods = [{"pod": "a", "attached": True}, left, lessee, {"pod": "older"}]
    answer = cast(Answer, SimpleNamespace(data=[{"index": 0, "pods": pods}]))
    assert _cards(answer) == [{"index": 0, "pods": ["a", "b (still on it)", "c", "older"]}]


# --- Words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "pair"),
    [
        ("ins:first", ("ins", "first")),
        ("ins=first", ("ins", "first")),
        ("image:ubuntu2204-cuda12.1:latest", ("image", "ubuntu2204-cuda12.1:latest")),
        ("cmd:a=b c:d", ("cmd", "a=b c:d")),
        ("cmd=echo a:b", ("cmd", "echo a:b")),
        ("passwd:", ("passwd", "")),
        ("gpu-id=0,1", ("gpu-id", "0,1")),
        ("msg:grüß\nGott", ("msg", "grüß\nGott")),
        ("cmd:-x", ("cmd", "-x")),
    ],
)
def test_the_first_colon_or_equals_sign_splits(word: str, pair: tuple[str, str]) -> None:
    assert split(word) == pair


@pytest.mark.parametrize("word", ["first", "", ":first", "=first", "cmd:\udcff"])
def test_what_is_no_parameter(word: str) -> None:
    with pytest.raises(Usage):
        split(word)


def test_an_option_may_stand_between_the_words() -> None:
    options = main.parse(main.parser(), ["get", "pod/info", "--raw", "ins:a"])
    assert (options.route, options.params, options.raw) == ("pod/info", ["ins:a"], True)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(SystemExit, match="2"):
        main.parse(main.parser(), ["get", "pod/info", "--no-such", "ins:a"])


# --- Addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown", "loopback"),
    [
        ("http://127.0.0.1:8799", "http://127.0.0.1:8799", True),
        ("http://127.0.0.1:8799/", "http://127.0.0.1:8799", True),
        ("localhost:8799", "http://localhost:8799", True),
        ("gpu1.lab:8799", "http://gpu1.lab:8799", False),
        ("[::1]:8799", "http://[::1]:8799", True),
        ("HTTPS://gpu1.lab", "https://gpu1.lab", False),
        ("https://gpu1.lab/pods/", "https://gpu1.lab/pods", False),
        ("https://gpu1/ü%20a", "https://gpu1/%C3%BC%20a", False),
        ("http://127.0.0.1.evil.example", "http://127.0.0.1.evil.example", False),
        ("http://0.0.0.0:8799", "http://0.0.0.0:8799", False),
    ],
)
def test_addresses(text: str, shown: str, loopback: bool) -> None:
    base = Base.of(text)
    assert (str(base), base.is_loopback) == (shown, loopback)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://gpu1",
        "http://",
        "http://gpu1:x",
        "http://gpu1:99999",
        "https://alice:secret@gpu1",
        "https://gpu1/?a=b",
        "https://gpu1/#a",
        "https://gpu 1",
        "https://gpu1/a b",
        "https://" + "ü" * 70,
        "http://[::1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Usage, match="PODY_API_BASE") as caught:
        Base.of(text)
    assert "secret" not in str(caught.value)


# --- The token that is kept ---------------------------------------------------------------------

BASE = Base.of("https://gpu1.lab/pods")
KEPT = Kept(str(BASE), "alice", "podyd_x", "1")


def test_a_token_is_kept_for_its_owner_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert kept.load(BASE) is None
    before = os.umask(0)
    try:
        path = kept.save(BASE, KEPT)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path], "no draft is left"
    assert kept.load(BASE) == KEPT
    assert kept.load(Base.of("https://gpu1.lab")) is None
    kept.remove(BASE)
    kept.remove(BASE)
    assert kept.load(BASE) is None


def test_a_token_is_in_no_repr() -> None:
    assert "podyd_x" not in repr(KEPT)
    assert "podyd_x" not in repr(with_token(KEPT))


@pytest.mark.parametrize("configured", ["", "relative"])
def test_where_tokens_are_kept(configured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", configured)
    monkeypatch.setenv("HOME", "/home/alice")
    expected = "/home/alice/.config/pody/https%3A%2F%2Fgpu1.lab%2Fpods.json"
    assert str(kept.path_of(BASE)) == expected


# --- What is shown ------------------------------------------------------------------------------

GIB = 1024**3


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("memory_limit", 64 * GIB, "64 GiB"),
        ("memory_limit", -1, "no limit"),
        ("memory_used", 1536 * 1024, "1.5 MiB"),
        ("gpu_memory_used", 512, "512 B"),
        ("disk_bytes", 1023, "1023 B"),
        ("disk_used", 3 * GIB // 2, "1.5 GiB"),
        ("disk_total", -1, "no limit"),
        ("size", 2048 * GIB, "2 TiB"),
        ("size", 1024**2 - 1, "1 MiB"),
        ("max_pods", -1, "no limit"),
        ("gpu_count", 2, "2"),
        ("cpu_limit", -1, "no limit"),
        ("exit_code", -1, "-1"),
        ("uptime", 90061.5, "1 d 1 h"),
        ("uptime", 3600, "1 h"),
        ("uptime", 59.96, "1 min"),
        ("idle", 61.2, "1 min 1 s"),
        ("seconds", 0.023, "0.023 s"),
        ("seconds", 12.345, "12.3 s"),
        ("uptime", 0, "0 s"),
        ("uptime", None, "-"),
        ("is_admin", 1, "yes"),
        ("is_admin", 0, "no"),
        ("exclusive", True, "yes"),
        ("uptime", float("inf"), "inf"),
        ("seconds", float("nan"), "nan"),
        ("power", 71.25, "71.25 W"),
        ("utilisation", 3, "3 %"),
        ("options", {}, "-"),
        ("gpu_ids", [0, 1], "0, 1"),
        ("gpu_ids", [], "-"),
        ("name", "grün", "grün"),
        ("name", "", "-"),
    ],
)
def test_cells(key: str, value: object, text: str) -> None:
    assert show.cell(key, value) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\x9b31m", "a\\x9b31m"),
        ("a\nb", "a\\nb"),
        ("\u202egnp", "\\u202egnp"),
        ("\ud800", "\\ud800"),
        ("grüß 汉字", "grüß 汉字"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert show.harmless(text) == shown
    assert show.answer("x", [text], 80) == f"{shown}\n"
    assert show.answer("x", {text: text}, 80) == f"{shown}: {shown}\n"


def test_lines_are_harmless_and_not_held_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.write(STDOUT, b"a\x1b[31m\nb")
    assert capsys.readouterr().out == "a\\x1b[31m\n"
    lines.write(STDOUT, b"x" * 100_000)
    assert len(capsys.readouterr().out) == 100_002
    lines.write(STDERR, b"c")
    lines.end()
    assert capsys.readouterr() == ("", "c\n")


def test_a_list_of_objects_is_a_table() -> None:
    rows = [{"name": "汉字", "size": 1024}, {"name": "b", "size": None, "pod": "x"}]
    assert show.answer("x", rows, 80) == (
        "name  size   pod\n"
        "汉字  1 KiB  -\n"
        "b     -      x\n"
    )  # fmt: skip


def test_a_table_that_does_not_fit_is_shown_in_blocks() -> None:
    rows = [{"name": "a" * 20, "uptime": 60}, {"name": "b", "uptime": None}]
    assert show.answer("x", rows, 20) == (
        f"name: {'a' * 20}\nuptime: 1 min\n\nname: b\nuptime: -\n"
    )


def test_objects_in_objects() -> None:
    shown = show.answer("user/info", {"user": {"is_admin": 0}, "quota": {"max_pods": -1}}, 80)
    assert shown == "user:\n  is_admin: no\nquota:\n  max_pods: no limit\n"
    shown = show.answer("host/gpu-ps", {"0": [{"pid": 7, "cmd": "\x1b]0;x\x07"}], "1": []}, 80)
    assert shown == "0:\n  pid  cmd\n  7    \\x1b]0;x\\x07\n1: -\n"
    shown = show.answer("host/gpus", [{"index": 0, "pods": [{"pod": "a"}]}], 80)
    assert shown == "index: 0\npods:\n  pod\n  a\n"


def test_lists_and_nothing() -> None:
    assert show.answer("pod/list", ["exp", "main"], 80) == "exp\nmain\n"
    assert show.answer("version", [0, 1, 0], 80) == "0, 1, 0\n"
    assert show.answer("pod/list", [], 80) == "(none)\n"
    assert show.answer("host/gpu-ps", {}, 80) == "(none)\n"


def test_a_log_stands_for_itself() -> None:
    assert show.answer("pod/start", {"log": "Pod a runs.\nAll \x1b is well.\n"}, 80) == (
        "Pod a runs.\nAll \\x1b is well.\n"
    )
    lease = {"log": "Number 2 in the queue.", "place": 2, "leases": []}
    assert show.answer("gpu/queue", lease, 80) == "Number 2 in the queue.\nplace: 2\nleases: -\n"


def test_usage_is_in_seconds_whatever_the_users_names_are() -> None:
    shown = show.answer("/stat/gputime", {"alice": 7200.0, "memory": 60.0}, 80)
    assert shown == "alice: 2 h\nmemory: 1 min\n"


def test_what_a_command_said_is_shown_as_it_is() -> None:
    done = {"exit_code": 3, "log": "\x1b[31mred\x1b[0m", "timed_out": False, "truncated": False}
    assert show.answer("pod/exec", done, 80) == "\x1b[31mred\x1b[0m\n"
    assert show.remarks(done) == ["The command ended with exit status 3."]
    assert show.remarks(done | {"exit_code": 0}) == []
    assert show.remarks(done | {"exit_code": -1, "timed_out": True, "truncated": True}) == [
        "The command reached its timeout; it and all that it started were killed.",
        "There was more output; what exceeded the limit is lost.",
    ]
    assert show.remarks(done | {"exit_code": 0, "oom_killed": True, "memory_limit": 2**29}) == [
        "killed: the pod's memory limit of 512 MiB was reached; more, within your quota:"
        " pody limits NAME --memory SIZE"
    ]
    assert "the host" in show.killed(-1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"a": "\x9b\x7fü\\u001b"}', '{"a": "\\u009b\\u007fü\\u001b"}'),
        ('["\u202egnp", "汉字", "a\u2028b"]', '["\\u202egnp", "汉字", "a\\u2028b"]'),
        ('["\U000e0041", "😀"]', '["\\udb40\\udc41", "😀"]'),
        # Between values only: in a string it would be no JSON.
        ("[1,\r\n\t2]", "[1,   2]"),
    ],
)
def test_json_for_a_terminal_has_only_visible_characters(text: str, shown: str) -> None:
    assert show.harmless_json(text) == shown
    assert json.loads(shown) == json.loads(text)


def test_help_says_what_to_type() -> None:
    routes: list[dict[str, Any]] = [
        {
            "path": "/pod/exec",
            "methods": ["POST"],
            "params": [
                {"name": "ins", "optional": False, "help": "the pod's name"},
                {"name": "timeout", "optional": True},
            ],
            "help": "Run a command.",
        },
        {"path": "/pod/list", "methods": ["GET"], "params": []},
    ]
    short = "pody post pod/exec ins:INS [timeout:TIMEOUT]\n    Run a command.\n"
    assert show.routes(routes) == f"{short}pody get pod/list\n"
    assert show.routes(routes[:1]) == f"{short}    ins: the pod's name\n    timeout\n"


# --- Progress -----------------------------------------------------------------------------------


def server(data: dict[str, Any] | None) -> Server:
    """A podyd that says this; None: an older one, without the route."""

    def get(route: str, pairs: object) -> Answer:
        if data is None:
            raise Refused("There is no route.", b"{}")
        return Answer(b"", data)

    return cast(Server, SimpleNamespace(get=get))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            {"doing": "packing", "percent": 43, "bytes_per_second": 31457280},
            "packing 43 % (30 MiB/s)",
        ),
        ({"doing": "packing", "percent": None, "bytes_per_second": None}, "packing"),
        ({"doing": "copying", "percent": None, "bytes_per_second": None}, "copying"),
        ({"doing": None, "percent": None, "bytes_per_second": None}, ""),
        (None, ""),
    ],
)
def test_what_a_member_sees_of_it(data: dict[str, Any] | None, text: str) -> None:
    assert how_far(server(data), "main") == text


CANCELLING = "Cancelling the image; Ctrl-C again ends pody at once."


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """As at a terminal: what runs in a shell's background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("begun", [0.0, 60.0])
def test_ctrl_c_may_come_before_podyd_has_begun(
    begun: float, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([{"detail": "none yet", "code": "no_commit"}, {"log": "cancelled"}])

    def post(route: str, pairs: object, sent: Callable[[], None]) -> Answer:
        assert (route, pairs) == ("pod/commit-cancel", [("ins", "main")])
        sent()
        body = next(answers)
        if "code" in body:
            raise Refused(body["detail"], json.dumps(body).encode())
        return Answer(b"", body, "")

    asked = cast(Server, SimpleNamespace(post=post))
    cancel(asked, "main", time.monotonic() - begun)
    outcome = "cancelled" if begun == 0 else "none yet"
    assert capsys.readouterr().err == f"pody: {CANCELLING}\npody: {outcome}\n"


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("is_sent", [False, True])
def test_a_second_ctrl_c_ends_pody_only_once_podyd_knows(
    is_sent: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def post(route: str, pairs: object, sent: Callable[[], None]) -> Answer:
        if is_sent:
            sent()
        os.kill(os.getpid(), signal.SIGINT)
        return Answer(b"", {"log": "cancelled"}, "")

    usual = signal.getsignal(signal.SIGINT)
    asked = cast(Server, SimpleNamespace(post=post))
    with pytest.raises(KeyboardInterrupt) if is_sent else nullcontext():
        cancel(asked, "main", time.monotonic())
    assert signal.getsignal(signal.SIGINT) == usual
    assert (CANCELLING in capsys.readouterr().err) is is_sent
