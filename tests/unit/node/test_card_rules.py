"""Which numbers are refused, and what the kernel is given for it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from podyd.node.card_rules import (
    Kept,
    Numbers,
    card_numbers,
    kept_of,
    lines,
    permitted,
    program,
    table_of,
)

DEVICES = """Character devices:
  1 mem
{driver}
238 nvidia-uvm
239 nvidia-caps

Block devices:
  7 loop
"""


def host(path: Path, driver: str, drm: dict[str, tuple[str, str]] | None = None) -> Path:
    """The root of a host with a driver's line in /proc/devices; vendor and number of each DRM
    device."""
    (path / "proc").mkdir()
    (path / "proc/devices").write_text(DEVICES.format(driver=driver))
    (path / "dev").mkdir()
    for name, (vendor, number) in (drm or {}).items():
        (path / "sys/class/drm" / name / "device").mkdir(parents=True)
        (path / "sys/class/drm" / name / "device/vendor").write_text(f"{vendor}\n")
        (path / "sys/class/drm" / name / "dev").write_text(f"{number}\n")
    return path


@pytest.mark.parametrize("name", ["nvidia", "nvidia-frontend"])
def test_a_card_that_the_driver_may_yet_add_counts_and_what_all_cards_need_does_not(
    tmp_path: Path, name: str
) -> None:
    numbers = card_numbers(host(tmp_path, f"511 {name}"))
    assert numbers == {(511, minor) for minor in range(254)}


def test_another_makers_screen_is_no_card(tmp_path: Path) -> None:
    drm = {"card0": ("0x1a03", "226:0"), "renderD128": ("0x10de", "226:128")}
    assert card_numbers(host(tmp_path, "10 misc", drm)) == {(226, 128)}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make device nodes")
def test_the_hosts_nodes_count_but_not_files_of_their_names(tmp_path: Path) -> None:
    root = host(tmp_path, "10 misc")
    (root / "dev/nvidia1").write_text("")
    for name, number in (("nvidia0", (195, 0)), ("nvidiactl", (195, 255)), ("null", (1, 3))):
        os.mknod(root / "dev" / name, 0o20666, os.makedev(*number))
    assert card_numbers(root) == {(195, 0)}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"../x": []},
        {"a/b": []},
        {"": []},
        {"a": None},
        {"a": "195:0"},
        {"a": [195]},
        {"a": ["195:0\n"]},
        {"a": ["195:*"]},
        {"a": ["c 195:0 rwm"]},
        {"a": ["0:1"] * 257},
        {f"a{number}": [] for number in range(10_001)},
    ],
)
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"^no "):
        table_of(data)


def test_what_is_kept_is_read_again() -> None:
    table = {"alice-main": frozenset({(195, 1), (195, 0)}), "bob": frozenset[tuple[int, int]]()}
    kept = Kept(table, {7: frozenset({(195, 0)}), 8: None}, "podyd")
    assert kept_of(kept.packed()) == kept
    assert kept_of(Kept().packed()) == Kept()
    assert kept_of('{"permit": null, "had": {}}') == Kept(), "as an older one has kept it"
    assert table_of({"alice-main": ["195:0", "195:1"], "bob": []}) == table


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"permit": [], "had": {}}', '{"permit": {}}'])
def test_what_was_not_kept_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        kept_of(text)


def test_a_cgroup_that_liblxc_numbered_is_the_pods_unless_another_is_called_so() -> None:
    first, second = frozenset({(195, 0)}), frozenset({(195, 1)})
    table = {"alice-main": first, "alice-main-2": second}
    assert permitted(table, "alice-main") == permitted(table, "alice-main-1") == first
    assert permitted(table, "alice-main-2") == second
    assert permitted(table, "alice-other") == frozenset()


def test_the_lines_for_cgroup_v1() -> None:
    assert lines({(195, 1), (195, 0)}) == [b"c 195:0 rwm", b"c 195:1 rwm"]


# --- The program for cgroup v2 ------------------------------------------------------------------


def run(code: bytes, kind: int, major: int, minor: int) -> int:
    """What the kernel would have of it: 1 to allow."""
    context = {0: kind | 6 << 16, 4: major, 8: minor}
    registers = [0] * 11
    instructions = list(struct.iter_unpack("<BBhi", code))
    at = 0
    while True:
        opcode, both, offset, value = instructions[at]
        target = both & 15
        at += 1
        match opcode:
            case 0x61:
                registers[target] = context[offset]
            case 0x57:
                registers[target] &= value
            case 0xB7:
                registers[target] = value
            case 0x95:
                return registers[0]
            case 0x05:
                at += offset
            case 0x55:
                at += offset * (registers[target] != value)
            case 0xA5:
                at += offset * (registers[target] < value)
            case 0xB5:
                at += offset * (registers[target] <= value)
            case _:
                raise AssertionError(hex(opcode))


@pytest.mark.parametrize(
    "refused",
    [
        frozenset(),
        frozenset({(195, 0)}),
        frozenset({(195, 0), (195, 1), (195, 5), (226, 0), (226, 128)}),
        frozenset((195, minor) for minor in range(254) if minor != 3),
    ],
)
def test_the_program_refuses_these_and_nothing_else(refused: Numbers) -> None:
    code = program(refused)
    character, block = 2, 1
    for major in (1, 194, 195, 196, 226):
        for minor in (*range(8), 127, 128, 129, 253, 254, 255, 256):
            is_refused = (major, minor) in refused
            assert run(code, character, major, minor) == (0 if is_refused else 1), (major, minor)
            assert run(code, block, major, minor) == 1
