"""`make coverage`: how much of podyd's code the tests run, each package in a line.

Arguments are pytest's; without any, the unit tests. Whatever Python they start counts too, podyd's
service, helper and relay with it, whichever account they run as. The lines themselves are in
build/coverage/index.html.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "build/coverage"
# It is installed without the rest, and most of it is run as a program of the members'.
CLIENT = "podyd/client"
UNIT = ("tests/unit", "--numprocesses=auto")

SETTINGS = """\
[run]
branch = true
source_pkgs = podyd
parallel = true
data_file = {data}/covered
# Of podyd's own: the helper's children, who end without more ado.
patch = _exit, fork
# Of most processes that tests start, little or nothing is podyd's.
disable_warnings = module-not-imported, no-data-collected, module-not-measured, already-imported

[paths]
podyd =
    {root}/podyd
    */lib/podyd

[report]
exclude_also =
    if TYPE_CHECKING:
    raise NotImplementedError
"""


def main(arguments: Sequence[str]) -> int:
    # Not below this checkout, which podyd's account of the tests may not be able to read.
    directory = Path(tempfile.mkdtemp(prefix="podyd-test-coverage-", dir="/var/tmp"))
    try:
        settings = _prepare(directory)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *(arguments or UNIT)],
            cwd=ROOT,
            env={
                **os.environ,
                "COVERAGE_PROCESS_START": str(settings),
                "PODYD_COVERAGE": str(directory / "python"),
            },
            check=False,
        )
        _report(settings)
    finally:
        shutil.rmtree(directory)
    return done.returncode


def _prepare(directory: Path) -> Path:
    """What measures a Python that is started with it, and the file with its settings."""
    directory.chmod(0o755)
    data, python, settings = directory / "data", directory / "python", directory / "settings"
    data.mkdir()
    data.chmod(0o1777)
    shutil.copytree(_library(), python / "coverage")
    # Beside the sitecustomize with which the harness sets constants.
    (python / "usercustomize.py").write_text("import coverage\ncoverage.process_startup()\n")
    settings.write_text(SETTINGS.format(data=data, root=ROOT))
    return settings


def _library() -> Path:
    spec = importlib.util.find_spec("coverage")
    assert spec is not None and spec.origin is not None, "coverage.py: type 'make environment'"
    return Path(spec.origin).parent


def _report(settings: Path) -> None:
    output = settings.with_name("found.json")

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "coverage", *words, f"--rcfile={settings}", "--quiet"]
        # A process that a test has killed leaves half a file, of which coverage warns.
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"coverage {words[0]}: {done.stdout}{done.stderr}")

    run("combine")
    run("json", "-o", str(output))
    run("html", "-d", str(REPORT))
    print(table(json.loads(output.read_text())["files"], ROOT))
    print(f"\n{(REPORT / 'index.html').relative_to(ROOT)} has the lines.")


def table(files: dict[str, dict[str, dict[str, int]]], root: Path) -> str:
    """Lines and branches of each package, and of the core: of all but the client."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for name, one in files.items():
        path = (root / name).relative_to(root)
        rows = [str(path.parent if len(path.parts) > 2 else path)]
        rows.append("the client" if path.is_relative_to(CLIENT) else "the core")
        what = one["summary"]
        for row in rows:
            keys = ("covered_lines", "num_statements", "covered_branches", "num_branches")
            sums[row] = [a + what[key] for a, key in zip(sums[row], keys, strict=True)]
    lines = [f"{'':24} {'lines':>12} {'branches':>12}   both"]
    ends = ("the client", "the core")
    for row in sorted(sums, key=lambda row: (row in ends, row)):
        covered, statements, taken, branches = sums[row]
        both = (covered + taken) / max(1, statements + branches)
        lines.append(f"{row:24} {covered:>6}/{statements:<5} {taken:>6}/{branches:<5} {both:>6.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
