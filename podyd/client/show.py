"""Answers as a person reads them.

What comes from the server may have been written by other members (the name of a process, say), so
whatever could steer a terminal is shown in place of being sent to it. The one exception is the
output of the user's own command.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "-"
SECONDS = {"idle", "retry_after", "seconds", "timeout", "uptime"}
# Their keys are users' names.
ROUTES_IN_SECONDS = {"stat/cputime", "stat/gputime"}
UNITS = {"power": "W", "power_limit": "W", "temperature": "°C", "utilisation": "%"}
# What columns are called, where that is not their key.
TITLES = {
    "addresses": "address",
    "disk_used": "disk",
    "gpu_ids": "GPUs",
    "gpu_memory_used": "memory",
    "ins": "pod",
    "index": "GPU",
    "gpu": "GPU",
}
SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
# JSON as Python reads it has infinity, and numbers that are none.
LONGEST = 1e12
SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def answer(route: str, data: Any, width: int) -> str:
    """An answer, for a terminal of `width` columns."""
    if is_output(data):
        log: str = data["log"]
        return log if log.endswith("\n") or not log else f"{log}\n"
    if route.strip("/") in ROUTES_IN_SECONDS and isinstance(data, dict):
        data = {name: duration(value) for name, value in data.items()}
    lines = _lines(data, width) if data not in ([], {}) else ["(none)"]
    return "".join(f"{line}\n" for line in lines)


def is_output(data: Any) -> bool:
    """Whether an answer has the output of a command."""
    return isinstance(data, dict) and "exit_code" in data and isinstance(data.get("log"), str)


def remarks(output: Mapping[str, Any]) -> list[str]:
    """Remarks on a command, beside its output."""
    lines = []
    if output.get("timed_out"):
        lines.append("The command reached its timeout; it and all that it started were killed.")
    elif output["exit_code"] != 0:
        lines.append(f"The command ended with exit status {output['exit_code']}.")
    if output.get("truncated"):
        lines.append("There was more output; what exceeded the limit is lost.")
    if output.get("oom_killed"):
        lines.append(killed(output.get("memory_limit")))
    return lines


def killed(limit: int | None, ins: str = "NAME") -> str:
    """The message if the kernel has killed a process of a command for memory."""
    if limit is not None and limit < 0:
        return "killed: the host had no more memory; the pod has no limit of its own"
    of = "" if limit is None else f" of {size(limit)}"
    return (
        f"killed: the pod's memory limit{of} was reached; more, within your quota:"
        f" pody limits {ins} --memory SIZE"
    )


def routes(entries: Sequence[Mapping[str, Any]]) -> str:
    """The routes of /help as one types them; of a single one, what its parameters are too."""
    lines = []
    for entry in entries:
        params = entry.get("params", [])
        words = ["pody", entry["methods"][0].lower(), entry["path"].lstrip("/")]
        lines.append(" ".join([*words, *(_word(param) for param in params)]))
        lines += [f"    {entry['help']}"] if entry.get("help") else []
        if len(entries) == 1:
            lines += [f"    {_described(param)}" for param in params]
    return "".join(f"{harmless(line)}\n" for line in lines)


def _word(param: Mapping[str, Any]) -> str:
    word = f"{param['name']}:{param['name'].upper()}"
    return f"[{word}]" if param.get("optional") else word


def _described(param: Mapping[str, Any]) -> str:
    return f"{param['name']}: {param['help']}" if param.get("help") else str(param["name"])


def table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """These columns, one line a row, however wide it is."""
    cells = [[TITLES.get(key, key) for key in keys]]
    cells += [[cell(key, row.get(key)) for key in keys] for row in rows]
    return _aligned(cells)


def cut(line: str, width: int) -> str:
    """As much of a line as a terminal of `width` columns shows in one."""
    while columns_of(line) > width:
        line = line[: width if len(line) > width else -1]
    return line


# --- Lines --------------------------------------------------------------------------------------


def _lines(data: Any, width: int) -> list[str]:
    if isinstance(data, dict):
        return _object(data, width)
    if _is_rows(data):
        return _table(data, width) or _blocks(data, width)
    if isinstance(data, list) and all(isinstance(item, str) for item in data):
        return [harmless(item) for item in data]
    return [cell("", data)]


def _object(data: Mapping[str, Any], width: int) -> list[str]:
    lines = []
    for key, value in data.items():
        if key == "log" and isinstance(value, str):
            lines += [harmless(line) for line in value.splitlines()]
        elif _is_nested(value):
            lines.append(f"{harmless(key)}:")
            lines += [f"  {line}" for line in _lines(value, width - 2)]
        else:
            lines.append(f"{harmless(key)}: {cell(key, value)}")
    return lines


def _is_rows(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(row, dict) for row in data)


def _is_nested(value: Any) -> bool:
    return bool(value) and (isinstance(value, dict) or _is_rows(value))


def _table(rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """One line a row; nothing if it is too wide, or if a row is more than one line."""
    if any(_is_nested(value) for row in rows for value in row.values()):
        return []
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[harmless(key) for key in keys]]
    cells += [[cell(key, row.get(key)) for key in keys] for row in rows]
    lines = _aligned(cells)
    return lines if max(map(columns_of, lines)) <= width else []


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    columns = [max(columns_of(text) for text in column) for column in zip(*cells, strict=True)]
    return [_row(line, columns) for line in cells]


def _row(texts: Sequence[str], columns: Sequence[int]) -> str:
    padded = [
        text + " " * (column - columns_of(text))
        for text, column in zip(texts, columns, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _blocks(rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    lines = []
    for row in rows:
        lines += ["", *_object(row, width)]
    return lines[1:]


# --- Cells --------------------------------------------------------------------------------------


def cell(key: str, value: Any) -> str:
    """One value, in the unit that its key tells."""
    if value in (None, "", [], {}):
        return NOTHING
    if isinstance(value, list):
        return ", ".join(cell(key, item) for item in value)
    if isinstance(value, bool) or key.startswith("is_"):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(key, value)
    return harmless(str(value))


def _number(key: str, value: float) -> str:
    if value == -1 and re.search(r"^max_|_(limit|count|size|total)$", key):
        return "no limit"
    if key == "size" or key.endswith("_bytes") or {"memory", "disk"} & {*key.split("_")}:
        return size(value)
    if key in SECONDS or key.endswith("_seconds"):
        return duration(value)
    return f"{value} {UNITS[key]}" if key in UNITS else str(value)


def size(value: float) -> str:
    """Bytes, as `64 GiB`."""
    for unit in SIZES:
        # 1023.95 would be rounded to 1024.0.
        if value < 1023.95 or unit == SIZES[-1]:
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def duration(value: float) -> str:
    """Seconds, in the two largest units that say something."""
    if value < 59.95:
        return f"{value:.3g} s"
    if not value < LONGEST:
        return str(value)
    left = round(value)
    parts: list[tuple[int, str]] = []
    for span, unit in SPANS:
        count, left = divmod(left, span)
        parts += [(count, unit)] if count or parts else []
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count)


# --- Characters ---------------------------------------------------------------------------------


def harmless(text: str) -> str:
    """The text with all that is no visible character written out, as `\\x1b`."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def harmless_json(text: str) -> str:
    """The same JSON, with all that is no visible character escaped as JSON escapes it."""
    return "".join(char if char.isprintable() else _json_escape(char) for char in text)


def _json_escape(char: str) -> str:
    # These stand between values only, where a space says the same and a backslash nothing.
    return " " if char in "\t\n\r" else json.dumps(char)[1:-1]


def columns_of(text: str) -> int:
    """How wide a terminal shows it."""
    if text.isascii():
        return len(text)
    marks = sum(unicodedata.combining(char) != 0 for char in text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) - marks + wide
