"""The table of `make coverage`."""

from __future__ import annotations

from pathlib import Path

from tests.covered import table

ROOT = Path("/src")


def file(lines: tuple[int, int], branches: tuple[int, int]) -> dict[str, dict[str, int]]:
    return {
        "summary": {
            "covered_lines": lines[0],
            "num_statements": lines[1],
            "covered_branches": branches[0],
            "num_branches": branches[1],
        }
    }


def test_packages_and_the_core_are_summed_up() -> None:
    files = {
        "podyd/app.py": file((1, 2), (0, 0)),
        "podyd/pods/limits.py": file((3, 4), (1, 2)),
        "podyd/pods/disks.py": file((0, 4), (0, 0)),
        "/src/podyd/client/main.py": file((5, 5), (2, 2)),
    }
    rows = [line.split() for line in table(files, ROOT).splitlines()[1:]]
    assert rows == [
        ["podyd/app.py", "1/2", "0/0", "50.0%"],
        ["podyd/client", "5/5", "2/2", "100.0%"],
        ["podyd/pods", "3/8", "1/2", "40.0%"],
        ["the", "client", "5/5", "2/2", "100.0%"],
        ["the", "core", "4/10", "1/2", "41.7%"],
    ]
