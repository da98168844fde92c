"""Which failures are forgiven once: those that a log explains, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import slips
from tests.slips import IN_KERNEL, IN_LXD, KernelLog, Sentence

pytest_plugins = "pytester"

SPOILS = f"hear(IN_LXD, Sentence({'readdirent /var/lib/lxd/x: bad file descriptor'!r}))"
LOST_COUNT = "BTRFS info (device loop1): qgroup marked inconsistent, subtree level reached"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(slips, "_heard", lines)
    monkeypatch.setattr(slips, "_ours", {"podyd-test-0a1b2c"})
    return lines


@pytest.mark.parametrize(
    "text",
    [
        "Failure for operation, Creating instance: Failed to copy file content /etc/passwd:"
        " copy_file_range: bad file descriptor",
        "2026-11-28T10:16:21.576278761Z Failure for operation, Starting instance: Failed to handle"
        " idmapped storage: Failed to change ownership of: /var/lib/lxd/storage-pools/default/"
        "containers/podyd-test-0a1b2c_alice-small/rootfs/usr/share/doc/util-linux/examples",
        'Failed to run: forkstart main: saving config file for the container failed: "lxc.conf"',
    ],
)
def test_lxd_names_its_fault(heard: list[str], text: str) -> None:
    slips.hear(IN_LXD, Sentence(text, "podyd-test-0a1b2c"))
    assert heard == [f"{IN_LXD.what}: {text}"]


@pytest.mark.parametrize(
    "text",
    [
        "Failure for operation, Downloading image: lstat /var/lib/lxd/containers/x/rootfs/root/1:"
        " no such file or directory",
        "Failure for operation, Stopping instance: The instance is already stopped",
        "Failure for operation, Creating instance: write /x: disk quota exceeded",
    ],
)
def test_what_else_lxd_says_explains_nothing(heard: list[str], text: str) -> None:
    slips.hear(IN_LXD, Sentence(text, "podyd-test-0a1b2c"))
    assert heard == []


@pytest.mark.parametrize(("owner", "count"), [("podyd-test-ffffff", 0), ("", 1), ("default", 1)])
def test_what_happens_to_others_explains_nothing(heard: list[str], owner: str, count: int) -> None:
    slips.hear(IN_LXD, Sentence("bad file descriptor", owner))
    assert len(heard) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (LOST_COUNT, 1),
        ("BTRFS info (device loop1): qgroup scan completed (inconsistency flag cleared)", 0),
    ],
)
def test_the_kernel_names_its_fault(heard: list[str], text: str, count: int) -> None:
    slips.hear(IN_KERNEL, Sentence(text))
    assert len(heard) == count


def test_what_is_heard_of_a_whole_image_is_short(heard: list[str]) -> None:
    slips.hear(IN_LXD, Sentence("Packing x\n" * 9999 + "bad file descriptor" + "\ny" * 9999))
    assert "bad file descriptor" in heard[0]
    assert len(heard[0]) < 2 * slips.SHOWN_CHARACTERS


def test_an_event_of_lxds() -> None:
    event = {
        "type": "logging",
        "timestamp": "2026-11-28T10:10:03.627046106Z",
        "metadata": {
            "message": "Failure for operation",
            "level": "debug",
            "context": {
                "class": "task",
                "description": "Downloading image",
                "err": "lstat /x: no such file or directory",
                "operation": "5f1c2a3e",
                "project": "podyd-test-edf3ce",
            },
        },
        "location": "none",
    }
    assert slips.sentence_of(event) == Sentence(
        "2026-11-28T10:10:03.627046106Z Failure for operation, Downloading image: lstat /x: no such"
        " file or directory",
        "podyd-test-edf3ce",
    )
    event["metadata"] = {"message": "Started", "level": "info", "context": None}
    assert slips.sentence_of(event).owner == ""


def test_the_pool_of_a_loop_device(tmp_path: Path) -> None:
    (tmp_path / "loop1/loop").mkdir(parents=True)
    (tmp_path / "loop1/loop/backing_file").write_text("/var/lib/lxd/disks/podyd-test-1a2b3c.img\n")
    assert slips.pool_of(LOST_COUNT, tmp_path) == "podyd-test-1a2b3c"
    assert slips.pool_of(LOST_COUNT.replace("loop1", "loop2"), tmp_path) == ""
    assert slips.pool_of("BTRFS info (device sda1): x", tmp_path) == ""


def test_only_what_the_kernel_says_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text("6,1,1,-;old\n")
    log = KernelLog(path)
    try:
        assert list(log.new()) == []
        with path.open("a") as file:
            file.write("6,2,2,-;new\n SUBSYSTEM=x\n")
        assert list(log.new()) == [Sentence("new")]
    finally:
        log.close()
    assert list(KernelLog(tmp_path / "nonesuch").new()) == []


# --- The plugin in a run of its own -------------------------------------------------------------


def play(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, text: str, *options: str
) -> pytest.RunResult:
    monkeypatch.setenv("PYTHONPATH", str(Path(slips.__file__).parents[1]))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    head = "import pytest\nfrom pathlib import Path\nfrom tests.slips import *\n"
    pytester.makepyfile(test_it=head + text)
    return pytester.runpytest_subprocess("-p", "tests.slips", *options)


# It fails the first time that it runs.
ONCE = """
def once(name):
    path = Path(f"{name}.failed")
    if not path.exists():
        path.touch()
        pytest.fail(name)
