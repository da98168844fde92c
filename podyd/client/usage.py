"""Who has used how much, with bars."""

from __future__ import annotations

from collections.abc import Mapping

from podyd.client import show

BAR_COLUMNS = 30


def chart(seconds: Mapping[str, float]) -> list[str]:
    """A line for each user, the greediest first."""
    most = max(seconds.values(), default=0)
    ordered = sorted(seconds.items(), key=lambda item: (-item[1], item[0]))
    rows = [{"user": user, "time": show.duration(value)} for user, value in ordered]
    bars = ["", *("█" * round(value / most * BAR_COLUMNS) if most else "" for _, value in ordered)]
    lines = show.table(rows, ("user", "time"))
    width = max(map(show.columns_of, lines))
    return [
        f"{line}{' ' * (width - show.columns_of(line))}  {bar}".rstrip()
        for line, bar in zip(lines, bars, strict=True)
    ]
