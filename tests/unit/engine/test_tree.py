"""What LXD's SFTP shows of an instance's files, and what is made of one that answers strangely."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Mapping

import pytest

from podyd.base.errors import Conflict, PodydError, Unavailable
from podyd.engine import tree
from podyd.engine.rest import RestClient
from podyd.engine.tree import holes, is_regular, look
from podyd.engine.types import LARGE_BYTES, File, Holes, Tree

FILE, DIRECTORY, LINK, PIPE = 0o100644, 0o040755, 0o120777, 0o010644
VERSION = struct.pack(">BI", 2, 3)

Entry = tuple[bytes, int, int]


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def names(number: int, *entries: Entry) -> bytes:
    """As pkg/sftp, which LXD has, writes them: size, ids, mode, times, and an extension more."""
    packed = b"".join(
        string(name)
        # This name stands for all files of two names.
        + string(b"-rw-r--r--    %d 0        0 " % (2 if name == b"twin" else 1) + name)
        + struct.pack(">IQIIIIII", 0x8000000F, size, 0, 0, mode, 0, 0, 1)
        + string(b"hello@example")
        + string(b"")
        for name, size, mode in entries
    )
    return struct.pack(">BII", 104, number, len(entries)) + packed


def status(number: int, code: int) -> bytes:
    return struct.pack(">BII", 101, number, code) + string(b"") + string(b"")


def number_of(packet: bytes) -> int:
    return int(struct.unpack_from(">I", packet, 1)[0])


class Writer:
    """Answers what is written to it, as `answer` says."""

    def __init__(self, reader: asyncio.StreamReader, answer: Callable[[bytes], bytes]) -> None:
        self._reader = reader
        self._answer = answer

    def write(self, packet: bytes) -> None:
        self._reader.feed_data(self._answer(packet[4:]))

    def close(self) -> None:
        self._reader.feed_eof()


class Lxd(RestClient):
    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    async def upgraded(
        self, path: str, protocol: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert (path, protocol) == ("/1.0/instances/x/sftp", "sftp")
        reader = asyncio.StreamReader()
        return reader, Writer(reader, self._answer)  # type: ignore[return-value]


def server(directories: Mapping[bytes, list[Entry]]) -> Callable[[bytes], bytes]:
    """Shows these directories, in two answers each."""
    left: dict[bytes, list[list[Entry]]] = {}

    def answer(packet: bytes) -> bytes:
        if packet[0] == 1:
            return string(VERSION)
        number = number_of(packet)
        text = packet[9:]
        if packet[0] == 11:
            if text not in directories:
                return string(status(number, 2))
            half = len(directories[text]) // 2
            left[text] = [directories[text][:half], directories[text][half:]]
            return string(struct.pack(">BI", 102, number) + string(text))
        if packet[0] == 12 and left[text]:
            return string(names(number, *left[text].pop(0)))
        return string(status(number, 1 if packet[0] == 12 else 0))

    return answer


def test_all_files_of_all_directories_count() -> None:
    large = LARGE_BYTES
    output = asyncio.run(
        look(
            Lxd(
                server(
                    {
                        b"/": [
                            (b".", 0, DIRECTORY),
                            (b"..", 0, DIRECTORY),
                            (b"a", large, FILE),
                            (b"\xff", 0, DIRECTORY),
                            (b"link", 7, LINK),
                            (b"twins", 0, DIRECTORY),
                        ],
                        b"/\xff": [(b"b", 2**62, FILE), (b"c", 5, FILE), (b"twin", 8, FILE)],
                        b"/twins": [(b"twin", 8, FILE)],
                    }
                )
            ),
            "x",
        )
    )
    assert output.size_bytes == 2**62 + large + 5 + 8
    assert output.large == (File(b"/\xff/b", 2**62), File(b"/a", large))
    assert output.large[0].text == "/�/b"


def test_how_much_of_files_is_holes() -> None:
    """Nine tenths of /most are one; /gone cannot be read, /short has shrunk; /noise is dense."""

    def answer(packet: bytes) -> bytes:
        if packet[0] == 1:
            return string(VERSION)
        number, path = number_of(packet), packet[9:].split(b"\0")[0]
        if packet[0] == 3 and path != b"/gone":
            return string(struct.pack(">BI", 102, number) + string(path))
        if packet[0] == 5:
            path, (at, count) = packet[9:-12], struct.unpack(">QI", packet[-12:])
            if path in (b"/most", b"/noise", b"/again"):
                data = (b"x" if at % 10 == 0 else b"\0") * count
                data = data if path == b"/most" else random.randbytes(count)
                return string(struct.pack(">BI", 103, number) + string(data))
        return string(status(number, 0 if packet[0] == 4 else 1))

    def found(*files: File, others: int = 7) -> Holes:
        size = sum(file.size for file in files) + others
        return asyncio.run(holes(Lxd(answer), "x", Tree(size, files)))

    some = found(File(b"/most", 2**41))
    assert 0.8 < some.zero_bytes / 2**41 < 0.97
    assert some.zero_bytes + some.data_bytes == 2**41 + 2**41 // 1024 * 5 + 7
    assert found(File(b"/gone", 2**40), File(b"/short", 2**30)) == Holes(0, 2**40 + 2**30 + 7, 0)
    assert found() == Holes(0, 7, 0)
    assert some.dense_bytes == 0
    noise = File(b"/noise", 2**41)
    assert found(noise).dense_bytes == 2**41 // 1024 * (1024 - 5)
    # Half of it is text, or the same once more.
    assert 0.4 < found(noise, File(b"/most", 2**41 - 1)).dense_bytes / 2**42 < 0.6
    assert 0.4 < found(noise, File(b"/again", 2**41)).dense_bytes / 2**42 < 0.6


def test_what_would_be_run_is_out_of_the_way() -> None:
    shown = server({b"/": []})
    asked: list[bytes] = []

    def answer(packet: bytes) -> bytes:
        asked.append(packet)
        # There is no /etc/group.
        is_group = packet[0] == 18 and b"group" in packet
        return string(status(number_of(packet), 2)) if is_group else shown(packet)

    asyncio.run(look(Lxd(answer), "x"))
    kinds = [packet[0] for packet in asked]
    assert kinds == [1, 18, 18, 18, 18, 11, 12, 12, 12, 4, 18, 18, 18]
    (first, last) = (asked[1][9:], asked[-3][9:])
    assert first.startswith(b"/etc/nsswitch.conf\0\0\0")
    away = first[len("/etc/nsswitch.conf") + 4 :]
    assert last == away + string(b"/etc/nsswitch.conf")


def test_a_file_is_told_from_what_only_looks_like_one() -> None:
    modes = {b"file": FILE, b"directory": DIRECTORY, b"link": LINK, b"pipe": PIPE}

    def answer(packet: bytes) -> bytes:
        if packet[0] == 1:
            return string(VERSION)
        number, path = number_of(packet), packet[9:]
        assert packet[0] == 7
        if path not in modes:
            return string(status(number, 2))
        return string(struct.pack(">BIIQI", 105, number, 5, 9, modes[path]))

    async def regular(path: str) -> bool:
        return await is_regular(Lxd(answer), "x", path)

    assert [name for name in ("none", *map(bytes.decode, modes)) if asyncio.run(regular(name))] == [
        "file"
    ]


def test_a_directory_that_cannot_be_seen() -> None:
    with pytest.raises(Conflict, match="'/gone'"):
        asyncio.run(look(Lxd(server({b"/": [(b"gone", 0, DIRECTORY)]})), "x"))


def test_more_names_than_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_HELD_BYTES", 1000)
    entries = [(b"%0250d" % number, 0, DIRECTORY) for number in range(4)]
    with pytest.raises(Conflict) as refused:
        asyncio.run(look(Lxd(server({b"/": entries})), "x"))
    assert refused.value.code == "too_many_files"


@pytest.mark.parametrize(
    "answer",
    [
        string(b""),
        struct.pack(">I", 2**31) + b"x",
        string(b"\x68"),
        # Names that are not there, and a length beyond the end.
        string(struct.pack(">BII", 104, 6, 9)),
        string(struct.pack(">BII", 104, 6, 1) + struct.pack(">I", 2**31)),
    ],
)
def test_answers_that_make_no_sense(answer: bytes) -> None:
    whole = server({b"/": []})

    def answers(packet: bytes) -> bytes:
        # The sixth question is for the entries of the root.
        return whole(packet) if packet[0] in (1, 11, 18) else answer

    async def looked() -> PodydError:
        lxd = Lxd(answers)
        with pytest.raises(PodydError) as failed:
            await asyncio.wait_for(look(lxd, "x"), 5)
        return failed.value

    assert isinstance(asyncio.run(looked()), Unavailable)
