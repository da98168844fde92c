"""Sizes and counts, as podyd.yaml and LXD write them."""

from __future__ import annotations

import re
from typing import Any

UNLIMITED = -1

UNITS: dict[str, int] = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTPE", 1)},
}


def parse_size(value: Any) -> int:
    """Bytes of `64GiB`, `500MB` or a plain number; -1 is no limit. Raises ValueError."""
    match = re.fullmatch(r"(\d+) ?([A-Za-z]*)", str(value), re.ASCII)
    if isinstance(value, bool) or (match is None and value != UNLIMITED):
        raise ValueError("a size such as 64GiB, or -1 for no limit")
    if match is None:
        return UNLIMITED
    if match[2] not in UNITS:
        raise ValueError(f"a size in one of {', '.join(filter(None, UNITS))}")
    return int(match[1]) * UNITS[match[2]]


def parse_count(value: Any) -> int:
    """A whole number from 0 up; -1 is no limit. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < UNLIMITED:
        raise ValueError("a whole number, or -1 for no limit")
    return value
