"""How sizes are written: as LXD and podyd.yaml do, and as members type them."""

from __future__ import annotations

import pytest

from podyd.base.quantities import UNLIMITED, parse_count, parse_size, shown_size, typed_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("7B", 7),
        ("1kB", 1000),
        ("2 MiB", 2 * 1024**2),
        ("1EiB", 1024**6),
        (-1, UNLIMITED),
    ],
)
def test_a_size_as_lxd_writes_it(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["1KB", "1G", "1gib", "1.5GiB", "-2", "", True, None])
def test_lxd_takes_no_other(text: object) -> None:
    with pytest.raises(ValueError, match="a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7),
        ("8GiB", 8 * 1024**3),
        ("8g", 8 * 1024**3),
        ("8gb", 8 * 1000**3),
        ("1kb", 1000),
        ("1.5 T", 3 * 1024**4 // 2),
    ],
)
def test_a_size_as_people_type_it(text: str, size: int) -> None:
    assert typed_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "1P", "1Ki", "1iB", "-1", "1e3", "1_0", "٣"])
def test_what_is_no_size(text: str) -> None:
    assert typed_size(text) is None


@pytest.mark.parametrize("value", [True, 1.0, "1", -2, None])
def test_what_is_no_count(value: object) -> None:
    with pytest.raises(ValueError, match="a whole number"):
        parse_count(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536 * 1024**2, "1.5 GiB"),
        (5 * 1000**3, "5 GB"),
        (1024**4, "1 TiB"),
        (1100 * 1024**2 // 3, "366.7 MiB (384477866 bytes)"),
        (1024**3 - 1, "1024.0 MiB (1073741823 bytes)"),
        # A multiple of 512, as files in a tar archive are.
        (48320 * 1024 + 512, "47.2 MiB (49480192 bytes)"),
    ],
)
def test_a_size_in_a_sentence_is_exact(size: int, text: str) -> None:
    assert shown_size(size) == text
