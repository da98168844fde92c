"""What `podyd doctor --keep` has left: root runs it, as podyd itself may not look everywhere."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from podyd.base.clock import iso_of
from podyd.contract.admin import FindingInfo, Findings

MAX_BYTES = 1024**2


async def read(path: Path) -> Findings:
    """The findings in a file; without any, why there are none."""
    return await asyncio.to_thread(_read, path)


async def written(path: Path) -> str | None:
    """When the findings were written (ISO 8601), None if there are none."""
    try:
        return iso_of((await asyncio.to_thread(path.stat)).st_mtime)
    except OSError:
        return None


def _read(path: Path) -> Findings:
    try:
        with path.open("rb") as file:
            kept = json.loads(file.read(MAX_BYTES))
        return Findings(kept["time"], [FindingInfo(**row) for row in kept["findings"]], None)
    except FileNotFoundError:
        problem = "there are no findings yet; 'podyd doctor --keep', typed by root, makes them"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"what podyd doctor left in {path} cannot be read ({error})"
    return Findings(None, None, f"{problem[0].upper()}{problem[1:]}.")
