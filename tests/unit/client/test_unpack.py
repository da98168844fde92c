"""A tar file that a pod has written, on a member's machine."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from podyd.client.failure import Away
from podyd.client.pack import pack
from podyd.client.unpack import unpack

Member = tuple[str, bytes, str]


def tar_of(*members: Member, mode: int = 0o644) -> io.BytesIO:
    """A tar file: names, types and what is in a file or where a link leads."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            if kind == tarfile.REGTYPE:
                info.size = len(content.encode())
                tar.addfile(info, io.BytesIO(content.encode()))
            else:
                info.linkname = content
                tar.addfile(info)
    packed.seek(0)
    return packed


FILE, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
FOLDER, PIPE, DEVICE = tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE


def tree(top: Path) -> dict[str, str]:
    """All that is below: the files' content, and where links lead."""
    return {
        str(path.relative_to(top)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in sorted(top.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where it shall be; beside it is what a pod wants to get at."""
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "into").mkdir()
    return tmp_path / "into/target"


def unpacked(source: io.BytesIO, place: Path) -> tuple[dict[str, str], list[str]]:
    left: list[str] = []
    unpack(source, place, left.append)
    outside = {path.name for path in place.parent.parent.iterdir()} - {"into", "secret"}
    assert not outside
    assert (place.parent.parent / "secret").read_text() == "mine"
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    return tree(place), left


def test_files_folders_and_links(place: Path) -> None:
    source = tar_of(
        (".", FOLDER, ""),
        ("./a", FILE, "1"),
        ("./sub/grüß\n", FILE, "2"),
        ("./link", LINK, "sub/grüß\n"),
        ("./hard", HARD, "./a"),
    )
    assert unpacked(source, place) == (
        {"a": "1", "hard": "1", "link": "sub/grüß\n", "sub/grüß\n": "2"},
        [],
    )


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", FILE, "x")],
        [("/tmp/podyd-evil", FILE, "x")],
        [("a/../../evil", FILE, "x")],
        [("out", LINK, "/etc/passwd")],
        [("out", LINK, "../../secret")],
        [("out", LINK, "..")],
        [("hard", HARD, "../../secret")],
        [("pipe", PIPE, "")],
        [("device", DEVICE, "")],
    ],
    ids=lambda members: members[0][0] + " " + members[0][2],
)
def test_what_leads_out_is_left_out(place: Path, members: list[Member]) -> None:
    unpacked_files, left = unpacked(tar_of((".", FOLDER, ""), *members, ("good", FILE, "y")), place)
    assert unpacked_files == {"good": "y"}
    assert len(left) == 1
    assert "skipped" in left[0]


@pytest.mark.parametrize(
    "members",
    [
        # A link, and then a file through it.
        [("d", LINK, "../.."), ("d/secret", FILE, "evil")],
        [("d", LINK, "/tmp"), ("d/podyd-evil", FILE, "evil")],
        # A file, and then a link in its place.
        [("s", LINK, "../../secret"), ("s", FILE, "evil")],
        # Two links that are harmless one by one.
        [("t", FOLDER, ""), ("a/b/q", LINK, "../../t"), ("l", LINK, "a/b/q/../../secret")],
        [("a", LINK, "b"), ("b", LINK, "../.."), ("a/secret", FILE, "evil")],
        [("a", LINK, "a")],
    ],
    ids=str,
)
def test_no_link_leads_a_file_elsewhere(place: Path, members: list[Member]) -> None:
    unpacked_files, _ = unpacked(tar_of((".", FOLDER, ""), *members), place)
    for name in unpacked_files:
        path = place / name
        if path.is_symlink() and path.exists():
            assert place.resolve() in path.resolve().parents or path.resolve() == place.resolve()


def test_nobody_is_setuid(place: Path) -> None:
    unpacked(tar_of((".", FOLDER, ""), ("tool", FILE, "x"), mode=0o6755), place)
    assert stat.S_IMODE((place / "tool").stat().st_mode) == 0o755


class Endless(io.RawIOBase):
    """A header, and then zeros for as long as they are read."""

    def __init__(self, header: bytes) -> None:
        self._header = header
        self.taken = 0

    def read(self, count: int | None = -1, /) -> bytes:
        assert count is not None
        assert self.taken < 2**24, "it holds all that comes"
        data, self._header = self._header[:count], self._header[count:]
        data += bytes(count - len(data))
        self.taken += count
        return data


def header_of(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_a_name_of_a_terabyte_is_not_held(place: Path, kind: bytes) -> None:
    source = Endless(header_of(kind, 2**40))
    with pytest.raises(Away, match="not a complete tar file"):
        unpack(source, place, lambda _: None)
    assert source.taken < 2**20, "it is refused by its header"
    assert list(place.parent.iterdir()) == []


def test_a_file_of_holes_fills_no_disk(place: Path) -> None:
    headers = {
        "GNU.sparse.map": f"{2**40},0",
        "GNU.sparse.size": str(2**40),
        "GNU.sparse.numblocks": "1",
    }
    packed = with_headers(FILE, headers)
    unpacked_files, left = unpacked(packed, place)
    assert (unpacked_files, len(left)) == ({}, 1)


def test_a_header_that_is_none_is_not_the_end(place: Path) -> None:
    whole = bytearray(tar_of(("a", FILE, "1"), ("b", FILE, "2")).getvalue())
    whole[1024] ^= 1
    with pytest.raises(Away, match="not a complete tar file"):
        unpack(io.BytesIO(whole), place, lambda _: None)
    assert list(place.parent.iterdir()) == []


ODD = [
    {"GNU.sparse.map": "x", "GNU.sparse.size": "1", "GNU.sparse.numblocks": "1"},
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"},
]


@pytest.mark.parametrize("headers", ODD, ids=str)
def test_a_header_that_python_stumbles_over(place: Path, headers: dict[str, str]) -> None:
    with pytest.raises(Away, match="not a complete tar file"):
        unpack(with_headers(FILE, headers), place, lambda _: None)


@pytest.mark.parametrize("kind", [FILE, FOLDER])
@pytest.mark.parametrize("time", ["inf", "nan", "1e300", "-1e300"])
def test_a_time_that_there_is_not(place: Path, kind: bytes, time: str) -> None:
    unpack(with_headers(kind, {"mtime": time}), place, lambda _: None)
    assert (place / "x").exists()


def with_headers(kind: bytes, headers: dict[str, str]) -> io.BytesIO:
    packed = io.BytesIO()
    info = tarfile.TarInfo("x")
    info.type, info.pax_headers = kind, headers
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    packed.seek(0)
    return packed


def test_many_files_are_not_kept_in_mind(tmp_path: Path) -> None:
    blocks = iter([tarfile.TarInfo("../x").tobuf() * 20] * 2500)
    source = SimpleNamespace(read=lambda count: next(blocks, b"")[:count])
    tracemalloc.start()
    try:
        unpack(source, tmp_path / "x", lambda _: None)
        # All 50,000 would take 13 MB at least; what other threads of the tests' take counts too.
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_into_a_folder_that_is_there(place: Path, tmp_path: Path) -> None:
    (place / "sub").mkdir(parents=True)
    (place / "sub/old").write_text("old")
    (place / "link").symlink_to(tmp_path)
    source = tar_of(("sub/new", FILE, "new"), ("link/secret", FILE, "evil"), ("a", FILE, "1"))
    unpacked_files, left = unpacked(source, place)
    assert unpacked_files == {"sub/old": "old", "sub/new": "new", "a": "1", "link": str(tmp_path)}
    assert len(left) == 1


class CutOff(io.BytesIO):
    """What comes from a server that goes away."""

    def read(self, count: int | None = -1, /) -> bytes:
        data = super().read(count)
        if not data:
            raise Away("gone")
        return data


@pytest.mark.parametrize("size", [100, 600, 5632, 6000, 8000])
def test_half_a_tar_file_leaves_nothing(place: Path, size: int) -> None:
    whole = tar_of(("a", FILE, "1" * 5000), ("b", FILE, "2" * 5000)).getvalue()
    with pytest.raises(Away):
        unpack(CutOff(whole[:size]), place, lambda _: None)
    assert list(place.parent.iterdir()) == []


def test_a_folder_packed_and_unpacked_is_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "empty").mkdir(parents=True)
    (folder / "sub").mkdir()
    (folder / "sub/odd -n\n\t").write_text("1")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("2")
    (folder / "x").write_text("3")
    (folder / "x").chmod(0o4755)
    os.utime(folder / "x", (0, 1234.5))
    (folder / "link").symlink_to("./sub")
    os.mkfifo(folder / "pipe")
    packed, left = io.BytesIO(), list[str]()
    pack(folder, packed, left.append)
    packed.seek(0)
    unpack(packed, tmp_path / "other", left.append)
    assert len(left) == 1
    assert (tmp_path / "other/empty").is_dir()
    (folder / "pipe").unlink()
    assert tree(tmp_path / "other") == tree(folder)
    status = (tmp_path / "other/x").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 1234.5)
