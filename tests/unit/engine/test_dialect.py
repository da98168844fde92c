"""Which engine podyd talks to."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from podyd.base.errors import SetupError
from podyd.engine import dialect
from podyd.engine.dialect import CERTIFICATE, CHOICE, INCUS, LXD, chosen, kept, place_of, running
from tests.lab import lab


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both engines listen, in directories of their own."""
    with ExitStack() as held:
        for item in (LXD, INCUS):
            directory = tmp_path / item.key
            directory.mkdir()
            listener = held.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(directory / "unix.socket"))
            monkeypatch.setenv(item.directory_variable, str(directory))
        yield tmp_path


def test_what_runs(sockets: Path) -> None:
    assert running() == [LXD, INCUS]
    (sockets / "lxd/unix.socket").unlink()
    assert running() == [INCUS]
    assert place_of(INCUS).directory == sockets / "incus"
    with pytest.raises(SetupError, match="LXD is not running here"):
        place_of(LXD)


def test_what_podyd_yaml_says_counts(sockets: Path, tmp_path: Path) -> None:
    assert chosen("incus", tmp_path / "state") is INCUS
    assert chosen("lxd", tmp_path / "state") is LXD


def test_what_setup_has_chosen_stays(sockets: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    assert kept(state) is None
    assert chosen("auto", state) is LXD
    (sockets / "lxd/unix.socket").unlink()
    assert chosen("auto", state) is INCUS
    (state / CHOICE).write_text("lxd\n")
    assert chosen("auto", state) is LXD


@pytest.mark.parametrize("text", [b"docker\n", b"", b"lxd\0\0", b"\xff\n", "lxd\u00a0".encode()])
def test_what_names_no_engine_is_no_choice(tmp_path: Path, text: bytes) -> None:
    """Not even where an older podyd's certificate is: it may be the other one that has the pods."""
    (tmp_path / "lxd").mkdir()
    (tmp_path / "lxd" / CERTIFICATE).touch()
    (tmp_path / CHOICE).write_bytes(text)
    with pytest.raises(SetupError, match=r"does not say which.*Write 'engine: lxd' or"):
        kept(tmp_path)
    with pytest.raises(SetupError):
        chosen("auto", tmp_path)
    assert chosen("incus", tmp_path) is INCUS


def test_an_older_podyd_had_lxd(tmp_path: Path) -> None:
    # The package makes the directory before setup has chosen.
    (tmp_path / "lxd").mkdir()
    assert kept(tmp_path) is None
    (tmp_path / "lxd" / CERTIFICATE).touch()
    assert kept(tmp_path) is LXD


def test_headers_begin_as_the_engine_has_it() -> None:
    assert LXD.header_of("mode") == "X-LXD-mode"
    assert INCUS.header_of("mode") == "X-Incus-mode"


def test_each_has_its_word() -> None:
    assert [dialect.named(key) for key in dialect.KEYS[1:]] == [LXD, INCUS]


def test_an_image_of_the_admins_comes_to_where_podyd_finds_it() -> None:
    assert LXD.copy_image("podyd") == "lxc image copy SERVER:IMAGE local: --alias NAME"
    assert INCUS.copy_image("podyd") == (
        "incus image copy SERVER:IMAGE local: --alias NAME --target-project podyd"
    )


def test_the_lab_knows_the_dialects_where_python_is_alone() -> None:
    """It is brought up before podyd's libraries are installed."""
    alone = [sys.executable, "-I", "-S", lab.__file__, "up", "--help"]
    done = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{{{LXD.key},{INCUS.key}}}" in done.stdout