"""
GOOD = "def test_good(): pass\n"
SPOILED = f"def test_spoiled():\n    {SPOILS}\n    once('spoiled')\n"
WRONG = "def test_wrong(): once('wrong')\n"


def test_what_was_spoiled_runs_once_more(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ONCE + GOOD + SPOILED
    first = play(pytester, monkeypatch, text, "--numprocesses=2", "--dist=loadfile")
    assert first.ret == slips.SPOILED
    first.assert_outcomes(passed=1, failed=1)
    first.stdout.fnmatch_lines(
        ["test_it.py::test_spoiled", "*canonical/lxd#15955*readdirent /var/lib/lxd/x: bad file*"]
    )
    second = play(pytester, monkeypatch, text, "--numprocesses=0", "--spoiled")
    assert second.ret == pytest.ExitCode.OK
    second.assert_outcomes(passed=1)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_what_nothing_explains_has_failed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    # What was said during a test that passed explains no other one.
    source = f"def test_before():\n    {SPOILS}\n"
    done = play(pytester, monkeypatch, ONCE + source + WRONG, "-n", workers, "--dist=loadfile")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.no_fnmatch_line("*15955*")


def test_one_failure_that_nothing_explains_is_enough(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = play(pytester, monkeypatch, ONCE + SPOILED + WRONG)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.assert_outcomes(failed=2)


def test_the_second_time_counts(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SPOILED.replace("once('spoiled')", "assert False")
    assert play(pytester, monkeypatch, text).ret == slips.SPOILED
    assert play(pytester, monkeypatch, text, "--spoiled").ret == pytest.ExitCode.TESTS_FAILED


def test_what_is_spoiled_with_a_fixture_that_is_shared(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        f"@pytest.fixture(scope='module')\ndef pod():\n    {SPOILS}\n    once('pod')\n"
        "def test_one(pod): pass\ndef test_two(pod): pass\n"
    )
    done = play(pytester, monkeypatch, ONCE + text)
    assert done.ret == slips.SPOILED
    done.assert_outcomes(errors=2)
    play(pytester, monkeypatch, ONCE + text, "--spoiled").assert_outcomes(passed=2)


def test_what_was_spoiled_and_is_not_found_again(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert play(pytester, monkeypatch, ONCE + SPOILED).ret == slips.SPOILED
    done = play(pytester, monkeypatch, GOOD, "--spoiled")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
