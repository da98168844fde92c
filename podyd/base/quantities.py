"""Sizes, counts and durations: the units, and how they are written.

The engine takes a size in its own words alone, and podyd.yaml as the engine does; a member may type
one as they are used to (`typed_size`).
"""

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
# In capitals; a letter alone as Slurm, systemd and docker mean it.
_TYPED_UNITS: dict[str, int] = {
    **{name.upper(): factor for name, factor in UNITS.items()},
    **{letter: 1024**power for power, letter in enumerate("KMGT", 1)},
}
# A month has no one length.
SECONDS = {"y": 365 * 86400, "w": 7 * 86400, "d": 86400, "h": 3600, "s": 1}


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


def typed_size(text: str) -> int | None:
    """Bytes of `8GiB`, `8g` (the same), `1.5 GB` or a number, up to units of T, in any case; or
    None."""
    match = re.fullmatch(r"(\d{1,16})(\.\d{1,6})? ?([KMGT]?i?B?)", text, re.ASCII | re.IGNORECASE)
    factor = _TYPED_UNITS.get(match[3].upper()) if match else None
    if match is None or factor is None:
        return None
    return int(match[1]) * factor + int(float(match[2] or 0) * factor)


def shown_size(size: int) -> str:
    """Bytes for a sentence, exactly: "1.5 GiB", "5 GB" or "366.7 MiB (384478822 bytes)"."""
    for name, factor in sorted(UNITS.items(), key=lambda unit: -unit[1]):
        if 1 < factor <= size < 1024 * factor and size * 10 % factor == 0:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {name}"
    exact = f"{size} bytes"
    fitting = [(factor, name) for name, factor in UNITS.items() if "i" in name and factor <= size]
    if not fitting:
        return exact
    factor, name = max(fitting)
    return f"{size / factor:.1f} {name} ({exact})"


def parse_count(value: Any) -> int:
    """A whole number from 0 up; -1 is no limit. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < UNLIMITED:
        raise ValueError("a whole number, or -1 for no limit")
    return value


def numbers_of(text: str) -> frozenset[int]:
    """The numbers of a set such as `0-3,8`, as the engine and the kernel write one; "" is none.
    Raises ValueError."""
    ends = [part.partition("-") for part in text.split(",") if part]
    return frozenset(
        number for low, _, high in ends for number in range(int(low), int(high or low) + 1)
    )
