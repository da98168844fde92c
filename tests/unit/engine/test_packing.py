"""What `podyd packing` says, whatever lies in the directories."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from podyd.engine import packing
from podyd.engine.growth import Packing
from podyd.engine.packing import IMAGES, MOUNTED, Sizes, built, look, squashed

BUILD, IMAGE, SQUASHFS = "lxd_build_1", "lxd_build_image_2", "lxd_compress_3"


def put(path: Path, size: int = 8192) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\1" * size)
    return path


def images(*places: Path) -> Sizes:
    return look([[place] for place in places], built)


def test_an_image_is_there_before_its_turn(tmp_path: Path) -> None:
    assert images(tmp_path / "none") is None
    assert images(tmp_path) == {}
    (tmp_path / BUILD).mkdir()
    put(tmp_path / BUILD / "lxd_post_9")
    assert images(tmp_path) == {"0/lxd_build_1": None}
    put(tmp_path / BUILD / IMAGE, 5000)
    put(tmp_path / BUILD / "lxd_build_image_3.compressed", 6000)
    # A finished image, and others' files.
    put(tmp_path / ("a" * 64))
    put(tmp_path / "lxd_build_7")
    assert images(tmp_path, tmp_path / "none", tmp_path) == {"0/lxd_build_1": 6000}


def test_only_what_is_written_counts(tmp_path: Path) -> None:
    with put(tmp_path / SQUASHFS, 4096).open("ab") as file:
        file.truncate(2**30)
    assert look([[tmp_path]], squashed) == {"0/lxd_compress_3": 4096}


@pytest.mark.parametrize(
    "name",
    [
        "lxd_compress_",
        "lxd_compress_1x",
        "lxd_compress_1\n",
        "lxd_compress_\u0661",
        "lxd_compress_" + "1" * 21,
        os.fsdecode(b"lxd_compress_\xff"),
        f"x{SQUASHFS}",
    ],
    ids=ascii,
)
def test_names_that_are_not_lxds(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    assert look([[tmp_path]], squashed) == {}


def test_links_lead_nowhere(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret")
    (tmp_path / SQUASHFS).symlink_to(secret)
    away = tmp_path / "away"
    put(away / BUILD / IMAGE)
    here = tmp_path / "here"
    here.mkdir()
    (here / BUILD).symlink_to(away / BUILD)
    (here / "lxd_build_5").mkdir()
    (here / "lxd_build_5" / IMAGE).symlink_to(secret)
    assert look([[tmp_path]], squashed) == {}
    assert images(here) == {"0/lxd_build_5": None}


def test_what_is_no_file_does_not_count(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SQUASHFS)
    (tmp_path / "lxd_compress_4").mkdir()
    assert look([[tmp_path]], squashed) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("kind", ["link", "directory"])
def test_the_way_leads_through_no_link_and_nobody_elses(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "away" / SQUASHFS)
    snap = tmp_path / "snap.lxd"
    snap.mkdir()
    assert look([[tmp_path, "snap.lxd", "tmp"]], squashed) is None
    if kind == "link":
        (snap / "tmp").symlink_to(tmp_path / "away")
    else:
        put(snap / "tmp" / SQUASHFS)
        assert look([[tmp_path, "snap.lxd", "tmp"]], squashed) == {"0/lxd_compress_3": 8192}
        # Whoever has it may put something else there at any time, such as what hangs.
        os.chown(snap, 65534, 65534)
    assert look([[tmp_path, "snap.lxd", "tmp"]], squashed) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_is_somebody_elses_does_not_count(tmp_path: Path) -> None:
    os.chown(put(tmp_path / SQUASHFS), 65534, 65534)
    assert look([[tmp_path]], squashed) == {}
    put(tmp_path / BUILD / IMAGE)
    os.chown(tmp_path / BUILD, 65534, 65534)
    assert images(tmp_path) == {}
    os.chown(tmp_path, 65534, 65534)
    assert images(tmp_path) is None


def test_too_many_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(packing.MAX_SIZES):
        put(tmp_path / f"lxd_compress_{10**19 + number}", 1)
    report = look([[tmp_path]], squashed)
    assert report is not None
    assert len(report) == packing.MAX_SIZES
    both = dict.fromkeys(("images", "scratch"), report)
    assert len(json.dumps(both)) < packing.MAX_LINE_BYTES
    put(tmp_path / "lxd_compress_1")
    assert look([[tmp_path]], squashed) is None
    # Nor is more looked at than this, whatever it is.
    monkeypatch.setattr(packing, "MAX_ENTRIES", 3)
    for number in range(4):
        put(tmp_path / "many" / f"x{number}")
    assert look([[tmp_path / "many"]], squashed) is None


def test_its_unit_sees_the_images_and_no_more_of_lxd() -> None:
    unit = (Path(__file__).parents[3] / "systemd/podyd-packing.service").read_text().splitlines()
    for path, mounted in zip(IMAGES, MOUNTED, strict=True):
        assert f"BindReadOnlyPaths=-{path}:{mounted}" in unit
    hidden = "/var/lib/lxd", "/var/snap/lxd", "/var/lib/incus", "/var/lib/podyd"
    assert f"InaccessiblePaths={' '.join(f'-{path}' for path in hidden)}" in "\n".join(unit)
    assert "CapabilityBoundingSet=" in unit
    assert "PrivateTmp=yes" not in unit, "LXD's squashfs are in /tmp"


@contextlib.contextmanager
def running(path: Path, uid: int, lxd: Path) -> Iterator[None]:
    code = (
        "import sys; from pathlib import Path; from podyd.engine import packing;"
        f"packing.serve(lambda: Path({str(path)!r}), uid={uid}, gid=0)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "LXD_DIR": str(lxd)}
    )
    try:
        for _ in range(1000):
            if path.exists() or process.poll() is not None:
                break
            threading.Event().wait(0.01)
        yield
    finally:
        process.terminate()
        assert process.wait(10) == 0
    assert not path.exists()


def asked(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        return connection.makefile("rb").read()


def test_one_line_and_no_questions(tmp_path: Path) -> None:
    path = tmp_path / "run/packing.sock"
    put(tmp_path / "images" / BUILD / IMAGE, 5000)
    with running(path, os.geteuid(), tmp_path):
        # Neither who does not read nor who talks holds it up.
        with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as loud:
            silent.connect(str(path))
            loud.connect(str(path))
            with contextlib.suppress(OSError):
                loud.sendall(b"x" * 10**6)
            line = asked(path)
        assert line.endswith(b"}\n")
        assert line.count(b"\n") == 1
        data = json.loads(line)
        assert data["images"]["0/lxd_build_1"] == 5000
        assert set(data) == {"images", "scratch"}
        output = asyncio.run(Packing(str(path)).look())
        assert output is not None
        assert output.images["0/lxd_build_1"] == 5000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_others_are_told_nothing(tmp_path: Path) -> None:
    path = Path(f"/run/podyd-test-packing-{os.getpid()}.sock")
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "print(s.makefile().read())"
    )
    with running(path, 1, tmp_path):
        path.chmod(0o666)
        client = ["/usr/bin/python3", "-I", "-c", code, str(path)]
        for uid, answer in ((1, '"images"'), (65534, '{"error": "forbidden"}')):
            done = subprocess.run(
                ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *client],
                capture_output=True,
                text=True,
                check=True,
            )
            assert answer in done.stdout
