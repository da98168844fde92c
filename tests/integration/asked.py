"""What the page can ask of podyd, it asks in some test: else the whole run of the tests fails.

The calls are those that modules of podyd/web/js name; whether one was made is what the browser saw
(browser.py). It is judged where every file of page tests has run, and all of them have passed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from podyd.contract.table import OPERATIONS
from tests.integration.browser import ASKED

SCRIPTS = Path(__file__).resolve().parents[2] / "podyd" / "web" / "js"
# The texts name operations as well, each after a slash; a call's path is relative.
_LITERAL = re.compile(r"[\"'`]([a-z][a-z./-]*)[\"'`]")


def named() -> set[str]:
    """The paths of the API that the page's modules name, such as "/pod/start"."""
    words = {
        f"/{word}" for path in SCRIPTS.rglob("*.js") for word in _LITERAL.findall(path.read_text())
    }
    return words & {operation.path for operation in OPERATIONS}


class Asked:
    """A plugin of pytest's, in the workers and in the process that has them."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.passed: set[Path] = set()
        self.is_whole = True
        self.missing: list[str] = []

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        # What has to be alone runs, in a run of its own.
        if any(_is_page(item.path) and not item.get_closest_marker("alone") for item in items):
            self.is_whole = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path = Path(report.fspath)
        if not _is_page(path):
            return
        if report.outcome != "passed":
            self.is_whole = False
        elif report.when == "call":
            self.passed.add(Path(path.name))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker has ended."""
        told = getattr(node, "workeroutput", {})
        self.asked.update(told.get("asked", ()))
        self.is_whole = self.is_whole and bool(told.get("is_whole", False))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.asked |= ASKED
        config: Any = session.config
        if hasattr(config, "workeroutput"):
            config.workeroutput.update(asked=sorted(self.asked), is_whole=self.is_whole)
            return
        files = {Path(path.name) for path in Path(__file__).parent.glob("test_page*.py")}
        if any("::" in word for word in config.args) or files - self.passed or not self.is_whole:
            return
        self.missing = sorted(named() - self.asked)
        if self.missing:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.missing:
            calls = ", ".join(self.missing)
            terminalreporter.write_line(f"No test of the page makes it ask for {calls}.", red=True)


def _is_page(path: Path) -> bool:
    return path.name.startswith("test_page")
